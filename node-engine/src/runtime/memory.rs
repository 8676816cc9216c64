//! A runtime without containers, for tests and for demonstrations without root: it keeps state, and can be told to be
//! slow, to fail, and what its "images" do.

use super::keyed::KeyedLock;
use super::{
    ContainerState, Exit, ExitReason, ImageInfo, ImageRequest, LogRequest, LogStream, RunOrder, RunningInstance,
    Runtime, RuntimeError, Started, wall_now,
};
use async_trait::async_trait;
use bytes::Bytes;
use roble_core::ids::InstanceId;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// What an "image" of the memory runtime does when it is started.
#[derive(Debug, Clone, Default)]
pub struct ImageScript {
    /// Ends by itself: after this time, with this code; none: runs until stopped.
    pub exit: Option<(Duration, i32)>,
    /// Does not react to the polite signal, so it takes the whole grace and ends with 137.
    pub ignores_stop: bool,
    /// Written to the log at the start.
    pub output: Vec<u8>,
    /// Architecture in OCI's names; empty: this machine's.
    pub architecture: String,
}

/// The calls that can be told to fail or to be slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Runtime::ensure_image`].
    EnsureImage,
    /// [`Runtime::ensure_running`].
    EnsureRunning,
    /// [`Runtime::ensure_gone`].
    EnsureGone,
    /// [`Runtime::list`].
    List,
    /// [`Runtime::check`].
    Check,
}

#[derive(Debug)]
struct Container {
    order: RunOrder,
    state: ContainerState,
    run: u64,
    log: Vec<u8>,
    ignores_stop: bool,
}

#[derive(Debug, Default)]
struct State {
    images: HashMap<String, ImageScript>,
    containers: BTreeMap<InstanceId, Container>,
    starts: HashMap<InstanceId, u32>,
    failures: HashMap<Operation, VecDeque<RuntimeError>>,
    delays: HashMap<Operation, Duration>,
    silent_exits: bool,
    runs: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    locks: KeyedLock<InstanceId>,
    exits: broadcast::Sender<Exit>,
    changes: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Ends a running container; `run` given: only if it is still that run.
    fn end(&self, instance: InstanceId, run: Option<u64>, code: i32, oom_killed: bool) -> bool {
        let mut state = self.state();
        let silent = state.silent_exits;
        let Some(container) = state.containers.get_mut(&instance) else {
            return false;
        };
        if run.is_some_and(|run| run != container.run) || !matches!(container.state, ContainerState::Running(_)) {
            return false;
        }
        let reason = ExitReason::from_code(code, oom_killed, wall_now());
        container.state = ContainerState::Exited(reason.clone());
        let version = container.order.version.clone();
        drop(state);
        if !silent {
            // No receiver is no fault: exits are hints.
            let _ = self.exits.send(Exit {
                instance,
                version,
                reason,
            });
        }
        self.changed();
        true
    }
}

/// The runtime in memory. Its containers live behind an `Arc`: [`MemoryRuntime::restarted`] is a new engine process
/// that finds what the old one left running. Needs a tokio runtime with time; works with the paused clock.
#[derive(Debug)]
pub struct MemoryRuntime {
    shared: Arc<Shared>,
    exits: tokio::sync::Mutex<broadcast::Receiver<Exit>>,
}

impl Default for MemoryRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryRuntime {
    /// No containers. Every image name is known and runs until stopped, except as told by [`Self::set_image`] and
    /// names that contain `missing`.
    pub fn new() -> Self {
        let (exits, receiver) = broadcast::channel(1024);
        let shared = Shared {
            state: Mutex::default(),
            locks: KeyedLock::new(),
            exits,
            changes: watch::Sender::new(0),
        };
        Self {
            shared: Arc::new(shared),
            exits: tokio::sync::Mutex::new(receiver),
        }
    }

    /// What a new process of the engine would get: the same containers, no memory of ends before now.
    pub fn restarted(&self) -> Self {
        let receiver = self.shared.exits.subscribe();
        Self {
            shared: Arc::clone(&self.shared),
            exits: tokio::sync::Mutex::new(receiver),
        }
    }

    /// Sets what containers of the image `reference` (as written in the spec) do from now on.
    pub fn set_image(&self, reference: &str, script: ImageScript) {
        self.shared.state().images.insert(reference.to_owned(), script);
    }

