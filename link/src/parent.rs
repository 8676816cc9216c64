//! The upper end of a link, one per child: a cluster towards a node, the root towards a cluster.

use crate::set::SetIndex;
use crate::{FRESH, Outbox, PROTOCOL, Source, updates};
use roble_core::liveness::Clocks;
use roble_core::placement::Profile;
use roble_core::time::{Boottime, Now};
use roble_proto::wire::frame::Body;
use roble_proto::wire::{self, SetKind};
use std::collections::BTreeSet;

/// What the end asks of the tier around it, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum ParentOutput {
    /// Send this frame; it may be lost.
    Send(wire::Frame),
    /// The child opened a session; `software` is its version.
    Opened {
        /// The child's software version.
        software: String,
        /// It knows nothing of what it was ordered before.
        fresh: bool,
    },
    /// Another living process of the same identity speaks: a cloned key.
    Cloned,
    /// A sign of life.
    Beat,
    /// What the child is and has.
    Profile(Profile),
    /// A report.
    Status {
        /// The instance.
        key: String,
        /// The encoded status.
        value: Vec<u8>,
    },
    /// The child no longer reports this.
    StatusRemoved(String),
    /// All that the child reports was heard.
    HeardOut,
    /// Orders and reports are equal on both sides.
    Settled,
    /// The child answers a request.
    Response(wire::Response),
    /// The child spoke nonsense: counted, dropped.
    Violation(&'static str),
}

/// Timing given to the child, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentClocks {
    /// Between beats.
    pub beat_ms: u64,
    /// Silence after which the child stops its at-most-one copies.
    pub fence_ms: u64,
}

impl ParentClocks {
    /// For the net branch: its rows are sent when they change, so that a beat, which only compares, may be rare.
    pub const fn of_tables(clocks: &Clocks) -> Self {
        Self {
            beat_ms: clocks.beat_ms * TABLE_BEATS,
            fence_ms: clocks.fence_ms,
        }
    }
}

/// Beats of the work branch in one of the net branch.
const TABLE_BEATS: u64 = 24;

/// The upper end. See the module's text.
#[derive(Debug, Clone)]
pub struct ParentEnd {
    clocks: ParentClocks,
    outbox: Outbox,
    heard: u64,
    open: bool,
    process: Option<u64>,
    former_process: Option<u64>,
    /// How often the two have taken turns: one late Hello of a process that ended makes two.
    turns: u32,
    orders: SetIndex,
    changed_orders: BTreeSet<String>,
    /// Sequence number of the last frame of this session that may change the child's orders.
    orders_seq: u64,
    status: SetIndex,
    /// All that the child reports was heard in this session: before, it is not told what is surplus on it.
    heard_out: bool,
    /// Sequence number of the last profile heard in this session.
    profile: u64,
    complete: bool,
    fetched_at: Option<Boottime>,
    next_request: u64,
}

impl ParentEnd {
    /// `complete`: the orders known here are whole.
    pub fn new(clocks: ParentClocks, complete: bool) -> Self {
        Self {
            clocks,
            outbox: Outbox::default(),
            heard: 0,
            open: false,
            process: None,
            former_process: None,
            turns: 0,
            orders: SetIndex::default(),
            changed_orders: BTreeSet::new(),
            orders_seq: 0,
            status: SetIndex::default(),
            heard_out: false,
            profile: 0,
            complete,
            fetched_at: None,
            next_request: 0,
        }
    }

    /// Whether a session stands.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// The orders known here are whole from now on.
    pub const fn set_complete(&mut self) {
        self.complete = true;
    }

    /// An order changed, or is taken back with `None`.
    pub fn set_order(&mut self, key: &str, value: Option<&[u8]>) {
        let changed = match value {
            Some(value) => self.orders.put(key, value),
            None => self.orders.remove(key),
        };
        if changed {
            self.changed_orders.insert(key.to_owned());
        }
    }

    /// The transport lost the child.
    pub fn transport_down(&mut self) {
        self.open = false;
        self.changed_orders.clear();
    }

    /// Asks the child something. Returns the id that its response will carry; `None` without a session.
    pub fn request(&mut self, what: wire::request::What) -> Option<(u64, ParentOutput)> {
        if !self.open {
            return None;
        }
        self.next_request += 1;
        let id = self.next_request;
        let body = Body::Request(wire::Request { id, what: Some(what) });
        Some((id, ParentOutput::Send(self.outbox.frame(body))))
    }

    /// Sends what changed since the last call. Call after every event.
    pub fn flush(&mut self, source: &dyn Source) -> Vec<ParentOutput> {
        let mut out = Vec::new();
        if self.open {
            let changed = std::mem::take(&mut self.changed_orders);
            self.send_items(changed, source, &mut out);
        }
        out
    }

    fn send_items(&mut self, keys: impl IntoIterator<Item = String>, source: &dyn Source, out: &mut Vec<ParentOutput>) {
        let (mut items, mut removed) = (Vec::new(), Vec::new());
        for key in keys {
            // The index follows what is really sent, or both sides would differ for ever.
            match source.value(SetKind::Orders, &key) {
                Some(value) => {
                    self.orders.put(&key, &value);
                    items.push(wire::SetItem { key, value });
                }
                None => {
                    self.orders.remove(&key);
                    removed.push(key);
                }
            }
        }
        for body in updates(SetKind::Orders, items, removed) {
            out.push(ParentOutput::Send(self.outbox.frame(body)));
            self.orders_seq = self.outbox.seq;
        }
    }

