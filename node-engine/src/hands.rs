//! Carries out what the tier asks for: containers and their network, messages, streams. Every operation is a task of its
//! own and comes back as an event; the tier allows one at a time for each instance.

use crate::network::{Attach, Attached, Network, NetworkError, Tenant, netns};
use crate::runtime::{
    ContainerState, ExitReason, ImageRequest, LogRequest, RunOrder, Runtime, RuntimeError, SandboxFiles,
};
use crate::streams::StreamDialer;
use crate::tier::{Act, Event};
use bytes::Bytes;
use roble_core::engine::{Command, Exit, Observed, ObservedState, StartFailure, StartedInfo};
use roble_core::ids::InstanceId;
use roble_core::spec::Assignment;
use roble_core::status::Reason;
use roble_core::version::Version;
use roble_daemon::failpoint;
use roble_daemon::shell::Hands;
use roble_link::transport::Transport;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc};

/// Most containers started or stopped at the same time: more only makes each slower.
const OPERATIONS: usize = 8;

/// The node's hands.
pub struct NodeHands {
    /// Runs containers.
    pub worker: Worker,
    /// Carries messages to the cluster.
    pub outbox: mpsc::Sender<Bytes>,
    /// The link itself, to be dialed anew when nobody answers on it.
    pub link: Arc<dyn Transport>,
    /// Dials streams to the cluster.
    pub streams: Arc<StreamDialer>,
    /// Told when it is in doubt what this node is to its cluster.
    pub doubt: Arc<Notify>,
}

/// What an operation needs.
#[derive(Clone)]
pub struct Worker {
    /// Runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// Gives them their place in the network.
    pub network: Arc<dyn Network>,
    /// Folder of network namespaces.
    pub netns_dir: PathBuf,
    /// Where completions go.
    pub events: mpsc::Sender<Event>,
    /// Bounds what runs at the same time.
    pub permits: Arc<Semaphore>,
}

