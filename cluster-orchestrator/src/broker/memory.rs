//! A broker without a network, for demos and tests: it behaves like the others and can be told to lose, delay and
//! partition.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use roble_core::ids::NodeId;
use roble_link::transport::{DownReason, SendError as TransportSendError, Transport, TransportEvent};
use roble_proto::limits::{MQTT_PACKET_BYTES, MQTT_QUEUE_PACKETS};
use roble_proto::topics::Branch;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Broker, BrokerError, BrokerEvent, BrokerStats, SendError};

/// Largest message; the same as the MQTT brokers take.
const MESSAGE_BYTES: usize = MQTT_PACKET_BYTES - 64;
/// Messages that may wait for [`Broker::next`].
const INBOX: usize = 4096;

/// How badly messages travel. Connections and their ends are always seen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Probability that a message is lost, 0 to 1.
    pub loss: f64,
    /// Longest delay of a message; each gets a random part of it, and order is kept.
    pub delay: Duration,
}

/// The in-memory broker. Clones are the same broker. Time is tokio's, so a paused clock works.
#[derive(Clone)]
pub struct MemoryBroker {
    hub: Arc<Hub>,
}

struct Hub {
    state: Mutex<State>,
    inbox: Pipe<BrokerEvent>,
}

struct State {
    rng: SmallRng,
    faults: Faults,
    /// Every living transport, connected or not.
    transports: HashMap<u64, Arc<End>>,
    connected: HashMap<(NodeId, Branch), u64>,
    partitioned: HashSet<NodeId>,
    revoked: HashSet<NodeId>,
    next_id: u64,
    stats: BrokerStats,
}

/// A node's end: what it has yet to hear.
struct End {
    id: u64,
    node: NodeId,
    branch: Branch,
    pipe: Pipe<TransportEvent>,
}

impl MemoryBroker {
    /// A broker without clients or faults. `seed` decides which messages later faults hit.
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            faults: Faults::default(),
            transports: HashMap::new(),
            connected: HashMap::new(),
            partitioned: HashSet::new(),
            revoked: HashSet::new(),
            next_id: 0,
            stats: BrokerStats::default(),
        };
        Self {
            hub: Arc::new(Hub {
                state: Mutex::new(state),
                inbox: Pipe::default(),
            }),
        }
    }

    /// The node's end of a new connection; as with the other transports it comes back by itself after a partition.
    pub fn transport(&self, node: NodeId, branch: Branch) -> MemoryTransport {
        let mut state = self.hub.state();
        let id = state.next_id;
        state.next_id += 1;
        let end = Arc::new(End {
            id,
            node,
            branch,
            pipe: Pipe::default(),
        });
        state.transports.insert(id, end.clone());
        self.hub.connect(&mut state, &end);
        MemoryTransport {
            hub: self.hub.clone(),
            end,
        }
    }

    /// From now on messages travel like this.
    pub fn set_faults(&self, faults: Faults) {
        self.hub.state().faults = faults;
    }

    /// Cuts `node` off, or joins it again. Both sides see the connection end; what was under way is lost.
    pub fn set_partitioned(&self, node: NodeId, cut: bool) {
        let mut state = self.hub.state();
        if cut {
            state.partitioned.insert(node);
            self.hub.put_out(
                &mut state,
                node,
                &DownReason::Lost {
                    detail: "partitioned".into(),
                },
            );
        } else if state.partitioned.remove(&node) {
            let mut ends: Vec<_> = state
                .transports
                .values()
                .filter(|end| end.node == node)
                .cloned()
                .collect();
            ends.sort_by_key(|end| end.id);
            for end in ends {
                self.hub.connect(&mut state, &end);
            }
        }
    }
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, state: &mut State, end: &Arc<End>) {
        let (node, branch) = (end.node, end.branch);
        if state.revoked.contains(&node) || state.partitioned.contains(&node) {
            state.stats.refused += 1;
            let reason = match state.revoked.contains(&node) {
                true => DownReason::Tls {
                    detail: "revoked".into(),
                },
                false => DownReason::Unreachable {
                    detail: "partitioned".into(),
                },
            };
            end.pipe.push(Duration::ZERO, TransportEvent::Down { reason });
            return;
        }
        state.stats.connects += 1;
        if let Some(older) = state.connected.insert((node, branch), end.id) {
            state.stats.duplicates += 1;
            self.inbox.push(Duration::ZERO, BrokerEvent::Duplicate { node });
            self.inbox
                .push(Duration::ZERO, BrokerEvent::Disconnected { node, branch });
            if let Some(older) = state.transports.get(&older) {
                older.down(DownReason::Lost {
                    detail: "replaced".into(),
                });
            }
        }
        self.inbox.push(Duration::ZERO, BrokerEvent::Connected { node, branch });
        end.pipe.push(Duration::ZERO, TransportEvent::Up);
    }

    fn put_out(&self, state: &mut State, node: NodeId, reason: &DownReason) {
        for branch in [Branch::Engine, Branch::Net] {
            if let Some(id) = state.connected.remove(&(node, branch)) {
                self.inbox
                    .push(Duration::ZERO, BrokerEvent::Disconnected { node, branch });
                if let Some(end) = state.transports.get(&id) {
                    end.down(reason.clone());
                }
            }
        }
    }
}

