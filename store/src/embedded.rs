//! An engine behind two threads: one writes and groups commits, one reads.
//!
//! Neither the tokio workers nor a reader waits for a sync. A panic of the backend ends on these threads. Any
//! failed write stops the store: it answers [`StoreError::Stopped`] until it is opened anew, because after a
//! failed sync nobody knows what the disk holds.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::engine::{self, Engine, Group, guard};
use crate::error::StoreError;
use crate::folder::Folder;
use crate::key::{Key, Prefix};
use crate::open::{Ready, Report};
use crate::record::State;
use crate::store::{Page, Store, Transaction, Versioned};
use crate::watch::{Publisher, Watch};

/// Commits, and reads, that may wait for their thread before callers wait too.
const QUEUE: usize = 256;

/// A group of commits is closed when its transactions reach this many bytes.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

struct CommitRequest {
    transaction: Transaction,
    reply: Reply<u64>,
}

enum ReadRequest {
    Get {
        key: Key,
        reply: Reply<Option<Versioned>>,
    },
    List {
        prefix: Prefix,
        after: Option<Key>,
        limit: usize,
        reply: Reply<Page>,
    },
}

/// Held by both threads; the engine goes before the lock on the folder.
struct Shared {
    engine: Box<dyn Engine>,
    folder: Folder,
    publisher: Arc<Publisher>,
    stopped: OnceLock<String>,
}

/// A store on an [`Engine`].
pub(crate) struct Embedded {
    handles: Mutex<Option<Handles>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    publisher: Arc<Publisher>,
}

#[derive(Clone)]
struct Handles {
    commits: mpsc::Sender<CommitRequest>,
    reads: mpsc::Sender<ReadRequest>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values are replaced whole, so a panic cannot leave them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = Builder::new().name(name.into()).spawn(work);
    thread.map_err(|e| StoreError::io("start a store thread", e))
}

impl Embedded {
    /// Runs `open` on what becomes the writer thread.
    pub async fn start(
        open: impl FnOnce() -> Result<Ready, StoreError> + Send + 'static,
    ) -> Result<(Self, Report), StoreError> {
        let (commits, commit_requests) = mpsc::channel(QUEUE);
        let (opened, report) = oneshot::channel();
        let writer = spawn("roble-store-wr", move || {
            let Ready {
                engine,
                folder,
                state,
                report,
            } = match guard("open the store", open) {
                Ok(ready) => ready,
                Err(error) => {
                    opened.send(Err(error)).ok();
                    return;
                }
            };
            let publisher = Arc::new(Publisher::new(state.revision));
            let stopped = OnceLock::new();
            let shared = Arc::new(Shared {
                engine,
                folder,
                publisher,
                stopped,
            });
            if opened.send(Ok((shared.clone(), report))).is_ok() {
                write(&shared, state, commit_requests);
            }
            finish(shared);
        })?;
        let (shared, report) = report.await.map_err(|_| StoreError::Closed)??;
        let publisher = shared.publisher.clone();
        let (reads, read_requests) = mpsc::channel(QUEUE);
        let reader = spawn("roble-store-rd", move || {
            read(&shared, read_requests);
            finish(shared);
        })?;
        let store = Self {
            handles: Mutex::new(Some(Handles { commits, reads })),
            threads: Mutex::new(vec![writer, reader]),
            publisher,
        };
        Ok((store, report))
    }

    fn handles(&self) -> Result<Handles, StoreError> {
        lock(&self.handles).clone().ok_or(StoreError::Closed)
    }

