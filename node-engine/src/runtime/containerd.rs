//! Instances as containers of containerd (1.6 and later), by its gRPC socket.
//!
//! What is where:
//! - containerd, in a containerd namespace of this node's own: images, snapshots, one container per instance whose id is
//!   the instance's (`<service>.<number>`) and whose labels say for which order it was made;
//! - the node's state directory, `instances/<instance>/`: the files the container sees, its log, notes on its last end;
//! - control groups below [`ContainerdConfig::cgroup_parent`].
//!
//! Containers run under their shims: neither the end of this process nor that of containerd ends them.

mod cgroup;
mod client;
mod container;
mod folder;
mod image;
mod labels;
mod lease;
mod logs;
mod pull;
mod spec;
mod stray;
mod user;
mod watch;

#[cfg(any(test, feature = "testkit"))]
pub mod fixture;
#[cfg(test)]
mod tests;

use super::keyed::KeyedLock;
use super::reference::{ImageReference, is_digest};
use super::registry::RegistryConfig;
use super::{
    ContainerState, Exit, ImageInfo, ImageRequest, LogRequest, LogStream, RunOrder, RunningInstance, Runtime,
    RuntimeError, Started,
};
use async_trait::async_trait;
use client::Client;
use roble_core::ids::InstanceId;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Ends kept for a consumer that does not ask for them at the moment.
const EXIT_QUEUE: usize = 1_024;

/// How containers are run.
#[derive(Debug, Clone)]
pub struct ContainerdConfig {
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd's namespace; nobody else may use it.
    pub namespace: String,
    /// containerd's snapshotter.
    pub snapshotter: String,
    /// Parent of the containers' control groups, absolute in their hierarchy: `/roble/<node>`.
    pub cgroup_parent: String,
    /// The node's state directory, an absolute path.
    pub state_dir: PathBuf,
    /// Processes and threads of one container.
    pub pids_limit: i64,
    /// Open files of one process; lowered to this process's own hard limit.
    pub open_files_limit: u64,
    /// Size at which a log is rotated; twice as much is kept.
    pub log_bytes: u64,
    /// Where images come from.
    pub registry: RegistryConfig,
}

impl ContainerdConfig {
    /// The defaults for the node of this name or id, with its state in `state_dir`.
    pub fn new(node: &str, state_dir: PathBuf) -> Self {
        Self {
            socket: PathBuf::from("/run/containerd/containerd.sock"),
            namespace: "roble".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            cgroup_parent: format!("/roble/{node}"),
            state_dir,
            pids_limit: 512,
            open_files_limit: 4_096,
            log_bytes: 5 << 20,
            registry: RegistryConfig::default(),
        }
    }
}

/// What calls and background tasks share.
#[derive(Debug)]
struct Shared {
    client: Client,
    config: ContainerdConfig,
    limits: spec::Limits,
    images: KeyedLock<String>,
    /// Images that this process has unpacked, or found unpacked and settled; by their top layer.
    settled: Mutex<HashSet<String>>,
    instances: KeyedLock<InstanceId>,
    watches: Mutex<HashMap<InstanceId, watch::Watch>>,
    /// How often each log was rotated by this process; also excludes readers and rotation.
    rotations: RwLock<HashMap<InstanceId, u64>>,
    exits: mpsc::Sender<Exit>,
}

/// The runtime on containerd. Dropping it leaves the containers running.
#[derive(Debug)]
pub struct ContainerdRuntime {
    shared: Arc<Shared>,
    exits: tokio::sync::Mutex<mpsc::Receiver<Exit>>,
    background: AbortHandle,
}

impl ContainerdRuntime {
    /// A runtime on the containerd of `config`, which need not run yet. Adopts in the background what runs already.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The configuration cannot be used: a bad namespace, a relative state directory.
    pub fn new(config: ContainerdConfig) -> Result<Self, RuntimeError> {
        let bad = |detail: &str| RuntimeError::State {
            what: format!("use state directory {}", config.state_dir.display()),
            detail: detail.to_owned(),
        };
        // The path becomes part of a `file://` URI and of a mount.
        if !config.state_dir.is_absolute()
            || config
                .state_dir
                .to_str()
                .is_none_or(|path| path.contains(['%', '?', '#']))
        {
            return Err(bad("an absolute path without `%`, `?` and `#` is needed"));
        }
        let client = Client::new(&config.socket, &config.namespace)?;
        let hard =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1_024, |(_, hard)| hard);
        let limits = spec::Limits {
            pids: config.pids_limit,
            open_files: config.open_files_limit.min(hard),
        };
        let (sender, receiver) = mpsc::channel(EXIT_QUEUE);
        let shared = Arc::new(Shared {
            client,
            config,
            limits,
            images: KeyedLock::new(),
            settled: Mutex::default(),
            instances: KeyedLock::new(),
            watches: Mutex::default(),
            rotations: RwLock::default(),
            exits: sender,
        });
        let background = tokio::spawn(watch::background(Arc::clone(&shared))).abort_handle();
        Ok(Self {
            shared,
            exits: tokio::sync::Mutex::new(receiver),
            background,
        })
    }
}