impl End {
    fn down(&self, reason: DownReason) {
        self.pipe.clear();
        self.pipe.push(Duration::ZERO, TransportEvent::Down { reason });
    }
}

impl State {
    fn is_connected(&self, end: &End) -> bool {
        self.connected.get(&(end.node, end.branch)) == Some(&end.id)
    }

    /// `None` if the message is lost, else how late it arrives.
    fn fate(&mut self) -> Option<Duration> {
        let faults = self.faults;
        if faults.loss > 0.0 && self.rng.random::<f64>() < faults.loss {
            return None;
        }
        Some(
            faults
                .delay
                .mul_f64(if faults.delay.is_zero() { 0.0 } else { self.rng.random() }),
        )
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn send(&self, node: NodeId, branch: Branch, payload: Bytes) -> Result<(), SendError> {
        if payload.len() > MESSAGE_BYTES {
            return Err(SendError::TooLarge {
                bytes: payload.len(),
                limit: MESSAGE_BYTES,
            });
        }
        let mut state = self.hub.state();
        let id = state.connected.get(&(node, branch)).ok_or(SendError::NotConnected)?;
        let end = state.transports.get(id).cloned().ok_or(SendError::NotConnected)?;
        if end.pipe.len() >= MQTT_QUEUE_PACKETS {
            state.stats.queue_full += 1;
            return Err(SendError::QueueFull);
        }
        state.stats.sent += 1;
        if let Some(delay) = state.fate() {
            end.pipe.push(delay, TransportEvent::Message(payload));
        }
        Ok(())
    }

    async fn next(&self) -> BrokerEvent {
        self.hub.inbox.next().await
    }

    async fn admit(&self, node: NodeId) -> Result<(), BrokerError> {
        self.hub.state().revoked.remove(&node);
        Ok(())
    }

    async fn revoke(&self, node: NodeId) -> Result<(), BrokerError> {
        let mut state = self.hub.state();
        if state.revoked.insert(node) {
            self.hub.put_out(
                &mut state,
                node,
                &DownReason::Tls {
                    detail: "revoked".into(),
                },
            );
            state.stats.revoked += 1;
        }
        Ok(())
    }

    async fn reload_certificate(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        let state = self.hub.state();
        BrokerStats {
            clients: state.connected.len() as u64,
            ..state.stats
        }
    }
}

/// A node's end of the in-memory broker.
pub struct MemoryTransport {
    hub: Arc<Hub>,
    end: Arc<End>,
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn send(&self, message: Bytes) -> Result<(), TransportSendError> {
        if message.len() > MESSAGE_BYTES {
            return Err(TransportSendError::TooLarge {
                bytes: message.len(),
                limit: MESSAGE_BYTES,
            });
        }
        let mut state = self.hub.state();
        if !state.is_connected(&self.end) {
            return Err(TransportSendError::NotConnected);
        }
        if self.hub.inbox.len() >= INBOX {
            return Err(TransportSendError::QueueFull);
        }
        if let Some(delay) = state.fate() {
            state.stats.received += 1;
            let (node, branch) = (self.end.node, self.end.branch);
            self.hub.inbox.push(
                delay,
                BrokerEvent::Message {
                    node,
                    branch,
                    payload: message,
                },
            );
        }
        Ok(())
    }

