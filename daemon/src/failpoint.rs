//! Failpoints: named places between two steps at which a test lets the process die as if it were killed with -9.
//!
//! Only debug builds have them; in a release build [`failpoint!`](crate::failpoint!) is nothing. They do nothing either
//! unless [`VARIABLE`] names a folder. Then every place that is passed is noted in the file `reached` there, as
//! `PROGRAM POINT`; and a process that passes the place named in the file `PROGRAM.armed` kills itself, after renaming
//! the file to `PROGRAM.died`, so that it happens once. The file says `POINT`, or `POINT N` for the pass after N others.
//! PROGRAM is the name of the binary, or what [`VARIABLE_NAME`] says.
//! The sweep over all of them is `tests/e2e/tests/failpoints.rs`.

/// The environment variable that names the folder.
pub const VARIABLE: &str = "ROBLE_FAILPOINTS";

/// The environment variable that gives a process another name than its binary's.
pub const VARIABLE_NAME: &str = "ROBLE_FAILPOINTS_AS";

/// A place between two steps, by a name that no other place has.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::passed($name);
    };
}

#[cfg(debug_assertions)]
pub use debug::passed;

#[cfg(debug_assertions)]
mod debug {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    struct Place {
        folder: PathBuf,
        program: String,
    }

    fn place() -> Option<&'static Place> {
        static PLACE: OnceLock<Option<Place>> = OnceLock::new();
        let find = || {
            let folder = PathBuf::from(std::env::var_os(super::VARIABLE)?);
            let program = match std::env::var(super::VARIABLE_NAME) {
                Ok(name) => name,
                Err(_) => std::env::current_exe()
                    .ok()?
                    .file_name()?
                    .to_string_lossy()
                    .into_owned(),
            };
            Some(Place { folder, program })
        };
        PLACE.get_or_init(find).as_ref()
    }

    /// Notes that the place was passed; dies here if it is armed. Called by [`failpoint!`](crate::failpoint!).
    pub fn passed(point: &str) {
        let Some(place) = place() else { return };
        // One line in one write, so that lines of several processes do not mix.
        let line = format!("{} {point}\n", place.program);
        let reached = OpenOptions::new()
            .create(true)
            .append(true)
            .open(place.folder.join("reached"));
        let _ = reached.and_then(|mut file| file.write_all(line.as_bytes()));
        let armed = place.folder.join(format!("{}.armed", place.program));
        if is_due(&armed, point) && fs::rename(&armed, armed.with_extension("died")).is_ok() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Whether the file names this place, for this pass.
    fn is_due(armed: &Path, point: &str) -> bool {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(text) = fs::read_to_string(armed) else {
            return false;
        };
        let mut words = text.split_whitespace();
        if words.next() != Some(point) {
            return false;
        }
        match words.next().and_then(|others| others.parse::<u32>().ok()) {
            None | Some(0) => true,
            Some(others) => {
                let _ = fs::write(armed, format!("{point} {}", others - 1));
                false
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::is_due;

        #[test]
        fn a_point_is_due_at_its_pass_and_no_other() {
            let folder = tempfile::tempdir().unwrap();
            let armed = folder.path().join("program.armed");
            assert!(!is_due(&armed, "a"), "nothing is armed");
            std::fs::write(&armed, "a 2").unwrap();
            assert!(!is_due(&armed, "b"));
            assert_eq!([0; 3].map(|_| is_due(&armed, "a")), [false, false, true]);
        }
    }
}
