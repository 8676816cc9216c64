//! Ends of processes: one waiting call per running container, renewed when containerd comes back; and the task that
//! adopts what an earlier process left and keeps logs bounded.

use super::client::{describe, optional};
use super::folder::Folder;
use super::{Shared, labels};
use crate::runtime::{ContainerState, Exit, RunningInstance, RuntimeError};
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest, WaitRequest};
use roble_core::ids::InstanceId;
use roble_core::version::Version;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;

/// Between two looks at the sizes of logs.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time between two tries to reach containerd.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// The call that waits for the end of one process.
#[derive(Debug)]
pub(super) struct Watch {
    pid: u32,
    task: AbortHandle,
}

impl Watch {
    /// Stops waiting.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Shared {
    /// Waits in the background for the end of process `pid`, unless that is done already.
    pub(super) fn watch(self: &Arc<Self>, instance: InstanceId, version: Version, pid: u32) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if watches
            .get(&instance)
            .is_some_and(|watch| watch.pid == pid && !watch.task.is_finished())
        {
            return;
        }
        let task = tokio::spawn(wait_for_end(Arc::clone(self), instance, version, pid)).abort_handle();
        // The call for an earlier run is not stopped: its end may be about to be told, and it returns by itself.
        watches.insert(instance, Watch { pid, task });
    }

    /// Instances whose processes are waited for.
    fn watched(&self) -> Vec<InstanceId> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|_, watch| !watch.task.is_finished());
        watches.keys().copied().collect()
    }

    /// All containers of ours; begins to watch those that run.
    pub(super) async fn list(self: &Arc<Self>) -> Result<Vec<RunningInstance>, RuntimeError> {
        let error = |status| RuntimeError::Unavailable {
            detail: format!("list containers: {}", describe(&status)),
        };
        // Tasks first: a container made in between then shows as created, not as ended.
        let tasks = self
            .client
            .tasks()
            .list(self.client.request(ListTasksRequest::default()))
            .await;
        let tasks = tasks.map_err(error)?.into_inner().tasks;
        let mut tasks: HashMap<_, _> = tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        let request = self.client.request(ListContainersRequest::default());
        let records = self
            .client
            .containers()
            .list(request)
            .await
            .map_err(error)?
            .into_inner()
            .containers;
        let mut found = Vec::with_capacity(records.len());
        for record in records {
            let Ok(instance) = record.id.parse() else {
                tracing::debug!(container = record.id, "container is not ours");
                continue;
            };
            let state = self.state_of(instance, &record, tasks.remove(&record.id).as_ref());
            if let ContainerState::Running(started) = &state {
                self.watch(instance, labels::version(&record.labels), started.pid);
            }
            found.extend(labels::entry(&record.id, &record.labels, state));
        }
        found.extend(tasks.values().filter_map(super::stray::entry));
        found.sort_by_key(|entry| entry.instance);
        Ok(found)
    }

    fn tell(&self, instance: InstanceId, version: Version, reason: crate::runtime::ExitReason) {
        // A full queue means that nobody listens; exits are hints, the list tells them too.
        if self
            .exits
            .try_send(Exit {
                instance,
                version,
                reason,
            })
            .is_err()
        {
            tracing::debug!(%instance, "exit not told: nobody listens");
        }
    }
}

async fn wait_for_end(shared: Arc<Shared>, instance: InstanceId, version: Version, pid: u32) {
    let folder = Folder::new(&shared.config.state_dir, instance);
    let mut backoff = Duration::from_millis(50);
    loop {
        let request = WaitRequest {
            container_id: instance.to_string(),
            exec_id: String::new(),
        };
        match optional(shared.client.tasks().wait(shared.client.unlimited(request)).await) {
            Ok(Some(ended)) => {
                let ended = ended.into_inner();
                let reason = shared.exit_reason(instance, ended.exit_status, ended.exited_at.as_ref());
                folder.save_exit(pid, &reason);
                return shared.tell(instance, version, reason);
            }
            // The task is gone: removed by us, or lost with its shim while containerd was away.
            Ok(None) => {
                if let Ok(Some(_)) = shared.get_container(&instance.to_string()).await
                    && let Some(reason) = folder.past_exit()
                {
                    shared.tell(instance, version, reason);
                }
                return;
            }
            // containerd is away, which says nothing about the process.
            Err(_) => {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        }
    }
}

/// Adopts what runs, then keeps the logs of what runs bounded. Ends when it is aborted.
pub(super) async fn background(shared: Arc<Shared>) {
    let mut backoff = Duration::from_millis(50);
    while let Err(error) = shared.list().await {
        tracing::debug!(%error, "containers not adopted yet");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
    let mut ticks = tokio::time::interval(LOG_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for instance in shared.watched() {
            shared.rotate_log(instance).await;
        }
    }
}
