//! Files that survive a crash, and the lock that keeps a second process out of a state folder.

use crate::failpoint;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of files that hold keys or other secrets.
pub const SECRET_MODE: u32 = 0o600;
/// Mode of folders that hold keys or other state.
pub const SECRET_DIR_MODE: u32 = 0o700;

/// What went wrong with a file of ours.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The folder could not be made or restricted.
    #[error("make folder {path}")]
    MakeFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be written; what was there before is still there.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds the state folder.
    #[error("state folder {folder} is in use by process {pid}; stop it first, or choose another folder")]
    Locked {
        /// The state folder.
        folder: PathBuf,
        /// The other process, `?` if it has not written its id yet.
        pid: String,
    },
    /// The lock file could not be opened or locked.
    #[error("lock state folder {folder}")]
    Lock {
        /// The state folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `path` (and its parents) if missing, and sets its mode to 0700. May be repeated.
///
/// # Errors
/// [`FileError::MakeFolder`].
pub fn ensure_private_dir(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::MakeFolder {
        path: path.into(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(SECRET_DIR_MODE)
        .create(path)
        .map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SECRET_DIR_MODE)).map_err(failed)
}

/// Replaces `path` by `bytes` with permissions `mode`. After a crash at any point the file holds the old or the new
/// content, whole; after `Ok` it holds the new one even if the power fails. The folder must exist.
///
/// # Errors
/// [`FileError::Write`]; the old content is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_beside(path);
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        // The mode given to open(2) is reduced by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        failpoint!("file.beside");
        fs::rename(&temporary, path)?;
        failpoint!("file.renamed");
        // The rename itself is durable only once the folder is.
        File::open(parent(path))?.sync_all()
    })();
    result.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        FileError::Write {
            path: path.into(),
            source,
        }
    })
}

/// The file's content, or `None` if there is no such file. At most `limit` bytes.
///
/// # Errors
/// [`FileError::Read`], also if the file is longer than `limit`.
pub fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read {
        path: path.into(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "file is too large")));
    }
    Ok(Some(bytes))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = hex::encode(crate::rng::secret_bytes::<6>());
    parent(path).join(format!(".{name}.{unique}.tmp"))
}

/// The exclusive right to a state folder, held until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    // Closing the file releases the lock.
    _file: File,
    folder: PathBuf,
}

impl FileLock {
    /// Takes the lock of `folder`, making the folder (0700) if missing, and removes temporary files that a crashed
    /// [`write_atomic`] left directly in it.
    ///
    /// # Errors
    /// [`FileError::Locked`] names the process that holds it.
    pub fn acquire(folder: &Path) -> Result<Self, FileError> {
        ensure_private_dir(folder)?;
        let failed = |source| FileError::Lock {
            folder: folder.into(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(SECRET_MODE)
            .open(folder.join("lock"))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() {
                    "?".into()
                } else {
                    pid.trim().into()
                };
                return Err(FileError::Locked {
                    folder: folder.into(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        remove_leftovers(folder);
        Ok(Self {
            _file: file,
            folder: folder.into(),
        })
    }

    /// The folder that is locked.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_replaces_content_and_mode_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_atomic(&path, b"old", 0o644).unwrap();
        write_atomic(&path, b"new", SECRET_MODE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_write_keeps_the_old_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        assert!(write_atomic(&path, b"new", SECRET_MODE).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn second_lock_is_refused_and_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = FileLock::acquire(&state).unwrap();
        let error = FileLock::acquire(&state).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        fs::write(state.join(".key.pem.00ff.tmp"), b"half").unwrap();
        let again = FileLock::acquire(&state).unwrap();
        assert!(!again.folder().join(".key.pem.00ff.tmp").exists());
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn missing_file_is_none_and_a_huge_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(read_optional(&path, 4).unwrap().is_none());
        fs::write(&path, b"12345").unwrap();
        assert!(read_optional(&path, 4).is_err());
        assert_eq!(read_optional(&path, 5).unwrap().unwrap(), b"12345");
    }
}