impl Worker {
    /// A worker that reports to `events`.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn Network>,
        netns_dir: PathBuf,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(OPERATIONS));
        Self {
            runtime,
            network,
            netns_dir,
            events,
            permits,
        }
    }

    async fn run(self, command: Command) {
        let _permit = self.permits.acquire().await;
        let event = match command {
            Command::Attach(order) => return self.attach_again(&order).await,
            Command::Start(order) => {
                let (instance, version) = (order.instance, order.version.clone());
                let result = self.start(order).await;
                if let Err(failure) = &result {
                    tracing::warn!(%instance, reason = %failure.reason, "cannot start");
                }
                Event::Started {
                    instance,
                    version,
                    result,
                }
            }
            Command::Stop { instance, grace_ms } => {
                let result = self.stop(instance, Duration::from_millis(grace_ms)).await;
                if let Err(reason) = &result {
                    tracing::warn!(%instance, %reason, "cannot stop");
                }
                Event::Gone { instance, result }
            }
        };
        // The receiver is gone only when the daemon ends.
        let _ = self.events.send(event).await;
    }

    /// Starts an instance; what was made for one that is refused here is taken away again.
    async fn start(&self, order: Assignment) -> Result<StartedInfo, StartFailure> {
        let instance = order.instance;
        let started = self.try_start(order).await;
        if let Err(failure) = &started
            && failure.refuse
            && let Err(reason) = self.stop(instance, Duration::ZERO).await
        {
            tracing::warn!(%instance, %reason, "something is left of a start that was refused");
        }
        started
    }

    async fn try_start(&self, order: Assignment) -> Result<StartedInfo, StartFailure> {
        let instance = order.instance;
        let wish = self.wish(&order);
        let path = wish.netns.clone();
        let image = async {
            let request = ImageRequest::of(&order.spec);
            let image = self.runtime.ensure_image(&request).await;
            failpoint!("node.start.image");
            image.map_err(|error| from_runtime(&error))
        };
        let network = async {
            netns::ensure(&path).await.map_err(|error| from_network(&error))?;
            failpoint!("node.start.namespace");
            let attached = self.network.attach(&instance.to_string(), &wish).await;
            failpoint!("node.start.attached");
            attached.map_err(|error| from_network(&error))
        };
        // Side by side, both to their end: an attachment that was begun is not given up half-way.
        let (image, attached) = tokio::join!(image, network);
        let (image, attached) = (image?, attached?);
        let host = order.spec.path.replace('/', "-");
        let run = RunOrder {
            instance,
            version: order.version.clone(),
            files: files(&host, instance.number, &attached),
            spec: Arc::new(with_own_name(&order)),
            image_digest: image.digest.clone(),
            netns: Some(path),
        };
        let started = self
            .runtime
            .ensure_running(&run)
            .await
            .map_err(|error| from_runtime(&error))?;
        failpoint!("node.start.running");
        tracing::info!(%instance, service = order.spec.path, generation = %order.version.generation, pid = started.pid, "instance running");
        Ok(StartedInfo {
            started_at: started.started_at,
            image_digest: Some(image.digest),
            addresses: addresses(&attached),
        })
    }

    /// The container of an order has lost its network, because the net manager lost what it knew.
    async fn attach_again(&self, order: &Assignment) {
        let instance = order.instance;
        match self.network.attach(&instance.to_string(), &self.wish(order)).await {
            Ok(attached) => {
                tracing::warn!(%instance, address = %attached.address, "its network was lost; attached again")
            }
            // The next look asks again.
            Err(error) => tracing::warn!(%instance, %error, "its network was lost; not attached yet"),
        }
    }

    fn wish(&self, order: &Assignment) -> Attach {
        let instance = order.instance;
        Attach {
            netns: self.netns_dir.join(instance.to_string()),
            ports: order.spec.ports.clone(),
            instance: Some(Tenant {
                instance,
                application: order.spec.application,
                organization: order.spec.organization,
                path: order.spec.path.clone(),
            }),
        }
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), Reason> {
        self.runtime
            .ensure_gone(instance, grace)
            .await
            .map_err(|error| error.reason())?;
        failpoint!("node.stop.container");
        let reason = |error: NetworkError| Reason::new(error.code(), error.to_string());
        self.network.detach(&instance.to_string()).await.map_err(reason)?;
        failpoint!("node.stop.detached");
        netns::ensure_gone(&self.netns_dir.join(instance.to_string()))
            .await
            .map_err(reason)?;
        failpoint!("node.stop.namespace");
        tracing::info!(%instance, "instance gone");
        Ok(())
    }

    /// The first look of a process: also instances of which only the network is left, because an earlier process died
    /// between the removal of the container and that of its namespace, or before the container was made. They are shown
    /// like containers that were never started, and so are removed like them.
    ///
    /// # Errors
    /// The runtime does not answer, or the folder of namespaces cannot be read: nothing is known.
    pub async fn first_list(&self) -> Result<Vec<Observed>, FirstListError> {
        let mut list = self.list().await?;
        for path in netns::list(&self.netns_dir)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(instance) = name.and_then(|name| name.parse::<InstanceId>().ok()) else {
                continue;
            };
            if !list.iter().any(|observed| observed.instance == instance) {
                tracing::info!(%instance, "only its network is left of an instance; it is removed");
                list.push(Observed {
                    instance,
                    version: Version::default(),
                    state: ObservedState::Ended(None),
                    addresses: Vec::new(),
                    detached: false,
                });
            }
        }
        Ok(list)
    }

    /// Looks at everything the runtime has.
    ///
    /// # Errors
    /// The runtime does not answer: nothing is known.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let list = self.runtime.list().await?;
        // Without an answer the addresses are as they were.
        let answer = self.network.list().await.ok();
        let answers = answer.is_some();
        let attached = answer.unwrap_or_default();
        let addresses_of = |instance: InstanceId| {
            let container = instance.to_string();
            let own = attached.iter().find(|attached| attached.container == container);
            own.map(addresses).unwrap_or_default()
        };
        Ok(list
            .into_iter()
            .map(|running| Observed {
                detached: answers && addresses_of(running.instance).is_empty(),
                addresses: addresses_of(running.instance),
                instance: running.instance,
                version: running.version,
                state: match running.state {
                    ContainerState::Running(started) => ObservedState::Running {
                        started_at: Some(started.started_at),
                    },
                    ContainerState::Exited(exit) => ObservedState::Ended(Some(ended(&exit))),
                    ContainerState::Created => ObservedState::Ended(None),
                },
            })
            .collect())
    }
}

