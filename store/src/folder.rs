//! The folder of an embedded store: its lock, its mark, and what is set aside.
//!
//! ```text
//! LOCK                         held (flock) by the one process that has the store open
//! mark                         format, and a lower bound of the revision that was acknowledged
//! store.redb | store.sled/     the data
//! store.redb.new               a store being made; removed at the next open
//! store.redb.damaged-<time>    set aside; never touched again
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::error::StoreError;
use crate::record::{checksum, u16_at, u64_at};

const MARK_MAGIC: &[u8; 4] = b"RMRK";
const DAMAGED: &str = ".damaged-";

/// Makes renames and new files in `path` survive power loss.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Only the owner may read or write the file.
pub(crate) fn restrict_file(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

/// Opens or makes a file that only its owner may touch.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a folder that only its owner may enter; its parent is synced.
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, Permissions::from_mode(0o700))
        }
        Err(error) => Err(error),
    }
}

/// Removes a file or folder, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A store's folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    mark: File,
    _lock: File,
}

impl Folder {
    /// Makes the folder if needed and locks it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::io("open the store's folder", source);
        let absolute = std::path::absolute(path).map_err(io)?;
        if let Some(parent) = absolute.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        make_private_folder(&absolute).map_err(io)?;
        let lock = open_private(&absolute.join("LOCK")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: absolute }),
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::io("lock the store", source));
            }
        }
        let mark = open_private(&absolute.join("mark")).map_err(io)?;
        Ok(Self {
            path: absolute,
            mark,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn sync(&self) -> Result<(), StoreError> {
        sync_folder(&self.path).map_err(|e| StoreError::io("sync the store's folder", e))
    }

    /// Format and lower bound of the acknowledged revision, if the mark is readable.
    pub fn read_mark(&self) -> Option<(u16, u64)> {
        let mut bytes = [0; 22];
        if let Err(error) = self.mark.read_exact_at(&mut bytes, 0) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                warn!(%error, "store mark unreadable");
            }
            return None;
        }
        let sum = checksum(&[&bytes[..14]]);
        if !bytes.starts_with(MARK_MAGIC) || u64_at(&bytes, 14) != Some(sum) {
            warn!(path = %self.path.display(), "store mark damaged, going on without it");
            return None;
        }
        Some((u16_at(&bytes, 4)?, u64_at(&bytes, 6)?))
    }

    /// Records that `revision` was made durable. Not synced: after a power cut the mark may be old, which only
    /// weakens what it can detect.
    pub fn write_mark(&self, format: u16, revision: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(22);
        bytes.extend_from_slice(MARK_MAGIC);
        bytes.extend_from_slice(&format.to_le_bytes());
        bytes.extend_from_slice(&revision.to_le_bytes());
        let sum = checksum(&[&bytes]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        self.mark.write_all_at(&bytes, 0)
    }

    pub fn sync_mark(&self) -> io::Result<()> {
        self.mark.sync_data()
    }

    /// Moves `name` out of the way and returns where it went.
    pub fn set_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        let io = |source| StoreError::io("set the damaged store aside", source);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let mut target = self.path.join(format!("{name}{DAMAGED}{now:012}"));
        for attempt in 1.. {
            if fs::symlink_metadata(&target).is_err() {
                break;
            }
            target = self.path.join(format!("{name}{DAMAGED}{now:012}.{attempt}"));
        }
        fs::rename(self.path.join(name), &target).map_err(io)?;
        self.sync()?;
        Ok(target)
    }

    /// The newest file set aside for `name`, if any.
    pub fn last_set_aside(&self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        let io = |source| StoreError::io("look for stores set aside", source);
        let start = format!("{name}{DAMAGED}");
        let mut newest = None;
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().starts_with(&start) {
                newest = newest.max(Some(entry.path()));
            }
        }
        Ok(newest)
    }
}
