//! Containers: create, start, stop, remove, and what their records say.
//!
//! The container record is made first and removed last but for the snapshot: it names the snapshot, so containerd's
//! collector keeps that while the record exists and takes it when the record is gone; no lease is needed and a crash at
//! any point leaves something that [`list`](super::ContainerdRuntime) shows or that the collector removes.

use super::client::{describe, fresh, is_unavailable, optional, unavailable};
use super::folder::Folder;
use super::image::{self, Image};
use super::spec::{self, Places};
use super::user::{self, User};
use super::{Shared, cgroup};
use crate::runtime::{ContainerState, ExitReason, RunOrder, RuntimeError, Started};
use containerd_client::services::v1::container::Runtime as RuntimeName;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, StartRequest, UpdateContainerRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use oci_spec::runtime::Spec;
use roble_core::ids::InstanceId;
use roble_core::spec::SecurityProfile;
use roble_core::time::Timestamp;
use roble_daemon::failpoint;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long the kernel may take to end a process that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// Name of the OCI runtime's shim.
pub(super) const RUNTIME: &str = "io.containerd.runc.v2";

const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

impl Shared {
    pub(super) async fn get_container(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let request = self.client.request(GetContainerRequest { id: id.to_owned() });
        let found = optional(self.client.containers().get(request).await).map_err(unavailable)?;
        Ok(found.and_then(|response| response.into_inner().container))
    }

    pub(super) async fn get_task(&self, id: &str) -> Result<Option<Process>, RuntimeError> {
        let request = self.client.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let found = optional(self.client.tasks().get(request).await).map_err(unavailable)?;
        Ok(found.and_then(|response| response.into_inner().process))
    }

    /// What a container does, from its record, its task and the notes in its folder.
    pub(super) fn state_of(&self, instance: InstanceId, record: &Container, task: Option<&Process>) -> ContainerState {
        let folder = Folder::new(&self.config.state_dir, instance);
        let Some(task) = task else {
            return folder
                .past_exit()
                .map_or(ContainerState::Created, ContainerState::Exited);
        };
        match task.status() {
            TaskStatus::Created => ContainerState::Created,
            TaskStatus::Stopped => {
                let reason = folder.exit(Some(task.pid)).unwrap_or_else(|| {
                    let reason = self.exit_reason(instance, task.exit_status, task.exited_at.as_ref());
                    folder.save_exit(task.pid, &reason);
                    reason
                });
                ContainerState::Exited(reason)
            }
            // A shim that does not answer at the moment is no proof of an end.
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing | TaskStatus::Unknown => {
                let started_at = timestamp(record.created_at.as_ref());
                ContainerState::Running(Started {
                    pid: task.pid,
                    started_at,
                })
            }
        }
    }

    pub(super) fn exit_reason(
        &self,
        instance: InstanceId,
        status: u32,
        at: Option<&prost_types::Timestamp>,
    ) -> ExitReason {
        let oom_killed = cgroup::was_oom_killed(&self.cgroup_of(instance));
        ExitReason::from_code(i32::try_from(status).unwrap_or(i32::MAX), oom_killed, timestamp(at))
    }

    fn cgroup_of(&self, instance: InstanceId) -> String {
        format!("{}/{instance}", self.config.cgroup_parent.trim_end_matches('/'))
    }

    /// Creates and starts the container of `order`; there must be none.
    pub(super) async fn create(self: &Arc<Self>, order: &RunOrder) -> Result<Started, RuntimeError> {
        match self.try_create(order).await {
            Ok(started) => Ok(started),
            Err(error) => {
                if let Err(left) = self.remove(order.instance, Duration::ZERO, true).await {
                    tracing::warn!(instance = %order.instance, error = %left, "container left after a failed start");
                }
                Err(error)
            }
        }
    }

