//! The cluster's relay: sealed datagrams of nodes that cannot reach each other pass through it (`roble_tunnel::relay`).

use crate::config::RelayConfig;
use crate::tier::Event;
use anyhow::Context as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use roble_core::ids::NodeId;
use roble_core::overlay::tunnel::{PublicKey, TunnelEnd};
use roble_daemon::CancellationToken;
use roble_daemon::clock::Clock;
use roble_daemon::files;
use roble_tunnel::core::Now;
use roble_tunnel::key::{PrivateKey, PublicKey as DeviceKey};
use roble_tunnel::relay::{Member, Passed, Relay};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// File of the relay's key, in the state folder.
const KEY: &str = "relay-key";
/// Largest datagram that is passed on, in bytes.
const MAX_DATAGRAM: usize = 1 << 16;
/// Datagrams that are taken before anything else is looked at.
const BATCH: usize = 256;
/// How often timers and places are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Whom the relay serves.
pub type Relayed = Vec<(NodeId, TunnelEnd)>;

/// What the relay has passed on, as metrics.
#[derive(Debug, Clone, Default)]
pub struct RelayFigures(Arc<Mutex<Passed>>);

impl Collector for RelayFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let passed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in [
            ("cluster_relay_datagrams", "Datagrams passed on", passed.datagrams),
            ("cluster_relay_bytes", "Bytes passed on", passed.bytes),
            (
                "cluster_relay_refused",
                "Datagrams of or for nobody known",
                passed.refused,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// A relay that has its socket and its key.
pub struct RelayServer {
    socket: UdpSocket,
    relay: Relay,
    clock: Arc<dyn Clock>,
    config: RelayConfig,
    key: PublicKey,
    figures: RelayFigures,
}

impl RelayServer {
    /// Opens the socket; makes the key at the first start.
    ///
    /// # Errors
    /// If the port is taken, or the key cannot be read or written.
    pub async fn open(config: RelayConfig, folder: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let path = folder.join(KEY);
        let key = match files::read_optional(&path, 256)? {
            Some(bytes) => PrivateKey::from_hex(String::from_utf8_lossy(&bytes).trim())
                .with_context(|| format!("{} holds no key; remove it and a new one is made", path.display()))?,
            None => {
                let key = PrivateKey::generate();
                files::write_atomic(&path, key.to_hex().as_bytes(), files::SECRET_MODE)?;
                key
            }
        };
        let public = PublicKey(key.public().0);
        let socket = UdpSocket::bind(config.listen)
            .await
            .with_context(|| format!("open the relay's port {}", config.listen))?;
        Ok(Self {
            socket,
            relay: Relay::new(key, now(&*clock)),
            clock,
            config,
            key: public,
            figures: RelayFigures::default(),
        })
    }

    /// What it counts.
    pub fn figures(&self) -> RelayFigures {
        self.figures.clone()
    }

    /// Serves whom `relayed` names, and tells where they are, until `stop`.
    pub async fn run(
        mut self,
        mut relayed: watch::Receiver<Relayed>,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) {
        tracing::info!(listen = %self.config.listen, address = %self.config.address, "relay serves");
        if events
            .send(Event::RelayServes(self.config.address, self.key))
            .await
            .is_err()
        {
            return;
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut buffer = vec![0; MAX_DATAGRAM];
        let (mut nodes, mut told) = (BTreeMap::new(), BTreeMap::new());
        loop {
            tokio::select! {
                ready = self.socket.readable() => if ready.is_ok() { self.receive(&mut buffer) },
                _ = ticks.tick() => {
                    let now = now(&*self.clock);
                    self.relay.tick(now);
                    *self.figures.0.lock().unwrap_or_else(PoisonError::into_inner) = self.relay.passed();
                    let seen = self.seen(&nodes, now);
                    if seen != told {
                        told.clone_from(&seen);
                        if events.send(Event::RelaySees(seen)).await.is_err() {
                            return;
                        }
                    }
                }
                changed = relayed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let members = relayed.borrow_and_update().clone();
                    nodes = members.iter().map(|(node, end)| (end.key, *node)).collect();
                    let members: Vec<Member> = members.into_iter().map(member).collect();
                    self.relay.set_members(&members, now(&*self.clock));
                }
                () = stop.cancelled() => return,
            }
            for answer in self.relay.take_output() {
                // What cannot be sent is asked for again.
                let _ = self.socket.try_send_to(&answer.bytes, answer.to);
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        let now = now(&*self.clock);
        for _ in 0..BATCH {
            let Ok((length, from)) = self.socket.try_recv_from(buffer) else {
                return;
            };
            let datagram = &mut buffer[..length];
            if let Some(to) = self.relay.receive(from, datagram, now) {
                // A full queue drops, as any router does.
                let _ = self.socket.try_send_to(datagram, to);
            }
        }
    }

    fn seen(&self, nodes: &BTreeMap<PublicKey, NodeId>, now: Now) -> BTreeMap<NodeId, SocketAddr> {
        let places = self.relay.places(now);
        let known = places.filter_map(|(key, place)| Some((*nodes.get(&PublicKey(key.0))?, canonical(place))));
        known.collect()
    }
}

fn member((_, end): (NodeId, TunnelEnd)) -> Member {
    Member {
        key: DeviceKey(end.key.0),
        previous: end.previous.map(|key| DeviceKey(key.0)),
    }
}

/// An IPv4 address as such, also if the socket is one of both families.
fn canonical(place: SocketAddr) -> SocketAddr {
    SocketAddr::new(place.ip().to_canonical(), place.port())
}

fn now(clock: &dyn Clock) -> Now {
    Now {
        boot: Duration::from_millis(clock.boot()),
        unix: Duration::from_millis(clock.wall()),
    }
}
