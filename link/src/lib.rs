//! The session between two tiers and its transports.
//!
//! [`child::ChildEnd`] and [`parent::ParentEnd`] are the two ends as state machines without I/O; [`set::SetIndex`] is the
//! one piece that keeps a set of items equal on both sides, used downwards for orders and upwards for statuses.
//! Both links speak the same frames: gRPC between root and cluster, MQTT between cluster and node, memory in tests.
//!
//! Invariants: whatever is lost, repeated or reordered, both sides agree again one exchange after they hear each other;
//! a frame of another session, or one not newer than the last, changes nothing.

pub mod child;
pub mod children;
pub mod grpc;
pub mod mqtt;
pub mod parent;
pub mod set;
pub mod tables;
pub mod transport;

use roble_proto::wire;
use roble_proto::wire::frame::Body;

/// The version of the link's protocol that this build speaks, and the oldest it still understands.
pub const PROTOCOL: (u32, u32) = (1, 1);

/// A feature in Hello: the child's store is new or was lost, and its epochs with it.
const FRESH: &str = "fresh";

/// Code of a Reset: the parent has no such member. It may have lost its records.
const UNKNOWN_MEMBER: &str = "unknown-member";

/// What a stranger's Hello is answered with.
fn unknown_member(session: u32) -> wire::Frame {
    wire::Frame {
        session,
        seq: u64::MAX,
        body: Some(Body::Reset(wire::Reset {
            code: UNKNOWN_MEMBER.to_owned(),
            message: "there is no such member here".to_owned(),
        })),
        ..wire::Frame::default()
    }
}

/// Gives the value of an item of a set that one end writes: the tier knows it, the session only its digest.
pub trait Source {
    /// The encoded value; `None` if the item is gone by now.
    fn value(&self, set: wire::SetKind, key: &str) -> Option<Vec<u8>>;
}

/// Numbers the frames of one direction of one session.
#[derive(Debug, Clone, Default)]
struct Outbox {
    session: u32,
    seq: u64,
}

impl Outbox {
    fn frame(&mut self, body: Body) -> wire::Frame {
        self.seq += 1;
        wire::Frame {
            session: self.session,
            seq: self.seq,
            body: Some(body),
            ..wire::Frame::default()
        }
    }
}

/// Keeps updates well below the limits of both transports.
const UPDATE_BYTES: usize = 128 * 1024;

/// Splits changed items into updates of bounded size.
fn updates(set: wire::SetKind, items: Vec<wire::SetItem>, removed: Vec<String>) -> Vec<Body> {
    let mut bodies = Vec::new();
    let mut update = wire::SetUpdate {
        set: set.into(),
        items: Vec::new(),
        removed,
    };
    let mut bytes: usize = update.removed.iter().map(|key| key.len() + 4).sum();
    for item in items {
        let size = item.key.len() + item.value.len() + 16;
        if bytes > 0 && bytes + size > UPDATE_BYTES {
            let next = wire::SetUpdate {
                set: set.into(),
                ..Default::default()
            };
            bodies.push(Body::Update(std::mem::replace(&mut update, next)));
            bytes = 0;
        }
        bytes += size;
        update.items.push(item);
    }
    if bytes > 0 {
        bodies.push(Body::Update(update));
    }
    bodies
}
