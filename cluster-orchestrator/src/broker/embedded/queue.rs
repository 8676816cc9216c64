//! What waits to be sent to one client.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use roble_core::ids::NodeId;
use roble_proto::topics::{Branch, Direction, Topic};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck};
use tokio::sync::Notify;

use super::{Limits, PACKET_OVERHEAD, SendError};

/// Answers that may wait for a client. One that sends and does not read its answers is put out.
const ANSWERS: usize = 256;
/// One write gathers packets up to this size.
const BATCH_BYTES: usize = 8 * 1024;

/// An answer to a packet of the client.
pub(super) enum Answer {
    PubAck(u16),
    SubAck(u16, Vec<SubscribeReasonCode>),
    UnsubAck(u16),
    PingResp,
}

impl Answer {
    fn packet(self) -> Packet {
        match self {
            Self::PubAck(id) => Packet::PubAck(PubAck::new(id)),
            Self::SubAck(id, codes) => Packet::SubAck(SubAck::new(id, codes)),
            Self::UnsubAck(id) => Packet::UnsubAck(UnsubAck::new(id)),
            Self::PingResp => Packet::PingResp,
        }
    }
}

/// What there is to write.
pub(super) enum Batch {
    /// Packets were encoded, of which so many carry messages.
    Ready { messages: u64 },
    /// Nothing waits.
    Empty,
    /// Messages wait, but the client has to acknowledge earlier ones first.
    Unacknowledged,
}

#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    answers: VecDeque<Answer>,
    messages: VecDeque<Bytes>,
    /// Of the messages.
    bytes: usize,
    subscribed: Option<QoS>,
    last_id: u16,
    /// Packet ids sent and not yet acknowledged.
    inflight: Vec<u16>,
}

impl Queue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Bytes of messages that wait.
    pub(super) fn bytes(&self) -> usize {
        self.inner().bytes
    }

    /// The client subscribed, or unsubscribed, which also drops what waits.
    pub(super) fn set_subscribed(&self, subscribed: Option<QoS>) {
        let mut inner = self.inner();
        inner.subscribed = subscribed;
        if subscribed.is_none() {
            inner.messages.clear();
            inner.bytes = 0;
        }
    }

    pub(super) fn push_message(&self, payload: Bytes, limits: &Limits) -> Result<(), SendError> {
        let mut inner = self.inner();
        if inner.subscribed.is_none() {
            return Err(SendError::NotConnected);
        }
        if inner.messages.len() >= limits.queue_packets || inner.bytes + payload.len() > limits.queue_bytes {
            return Err(SendError::QueueFull);
        }
        inner.bytes += payload.len();
        inner.messages.push_back(payload);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// `false` if the client leaves too many answers unread.
    pub(super) fn push_answer(&self, answer: Answer) -> bool {
        let mut inner = self.inner();
        if inner.answers.len() >= ANSWERS {
            return false;
        }
        inner.answers.push_back(answer);
        drop(inner);
        self.changed.notify_one();
        true
    }

    /// The client acknowledged a message. An unknown id means nothing.
    pub(super) fn acknowledged(&self, id: u16) {
        let mut inner = self.inner();
        if let Some(at) = inner.inflight.iter().position(|sent| *sent == id) {
            inner.inflight.swap_remove(at);
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Resolves after the queue changed since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Encodes the next packets into `buffer`: answers first, then messages in order, as many as make one sensible write.
    pub(super) fn take(&self, node: NodeId, branch: Branch, limits: &Limits, buffer: &mut BytesMut) -> Batch {
        let mut inner = self.inner();
        let mut count = 0;
        let mut blocked = false;
        while buffer.len() < BATCH_BYTES {
            if let Some(answer) = inner.answers.pop_front() {
                encode(&answer.packet(), buffer);
                continue;
            }
            let Some(qos) = inner.subscribed.filter(|_| !inner.messages.is_empty()) else {
                break;
            };
            blocked = qos != QoS::AtMostOnce && inner.inflight.len() >= limits.inflight;
            if blocked {
                break;
            }
            let Some(payload) = inner.messages.pop_front() else {
                break;
            };
            inner.bytes -= payload.len();
            let topic = Topic {
                node,
                branch,
                direction: Direction::Down,
            }
            .to_string();
            buffer.reserve(payload.len() + PACKET_OVERHEAD);
            let mut publish = Publish::from_bytes(topic, qos, payload);
            if qos != QoS::AtMostOnce {
                publish.pkid = inner.next_id();
            }
            encode(&Packet::Publish(publish), buffer);
            count += 1;
        }
        if inner.messages.is_empty() && inner.messages.capacity() > 16 {
            inner.messages = VecDeque::new();
        }
        match (buffer.is_empty(), blocked) {
            (false, _) => Batch::Ready { messages: count },
            (true, true) => Batch::Unacknowledged,
            (true, false) => Batch::Empty,
        }
    }
}

impl Inner {
    /// An id that is not in flight; there is one because far fewer than 65,535 may be.
    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.inflight.contains(&self.last_id) {
                self.inflight.push(self.last_id);
                return self.last_id;
            }
        }
    }
}

pub(super) fn encode(packet: &Packet, buffer: &mut BytesMut) {
    packet
        .write(buffer, usize::MAX)
        .expect("sizes are checked when packets are queued, and ids are not 0");
}
