//! Tasks without a record: what containerd made of a creation whose engine had died, after the next engine had removed the
//! record. They are shown like containers that were never started, and removed with the rest of their instance.

use super::Shared;
use super::client::{optional, unavailable};
use crate::runtime::{ContainerState, RunningInstance, RuntimeError};
use containerd_client::services::v1::container::Runtime as RuntimeName;
use containerd_client::services::v1::{Container, CreateContainerRequest, ListTasksRequest};
use containerd_client::types::v1::Process;
use roble_core::ids::InstanceId;
use roble_core::version::Version;

/// The entry of the list for a task without a record; `None` if it is not ours.
pub(super) fn entry(task: &Process) -> Option<RunningInstance> {
    Some(RunningInstance {
        instance: task.id.parse().ok()?,
        version: Version::default(),
        spec_hash: String::new(),
        image_digest: String::new(),
        netns: None,
        state: ContainerState::Created,
    })
}

impl Shared {
    /// Gives a task without a record one, as containerd touches no task that has none. Does nothing if there is no task.
    pub(super) async fn adopt_stray(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        let id = instance.to_string();
        let request = self.client.request(ListTasksRequest::default());
        let tasks = self
            .client
            .tasks()
            .list(request)
            .await
            .map_err(unavailable)?
            .into_inner()
            .tasks;
        if !tasks.iter().any(|task| task.id == id) {
            return Ok(());
        }
        let container = Container {
            id,
            runtime: Some(RuntimeName {
                name: super::container::RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(prost_types::Any::default()),
            ..Container::default()
        };
        let request = self.client.request(CreateContainerRequest {
            container: Some(container),
        });
        optional(self.client.containers().create(request).await).map_err(unavailable)?;
        Ok(())
    }
}
