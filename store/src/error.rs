//! What can go wrong in a store, and whether trying again can help.

use std::io;
use std::path::PathBuf;

use crate::key::{Key, KeyError};
use crate::open::BackendKind;
use crate::store::Expectation;

/// Failure of a store operation.
///
/// The text does not repeat the source; print the whole chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A condition of the transaction did not hold; nothing was written.
    #[error("condition on {key} does not hold: expected {expected}, found revision {found:?}")]
    Conflict {
        /// The key whose condition failed, the first one in the order of the transaction.
        key: Key,
        /// What the transaction asked for.
        expected: Expectation,
        /// The revision the key has now; `None` if it is absent.
        found: Option<u64>,
    },
    /// The transaction has more operations or conditions than [`crate::MAX_OPERATIONS`].
    #[error("transaction has {count} operations, the limit is {limit}")]
    TooManyOperations {
        /// Operations or conditions in the transaction.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The transaction has more bytes (keys and values) than [`crate::MAX_TRANSACTION_BYTES`].
    #[error("transaction has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of all keys and values in the transaction.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Two operations of one transaction name the same key.
    #[error("transaction names key {key} twice")]
    DuplicateKey {
        /// The key named twice.
        key: Key,
    },
    /// A key or prefix is malformed.
    #[error("malformed key")]
    Key(#[from] KeyError),
    /// The request reaches outside the scope of a [`crate::Scoped`] view.
    #[error("{what} is outside the scope {scope}")]
    OutOfScope {
        /// The key or prefix asked for.
        what: String,
        /// Prefix of the scope.
        scope: String,
    },
    /// The record was written by a newer version of the program.
    #[error("record has schema {found}, this version knows up to {known}: update the program")]
    NewerSchema {
        /// Schema of the record.
        found: u16,
        /// Newest schema the caller knows.
        known: u16,
    },
    /// The store was written by a newer version of the program.
    #[error("store {path} has format {found}, this version knows up to {known}: update the program", path = path.display())]
    NewerFormat {
        /// Folder of the store.
        path: PathBuf,
        /// Format of the store.
        found: u16,
        /// Newest format this version knows.
        known: u16,
    },
    /// Another process, or another handle in this one, has the store open.
    #[error("store {path} is in use by another process", path = path.display())]
    Locked {
        /// Folder of the store.
        path: PathBuf,
    },
    /// The folder holds a store of another backend.
    #[error("store {path} was made by backend {found}, not {wanted}: open it with {found} or choose another folder", path = path.display())]
    OtherBackend {
        /// Folder of the store.
        path: PathBuf,
        /// Backend that made it.
        found: BackendKind,
        /// Backend asked for.
        wanted: BackendKind,
    },
    /// Stored bytes are not what was written: bit rot, truncation, or a foreign hand.
    #[error("stored data is damaged: {what}")]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// No room: the disk or the store's capacity is exhausted.
    #[error("no space left while trying to {attempt}")]
    Full {
        /// What was being done.
        attempt: &'static str,
        /// The system's error, if the disk reported it.
        #[source]
        source: Option<io::Error>,
    },
    /// The disk refused.
    #[error("could not {attempt}")]
    Io {
        /// What was being done.
        attempt: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The backend reported something that is neither I/O nor damage.
    #[error("could not {attempt}: {reason}")]
    Backend {
        /// What was being done.
        attempt: &'static str,
        /// The backend's words.
        reason: String,
    },
    /// An earlier failure left the store in an unknown state; it acknowledges nothing until it is opened anew.
    #[error("store stopped after an earlier failure: {reason}")]
    Stopped {
        /// The failure that stopped it.
        reason: String,
    },
    /// The store is closed, or crashed while the operation was under way. The outcome of a commit is unknown.
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call can succeed later without anyone changing the request or the machine.
    ///
    /// A [`StoreError::Conflict`] wants the caller to read again and build a new transaction.
    pub fn retry_can_help(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::Locked { .. } | Self::Full { .. })
    }

    /// Stable code of the error, for edges and documentation.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "store-conflict",
            Self::TooManyOperations { .. } => "store-too-many-operations",
            Self::TooLarge { .. } => "store-too-large",
            Self::DuplicateKey { .. } => "store-duplicate-key",
            Self::Key(_) => "store-malformed-key",
            Self::OutOfScope { .. } => "store-out-of-scope",
            Self::NewerSchema { .. } => "store-newer-schema",
            Self::NewerFormat { .. } => "store-newer-format",
            Self::Locked { .. } => "store-locked",
            Self::OtherBackend { .. } => "store-other-backend",
            Self::Damaged { .. } => "store-damaged",
            Self::Full { .. } => "store-full",
            Self::Io { .. } => "store-io",
            Self::Backend { .. } => "store-backend",
            Self::Stopped { .. } => "store-stopped",
            Self::Closed => "store-closed",
        }
    }

    /// Wraps a system error, telling a full disk from other refusals.
    pub(crate) fn io(attempt: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                attempt,
                source: Some(source),
            },
            _ => Self::Io { attempt, source },
        }
    }

    /// The error and all its sources in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}
