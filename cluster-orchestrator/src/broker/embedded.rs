//! The broker inside the process: MQTT 3.1.1, as much of it as the node link needs.
//!
//! Quality of service 0 and 1, clean sessions, exact topics; no retained messages, no wills, no wildcards. A client is who
//! its certificate says and reaches its own two topics. Every buffer has a bound, and whoever stalls, floods or lies costs
//! himself the connection and others nothing:
//!
//! | of one client | bound |
//! | --- | --- |
//! | connections of one node | [`Limits::connections_per_node`] |
//! | time until CONNECT, and its size | [`Limits::connect_within`], 1 KiB |
//! | one packet | [`Limits::packet_bytes`]; memory follows the bytes that came, not the length announced |
//! | waiting to be sent | [`Limits::queue_packets`], [`Limits::queue_bytes`]; nothing taken for [`Limits::write_within`] ends it |
//! | waiting to be handled | [`Limits::inbox_bytes_per_client`]; beyond that it is not read |
//! | silence | 1.5 times its keep-alive, [`Limits::longest_idle`] at most |

mod codec;
mod connection;
mod counters;
mod inbox;
mod listener;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use roble_core::ids::{ClusterId, NodeId};
use roble_daemon::pki::Identity;
use roble_daemon::tls::Revocations;
use roble_proto::limits::{MQTT_PACKET_BYTES, MQTT_QUEUE_BYTES, MQTT_QUEUE_PACKETS};
use roble_proto::topics::Branch;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

pub use listener::Listener;
#[cfg(test)]
pub(super) use listener::node_of;

use super::{Broker, BrokerError, BrokerEvent, BrokerStats, SendError};
use connection::{Client, Close};
use counters::Counters;
use inbox::{Inbox, Ticket};

/// Room that a message needs in a packet besides its payload: header, topic, packet id.
const PACKET_OVERHEAD: usize = 64;

/// Bounds of an [`EmbeddedBroker`]; see the module for what each one guards.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest packet, either way.
    pub packet_bytes: usize,
    /// Most messages queued for one client.
    pub queue_packets: usize,
    /// Most bytes queued for one client.
    pub queue_bytes: usize,
    /// Most messages sent to one client and not acknowledged by it, at quality of service 1.
    pub inflight: usize,
    /// Time from the TLS handshake to a complete CONNECT.
    pub connect_within: Duration,
    /// Longest time in which a client may take nothing of what waits for it.
    pub write_within: Duration,
    /// Longest silence, whatever keep-alive a client asks for.
    pub longest_idle: Duration,
    /// Most connections of one node, sessions and those that have not yet said CONNECT together.
    pub connections_per_node: usize,
    /// Most bytes of one client that wait for [`Broker::next`].
    pub inbox_bytes_per_client: usize,
    /// Most bytes of all clients together that wait for [`Broker::next`].
    pub inbox_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes: MQTT_PACKET_BYTES,
            queue_packets: MQTT_QUEUE_PACKETS,
            queue_bytes: MQTT_QUEUE_BYTES,
            inflight: 64,
            connect_within: Duration::from_secs(10),
            write_within: Duration::from_secs(10),
            longest_idle: Duration::from_secs(1_200),
            connections_per_node: 8,
            inbox_bytes_per_client: MQTT_PACKET_BYTES,
            inbox_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The embedded broker. Clones are the same broker. Give it authenticated streams with [`serve`](Self::serve).
#[derive(Clone)]
pub struct EmbeddedBroker {
    hub: Arc<Hub>,
}

impl EmbeddedBroker {
    /// A broker without clients.
    pub fn new(limits: Limits) -> Self {
        Self {
            hub: Arc::new(Hub {
                limits,
                counters: Counters::default(),
                inbox: Inbox::new(limits.inbox_bytes),
                state: Mutex::default(),
            }),
        }
    }

    /// Speaks MQTT on `stream` until either side ends it. **`node` must come from a verified certificate.** Dropping the
    /// future closes the connection and reports it like any other end.
    pub async fn serve<S>(&self, node: NodeId, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        connection::serve(&self.hub, node, stream).await;
    }

    /// Whether `node` has been revoked here.
    pub fn is_revoked(&self, node: NodeId) -> bool {
        self.hub.state().revoked.contains(&node)
    }
}

