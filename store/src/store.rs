//! The seam: what every backend offers, and what is promised.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::watch::Watch;

/// Most operations, and most conditions, in one transaction.
pub const MAX_OPERATIONS: usize = 100;

/// Most bytes (keys and payloads) in one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 1024 * 1024;

/// Most entries in one page of [`Store::list`]; a larger `limit` is lowered to this.
pub const MAX_PAGE_ENTRIES: usize = 1000;

/// A page of [`Store::list`] ends after the entry that brings its payloads to this many bytes.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// What is stored under a key: the payload and the number of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Version of the payload's layout, counted by the kind of record.
    pub schema: u16,
    /// The record itself, in whatever encoding its kind uses.
    pub payload: Bytes,
}

impl Envelope {
    /// Wraps `payload`, laid out by version `schema` of its kind.
    pub fn new(schema: u16, payload: impl Into<Bytes>) -> Self {
        Self {
            schema,
            payload: payload.into(),
        }
    }

    /// The schema and payload, if the caller, who knows schemas up to `known`, can read them.
    ///
    /// # Errors
    /// [`StoreError::NewerSchema`] if the record is newer than that.
    pub fn read(&self, known: u16) -> Result<(u16, &[u8]), StoreError> {
        if self.schema > known {
            return Err(StoreError::NewerSchema {
                found: self.schema,
                known,
            });
        }
        Ok((self.schema, &self.payload))
    }
}

/// A value read, with the revision of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// What was written.
    pub envelope: Envelope,
    /// Revision of the commit that wrote it; what [`Transaction::if_revision`] compares.
    pub revision: u64,
}

/// One page of records in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Keys and values, ascending by key.
    pub entries: Vec<(Key, Versioned)>,
    /// Pass this as `after` for the next page; `None` if this was the last.
    pub next: Option<Key>,
    /// Revision of the store this page shows; pages of one listing may differ in it.
    pub revision: u64,
}

/// What a condition asks of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// The key has no value.
    Absent,
    /// The key's value was written by exactly this revision.
    Revision(u64),
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no value"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// Conditions and operations that hold and happen together or not at all.
///
/// No key may be named by two operations. At most [`MAX_OPERATIONS`] and [`MAX_TRANSACTION_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    pub(crate) conditions: Vec<(Key, Expectation)>,
    pub(crate) operations: Vec<(Key, Option<Envelope>)>,
}

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` has no value.
    pub fn if_absent(mut self, key: Key) -> Self {
        self.conditions.push((key, Expectation::Absent));
        self
    }

    /// Only if the value of `key` was written by `revision`.
    pub fn if_revision(mut self, key: Key, revision: u64) -> Self {
        self.conditions.push((key, Expectation::Revision(revision)));
        self
    }

    /// Writes `envelope` under `key`.
    pub fn put(mut self, key: Key, envelope: Envelope) -> Self {
        self.operations.push((key, Some(envelope)));
        self
    }

    /// Removes `key`; nothing happens if it has no value.
    pub fn delete(mut self, key: Key) -> Self {
        self.operations.push((key, None));
        self
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there is no operation; conditions alone may still be committed, as a check.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Bytes that count against [`MAX_TRANSACTION_BYTES`].
    pub fn bytes(&self) -> usize {
        let conditions: usize = self.conditions.iter().map(|(key, _)| key.as_str().len()).sum();
        let operations: usize = self
            .operations
            .iter()
            .map(|(key, value)| key.as_str().len() + value.as_ref().map_or(0, |envelope| envelope.payload.len()))
            .sum();
        conditions + operations
    }

    /// Every key the transaction names.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        let conditions = self.conditions.iter().map(|(key, _)| key);
        conditions.chain(self.operations.iter().map(|(key, _)| key))
    }

    /// Checks the limits, as every backend does before anything else.
    ///
    /// # Errors
    /// [`StoreError::TooManyOperations`], [`StoreError::TooLarge`] or [`StoreError::DuplicateKey`].
    pub fn check_limits(&self) -> Result<(), StoreError> {
        let count = self.operations.len().max(self.conditions.len());
        if count > MAX_OPERATIONS {
            return Err(StoreError::TooManyOperations {
                count,
                limit: MAX_OPERATIONS,
            });
        }
        let bytes = self.bytes();
        if bytes > MAX_TRANSACTION_BYTES {
            return Err(StoreError::TooLarge {
                bytes,
                limit: MAX_TRANSACTION_BYTES,
            });
        }
        let mut keys: Vec<&Key> = self.operations.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(StoreError::DuplicateKey { key: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

/// Ordered records with atomic compare-and-set and change streams.
///
/// Stored: whatever the tier cannot rebuild from its parent or its runtimes. All calls see only durable
/// commits, each later than all it answered before (linearisable). After a failed write or sync the store
/// answers [`StoreError::Stopped`] to everything until it is opened anew.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of `key`, or `None` if it has none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the stored bytes fail their checksum; never a wrong value.
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError>;

    /// Records below `prefix` in key order, those greater than `after`, at most `limit`.
    ///
    /// A page also ends at [`MAX_PAGE_ENTRIES`] or [`MAX_PAGE_BYTES`]; go on with [`Page::next`] until it is
    /// `None`. One page is a consistent view, several pages are not.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError>;

    /// Applies all operations if all conditions hold, and returns the revision they were written at.
    ///
    /// Durable, and visible to every later read, when the future returns `Ok`. A transaction that changes
    /// nothing returns the current revision. Dropping the future leaves open whether the commit happens;
    /// it never happens in part. [`StoreError::Conflict`], and the limits, leave the store as it was. After
    /// any other error the outcome is unknown until the store is opened again.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first condition that did not hold; see [`StoreError`] for the rest.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// Commits to keys below `prefix` from now on, in order.
    ///
    /// To follow a set without a gap: watch first, then list, then drop changes whose revision is not above
    /// [`Page::revision`].
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the store is closed.
    async fn watch(&self, prefix: &Prefix) -> Result<Watch, StoreError>;

    /// Revision of the latest commit; 0 if there was none.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the store is closed.
    async fn revision(&self) -> Result<u64, StoreError>;

    /// Finishes what was accepted, and lets go of files and lock. May be repeated; all else then answers
    /// [`StoreError::Closed`]. Dropping the last handle does the same, but cannot report a failure.
    ///
    /// # Errors
    /// Whatever the last write met; acknowledged commits are safe all the same.
    async fn close(&self) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        (**self).get(key).await
    }

    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        (**self).list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        (**self).commit(transaction).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Watch, StoreError> {
        (**self).watch(prefix).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        (**self).revision().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        (**self).close().await
    }
}
