//! Change streams: bounded, in order, and never silently short.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::key::{Key, Prefix};
use crate::store::Envelope;

/// Commits a watch may be behind before it is cut off.
pub const WATCH_CAPACITY: usize = 256;

/// What one commit did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key written or removed.
    pub key: Key,
    /// The new value; `None` if the key was removed.
    pub envelope: Option<Envelope>,
}

/// One commit, as far as it concerns the watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Revision of the commit; larger than that of every earlier commit of the stream.
    pub revision: u64,
    /// Never empty; in the order of the transaction's operations. Removals of absent keys are left out.
    pub changes: Vec<Change>,
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The reader fell more than [`WATCH_CAPACITY`] commits behind; list again and watch anew.
    #[error("watch fell behind and lost changes")]
    Lagged,
    /// The store was closed, crashed or stopped.
    #[error("store is closed")]
    Closed,
}

/// The stream made by [`crate::Store::watch`].
#[derive(Debug)]
pub struct Watch {
    receiver: mpsc::Receiver<Commit>,
    lagged: Arc<AtomicBool>,
    since: u64,
}

impl Watch {
    /// Revision after which every commit is delivered.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The next commit, waiting for it. Cancellation loses nothing.
    ///
    /// # Errors
    /// [`WatchError`] after the last commit that is known to be in order; the stream has then ended.
    pub async fn next(&mut self) -> Result<Commit, WatchError> {
        match self.receiver.recv().await {
            Some(commit) => Ok(commit),
            None if self.lagged.load(Ordering::Acquire) => Err(WatchError::Lagged),
            None => Err(WatchError::Closed),
        }
    }

    /// The next commit if it is there already, `Ok(None)` if there is none yet.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Commit>, WatchError> {
        match self.receiver.try_recv() {
            Ok(commit) => Ok(Some(commit)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(_) if self.lagged.load(Ordering::Acquire) => Err(WatchError::Lagged),
            Err(_) => Err(WatchError::Closed),
        }
    }
}

struct Watcher {
    prefix: Prefix,
    sender: mpsc::Sender<Commit>,
    lagged: Arc<AtomicBool>,
}

#[derive(Default)]
struct Hub {
    revision: u64,
    watchers: Vec<Watcher>,
    closed: bool,
}

/// Where a backend announces its durable commits.
#[derive(Default)]
pub(crate) struct Publisher(Mutex<Hub>);

impl Publisher {
    pub(crate) fn new(revision: u64) -> Self {
        Self(Mutex::new(Hub {
            revision,
            ..Hub::default()
        }))
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        // A panic elsewhere cannot leave the hub half changed: every update is one push or assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` once closed.
    pub(crate) fn watch(&self, prefix: &Prefix) -> Option<Watch> {
        let mut hub = self.hub();
        if hub.closed {
            return None;
        }
        let (sender, receiver) = mpsc::channel(WATCH_CAPACITY);
        let lagged = Arc::new(AtomicBool::new(false));
        hub.watchers.push(Watcher {
            prefix: prefix.clone(),
            sender,
            lagged: lagged.clone(),
        });
        Some(Watch {
            receiver,
            lagged,
            since: hub.revision,
        })
    }

    /// `None` once closed.
    pub(crate) fn revision(&self) -> Option<u64> {
        let hub = self.hub();
        (!hub.closed).then_some(hub.revision)
    }

    pub(crate) fn publish(&self, commits: &[Commit]) {
        let mut hub = self.hub();
        let Some(last) = commits.last() else { return };
        hub.revision = last.revision;
        hub.watchers
            .retain(|watcher| commits.iter().all(|commit| watcher.deliver(commit)));
    }

    /// Ends all watches; with `for_good`, also refuses new ones.
    pub(crate) fn end(&self, for_good: bool) {
        let mut hub = self.hub();
        hub.watchers.clear();
        hub.closed |= for_good;
    }
}

impl Watcher {
    /// Whether the watcher is still worth keeping.
    fn deliver(&self, commit: &Commit) -> bool {
        let mut changes = commit
            .changes
            .iter()
            .filter(|c| self.prefix.contains(&c.key))
            .peekable();
        if changes.peek().is_none() {
            return !self.sender.is_closed();
        }
        let part = Commit {
            revision: commit.revision,
            changes: changes.cloned().collect(),
        };
        match self.sender.try_send(part) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}