impl Drop for ContainerdRuntime {
    fn drop(&mut self) {
        self.background.abort();
        self.shared
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain()
            .for_each(|(_, watch)| watch.stop());
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn ensure_image(&self, request: &ImageRequest) -> Result<ImageInfo, RuntimeError> {
        let reference = ImageReference::parse(&request.reference)?;
        let pin = request.digest.as_deref().or(reference.digest.as_deref());
        if let Some(pin) = pin.filter(|pin| !is_digest(pin)) {
            let detail = format!("its digest `{pin}` is not sha256: and 64 hex digits");
            return Err(RuntimeError::BadReference {
                reference: request.reference.clone(),
                detail,
            });
        }
        let name = reference.to_string();
        let _guard = self.shared.images.lock(&name).await;
        let client = &self.shared.client;
        let mut present = match image::find(client, &reference, &request.reference).await? {
            Some((target, image)) => pin
                .is_none_or(|pin| pin == target || pin == image.digest)
                .then_some(image),
            None => None,
        };
        if let (None, Some(pin)) = (&present, pin) {
            present = image::find_digest(client, &name, pin).await?;
        }
        let snapshotter = &self.shared.config.snapshotter;
        if let Some(image) = present {
            match image::unpack(client, snapshotter, &image, &self.shared.settled).await {
                Ok(()) => return Ok(image.info()),
                // Its layers may be gone or damaged; the registry has good ones.
                Err(error @ RuntimeError::BadImage { .. }) => {
                    tracing::warn!(image = name, %error, "image present but not usable, pulling it again");
                }
                Err(error) => return Err(error),
            }
        }
        let image = pull::pull(client, &self.shared.config.registry, &reference, pin).await?;
        image::unpack(client, snapshotter, &image, &self.shared.settled).await?;
        Ok(image.info())
    }

    async fn ensure_running(&self, order: &RunOrder) -> Result<Started, RuntimeError> {
        let shared = &self.shared;
        let _guard = shared.instances.lock(&order.instance).await;
        let id = order.instance.to_string();
        let record = shared.get_container(&id).await?;
        let task = shared.get_task(&id).await?;
        if let Some(record) = &record {
            let present = labels::version(&record.labels);
            if present > order.version {
                let (instance, ordered) = (order.instance, order.version.clone());
                return Err(RuntimeError::Outdated {
                    instance,
                    present,
                    ordered,
                });
            }
            let state = shared.state_of(order.instance, record, task.as_ref());
            if let (ContainerState::Running(started), true) = (state, present == order.version) {
                shared.watch(order.instance, present, started.pid);
                return Ok(started);
            }
        }
        if record.is_some() || task.is_some() {
            shared
                .remove(order.instance, Duration::from_millis(order.spec.stop_grace_ms), true)
                .await?;
        }
        shared.create(order).await
    }

    async fn ensure_gone(&self, instance: InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let _guard = self.shared.instances.lock(&instance).await;
        self.shared.remove(instance, grace, false).await
    }

    async fn list(&self) -> Result<Vec<RunningInstance>, RuntimeError> {
        self.shared.list().await
    }

    async fn next_exit(&self) -> Exit {
        match self.exits.lock().await.recv().await {
            Some(exit) => exit,
            // `self.shared` holds a sender, so this does not happen while `self` lives.
            None => std::future::pending().await,
        }
    }

    async fn logs(&self, instance: InstanceId, request: LogRequest) -> Result<LogStream, RuntimeError> {
        self.shared.open_log(instance, request).await
    }

    async fn check(&self) -> Result<String, RuntimeError> {
        let version = self
            .shared
            .client
            .version()
            .version(self.shared.client.request(()))
            .await;
        Ok(format!(
            "containerd {}",
            version.map_err(client::unavailable)?.into_inner().version
        ))
    }
}
