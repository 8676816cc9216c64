//! Engine on redb: one file, copy-on-write pages, one fdatasync per group of commits.

use std::fs::OpenOptions;
use std::path::Path;

use opening::Opening;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError, TableDefinition, TableError,
};

use crate::engine::{Batch, Engine, Visit};
use crate::error::StoreError;
use crate::record::State;

mod opening;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const STATE: &str = "state";

pub(crate) struct RedbEngine {
    database: Database,
}

impl RedbEngine {
    /// Makes a new database in the empty `backend` holding only `state`.
    pub fn create(backend: impl StorageBackend, cache_bytes: usize, state: &State) -> Result<Self, StoreError> {
        let database = builder(cache_bytes).create_with_backend(backend);
        let engine = Self {
            database: database.map_err(|e| open_error("create the file", e))?,
        };
        engine.apply(&Batch::new(), state)?;
        Ok(engine)
    }

    /// Opens the database at `path`, which is not empty, checking every page of it.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let attempt = "open the file";
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|e| StoreError::io(attempt, e))?;
        Self::open_backend(FileBackend::new(file).map_err(|e| open_error(attempt, e))?, cache_bytes)
    }

    /// Opens whatever `backend` holds, as after a crash.
    pub fn open_backend(backend: impl StorageBackend, cache_bytes: usize) -> Result<Self, StoreError> {
        let attempt = "open the file";
        let opening = Opening::new(backend).map_err(|e| StoreError::io(attempt, e))?;
        let database = builder(cache_bytes).create_with_backend(opening.clone());
        let database = database.map_err(|e| open_error(attempt, e))?;
        opening.finish().map_err(|e| StoreError::io(attempt, e))?;
        Ok(Self { database })
    }
}

fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    // A plain open trusts the pages of a cleanly closed file and may panic on them much later.
    builder.set_check_integrity_on_open(true);
    builder
}

fn open_error(attempt: &'static str, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::Storage(error) => storage(attempt, error),
        // This version never wrote the older format, so the version byte is not what was written.
        DatabaseError::UpgradeRequired(version) => StoreError::Damaged {
            what: format!("file claims the old format {version}"),
        },
        DatabaseError::RepairAborted => StoreError::Damaged {
            what: "repair was aborted".into(),
        },
        other => StoreError::Backend {
            attempt,
            reason: other.to_string(),
        },
    }
}

fn storage(attempt: &'static str, error: StorageError) -> StoreError {
    match error {
        // An error with a system code comes from the disk; one without is redb reading past the end.
        StorageError::Io(source) if source.raw_os_error().is_some() => StoreError::io(attempt, source),
        StorageError::Io(source) => StoreError::Damaged {
            what: source.to_string(),
        },
        StorageError::Corrupted(what) => StoreError::Damaged { what },
        other => StoreError::Backend {
            attempt,
            reason: other.to_string(),
        },
    }
}

fn table(attempt: &'static str, error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => storage(attempt, error),
        other => StoreError::Damaged {
            what: other.to_string(),
        },
    }
}

fn general(attempt: &'static str, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(source) => storage(attempt, StorageError::Io(source)),
        redb::Error::Corrupted(what) => StoreError::Damaged { what },
        other => StoreError::Backend {
            attempt,
            reason: other.to_string(),
        },
    }
}

fn read_state(transaction: &redb::ReadTransaction) -> Result<Option<State>, StoreError> {
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(table("read the format record", error)),
    };
    let bytes = meta.get(STATE).map_err(|e| storage("read the format record", e))?;
    bytes.map(|bytes| State::decode(bytes.value())).transpose()
}

impl Engine for RedbEngine {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let attempt = "read a record";
        let transaction = self.database.begin_read().map_err(|e| general(attempt, e))?;
        let records = transaction.open_table(RECORDS).map_err(|e| table(attempt, e))?;
        let value = records.get(key.as_bytes()).map_err(|e| storage(attempt, e))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, prefix: &str, after: Option<&str>, visit: &mut Visit<'_>) -> Result<State, StoreError> {
        let attempt = "list records";
        let transaction = self.database.begin_read().map_err(|e| general(attempt, e))?;
        let state = read_state(&transaction)?.ok_or_else(|| StoreError::Damaged {
            what: "format record is missing".into(),
        })?;
        let records = transaction.open_table(RECORDS).map_err(|e| table(attempt, e))?;
        let start = after.unwrap_or(prefix).max(prefix);
        for entry in records.range(start.as_bytes()..).map_err(|e| storage(attempt, e))? {
            let (key, value) = entry.map_err(|e| storage(attempt, e))?;
            if !key.value().starts_with(prefix.as_bytes()) {
                break;
            }
            if after.is_some_and(|after| key.value() <= after.as_bytes()) {
                continue;
            }
            if !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(state)
    }

    fn state(&self) -> Result<Option<State>, StoreError> {
        let attempt = "read the format record";
        read_state(&self.database.begin_read().map_err(|e| general(attempt, e))?)
    }

    fn apply(&self, batch: &Batch, state: &State) -> Result<(), StoreError> {
        let attempt = "write a commit";
        // redb's default durability syncs before commit() returns.
        let transaction = self.database.begin_write().map_err(|e| general(attempt, e))?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(|e| table(attempt, e))?;
            for (key, record) in batch {
                let key = key.as_str().as_bytes();
                match record {
                    Some(record) => records.insert(key, record.bytes.as_slice()).map(drop),
                    None => records.remove(key).map(drop),
                }
                .map_err(|e| storage(attempt, e))?;
            }
            let mut meta = transaction.open_table(META).map_err(|e| table(attempt, e))?;
            meta.insert(STATE, state.encode().as_slice())
                .map_err(|e| storage(attempt, e))?;
        }
        transaction.commit().map_err(|e| general(attempt, e))
    }
}

#[cfg(test)]
mod tests;