    async fn try_create(self: &Arc<Self>, order: &RunOrder) -> Result<Started, RuntimeError> {
        let instance = order.instance;
        let failed = |detail: String| RuntimeError::CreateFailed { instance, detail };
        let image = image::load(&self.client, &order.spec.image, &order.image_digest).await?;
        let image = image.ok_or_else(|| failed(format!("image {} is not present", order.image_digest)))?;
        let folder = Folder::new(&self.config.state_dir, instance);
        let hostname = order
            .files
            .hostname
            .clone()
            .unwrap_or_else(|| instance.to_string().replace('.', "-"));
        folder.prepare(order, &hostname)?;
        failpoint!("node.create.folder");

        let user_text = spec::user_text(order, &image);
        let known = user::without_files(user_text);
        let spec = self.spec(
            order,
            &image,
            known.as_ref().unwrap_or(&User::default()),
            &folder,
            &hostname,
        )?;
        let mut record = self.record(order, &image, &spec);
        let request = CreateContainerRequest {
            container: Some(record.clone()),
        };
        let created = self.client.containers().create(self.client.request(request)).await;
        let created = created.map_err(|status| self.create_error(instance, "create container", &status))?;
        failpoint!("node.create.container");
        let created_at = created
            .into_inner()
            .container
            .and_then(|container| container.created_at);

        let mounts = self.prepare_snapshot(instance, &image.chain_id()).await?;
        failpoint!("node.create.snapshot");
        if known.is_none() {
            let user = user::resolve(user_text, &mounts).map_err(failed)?;
            record.spec = Some(any(&self.spec(order, &image, &user, &folder, &hostname)?));
            let request = UpdateContainerRequest {
                container: Some(record),
                update_mask: None,
            };
            let updated = self.client.containers().update(self.client.request(request)).await;
            updated.map_err(|status| self.create_error(instance, "update container", &status))?;
        }
        // Not as `file://`, nor by one path: then the shim (containerd 1.6) writes both streams through one file, which it closes when the
        // first of them ends, and the last lines of the other are lost.
        let (log, same) = (folder.log(), folder.log_again());
        let made = std::fs::File::options().create(true).append(true).open(&log);
        made.map_err(|error| failed(format!("make {}: {error}", log.display())))?;
        let request = CreateTaskRequest {
            container_id: instance.to_string(),
            rootfs: mounts,
            stdout: log.to_string_lossy().into_owned(),
            stderr: same.to_string_lossy().into_owned(),
            ..CreateTaskRequest::default()
        };
        let pid = self.create_task(instance, request).await?;
        failpoint!("node.create.task");
        // Before anything of the image runs.
        if let Some((quota, period)) = spec::cpu_quota(order) {
            let limited = cgroup::set_cpu_quota(&self.cgroup_of(instance), quota, period);
            limited.map_err(|error| failed(format!("limit its processor time: {error}")))?;
        }
        folder.mark_started()?;
        failpoint!("node.create.marked");
        let request = StartRequest {
            container_id: instance.to_string(),
            exec_id: String::new(),
        };
        let started = self.client.tasks().start(self.client.request(request)).await;
        started.map_err(|status| self.create_error(instance, "start", &status))?;
        failpoint!("node.create.started");
        self.watch(instance, order.version.clone(), pid);
        Ok(Started {
            pid,
            started_at: timestamp(created_at.as_ref()),
        })
    }

    fn spec(
        &self,
        order: &RunOrder,
        image: &Image,
        user: &User,
        folder: &Folder,
        hostname: &str,
    ) -> Result<Spec, RuntimeError> {
        let instance = order.instance;
        if order.spec.security == SecurityProfile::Restricted && user.uid == 0 && !is_placeholder(order, image, user) {
            let detail = "the security profile `restricted` does not allow root: set a user other than 0, in the \
                          service or in the image";
            return Err(RuntimeError::Refused {
                instance,
                detail: detail.to_owned(),
            });
        }
        let cgroup = self.cgroup_of(instance);
        let places = Places {
            cgroup: &cgroup,
            files: folder.path(),
            hostname,
        };
        let built = spec::build(order, image, user, &places, &self.limits);
        built.map_err(|detail| RuntimeError::CreateFailed { instance, detail })
    }

    fn record(&self, order: &RunOrder, image: &Image, spec: &Spec) -> Container {
        let stop = image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.stop_signal().clone());
        Container {
            id: order.instance.to_string(),
            labels: super::labels::of(order, stop.and_then(|name| signal_number(&name)).unwrap_or(SIGTERM)),
            image: image.reference.clone(),
            runtime: Some(RuntimeName {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(any(spec)),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: order.instance.to_string(),
            ..Container::default()
        }
    }

    /// Creates the task. A creation that an earlier process of ours had asked for may have come to its end only after that
    /// process had died and its record had been removed: what it left is ended first.
    async fn create_task(&self, instance: InstanceId, request: CreateTaskRequest) -> Result<u32, RuntimeError> {
        let first = self.client.tasks().create(self.client.request(request.clone())).await;
        let created = match first {
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                self.stop(instance, TaskStatus::Created, SIGKILL, Duration::ZERO)
                    .await?;
                let id = instance.to_string();
                let delete = self.client.request(DeleteTaskRequest { container_id: id });
                optional(self.client.tasks().delete(delete).await)
                    .map_err(|status| self.remove_error(instance, "task", status))?;
                self.client.tasks().create(self.client.request(request)).await
            }
            other => other,
        };
        let created = created.map_err(|status| self.create_error(instance, "create task", &status))?;
        Ok(created.into_inner().pid)
    }

