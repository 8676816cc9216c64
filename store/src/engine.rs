//! What the backends have in common: a sorted map that can take a batch atomically, and the rules on top of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::record::{Encoded, State, decode, encode};
use crate::store::{Expectation, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, Page, Transaction, Versioned};
use crate::watch::{Change, Commit};

/// Receives a key and its stored bytes; answers whether to go on.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, StoreError> + 'a;

/// What a group of transactions writes; `None` removes.
pub(crate) type Batch = BTreeMap<Key, Option<Encoded>>;

/// A sorted map on some medium. Blocks. May panic on damaged data; callers use [`guard`].
pub(crate) trait Engine: Send + Sync + 'static {
    /// Stored bytes of `key`.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits keys starting with `prefix`, greater than `after`, in order, in one consistent view, and returns
    /// the state record of that view.
    fn scan(&self, prefix: &str, after: Option<&str>, visit: &mut Visit<'_>) -> Result<State, StoreError>;

    /// The state record, `None` if it is missing.
    fn state(&self) -> Result<Option<State>, StoreError>;

    /// Writes all of `batch` and `state` or nothing of it; durable on `Ok`.
    fn apply(&self, batch: &Batch, state: &State) -> Result<(), StoreError>;
}

/// Runs `work`, turning a panic into [`StoreError::Damaged`].
pub(crate) fn guard<T>(attempt: &'static str, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(StoreError::Damaged {
            what: format!("backend panicked while trying to {attempt}: {}", panic_text(&*panic)),
        })
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

pub(crate) fn get<E: Engine + ?Sized>(engine: &E, key: &Key) -> Result<Option<Versioned>, StoreError> {
    let Some(bytes) = engine.get(key.as_str())? else {
        return Ok(None);
    };
    decode(key.as_str().as_bytes(), &bytes).map(|(value, _)| Some(value))
}

pub(crate) fn list<E: Engine + ?Sized>(
    engine: &E,
    prefix: &Prefix,
    after: Option<&Key>,
    limit: usize,
) -> Result<Page, StoreError> {
    let limit = limit.min(MAX_PAGE_ENTRIES);
    let mut entries: Vec<(Key, Versioned)> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    let state = engine.scan(prefix.as_str(), after.map(Key::as_str), &mut |key, stored| {
        if entries.len() >= limit || bytes >= MAX_PAGE_BYTES {
            more = true;
            return Ok(false);
        }
        let (value, _) = decode(key, stored)?;
        bytes += value.envelope.payload.len();
        entries.push((parse_key(key)?, value));
        Ok(true)
    })?;
    let next = match entries.last() {
        Some((key, _)) if more => Some(key.clone()),
        _ => None,
    };
    Ok(Page {
        entries,
        next,
        revision: state.revision,
    })
}

fn parse_key(key: &[u8]) -> Result<Key, StoreError> {
    let text = std::str::from_utf8(key).ok().and_then(|text| Key::new(text).ok());
    text.ok_or_else(|| StoreError::Damaged {
        what: format!("{:?} is not a key", String::from_utf8_lossy(key)),
    })
}

/// Reads everything once, compares it with what the state record promises, and hands it out in key order.
pub(crate) fn verify<E: Engine + ?Sized>(engine: &E, state: &State) -> Result<Vec<(Key, Versioned)>, StoreError> {
    let mut records = Vec::new();
    let mut found = State {
        count: 0,
        digest: 0,
        ..*state
    };
    engine.scan("", None, &mut |key, stored| {
        let (value, checksum) = decode(key, stored)?;
        if value.revision > state.revision {
            return Err(StoreError::Damaged {
                what: format!("a record is newer than the store's revision {}", state.revision),
            });
        }
        found.add(checksum);
        records.push((parse_key(key)?, value));
        Ok(true)
    })?;
    if found == *state {
        return Ok(records);
    }
    Err(StoreError::Damaged {
        what: format!(
            "{} records found, or other ones than the {} written",
            found.count, state.count
        ),
    })
}

/// Transactions staged on top of an engine, to be applied in one go.
pub(crate) struct Group {
    pub state: State,
    pub batch: Batch,
    pub commits: Vec<Commit>,
}

impl Group {
    pub fn new(state: State) -> Self {
        Self {
            state,
            batch: Batch::new(),
            commits: Vec::new(),
        }
    }

    /// Checks the conditions of `transaction` against the engine and what is staged, and stages it.
    /// On error nothing of it is staged. Returns the revision it will have.
    pub fn stage<E: Engine + ?Sized>(&mut self, engine: &E, transaction: Transaction) -> Result<u64, StoreError> {
        for (key, expected) in &transaction.conditions {
            let found = self.lookup(engine, key)?.map(|(revision, _)| revision);
            let holds = match expected {
                Expectation::Absent => found.is_none(),
                Expectation::Revision(revision) => found == Some(*revision),
            };
            if !holds {
                return Err(StoreError::Conflict {
                    key: key.clone(),
                    expected: *expected,
                    found,
                });
            }
        }
        let mut effective = Vec::with_capacity(transaction.operations.len());
        for (key, envelope) in transaction.operations {
            let old = self.lookup(engine, &key)?.map(|(_, checksum)| checksum);
            if envelope.is_some() || old.is_some() {
                effective.push((key, envelope, old));
            }
        }
        if effective.is_empty() {
            return Ok(self.state.revision);
        }
        self.state.revision += 1;
        let revision = self.state.revision;
        let mut changes = Vec::with_capacity(effective.len());
        for (key, envelope, old) in effective {
            if let Some(checksum) = old {
                self.state.remove(checksum);
            }
            let encoded = envelope.as_ref().map(|e| encode(key.as_str(), revision, e));
            if let Some(encoded) = &encoded {
                self.state.add(encoded.checksum);
            }
            self.batch.insert(key.clone(), encoded);
            changes.push(Change { key, envelope });
        }
        self.commits.push(Commit { revision, changes });
        Ok(revision)
    }

    /// Revision and checksum of the value `key` would have now.
    fn lookup<E: Engine + ?Sized>(&self, engine: &E, key: &Key) -> Result<Option<(u64, u64)>, StoreError> {
        if let Some(staged) = self.batch.get(key) {
            return Ok(staged.as_ref().map(|encoded| (encoded.revision, encoded.checksum)));
        }
        let Some(bytes) = engine.get(key.as_str())? else {
            return Ok(None);
        };
        let (value, checksum) = decode(key.as_str().as_bytes(), &bytes)?;
        Ok(Some((value.revision, checksum)))
    }
}
