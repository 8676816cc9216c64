//! The failpoints of the daemons (`daemon/src/failpoint.rs`): which there are, which were passed, and arming them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A place in a program, by both names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The program, or what a process was told to call itself.
    pub program: String,
    /// The failpoint.
    pub point: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.program, self.point)
    }
}

/// The folder that daemons and test share.
#[derive(Debug, Clone)]
pub struct Points {
    folder: PathBuf,
}

impl Points {
    /// Points in this folder, which is made anew.
    pub fn new(folder: &Path) -> Self {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).expect("the folder can be made");
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Forgets what was passed.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(self.folder.join("reached"));
    }

    /// Everything passed since [`Self::forget`].
    pub fn passed(&self) -> BTreeSet<Place> {
        let text = std::fs::read_to_string(self.folder.join("reached")).unwrap_or_default();
        let place = |line: &str| {
            let (program, point) = line.split_once(' ')?;
            Some(Place {
                program: program.to_owned(),
                point: point.to_owned(),
            })
        };
        text.lines().filter_map(place).collect()
    }

    /// The next process of the program that passes the point dies there.
    pub fn arm(&self, place: &Place) {
        let (armed, fresh) = (self.file(&place.program, "armed"), self.file(&place.program, "new"));
        let _ = std::fs::remove_file(self.file(&place.program, "died"));
        // Whole at once: daemons read it at any time.
        std::fs::write(&fresh, &place.point).expect("the folder is writable");
        std::fs::rename(&fresh, &armed).expect("the folder is writable");
    }

    /// Whether the point armed last in the program was the end of a process.
    pub fn has_died(&self, program: &str) -> bool {
        self.file(program, "died").exists()
    }

    /// Nothing dies any more. Returns whether the point was still armed.
    pub fn disarm(&self, program: &str) -> bool {
        std::fs::remove_file(self.file(program, "armed")).is_ok()
    }

    fn file(&self, program: &str, what: &str) -> PathBuf {
        self.folder.join(format!("{program}.{what}"))
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Every point in the source of the daemons.
pub fn declared() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for part in ["daemon", "root", "cluster-orchestrator", "node-engine", "netmanager"] {
        look(&root.join(part).join("src"), &mut found);
    }
    let all: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(all.len(), found.len(), "two failpoints have the same name: {found:?}");
    all
}

fn look(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("the source is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            look(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).expect("source is text");
            let names = text
                .split("failpoint!(\"")
                .skip(1)
                .filter_map(|rest| rest.split('"').next());
            found.extend(names.map(str::to_owned));
        }
    }
}