    async fn read<T>(&self, request: impl FnOnce(Reply<T>) -> ReadRequest) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let reads = self.handles()?.reads;
        reads.send(request(reply)).await.map_err(|_| StoreError::Closed)?;
        drop(reads);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Lets the threads finish what they have and returns them.
    fn shut(&self) -> Vec<JoinHandle<()>> {
        self.publisher.end(true);
        drop(lock(&self.handles).take());
        std::mem::take(&mut lock(&self.threads))
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.read(|reply| ReadRequest::Get {
            key: key.clone(),
            reply,
        })
        .await
    }

    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        self.read(|reply| ReadRequest::List {
            prefix,
            after,
            limit,
            reply,
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        transaction.check_limits()?;
        let (reply, answer) = oneshot::channel();
        let commits = self.handles()?.commits;
        let request = CommitRequest { transaction, reply };
        commits.send(request).await.map_err(|_| StoreError::Closed)?;
        drop(commits);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Watch, StoreError> {
        self.publisher.watch(prefix).ok_or(StoreError::Closed)
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.publisher.revision().ok_or(StoreError::Closed)
    }

    async fn close(&self) -> Result<(), StoreError> {
        let threads = self.shut();
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        match joined.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(StoreError::Stopped {
                reason: "a store thread panicked".into(),
            }),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        for thread in self.shut() {
            if thread.join().is_err() {
                error!("store thread panicked");
            }
        }
    }
}

impl Shared {
    fn check(&self) -> Result<(), StoreError> {
        match self.stopped.get() {
            Some(reason) => Err(StoreError::Stopped { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn stop(&self, cause: &StoreError) {
        if self.stopped.set(cause.chain()).is_ok() {
            error!(error = %cause.chain(), "store stopped");
            self.publisher.end(false);
        }
    }

    /// Runs `work` unless stopped; a panic stops the store, since it may leave the backend half changed.
    fn run<T>(&self, attempt: &'static str, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check()?;
        let mut finished = false;
        let result = guard(attempt, || {
            let result = work();
            finished = true;
            result
        });
        if let (false, Err(error)) = (finished, &result) {
            self.stop(error);
        }
        result
    }
}

fn read(shared: &Shared, mut requests: mpsc::Receiver<ReadRequest>) {
    let engine = &*shared.engine;
    while let Some(request) = requests.blocking_recv() {
        // A caller that went away does not want the answer.
        match request {
            ReadRequest::Get { key, reply } => {
                reply
                    .send(shared.run("read a record", || engine::get(engine, &key)))
                    .ok();
            }
            ReadRequest::List {
                prefix,
                after,
                limit,
                reply,
            } => {
                let page = shared.run("list records", || engine::list(engine, &prefix, after.as_ref(), limit));
                reply.send(page).ok();
            }
        }
    }
}

fn write(shared: &Shared, mut state: State, mut requests: mpsc::Receiver<CommitRequest>) {
    let mut mark_warned = false;
    while let Some(first) = requests.blocking_recv() {
        let mut bytes = first.transaction.bytes();
        let mut requests_of_group = vec![first];
        while bytes < GROUP_BYTES && requests_of_group.len() < QUEUE {
            let Ok(request) = requests.try_recv() else {
                break;
            };
            bytes += request.transaction.bytes();
            requests_of_group.push(request);
        }
        let (transactions, replies): (Vec<_>, Vec<_>) =
            requests_of_group.into_iter().map(|r| (r.transaction, r.reply)).unzip();
        match shared.run("write commits", || write_group(shared, state, transactions)) {
            Ok((new_state, answers)) => {
                if new_state.revision != state.revision
                    && let Err(error) = shared.folder.write_mark(new_state.format, new_state.revision)
                    && !mark_warned
                {
                    warn!(%error, "store mark not written");
                    mark_warned = true;
                }
                state = new_state;
                for (reply, answer) in replies.into_iter().zip(answers) {
                    reply.send(answer).ok();
                }
            }
            Err(cause) => {
                shared.stop(&cause);
                let mut first = Some(cause);
                for reply in replies {
                    let answer = first.take().map_or_else(|| shared.check().map(|()| 0), Err);
                    reply.send(answer).ok();
                }
            }
        }
    }
}

type Answers = Vec<Result<u64, StoreError>>;

/// Answers, conflicts too, rest on staged writes, so they may only be sent after the group is durable.
fn write_group(shared: &Shared, state: State, transactions: Vec<Transaction>) -> Result<(State, Answers), StoreError> {
    let engine = &*shared.engine;
    let mut group = Group::new(state);
    let answers = transactions.into_iter().map(|t| group.stage(engine, t)).collect();
    if !group.commits.is_empty() {
        engine.apply(&group.batch, &group.state)?;
        shared.publisher.publish(&group.commits);
    }
    Ok((group.state, answers))
}

/// Closes the engine, then the lock, if this is the last thread.
fn finish(shared: Arc<Shared>) {
    if let Some(shared) = Arc::into_inner(shared) {
        if let Err(error) = shared.folder.sync_mark() {
            warn!(%error, "store mark not synced");
        }
        // A backend that panicked before may do so again while it is dropped.
        let dropped = guard("close the store", || {
            drop(shared);
            Ok(())
        });
        if let Err(error) = dropped {
            error!(error = %error.chain(), "store not closed cleanly");
        }
    }
}