/// Why the first look failed.
#[derive(Debug, thiserror::Error)]
pub enum FirstListError {
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The namespaces.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// An end as the engine takes it.
pub fn ended(exit: &ExitReason) -> Exit {
    Exit {
        code: exit.code,
        oom_killed: exit.oom_killed,
    }
}

fn addresses(attached: &Attached) -> Vec<IpAddr> {
    [Some(attached.address), attached.address_v6]
        .into_iter()
        .flatten()
        .collect()
}

/// The spec with what every instance is told about itself.
fn with_own_name(order: &Assignment) -> roble_core::spec::InstanceSpec {
    let mut spec = (*order.spec).clone();
    let own = [
        ("ROBLE_SERVICE".to_owned(), spec.path.clone()),
        ("ROBLE_INSTANCE".to_owned(), order.instance.number.to_string()),
    ];
    // First, so that the user's own come later and win.
    spec.environment.splice(0..0, own);
    spec
}

fn files(host: &str, number: u32, attached: &Attached) -> SandboxFiles {
    let address = attached.address;
    let name: String = format!("{host}-{number}").chars().take(63).collect();
    SandboxFiles {
        hosts: Some(format!("127.0.0.1 localhost\n::1 localhost\n{address} {name}\n")),
        hostname: Some(name),
        resolv_conf: attached
            .resolv_conf
            .clone()
            .or_else(|| std::fs::read_to_string("/etc/resolv.conf").ok()),
    }
}

/// A node whose runtime or image store cannot do it may be replaced by another one; a wish that no node can fulfil may not.
fn from_runtime(error: &RuntimeError) -> StartFailure {
    let refuse = error.code() == "image-wrong-architecture";
    StartFailure {
        reason: error.reason(),
        retryable: error.is_retryable() || is_worth_waiting(error.code()),
        refuse,
    }
}

/// An image that is not there yet, or credentials that are wrong, may be put right without a new descriptor.
fn is_worth_waiting(code: &str) -> bool {
    matches!(code, "image-not-found" | "registry-unauthorized" | "digest-mismatch")
}

fn from_network(error: &NetworkError) -> StartFailure {
    let refuse = matches!(error.code(), "port-taken" | "no-address");
    StartFailure {
        reason: Reason::new(error.code(), error.to_string()),
        retryable: true,
        refuse,
    }
}

impl Hands<Act> for NodeHands {
    fn act(&mut self, act: Act) {
        match act {
            // A full queue means a stalled link: the session repeats what matters.
            Act::Send(bytes) => drop(self.outbox.try_send(bytes.into())),
            Act::Run(command) => drop(tokio::spawn(self.worker.clone().run(command))),
            Act::OpenStream {
                stream,
                instance,
                follow,
                tail,
            } => {
                let request = LogRequest {
                    follow,
                    tail_lines: tail,
                };
                let (dialer, runtime) = (self.streams.clone(), self.worker.runtime.clone());
                tokio::spawn(async move { dialer.send_logs(stream, instance, request, &*runtime).await });
            }
            Act::AskNet { request, question } => {
                let worker = self.worker.clone();
                tokio::spawn(async move {
                    let answer = worker.network.trace(question).await;
                    let answer = answer.map_err(|error| Reason::new(error.code(), error.to_string()));
                    let _ = worker.events.send(Event::NetAnswered { request, answer }).await;
                });
            }
            Act::Connected(true) => {
                tracing::info!("cluster answers");
            }
            Act::CheckMembership => self.doubt.notify_one(),
            Act::Connected(false) => {
                tracing::warn!("cluster does not answer; what runs goes on");
                self.link.reconnect();
            }
            Act::Violation(what) => tracing::warn!(what, "message not understood"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::memory::MemoryNetwork;
    use crate::runtime::memory::MemoryRuntime;

    /// A killed engine may leave a namespace without a container: what nobody lists, nobody would ever remove.
    #[tokio::test]
    async fn an_instance_of_which_only_the_network_is_left_is_listed_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let (events, _inbox) = mpsc::channel(1);
        let (runtime, network) = (Arc::new(MemoryRuntime::new()), Arc::new(MemoryNetwork::default()));
        let worker = Worker::new(runtime, network, folder.path().join("netns"), events);
        assert!(
            worker.first_list().await.unwrap().is_empty(),
            "the folder is not there yet"
        );
        std::fs::create_dir(&worker.netns_dir).unwrap();
        let left = "0123456789abcdef01234567.3";
        for name in [left, "of-somebody-else"] {
            std::fs::write(worker.netns_dir.join(name), b"").unwrap();
        }
        let listed = worker.first_list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].instance.to_string(), left);
        assert_eq!(listed[0].state, ObservedState::Ended(None));
        assert!(
            worker.list().await.unwrap().is_empty(),
            "later looks show containers only"
        );
    }
}