    async fn next(&self) -> TransportEvent {
        self.end.pipe.next().await
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        state.transports.remove(&self.end.id);
        let (node, branch) = (self.end.node, self.end.branch);
        if state.is_connected(&self.end) {
            state.connected.remove(&(node, branch));
            self.hub
                .inbox
                .push(Duration::ZERO, BrokerEvent::Disconnected { node, branch });
        }
    }
}

/// A queue whose entries become visible in order, each not before its time.
struct Pipe<T> {
    entries: Mutex<VecDeque<(Instant, T)>>,
    changed: Notify,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl<T> Pipe<T> {
    fn entries(&self) -> MutexGuard<'_, VecDeque<(Instant, T)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, delay: Duration, entry: T) {
        let mut entries = self.entries();
        let last = entries.back().map(|(at, _)| *at);
        let at = Instant::now() + delay;
        entries.push_back((last.map_or(at, |last| last.max(at)), entry));
        drop(entries);
        self.changed.notify_one();
    }

    fn len(&self) -> usize {
        self.entries().len()
    }

    fn clear(&self) {
        self.entries().clear();
    }

    async fn next(&self) -> T {
        loop {
            let due = {
                let mut entries = self.entries();
                match entries.front() {
                    Some((at, _)) if *at <= Instant::now() => match entries.pop_front() {
                        Some((_, entry)) => return entry,
                        None => continue,
                    },
                    front => front.map(|(at, _)| *at),
                }
            };
            match due {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{self, Harness};
    use super::*;

    struct Memory(MemoryBroker);

    impl Harness for Memory {
        fn broker(&self) -> Arc<dyn Broker> {
            Arc::new(self.0.clone())
        }

        fn transport(&self, node: NodeId, branch: Branch) -> Box<dyn Transport> {
            Box::new(self.0.transport(node, branch))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn contract() {
        suite::run(&Memory(MemoryBroker::new(1))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn loses_delays_and_partitions_as_told() {
        let broker = MemoryBroker::new(1);
        let node = suite::node(1);
        let transport = broker.transport(node, Branch::Engine);
        assert_eq!(transport.next().await, TransportEvent::Up);
        assert_eq!(
            broker.next().await,
            BrokerEvent::Connected {
                node,
                branch: Branch::Engine
            }
        );

        broker.set_faults(Faults {
            loss: 1.0,
            delay: Duration::ZERO,
        });
        transport.send(Bytes::from_static(b"lost")).await.unwrap();
        broker.set_faults(Faults {
            loss: 0.0,
            delay: Duration::from_secs(10),
        });
        let before = Instant::now();
        transport.send(Bytes::from_static(b"late")).await.unwrap();
        let payload = Bytes::from_static(b"late");
        assert_eq!(
            broker.next().await,
            BrokerEvent::Message {
                node,
                branch: Branch::Engine,
                payload
            }
        );
        assert!(before.elapsed() > Duration::from_millis(1));

        broker.set_partitioned(node, true);
        assert!(matches!(transport.next().await, TransportEvent::Down { .. }));
        assert_eq!(
            broker.next().await,
            BrokerEvent::Disconnected {
                node,
                branch: Branch::Engine
            }
        );
        assert_eq!(
            transport.send(Bytes::new()).await,
            Err(TransportSendError::NotConnected)
        );
        broker.set_partitioned(node, false);
        assert_eq!(transport.next().await, TransportEvent::Up);
    }
}
