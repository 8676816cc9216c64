//! Backend in memory: the rules of the others, and faults on demand.
//!
//! Starts no thread and waits only on tokio's clock, so simulations with a paused clock can use it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::engine::{self, Batch, Engine, Group, Visit};
use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::record::State;
use crate::store::{Page, Store, Transaction, Versioned};
use crate::watch::{Publisher, Watch};

/// How a simulated disk refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFault {
    /// `EIO`: the medium failed.
    Broken,
    /// `ENOSPC`: the disk is full.
    NoSpace,
}

impl DiskFault {
    fn error(self) -> StoreError {
        let errno = match self {
            Self::Broken => 5,
            Self::NoSpace => 28,
        };
        StoreError::io("write a commit", io::Error::from_raw_os_error(errno))
    }
}

/// What the simulated disk holds.
type Disk = (BTreeMap<String, Vec<u8>>, Option<State>);

#[derive(Default)]
struct Records(Mutex<Disk>);

impl Records {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self, without: &Batch) -> usize {
        let records = self.lock();
        let kept = records
            .0
            .iter()
            .filter(|(key, _)| !without.keys().any(|k| k.as_str() == key.as_str()));
        let staged = without
            .iter()
            .filter_map(|(k, r)| Some(k.as_str().len() + r.as_ref()?.bytes.len()));
        kept.map(|(key, value)| key.len() + value.len()).sum::<usize>() + staged.sum::<usize>()
    }
}

impl Engine for Records {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().0.get(key).cloned())
    }

    fn scan(&self, prefix: &str, after: Option<&str>, visit: &mut Visit<'_>) -> Result<State, StoreError> {
        let records = self.lock();
        let start = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        for (key, value) in records.0.range::<str, _>((start, Bound::Unbounded)) {
            if !key.starts_with(prefix) || !visit(key.as_bytes(), value)? {
                break;
            }
        }
        Ok(records.1.unwrap_or(State::new(0)))
    }

    fn state(&self) -> Result<Option<State>, StoreError> {
        Ok(self.lock().1)
    }

    fn apply(&self, batch: &Batch, state: &State) -> Result<(), StoreError> {
        let mut records = self.lock();
        for (key, record) in batch {
            match record {
                Some(record) => records.0.insert(key.as_str().into(), record.bytes.clone()),
                None => records.0.remove(key.as_str()),
            };
        }
        records.1 = Some(*state);
        Ok(())
    }
}

#[derive(Default)]
struct Controls {
    sync_delay: Duration,
    fault: Option<DiskFault>,
    capacity_bytes: Option<usize>,
    stopped: Option<String>,
    closed: bool,
    /// Counts crashes, so that a commit notices one that happened while it was waiting.
    crashes: u64,
}

#[derive(Default)]
struct Inner {
    records: Records,
    controls: Mutex<Controls>,
    publisher: Publisher,
    /// Commits one at a time, in order.
    writing: tokio::sync::Mutex<()>,
}

/// A store in memory; clones are handles to the same store.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Inner>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn controls(&self) -> MutexGuard<'_, Controls> {
        self.0.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every later commit takes this long, on tokio's clock, between being written and being durable.
    pub fn set_sync_delay(&self, delay: Duration) {
        self.controls().sync_delay = delay;
    }

    /// The next commit meets this fault and the store stops, as on a real disk, until [`MemoryStore::crash`].
    pub fn fail(&self, fault: DiskFault) {
        self.controls().fault = Some(fault);
    }

    /// Commits that would bring keys and values above `bytes` answer [`StoreError::Full`]; the store goes on.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.controls().capacity_bytes = bytes;
    }

    /// The process dies and starts again: commits not yet durable are gone and their callers get
    /// [`StoreError::Closed`], watches end, faults, delay and a close are forgotten, durable commits stay.
    pub fn crash(&self) {
        let mut controls = self.controls();
        let crashes = controls.crashes + 1;
        *controls = Controls {
            crashes,
            capacity_bytes: controls.capacity_bytes,
            ..Controls::default()
        };
        self.0.publisher.end(false);
    }

    fn check(controls: &Controls) -> Result<(), StoreError> {
        if controls.closed {
            return Err(StoreError::Closed);
        }
        match &controls.stopped {
            Some(reason) => Err(StoreError::Stopped { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        Self::check(&self.controls())?;
        engine::get(&self.0.records, key)
    }

    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        Self::check(&self.controls())?;
        engine::list(&self.0.records, prefix, after, limit)
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        transaction.check_limits()?;
        let crashes = self.controls().crashes;
        let _turn = self.0.writing.lock().await;
        let delay = {
            let controls = self.controls();
            if controls.crashes != crashes {
                return Err(StoreError::Closed);
            }
            Self::check(&controls)?;
            controls.sync_delay
        };
        let mut group = Group::new(self.0.records.state()?.unwrap_or(State::new(0)));
        let revision = group.stage(&self.0.records, transaction)?;
        if group.commits.is_empty() {
            return Ok(revision);
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut controls = self.controls();
        if controls.crashes != crashes {
            return Err(StoreError::Closed);
        }
        if let Some(fault) = controls.fault.take() {
            let cause = fault.error();
            controls.stopped = Some(cause.chain());
            self.0.publisher.end(false);
            return Err(cause);
        }
        if controls
            .capacity_bytes
            .is_some_and(|limit| self.0.records.bytes(&group.batch) > limit)
        {
            return Err(StoreError::Full {
                attempt: "write a commit",
                source: None,
            });
        }
        self.0.records.apply(&group.batch, &group.state)?;
        self.0.publisher.publish(&group.commits);
        Ok(revision)
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Watch, StoreError> {
        Self::check(&self.controls())?;
        self.0.publisher.watch(prefix).ok_or(StoreError::Closed)
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Self::check(&self.controls())?;
        self.0.publisher.revision().ok_or(StoreError::Closed)
    }

    async fn close(&self) -> Result<(), StoreError> {
        let _turn = self.0.writing.lock().await;
        self.controls().closed = true;
        self.0.publisher.end(false);
        Ok(())
    }
}