    /// A frame of the child.
    pub fn receive(&mut self, frame: wire::Frame, source: &dyn Source, now: Now) -> Vec<ParentOutput> {
        let mut out = Vec::new();
        let Some(body) = frame.body else {
            out.push(ParentOutput::Violation("empty frame"));
            return out;
        };
        if let Body::Hello(hello) = &body {
            self.hear_hello(frame.session, frame.seq, hello, now, &mut out);
            return out;
        }
        if !self.open || frame.session != self.outbox.session {
            let reset = wire::Reset {
                code: "unknown-session".to_owned(),
                message: "say hello again".to_owned(),
            };
            out.push(ParentOutput::Send(wire::Frame {
                session: frame.session,
                seq: u64::MAX,
                body: Some(Body::Reset(reset)),
                ..wire::Frame::default()
            }));
            return out;
        }
        if frame.seq <= self.heard {
            return out;
        }
        self.heard = frame.seq;
        match body {
            Body::Beat(beat) => self.hear_beat(&beat, now, &mut out),
            Body::Profile(profile) => {
                self.profile = self.heard;
                out.push(ParentOutput::Profile(profile.into()));
            }
            Body::Update(update) if update.set == i32::from(SetKind::Status) => {
                for item in update.items {
                    if self.status.put(&item.key, &item.value) {
                        out.push(ParentOutput::Status {
                            key: item.key,
                            value: item.value,
                        });
                    }
                }
                for key in update.removed {
                    if self.status.remove(&key) {
                        out.push(ParentOutput::StatusRemoved(key));
                    }
                }
            }
            Body::Buckets(answer) if answer.set == i32::from(SetKind::Status) => {
                let surplus = self.status.apply_buckets(&answer);
                out.extend(surplus.into_iter().map(ParentOutput::StatusRemoved));
            }
            Body::Fetch(fetch) if fetch.set == i32::from(SetKind::Orders) => match self.orders.answer(&fetch) {
                Some((buckets, send)) => {
                    // What is known here is sent in any case; that there is nothing else is said only by who knows it.
                    if self.complete && self.heard_out {
                        out.push(ParentOutput::Send(self.outbox.frame(Body::Buckets(buckets))));
                        self.orders_seq = self.outbox.seq;
                    }
                    self.send_items(send, source, &mut out);
                }
                None => out.push(ParentOutput::Violation("senseless fetch")),
            },
            Body::Response(response) => out.push(ParentOutput::Response(response)),
            _ => out.push(ParentOutput::Violation("frame that only a parent sends")),
        }
        out
    }

    fn hear_hello(&mut self, session: u32, seq: u64, hello: &wire::Hello, now: Now, out: &mut Vec<ParentOutput>) {
        if hello.min_version > PROTOCOL.0 || hello.max_version < PROTOCOL.1 {
            let message = format!(
                "versions {} to {} of the link are understood here, not {} to {}",
                PROTOCOL.1, PROTOCOL.0, hello.min_version, hello.max_version
            );
            let reset = wire::Reset {
                code: "version".to_owned(),
                message,
            };
            out.push(ParentOutput::Send(wire::Frame {
                session,
                seq: u64::MAX,
                body: Some(Body::Reset(reset)),
                ..wire::Frame::default()
            }));
            return;
        }
        if self.open && session == self.outbox.session && seq <= self.heard {
            // A repeated Hello of the session that stands.
            return;
        }
        // Processes of the same identity that come back after one another, again and again: both are alive.
        if self.process != Some(hello.process) {
            let returns = self.former_process == Some(hello.process);
            self.turns = if returns { self.turns + 1 } else { 0 };
            if self.turns >= 3 {
                out.push(ParentOutput::Cloned);
            }
            self.former_process = self.process.replace(hello.process);
        }
        self.outbox = Outbox { session, seq: 0 };
        self.orders_seq = 0;
        self.profile = 0;
        self.heard_out = false;
        self.heard = seq;
        self.open = true;
        self.fetched_at = None;
        self.changed_orders.clear();
        let welcome = wire::Welcome {
            version: PROTOCOL.0.min(hello.max_version),
            features: Vec::new(),
            beat_ms: self.clocks.beat_ms as u32,
            fence_ms: self.clocks.fence_ms as u32,
            wall_ms: now.wall.as_millis(),
        };
        out.push(ParentOutput::Opened {
            software: hello.software.clone(),
            fresh: hello.features.iter().any(|feature| feature == FRESH),
        });
        out.push(ParentOutput::Send(self.outbox.frame(Body::Welcome(welcome))));
    }

    fn hear_beat(&mut self, beat: &wire::Beat, now: Now, out: &mut Vec<ParentOutput>) {
        out.push(ParentOutput::Beat);
        let equal_orders = beat.orders == self.orders.digest();
        let equal_status = beat.status == self.status.digest();
        let is_heard_out = equal_status && !std::mem::replace(&mut self.heard_out, true);
        if is_heard_out {
            out.push(ParentOutput::HeardOut);
        }
        if beat.answer || !equal_orders || is_heard_out {
            let ack = wire::BeatAck {
                beat: self.heard,
                orders: self.orders.digest(),
                complete: self.complete && self.heard_out,
                profile: self.profile,
            };
            out.push(ParentOutput::Send(self.outbox.frame(Body::BeatAck(ack))));
        }
        if !equal_status && self.fetched_at.is_none_or(|at| now.boot.since(at) >= 1_000) {
            self.fetched_at = Some(now.boot);
            let fetch = self.status.fetch(SetKind::Status);
            out.push(ParentOutput::Send(self.outbox.frame(Body::Fetch(fetch))));
        }
        if equal_status {
            self.fetched_at = None;
        }
        // An order on its way is in no digest of the child yet, but it will be: nothing is settled before it was heard.
        let heard_all = beat.heard >= self.orders_seq && self.changed_orders.is_empty();
        if equal_status && heard_all && equal_orders && self.complete {
            out.push(ParentOutput::Settled);
        }
    }
}
