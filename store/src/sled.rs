//! Engine on sled 0.34, guarded, because on its own it acknowledges what a crash then loses.
//!
//! - `flush()` before every acknowledgement, or kill -9 loses up to half a second of commits.
//! - Then fdatasync of `db` and fsync of new files in `blobs`: on Linux `flush()` calls only
//!   `sync_file_range`, which reaches neither the drive's cache nor file metadata.
//! - What a crash leaves of an unfinished snapshot is removed before opening; sled would refuse to open.
//!
//! Still not safe against power loss: a torn tail of the log, which sled must expect after one, makes it refuse
//! to open or panic. The store then sets the folder aside and starts empty, and says so.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sled::{Config, Db, IVec};

use crate::engine::{Batch, Engine, Visit};
use crate::error::StoreError;
use crate::folder::{restrict_file, sync_folder};
use crate::record::State;

/// First byte of record keys; the state record has a key of its own before them.
const RECORD: u8 = b'r';
const STATE: &[u8] = b"m";

/// How long threads of an earlier handle may hold on to the log.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct SledEngine {
    database: Db,
    log: File,
    blobs: PathBuf,
    synced_blobs: Mutex<HashSet<OsString>>,
    /// Readers wait while a batch is applied but not yet durable: sled would show it to them.
    undurable: RwLock<()>,
}

impl SledEngine {
    /// Makes a new database in the folder `path` holding only `state`.
    pub fn create(path: &Path, cache_bytes: usize, state: &State) -> Result<Self, StoreError> {
        let engine = Self::open_any(path, cache_bytes)?;
        engine.apply(&Batch::new(), state)?;
        Ok(engine)
    }

    /// Opens the database in the folder `path`.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        // sled makes a new log where it finds none.
        let log = fs::metadata(path.join("db")).map(|log| log.len());
        match log {
            Ok(0) => {
                return Err(StoreError::Damaged {
                    what: "log is empty".into(),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged {
                    what: "log is missing".into(),
                });
            }
            Err(error) => return Err(StoreError::io("look for the log", error)),
        }
        wait_for_lock(path)?;
        remove_unfinished_snapshots(path).map_err(|e| StoreError::io("remove an unfinished snapshot", e))?;
        Self::open_any(path, cache_bytes)
    }

    fn open_any(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let attempt = "open the folder";
        wait_for_lock(path)?;
        let config = Config::new()
            .path(path)
            .cache_capacity(cache_bytes as u64)
            // Every commit is flushed anyway, so no thread has to do it.
            .flush_every_ms(None);
        let database = config.open().map_err(|e| sled_error(attempt, e))?;
        let log = File::open(path.join("db")).map_err(|e| StoreError::io(attempt, e))?;
        for name in ["db", "conf"] {
            restrict_file(&path.join(name)).map_err(|e| StoreError::io(attempt, e))?;
        }
        let blobs = path.join("blobs");
        let engine = Self {
            database,
            log,
            blobs,
            synced_blobs: Mutex::default(),
            undurable: RwLock::default(),
        };
        sync_folder(path).map_err(|e| StoreError::io(attempt, e))?;
        Ok(engine)
    }

    /// Values above sled's segment size live in files of their own.
    fn sync_blobs(&self) -> io::Result<()> {
        let mut known = self.synced_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut present, mut new) = (HashSet::new(), false);
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            if !known.contains(&entry.file_name()) {
                match File::open(entry.path()) {
                    Ok(file) => file.sync_all()?,
                    // sled's own collector was faster: nothing refers to it any more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                new = true;
            }
            present.insert(entry.file_name());
        }
        if new {
            sync_folder(&self.blobs)?;
        }
        *known = present;
        Ok(())
    }

    fn read_state(&self) -> Result<Option<State>, StoreError> {
        let bytes = self
            .database
            .get(STATE)
            .map_err(|e| sled_error("read the format record", e))?;
        bytes.map(|bytes| State::decode(&bytes)).transpose()
    }
}

/// Waits until the threads of an earlier handle let go of the log: sled's do so some time after it is dropped.
/// The lock on the store's folder is held, so nobody else can be meant to have it open.
fn wait_for_lock(path: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::io("lock the log", source);
    let log = match File::open(path.join("db")) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(StoreError::Locked { path: path.into() });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Removes what a crash during a snapshot leaves: `snap.*` that are empty or were not renamed yet. The log, or
/// an older snapshot, holds all they would have held.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("snap.") {
            continue;
        }
        if name.ends_with(".generating") || entry.metadata()?.len() == 0 {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sled_error(attempt: &'static str, error: sled::Error) -> StoreError {
    match error {
        // An error with a system code comes from the disk; one without is sled reading past the end.
        sled::Error::Io(source) if source.raw_os_error().is_some() => StoreError::io(attempt, source),
        sled::Error::CollectionNotFound(_) => StoreError::Backend {
            attempt,
            reason: error.to_string(),
        },
        other => StoreError::Damaged {
            what: other.to_string(),
        },
    }
}

fn record_key(key: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(RECORD);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

impl Engine for SledEngine {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _durable = self.undurable.read().unwrap_or_else(PoisonError::into_inner);
        let value = self
            .database
            .get(record_key(key))
            .map_err(|e| sled_error("read a record", e))?;
        Ok(value.map(|value: IVec| value.to_vec()))
    }

    fn scan(&self, prefix: &str, after: Option<&str>, visit: &mut Visit<'_>) -> Result<State, StoreError> {
        let _durable = self.undurable.read().unwrap_or_else(PoisonError::into_inner);
        let state = self.read_state()?.ok_or_else(|| StoreError::Damaged {
            what: "format record is missing".into(),
        })?;
        let start = record_key(after.unwrap_or(prefix).max(prefix));
        let prefix = record_key(prefix);
        for entry in self.database.range(start..) {
            let (key, value) = entry.map_err(|e| sled_error("list records", e))?;
            if !key.starts_with(&prefix) {
                break;
            }
            if after.is_some_and(|after| &key[1..] <= after.as_bytes()) {
                continue;
            }
            if !visit(&key[1..], &value)? {
                break;
            }
        }
        Ok(state)
    }

    fn state(&self) -> Result<Option<State>, StoreError> {
        let _durable = self.undurable.read().unwrap_or_else(PoisonError::into_inner);
        self.read_state()
    }

    fn apply(&self, batch: &Batch, state: &State) -> Result<(), StoreError> {
        let attempt = "write a commit";
        let _undurable = self.undurable.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = sled::Batch::default();
        for (key, record) in batch {
            match record {
                Some(record) => changes.insert(record_key(key.as_str()), record.bytes.as_slice()),
                None => changes.remove(record_key(key.as_str())),
            }
        }
        changes.insert(STATE, state.encode());
        self.database.apply_batch(changes).map_err(|e| sled_error(attempt, e))?;
        self.database.flush().map_err(|e| sled_error(attempt, e))?;
        self.log.sync_data().map_err(|e| StoreError::io(attempt, e))?;
        self.sync_blobs().map_err(|e| StoreError::io(attempt, e))
    }
}
