//! Mosquitto as a supervised child, for clusters whose messages one process cannot carry.
//!
//! The child runs with a generated configuration; the cluster is a client of it. What differs from the embedded broker:
//! - Connections and their ends are told from traffic and from the child's log, so `Connected` comes with a client's first
//!   message, not with its subscription.
//! - Certificates are checked by OpenSSL against the wall clock alone: **on a machine without a clock, nodes wait until it
//!   is set**.
//! - A revoked node keeps its TLS connection for the moment between the new access list, after which it reaches nothing,
//!   and being put out; it may connect again, reaches nothing, and is put out again.
//! - Client ids are not tied to certificates: an admitted node can put another one's connection out.
//! - A queue that overflows drops messages without a word; [`SendError::QueueFull`] means the cluster's own queue.

mod files;
mod link;
mod log;
mod supervise;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roble_core::backoff::Backoff;
use roble_core::ids::{ClusterId, NodeId};
use roble_link::mqtt::TlsSource;
use roble_proto::limits::MQTT_PACKET_BYTES;
use roble_proto::topics::{Branch, Direction, Topic};
use rumqttc::{AsyncClient, QoS};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

#[cfg(test)]
pub(super) use files::{access_list, cluster_user, node_user};

use super::{Broker, BrokerError, BrokerEvent, BrokerStats, SendError};

/// Events that may wait for [`Broker::next`]; then the cluster's client stops reading.
const EVENTS: usize = 64;
/// Time for the child to notice a signal.
const RELOAD_WITHIN: Duration = Duration::from_millis(250);
/// How often it is told.
const RELOAD_TRIES: usize = 12;
/// Room that a message needs in a packet besides its payload.
const PACKET_OVERHEAD: usize = 64;

/// How to run Mosquitto.
#[derive(Clone)]
pub struct MosquittoConfig {
    /// The program, 2.0 or later.
    pub program: PathBuf,
    /// Folder of our own for what is generated; made if missing, readable by us alone.
    pub folder: PathBuf,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// The cluster whose nodes may come.
    pub cluster: ClusterId,
    /// PEM file with the cluster's key and chain; the caller replaces it before [`Broker::reload_certificate`].
    pub credential: PathBuf,
    /// PEM file with the root authority.
    pub authority: PathBuf,
    /// How the cluster's own client dials: with the cluster's certificate.
    pub tls: TlsSource,
    /// Nodes let in from the start; each [`Broker::admit`] later costs the child a reload.
    pub admitted: Vec<NodeId>,
    /// Most clients at a time.
    pub clients: usize,
    /// Waits between restarts of the child and between the client's dials.
    pub backoff: Backoff,
}

/// The broker in a child process. Dropping it kills the child.
pub struct MosquittoBroker {
    shared: Arc<Shared>,
    client: AsyncClient,
    events: tokio::sync::Mutex<mpsc::Receiver<BrokerEvent>>,
    _tasks: JoinSet<()>,
}

/// What the supervisor, the cluster's client and the commands share.
struct Shared {
    config: MosquittoConfig,
    state: Mutex<State>,
    /// How often the child has read its configuration again.
    reloads: watch::Sender<u64>,
    reloading: tokio::sync::Mutex<()>,
    /// Held while the state changes and the change is reported, so that events come in the order of the changes.
    report: tokio::sync::Mutex<mpsc::Sender<BrokerEvent>>,
}

#[derive(Default)]
struct State {
    child: Option<Pid>,
    linked: bool,
    admitted: BTreeSet<NodeId>,
    revoked: HashSet<NodeId>,
    connected: HashSet<(NodeId, Branch)>,
    /// Client ids and the user names behind them, from the log.
    clients: HashMap<String, String>,
    stats: BrokerStats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the child read certificate and access list again, and waits until it has begun; it serves nobody before it
    /// has finished. Without a child there is nothing to do: it reads them when it starts.
    async fn reload(&self) -> io::Result<()> {
        let _one_at_a_time = self.reloading.lock().await;
        let mut reloads = self.reloads.subscribe();
        reloads.mark_unchanged();
        for _ in 0..RELOAD_TRIES {
            let Some(child) = self.state().child else { return Ok(()) };
            kill(child, Signal::SIGHUP)?;
            // A signal that comes while an earlier reload ends is lost, so it is repeated.
            if tokio::time::timeout(RELOAD_WITHIN, reloads.changed()).await.is_ok() {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "mosquitto did not reload"))
    }

    async fn write_access_list(&self) -> io::Result<()> {
        let text = files::access_list(self.config.cluster, &self.state().admitted);
        files::write(&self.config.folder.join(files::ACCESS_LIST), &text)?;
        self.reload().await
    }