    async fn prepare_snapshot(&self, instance: InstanceId, parent: &str) -> Result<Vec<Mount>, RuntimeError> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: instance.to_string(),
            parent: parent.to_owned(),
            ..PrepareSnapshotRequest::default()
        };
        let error = |status: &Status| self.create_error(instance, "prepare its file system", status);
        let prepared = self
            .client
            .snapshots()
            .prepare(self.client.request(request.clone()))
            .await;
        let prepared = match fresh(prepared).map_err(|status| error(&status))? {
            Some(prepared) => prepared,
            // Left by a crash, before the collector came: its content is of an earlier run.
            None => {
                self.remove_snapshot(instance).await?;
                let prepared = self.client.snapshots().prepare(self.client.request(request)).await;
                prepared.map_err(|status| error(&status))?
            }
        };
        Ok(prepared.into_inner().mounts)
    }

    fn create_error(&self, instance: InstanceId, what: &str, status: &Status) -> RuntimeError {
        if is_unavailable(status) {
            return RuntimeError::Unavailable {
                detail: describe(status),
            };
        }
        RuntimeError::CreateFailed {
            instance,
            detail: format!("{what}: {}", describe(status)),
        }
    }

    /// Stops and removes all of an instance; with `keep_folder` all but its folder.
    pub(super) async fn remove(
        &self,
        instance: InstanceId,
        grace: Duration,
        keep_folder: bool,
    ) -> Result<(), RuntimeError> {
        let id = instance.to_string();
        let record = self.get_container(&id).await?;
        if record.is_none() {
            self.adopt_stray(instance).await?;
        }
        if let Some(task) = self.get_task(&id).await? {
            let signal = record
                .as_ref()
                .map_or(SIGTERM, |record| super::labels::stop_signal(&record.labels));
            if task.status() != TaskStatus::Stopped {
                self.stop(instance, task.status(), signal, grace).await?;
            }
            failpoint!("node.remove.stopped");
            let request = self.client.request(DeleteTaskRequest {
                container_id: id.clone(),
            });
            optional(self.client.tasks().delete(request).await)
                .map_err(|status| self.remove_error(instance, "task", status))?;
        }
        failpoint!("node.remove.task");
        if !keep_folder {
            Folder::new(&self.config.state_dir, instance).remove()?;
        }
        failpoint!("node.remove.folder");
        let request = self.client.request(DeleteContainerRequest { id });
        optional(self.client.containers().delete(request).await)
            .map_err(|status| self.remove_error(instance, "container", status))?;
        failpoint!("node.remove.container");
        self.remove_snapshot(instance).await?;
        failpoint!("node.remove.snapshot");
        Ok(())
    }

    async fn remove_snapshot(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: instance.to_string(),
        };
        optional(self.client.snapshots().remove(self.client.request(request)).await)
            .map_err(|status| self.remove_error(instance, "file system", status))?;
        Ok(())
    }

    async fn stop(
        &self,
        instance: InstanceId,
        status: TaskStatus,
        signal: u32,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        // A process that was never started, or that is frozen, cannot react.
        let polite = matches!(status, TaskStatus::Running | TaskStatus::Unknown) && !grace.is_zero();
        for (signal, patience) in [(signal, grace), (SIGKILL, KILL_PATIENCE)] {
            if signal != SIGKILL && !polite {
                continue;
            }
            let id = instance.to_string();
            let kill = KillRequest {
                container_id: id.clone(),
                exec_id: String::new(),
                signal,
                all: false,
            };
            let killed = optional(self.client.tasks().kill(self.client.request(kill)).await);
            killed.map_err(|status| self.remove_error(instance, "process", status))?;
            let wait = self.client.unlimited(WaitRequest {
                container_id: id,
                exec_id: String::new(),
            });
            let mut tasks = self.client.tasks();
            if let Ok(ended) = tokio::time::timeout(patience, tasks.wait(wait)).await {
                optional(ended).map_err(|status| self.remove_error(instance, "process", status))?;
                return Ok(());
            }
        }
        let detail = format!(
            "process does not end within {} s of being killed",
            KILL_PATIENCE.as_secs()
        );
        Err(RuntimeError::RemoveFailed { instance, detail })
    }

    fn remove_error(&self, instance: InstanceId, what: &str, status: Status) -> RuntimeError {
        if is_unavailable(&status) {
            return unavailable(status);
        }
        RuntimeError::RemoveFailed {
            instance,
            detail: format!("{what}: {}", describe(&status)),
        }
    }
}

/// Whether `user` only stands for one that is looked up once the file system is there.
fn is_placeholder(order: &RunOrder, image: &Image, user: &User) -> bool {
    *user == User::default() && user::without_files(spec::user_text(order, image)).is_none()
}

fn any(spec: &Spec) -> prost_types::Any {
    prost_types::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
        value: serde_json::to_vec(spec).expect("a runtime specification is plain data"),
    }
}

pub(super) fn timestamp(at: Option<&prost_types::Timestamp>) -> Timestamp {
    let millis = at.map(|at| {
        at.seconds
            .saturating_mul(1_000)
            .saturating_add(i64::from(at.nanos) / 1_000_000)
    });
    Timestamp::from_millis(millis.and_then(|millis| u64::try_from(millis).ok()).unwrap_or_default())
}

/// The number of a signal by number or name, with or without `SIG`.
fn signal_number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let full = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    let signal: nix::sys::signal::Signal = full.parse().ok()?;
    u32::try_from(signal as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_names_and_numbers() {
        let table = [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("15", Some(15)),
            ("0", None),
            ("SIGFOO", None),
            ("", None),
        ];
        for (name, number) in table {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }
}