    /// Lets the next call of `operation` fail; several are used up one by one.
    pub fn fail_next(&self, operation: Operation, error: RuntimeError) {
        self.shared
            .state()
            .failures
            .entry(operation)
            .or_default()
            .push_back(error);
    }

    /// Lets every call of `operation` take `delay`, until told otherwise.
    pub fn set_delay(&self, operation: Operation, delay: Duration) {
        self.shared.state().delays.insert(operation, delay);
    }

    /// Keeps ends to itself: [`Runtime::next_exit`] does not tell them, [`Runtime::list`] does.
    pub fn set_silent_exits(&self, silent: bool) {
        self.shared.state().silent_exits = silent;
    }

    /// Ends a running instance with `code`; false if it does not run.
    pub fn end(&self, instance: InstanceId, code: i32) -> bool {
        self.shared.end(instance, None, code, false)
    }

    /// Ends a running instance as the kernel does when it runs out of memory; false if it does not run.
    pub fn end_out_of_memory(&self, instance: InstanceId) -> bool {
        self.shared.end(instance, None, 137, true)
    }

    /// Appends to the log of an instance.
    pub fn write_log(&self, instance: InstanceId, bytes: &[u8]) {
        if let Some(container) = self.shared.state().containers.get_mut(&instance) {
            container.log.extend_from_slice(bytes);
        }
        self.shared.changed();
    }

    /// How often a process of the instance was started, ever.
    pub fn starts(&self, instance: InstanceId) -> u32 {
        self.shared.state().starts.get(&instance).copied().unwrap_or(0)
    }

    /// The last order that was started and is still known.
    pub fn order_of(&self, instance: InstanceId) -> Option<RunOrder> {
        self.shared
            .state()
            .containers
            .get(&instance)
            .map(|container| container.order.clone())
    }

    async fn enter(&self, operation: Operation) -> Result<(), RuntimeError> {
        let delay = self.shared.state().delays.get(&operation).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let failure = self
            .shared
            .state()
            .failures
            .get_mut(&operation)
            .and_then(VecDeque::pop_front);
        failure.map_or(Ok(()), Err)
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) {
        let ignores = {
            let state = self.shared.state();
            let Some(container) = state.containers.get(&instance) else {
                return;
            };
            container.ignores_stop
        };
        if !ignores {
            self.shared.end(instance, None, 143, false);
            return;
        }
        let mut changes = self.shared.changes.subscribe();
        let ended = async {
            while self.is_running(instance) {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            self.shared.end(instance, None, 137, false);
        }
    }

    fn is_running(&self, instance: InstanceId) -> bool {
        let state = self.shared.state();
        state
            .containers
            .get(&instance)
            .is_some_and(|found| matches!(found.state, ContainerState::Running(_)))
    }

    fn start(&self, order: &RunOrder, log: Vec<u8>) -> Started {
        let mut state = self.shared.state();
        let script = state.images.get(&order.spec.image).cloned().unwrap_or_default();
        state.runs += 1;
        let run = state.runs;
        let started = Started {
            pid: u32::try_from(run).unwrap_or(u32::MAX),
            started_at: wall_now(),
        };
        *state.starts.entry(order.instance).or_insert(0) += 1;
        let container = Container {
            order: order.clone(),
            state: ContainerState::Running(started.clone()),
            run,
            log: [log, script.output].concat(),
            ignores_stop: script.ignores_stop,
        };
        state.containers.insert(order.instance, container);
        drop(state);
        self.shared.changed();
        if let Some((after, code)) = script.exit {
            let (shared, instance) = (Arc::clone(&self.shared), order.instance);
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                shared.end(instance, Some(run), code, false);
            });
        }
        started
    }
}