    async fn message(&self, topic: Topic, payload: Bytes) {
        let Topic {
            node,
            branch,
            direction: Direction::Up,
        } = topic
        else {
            return;
        };
        let report = self.report.lock().await;
        let first = {
            let mut state = self.state();
            if state.revoked.contains(&node) {
                return;
            }
            state.stats.received += 1;
            state.connected.insert((node, branch))
        };
        if first {
            let _ = report.send(BrokerEvent::Connected { node, branch }).await;
        }
        let _ = report.send(BrokerEvent::Message { node, branch, payload }).await;
    }

    async fn duplicate(&self, node: NodeId) {
        let report = self.report.lock().await;
        self.state().stats.duplicates += 1;
        let _ = report.send(BrokerEvent::Duplicate { node }).await;
    }

    async fn disconnected(&self, node: NodeId, branch: Branch) {
        let report = self.report.lock().await;
        let was_connected = self.state().connected.remove(&(node, branch));
        if was_connected {
            let _ = report.send(BrokerEvent::Disconnected { node, branch }).await;
        }
    }

    async fn all_disconnected(&self) {
        let mut gone: Vec<_> = self.state().connected.iter().copied().collect();
        gone.sort_unstable();
        for (node, branch) in gone {
            self.disconnected(node, branch).await;
        }
    }
}

impl MosquittoBroker {
    /// Writes the configuration and starts the child and the cluster's client; both come back by themselves. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`BrokerError::Start`] if the folder cannot be written or the program cannot be started at all.
    pub async fn start(config: MosquittoConfig, seed: u64) -> Result<Self, BrokerError> {
        let start = |source| BrokerError::Start { source };
        files::prepare(&config).map_err(start)?;
        let (report, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                admitted: config.admitted.iter().copied().collect(),
                ..State::default()
            }),
            config,
            reloads: watch::Sender::new(0),
            reloading: tokio::sync::Mutex::default(),
            report: tokio::sync::Mutex::new(report),
        });
        let first = supervise::spawn(&shared.config).map_err(start)?;
        shared.state().child = supervise::pid(&first);
        let (client, link) = link::new(&shared, seed);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise::run(shared.clone(), first, seed));
        tasks.spawn(link.run());
        Ok(Self {
            shared,
            client,
            events: tokio::sync::Mutex::new(events),
            _tasks: tasks,
        })
    }

    /// Process id of the child, if it runs.
    pub fn child(&self) -> Option<u32> {
        self.shared.state().child.and_then(|pid| pid.as_raw().try_into().ok())
    }
}

#[async_trait]
impl Broker for MosquittoBroker {
    async fn send(&self, node: NodeId, branch: Branch, payload: Bytes) -> Result<(), SendError> {
        let limit = MQTT_PACKET_BYTES - PACKET_OVERHEAD;
        if payload.len() > limit {
            return Err(SendError::TooLarge {
                bytes: payload.len(),
                limit,
            });
        }
        let mut state = self.shared.state();
        if !state.linked || !state.connected.contains(&(node, branch)) {
            return Err(SendError::NotConnected);
        }
        let topic = Topic {
            node,
            branch,
            direction: Direction::Down,
        }
        .to_string();
        match self.client.try_publish(topic, QoS::AtMostOnce, false, payload) {
            Ok(()) => {
                state.stats.sent += 1;
                Ok(())
            }
            Err(_) => {
                state.stats.queue_full += 1;
                Err(SendError::QueueFull)
            }
        }
    }

    async fn next(&self) -> BrokerEvent {
        self.events
            .lock()
            .await
            .recv()
            .await
            .expect("the sender lives as long as the broker")
    }

    async fn admit(&self, node: NodeId) -> Result<(), BrokerError> {
        let is_new = {
            let mut state = self.shared.state();
            state.revoked.remove(&node) | state.admitted.insert(node)
        };
        if !is_new {
            return Ok(());
        }
        self.shared
            .write_access_list()
            .await
            .map_err(|source| BrokerError::Admit { node, source })
    }

    async fn revoke(&self, node: NodeId) -> Result<(), BrokerError> {
        let user = files::node_user(self.shared.config.cluster, node);
        let clients: Vec<String> = {
            let mut state = self.shared.state();
            state.admitted.remove(&node);
            if state.revoked.insert(node) {
                state.stats.revoked += 1;
            }
            state
                .clients
                .iter()
                .filter(|(_, of)| **of == user)
                .map(|(client, _)| client.clone())
                .collect()
        };
        let result = self.shared.write_access_list().await;
        for client in clients {
            link::put_out(&self.shared.config, client).await;
        }
        for branch in [Branch::Engine, Branch::Net] {
            self.shared.disconnected(node, branch).await;
        }
        result.map_err(|source| BrokerError::Revoke { node, source })
    }

    async fn reload_certificate(&self) -> Result<(), BrokerError> {
        self.shared
            .reload()
            .await
            .map_err(|source| BrokerError::Certificate { source })
    }

    fn stats(&self) -> BrokerStats {
        let state = self.shared.state();
        BrokerStats {
            clients: state.connected.len() as u64,
            ..state.stats
        }
    }
}