fn identity(cluster: ClusterId, node: NodeId) -> Identity {
    Identity::Node {
        cluster: cluster.to_string(),
        node: node.to_string(),
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn send(&self, node: NodeId, branch: Branch, payload: Bytes) -> Result<(), SendError> {
        let limit = self.hub.limits.packet_bytes - PACKET_OVERHEAD;
        if payload.len() > limit {
            return Err(SendError::TooLarge {
                bytes: payload.len(),
                limit,
            });
        }
        let client = match self.hub.state().sessions.get(&(node, branch)) {
            Some(session) if session.announced.is_some() => session.client.clone(),
            _ => return Err(SendError::NotConnected),
        };
        let result = client.queue.push_message(payload, &self.hub.limits);
        if result == Err(SendError::QueueFull) {
            self.hub.counters.queue_full.add();
        }
        result
    }

    async fn next(&self) -> BrokerEvent {
        self.hub.inbox.next().await
    }

    async fn admit(&self, node: NodeId) -> Result<(), BrokerError> {
        let mut state = self.hub.state();
        state.revoked.remove(&node);
        for (cluster, revocations) in &state.listeners {
            revocations.allow(&identity(*cluster, node));
        }
        Ok(())
    }

    async fn revoke(&self, node: NodeId) -> Result<(), BrokerError> {
        let mut state = self.hub.state();
        state.revoked.insert(node);
        for client in state.open.get(&node).into_iter().flatten() {
            client.close(Close::Revoked);
        }
        for (cluster, revocations) in &state.listeners {
            revocations.deny(identity(*cluster, node));
        }
        Ok(())
    }

    /// The certificate belongs to the listener, which swaps it; connections here are past their handshake.
    async fn reload_certificate(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        let mut stats = self.hub.counters.read();
        let state = self.hub.state();
        for session in state.sessions.values() {
            stats.clients += 1;
            stats.queued_bytes += session.client.queue.bytes() as u64;
        }
        stats
    }
}

/// What all connections share.
pub(super) struct Hub {
    limits: Limits,
    counters: Counters,
    inbox: Inbox,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Every connection, by the node in its certificate; never an empty list.
    open: HashMap<NodeId, Vec<Arc<Client>>>,
    /// Those that have said CONNECT, one each.
    sessions: HashMap<(NodeId, Branch), Session>,
    revoked: HashSet<NodeId>,
    /// Deny sets of the listeners: there a revoked node does not get through the handshake.
    listeners: Vec<(ClusterId, Arc<Revocations>)>,
}

struct Session {
    client: Arc<Client>,
    /// `Some` once `Connected` was reported; holds the room that `Disconnected` will need in the inbox.
    announced: Option<OwnedSemaphorePermit>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Admits one more connection of `node`; dropping the guard ends it.
    fn open(self: &Arc<Self>, node: NodeId) -> Result<Open, Close> {
        let mut state = self.state();
        if state.revoked.contains(&node) {
            return Err(Close::Revoked);
        }
        let clients = state.open.entry(node).or_default();
        if clients.len() >= self.limits.connections_per_node {
            return Err(Close::TooMany);
        }
        let client = Arc::new(Client::new(node, self.limits.inbox_bytes_per_client));
        clients.push(client.clone());
        Ok(Open {
            hub: self.clone(),
            client,
            branch: None,
        })
    }

    fn emit(&self, event: BrokerEvent, ticket: Ticket) {
        self.inbox.push(event, ticket);
    }
}

/// One admitted connection. All changes of the shared state go through it, and each reports what it changed in the same
/// critical section, so that events come in the order in which things happened.
struct Open {
    hub: Arc<Hub>,
    client: Arc<Client>,
    branch: Option<Branch>,
}

impl Open {
    /// The client said CONNECT. It takes the place of an older session of the same name.
    async fn enter(&mut self, branch: Branch) {
        // Two events may follow in which nobody waits for room.
        let room = self.hub.inbox.room().await;
        let key = (self.client.node, branch);
        self.branch = Some(branch);
        let mut state = self.hub.state();
        let older = state.sessions.insert(
            key,
            Session {
                client: self.client.clone(),
                announced: None,
            },
        );
        self.hub.counters.connects.add();
        if let Some(older) = older {
            self.hub.counters.duplicates.add();
            tracing::warn!(node = %key.0, ?branch, "a second connection took the place of the first");
            older.client.close(Close::Replaced);
            self.hub.emit(BrokerEvent::Duplicate { node: key.0 }, Ticket::of(room));
            if let Some(room) = older.announced {
                self.hub
                    .emit(BrokerEvent::Disconnected { node: key.0, branch }, Ticket::of(room));
            }
        }
    }

    /// The client subscribed to its topic; reports `Connected` the first time. `false` if it has been replaced.
    async fn announce(&self) -> bool {
        let (mine, reserve) = (self.hub.inbox.room().await, self.hub.inbox.room().await);
        let mut state = self.hub.state();
        let Some((key, session)) = self.session(&mut state) else {
            return false;
        };
        if session.announced.is_none() {
            session.announced = Some(reserve);
            self.hub.emit(
                BrokerEvent::Connected {
                    node: key.0,
                    branch: key.1,
                },
                Ticket::of(mine),
            );
        }
        true
    }

    /// Reports a message. `false` if the session has not been announced or has been replaced.
    async fn deliver(&self, payload: Bytes) -> bool {
        let ticket = self.hub.inbox.room_for(payload.len(), &self.client.budget).await;
        let mut state = self.hub.state();
        let Some((key, session)) = self.session(&mut state) else {
            return false;
        };
        if session.announced.is_none() {
            return false;
        }
        self.hub.counters.received.add();
        self.hub.emit(
            BrokerEvent::Message {
                node: key.0,
                branch: key.1,
                payload,
            },
            ticket,
        );
        true
    }

    fn session<'a>(&self, state: &'a mut State) -> Option<((NodeId, Branch), &'a mut Session)> {
        let key = (self.client.node, self.branch?);
        let session = state.sessions.get_mut(&key)?;
        Arc::ptr_eq(&session.client, &self.client).then_some((key, session))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        if let Some((key, session)) = self.session(&mut state) {
            if let Some(room) = session.announced.take() {
                self.hub.emit(
                    BrokerEvent::Disconnected {
                        node: key.0,
                        branch: key.1,
                    },
                    Ticket::of(room),
                );
            }
            state.sessions.remove(&key);
        }
        if let Some(clients) = state.open.get_mut(&self.client.node) {
            clients.retain(|client| !Arc::ptr_eq(client, &self.client));
            if clients.is_empty() {
                state.open.remove(&self.client.node);
            }
        }
    }
}

/// Body for fuzzing: packets as an arbitrary client might send them. The first byte says where they are cut in two.
pub fn fuzz_packets(data: &[u8]) {
    if let Some((cut, packets)) = data.split_first() {
        codec::fuzz(packets, usize::from(*cut) * packets.len() / 255, MQTT_PACKET_BYTES);
    }
}