#[async_trait]
impl Runtime for MemoryRuntime {
    async fn ensure_image(&self, image: &ImageRequest) -> Result<ImageInfo, RuntimeError> {
        self.enter(Operation::EnsureImage).await?;
        let reference = super::reference::ImageReference::parse(&image.reference)?.to_string();
        let script = self.shared.state().images.get(&image.reference).cloned();
        if script.is_none() && reference.contains("missing") {
            return Err(RuntimeError::ImageNotFound {
                reference,
                detail: "the name says so".to_owned(),
            });
        }
        let offered = script.map(|script| script.architecture).unwrap_or_default();
        let machine = super::reference::machine_architecture();
        if !offered.is_empty() && offered != machine {
            return Err(RuntimeError::WrongArchitecture {
                reference,
                offered,
                machine: machine.to_owned(),
            });
        }
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(reference.as_bytes())));
        match &image.digest {
            Some(expected) if *expected != digest => Err(RuntimeError::DigestMismatch {
                what: reference,
                expected: expected.clone(),
                found: digest,
            }),
            _ => Ok(ImageInfo {
                reference,
                digest,
                size_bytes: 1,
            }),
        }
    }

    async fn ensure_running(&self, order: &RunOrder) -> Result<Started, RuntimeError> {
        let _guard = self.shared.locks.lock(&order.instance).await;
        self.enter(Operation::EnsureRunning).await?;
        let present = {
            let state = self.shared.state();
            state
                .containers
                .get(&order.instance)
                .map(|found| (found.order.version.clone(), found.state.clone()))
        };
        let mut log = Vec::new();
        if let Some((present, state)) = present {
            if present > order.version {
                let (instance, ordered) = (order.instance, order.version.clone());
                return Err(RuntimeError::Outdated {
                    instance,
                    present,
                    ordered,
                });
            }
            match state {
                ContainerState::Running(started) if present == order.version => return Ok(started),
                ContainerState::Running(_) => {
                    self.stop(order.instance, Duration::from_millis(order.spec.stop_grace_ms))
                        .await;
                }
                ContainerState::Created | ContainerState::Exited(_) => {}
            }
            log = self
                .shared
                .state()
                .containers
                .remove(&order.instance)
                .map(|old| old.log)
                .unwrap_or_default();
        }
        Ok(self.start(order, log))
    }

    async fn ensure_gone(&self, instance: InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let _guard = self.shared.locks.lock(&instance).await;
        self.enter(Operation::EnsureGone).await?;
        self.stop(instance, grace).await;
        self.shared.state().containers.remove(&instance);
        self.shared.changed();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<RunningInstance>, RuntimeError> {
        self.enter(Operation::List).await?;
        let state = self.shared.state();
        let found = state.containers.iter().map(|(instance, container)| RunningInstance {
            instance: *instance,
            version: container.order.version.clone(),
            spec_hash: container.order.spec_hash(),
            image_digest: container.order.image_digest.clone(),
            netns: container.order.netns.clone(),
            state: container.state.clone(),
        });
        Ok(found.collect())
    }

    async fn next_exit(&self) -> Exit {
        let mut exits = self.exits.lock().await;
        loop {
            match exits.recv().await {
                Ok(exit) => return exit,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // `self.shared` holds the sender, so this does not happen while `self` lives.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn logs(&self, instance: InstanceId, request: LogRequest) -> Result<LogStream, RuntimeError> {
        let changes = self.shared.changes.subscribe();
        let offset = {
            let state = self.shared.state();
            let container = state
                .containers
                .get(&instance)
                .ok_or(RuntimeError::NoSuchInstance { instance })?;
            request
                .tail_lines
                .map_or(0, |lines| super::log::tail_offset(&container.log, lines))
        };
        let shared = Arc::clone(&self.shared);
        let stream = futures_util::stream::unfold(
            (shared, changes, offset),
            move |(shared, mut changes, offset)| async move {
                loop {
                    changes.mark_unchanged();
                    let (chunk, runs) = {
                        let state = shared.state();
                        let container = state.containers.get(&instance)?;
                        let chunk = Bytes::copy_from_slice(container.log.get(offset..).unwrap_or_default());
                        (chunk, matches!(container.state, ContainerState::Running(_)))
                    };
                    if !chunk.is_empty() {
                        let next = offset + chunk.len();
                        return Some((Ok(chunk), (shared, changes, next)));
                    }
                    if !request.follow || !runs || changes.changed().await.is_err() {
                        return None;
                    }
                }
            },
        );
        Ok(Box::pin(stream))
    }

    async fn check(&self) -> Result<String, RuntimeError> {
        self.enter(Operation::Check).await?;
        Ok("memory".to_owned())
    }
}

#[cfg(test)]
mod tests;
