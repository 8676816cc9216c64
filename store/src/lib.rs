//! Where a daemon keeps what it cannot rebuild: trait [`Store`] and its backends.
//!
//! - `store`: the trait, [`Transaction`], [`Envelope`]; `watch`: change streams; `error`: [`StoreError`].
//! - `key`: [`Key`], [`Prefix`] and [`Scope`], which builds keys; `scoped`: [`Scoped`], a view that cannot leave one scope.
//! - `open`: [`open()`] chooses a backend by name and deals with damage; `folder`: lock, mark and what is set aside.
//! - `engine`: the rules all backends share; `record`: bytes on disk; `embedded`: the threads around an engine.
//! - `memory`, `redb`, `sled`: the backends. `suite`: the contract they all pass (feature `testing`).
//!
//! Invariants:
//! - An acknowledged commit survives kill -9, with redb power loss too; a transaction is there whole or not at all.
//! - Revisions grow by one with every commit that changes something.
//! - Bytes that are not what was written are an error, never a value and never an empty store passed off as whole.
//! - Nothing here panics on what disk or callers bring; a backend's panic becomes an error.

mod embedded;
mod engine;
mod error;
mod folder;
mod key;
mod memory;
mod open;
mod record;
mod redb;
mod scoped;
mod sled;
mod store;
#[cfg(feature = "testing")]
pub mod suite;
mod watch;

pub use error::StoreError;
pub use key::{Key, KeyError, MAX_KEY_BYTES, Prefix, Scope};
pub use memory::{DiskFault, MemoryStore};
pub use open::{BackendKind, OpenOptions, Opened, UnknownBackend, open};
pub use scoped::Scoped;
pub use store::{
    Envelope, Expectation, MAX_OPERATIONS, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, MAX_TRANSACTION_BYTES, Page, Store,
    Transaction, Versioned,
};
pub use watch::{Change, Commit, WATCH_CAPACITY, Watch, WatchError};
