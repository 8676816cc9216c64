//! The lower end of a link: a node engine towards its cluster, a cluster towards the root.

use crate::set::SetIndex;
use crate::{FRESH, Outbox, PROTOCOL, Source, UNKNOWN_MEMBER, updates};
use rand::{Rng, RngCore};
use roble_core::backoff::Backoff;
use roble_core::placement::Profile;
use roble_core::time::{Boottime, Now};
use roble_proto::wire::frame::Body;
use roble_proto::wire::{self, SetKind};
use std::collections::BTreeSet;

/// Milliseconds after changed orders at which the parent is told what is held now.
const SOON_MS: u64 = 20;
/// Beats without an answer after one that said that all is equal.
const QUIET_BEATS: u32 = 2;
/// Unanswered Hellos after which the transport is taken for dead, again and again.
const HELLOS_IN_VAIN: u32 = 5;

/// What the end asks of the tier around it, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum ChildOutput {
    /// Send this frame; it may be lost.
    Send(wire::Frame),
    /// An order, new or changed. Store it before sending anything that follows.
    Order {
        /// The instance.
        key: String,
        /// The encoded assignment.
        value: Vec<u8>,
    },
    /// The parent does not want this any more.
    Withdraw(String),
    /// The orders held are the parent's, and whole.
    Complete,
    /// The parent asks something; answer with [`ChildEnd::respond`].
    Request(wire::Request),
    /// A session stands (`true`), or is lost or was asked for in vain several times: the transport may be dead without
    /// knowing it, and is better dialed anew.
    Connected(bool),
    /// The parent does not know this child: its membership must be looked at.
    Unknown,
}

/// Timing of the lower end, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildClocks {
    /// Between beats, until the parent says otherwise.
    pub beat_ms: u64,
    /// Silence of the parent after which a new session is opened.
    pub silence_ms: u64,
}

/// The lower end. See the module's text.
#[derive(Debug, Clone)]
pub struct ChildEnd {
    clocks: ChildClocks,
    process: u64,
    fence_ms: u64,
    software: String,
    fresh: bool,
    outbox: Outbox,
    /// Highest sequence number heard in this session.
    heard: u64,
    /// The transport is up.
    up: bool,
    /// Welcome was heard in this session.
    welcomed: bool,
    /// What the parent ordered: reader's side.
    orders: SetIndex,
    /// What we report: writer's side.
    status: SetIndex,
    changed_status: BTreeSet<String>,
    profile: Option<Profile>,
    /// Sequence number of the frame it was last sent in.
    profile_seq: u64,
    profile_sent: bool,
    /// Beats that need no answer: the last answer said that all is equal, and nothing happened since.
    quiet: u32,
    /// Every beat needs one.
    eager: bool,
    next_at: Boottime,
    hellos: u32,
    /// When the last beat that was acknowledged, for exactly the orders held here, had been sent: the lease runs from here.
    acked_at: Option<Boottime>,
    /// Beats sent and not acknowledged: (sequence number, sent at).
    unacked: Vec<(u64, Boottime)>,
    last_heard: Boottime,
    fetched_at: Option<Boottime>,
}

impl ChildEnd {
    /// `process`: random, made at the start of the process.
    pub fn new(clocks: ChildClocks, process: u64, software: &str) -> Self {
        Self {
            clocks,
            process,
            fence_ms: 30_000,
            software: software.to_owned(),
            fresh: false,
            outbox: Outbox::default(),
            heard: 0,
            up: false,
            welcomed: false,
            orders: SetIndex::default(),
            status: SetIndex::default(),
            changed_status: BTreeSet::new(),
            profile: None,
            profile_seq: 0,
            profile_sent: false,
            quiet: 0,
            eager: false,
            next_at: Boottime::default(),
            hellos: 0,
            acked_at: None,
            unacked: Vec::new(),
            last_heard: Boottime::default(),
            fetched_at: None,
        }
    }

    /// Takes up an order that was stored, exactly as it was received.
    pub fn restore_order(&mut self, key: &str, value: &[u8]) {
        self.orders.put(key, value);
    }

    /// The store is new or was lost: the parent is told so until its orders are known to be whole.
    pub const fn set_fresh(&mut self) {
        self.fresh = true;
    }

    /// The transport came up: a session is opened at the next tick.
    pub fn transport_up(&mut self, now: Now) {
        self.up = true;
        self.hellos = 0;
        self.close();
        self.next_at = now.boot;
    }

    /// The transport went down.
    pub fn transport_down(&mut self) -> Vec<ChildOutput> {
        self.up = false;
        self.close()
    }

    /// The parent has put this child out for good: nothing it ordered is wanted any more.
    pub fn dismiss(&mut self) -> Vec<ChildOutput> {
        let orders = std::mem::take(&mut self.orders);
        let mut out = self.close();
        out.extend(orders.keys().map(|key| ChildOutput::Withdraw(key.to_owned())));
        out
    }

    /// Whether a session stands.
    pub const fn is_connected(&self) -> bool {
        self.welcomed
    }

    /// Milliseconds without an acknowledged beat after which at-most-one copies stop, as the parent said.
    pub const fn fence_ms(&self) -> u64 {
        self.fence_ms
    }

    /// When the last acknowledged beat had been sent.
    pub const fn acked_at(&self) -> Option<Boottime> {
        self.acked_at
    }

    /// A report changed, or is gone with `None`.
    pub fn set_status(&mut self, key: &str, value: Option<&[u8]>) {
        let changed = match value {
            Some(value) => self.status.put(key, value),
            None => self.status.remove(key),
        };
        if changed {
            self.changed_status.insert(key.to_owned());
        }
    }

    /// What the child is and has; sent when it differs from before.
    pub fn set_profile(&mut self, profile: Profile) {
        if self.profile.as_ref() != Some(&profile) {
            self.profile = Some(profile);
            self.profile_sent = false;
        }
    }

    /// Whether a lease hangs on the answers: then every beat wants one.
    pub const fn set_eager(&mut self, eager: bool) {
        self.eager = eager;
    }

    /// Answers a request.
    pub fn respond(&mut self, id: u64, what: wire::response::What) -> Option<ChildOutput> {
        let body = Body::Response(wire::Response { id, what: Some(what) });
        self.welcomed.then(|| ChildOutput::Send(self.outbox.frame(body)))
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_due(&self) -> Option<Boottime> {
        self.up.then_some(self.next_at)
    }

    /// Sends what changed since the last call. Call after every event.
    pub fn flush(&mut self, source: &dyn Source) -> Vec<ChildOutput> {
        let mut out = Vec::new();
        if !self.welcomed {
            return out;
        }
        if !self.profile_sent
            && let Some(profile) = &self.profile
        {
            let body = Body::Profile(profile.into());
            out.push(ChildOutput::Send(self.outbox.frame(body)));
            self.profile_seq = self.outbox.seq;
            self.profile_sent = true;
            self.quiet = 0;
        }
        let changed = std::mem::take(&mut self.changed_status);
        self.send_items(changed, source, &mut out);
        out
    }

    fn send_items(&mut self, keys: impl IntoIterator<Item = String>, source: &dyn Source, out: &mut Vec<ChildOutput>) {
        let (mut items, mut removed) = (Vec::new(), Vec::new());
        for key in keys {
            // The index follows what is really sent, or both sides would differ for ever.
            match source.value(SetKind::Status, &key) {
                Some(value) => {
                    self.status.put(&key, &value);
                    items.push(wire::SetItem { key, value });
                }
                None => {
                    self.status.remove(&key);
                    removed.push(key);
                }
            }
        }
        if !removed.is_empty() {
            // The parent waits to hear that both sides agree before it gives the freed place away.
            self.next_at = Boottime::default();
        }
        for body in updates(SetKind::Status, items, removed) {
            out.push(ChildOutput::Send(self.outbox.frame(body)));
        }
    }

    /// Time passed: says Hello, beats, or gives the session up.
    pub fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Vec<ChildOutput> {
        let mut out = Vec::new();
        if !self.up {
            return out;
        }
        if self.welcomed && now.boot.since(self.last_heard) >= self.clocks.silence_ms {
            out.extend(self.close());
            self.next_at = now.boot;
        }
        if now.boot < self.next_at {
            return out;
        }
        if self.welcomed {
            let beat = wire::Beat {
                orders: self.orders.digest(),
                status: self.status.digest(),
                heard: self.heard,
                answer: self.eager || self.quiet == 0,
            };
            self.quiet = self.quiet.saturating_sub(1);
            let frame = self.outbox.frame(Body::Beat(beat));
            if self.unacked.len() >= 16 {
                self.unacked.remove(0);
            }
            self.unacked.push((frame.seq, now.boot));
            out.push(ChildOutput::Send(frame));
            self.next_at = now.boot.plus(self.clocks.beat_ms);
        } else {
            self.outbox = Outbox {
                session: rng.random(),
                seq: 0,
            };
            self.heard = 0;
            let hello = wire::Hello {
                min_version: PROTOCOL.1,
                max_version: PROTOCOL.0,
                features: self.fresh.then(|| FRESH.to_owned()).into_iter().collect(),
                software: self.software.clone(),
                process: self.process,
            };
            out.push(ChildOutput::Send(self.outbox.frame(Body::Hello(hello))));
            self.next_at = now.boot.plus(Backoff::RECONNECT.delay_ms(self.hellos, rng));
            self.hellos = self.hellos.saturating_add(1);
            if self.hellos.is_multiple_of(HELLOS_IN_VAIN) {
                out.push(ChildOutput::Connected(false));
            }
        }
        out
    }

    /// A frame of the parent.
    pub fn receive(&mut self, frame: wire::Frame, source: &dyn Source, now: Now) -> Vec<ChildOutput> {
        let mut out = Vec::new();
        if frame.session != self.outbox.session || !self.up {
            return out;
        }
        let Some(body) = frame.body else { return out };
        if let Body::Reset(reset) = body {
            out.extend(self.close());
            if reset.code == UNKNOWN_MEMBER {
                out.push(ChildOutput::Unknown);
            }
            self.next_at = self.next_at.max(now.boot.plus(SOON_MS));
            return out;
        }
        if frame.seq <= self.heard {
            return out;
        }
        self.heard = frame.seq;
        self.last_heard = now.boot;
        match body {
            Body::Welcome(welcome) if !self.welcomed => {
                self.welcomed = true;
                self.hellos = 0;
                if welcome.beat_ms > 0 {
                    self.clocks.beat_ms = u64::from(welcome.beat_ms);
                    // Every third beat at least is answered, and every one after an answer that did not come: silence
                    // is when two answers in a row were lost.
                    self.clocks.silence_ms = self.clocks.silence_ms.max(self.clocks.beat_ms * 9 / 2);
                }
                if welcome.fence_ms > 0 {
                    self.fence_ms = u64::from(welcome.fence_ms);
                }
                self.profile_sent = false;
                self.unacked.clear();
                self.fetched_at = None;
                self.next_at = now.boot;
                out.push(ChildOutput::Connected(true));
            }
            _ if !self.welcomed => {}
            Body::BeatAck(ack) => self.hear_ack(&ack, now, &mut out),
            Body::Update(update) if update.set == i32::from(SetKind::Orders) => {
                for item in update.items {
                    if self.orders.put(&item.key, &item.value) {
                        out.push(ChildOutput::Order {
                            key: item.key,
                            value: item.value,
                        });
                    }
                }
                for key in update.removed {
                    if self.orders.remove(&key) {
                        out.push(ChildOutput::Withdraw(key));
                    }
                }
                self.beat_soon(now);
            }
            Body::Buckets(answer) if answer.set == i32::from(SetKind::Orders) => {
                out.extend(
                    self.orders
                        .apply_buckets(&answer)
                        .into_iter()
                        .map(ChildOutput::Withdraw),
                );
                self.beat_soon(now);
            }
            Body::Fetch(fetch) if fetch.set == i32::from(SetKind::Status) => {
                if let Some((buckets, send)) = self.status.answer(&fetch) {
                    out.push(ChildOutput::Send(self.outbox.frame(Body::Buckets(buckets))));
                    self.send_items(send, source, &mut out);
                    self.beat_soon(now);
                }
            }
            Body::Request(request) => out.push(ChildOutput::Request(request)),
            _ => {}
        }
        out
    }

    fn hear_ack(&mut self, ack: &wire::BeatAck, now: Now, out: &mut Vec<ChildOutput>) {
        let sent = self.unacked.iter().find(|(beat, _)| *beat == ack.beat);
        let sent = sent.map(|(_, sent)| *sent);
        self.unacked.retain(|(beat, _)| *beat > ack.beat);
        if ack.beat > self.profile_seq && ack.profile < self.profile_seq {
            // It was lost on the way.
            self.profile_sent = false;
        }
        if ack.orders == self.orders.digest() {
            if !ack.complete {
                return;
            }
            // Only the parent's word on exactly these orders is a lease: before, one of them may long be somebody else's.
            if let Some(sent) = sent {
                self.acked_at = Some(self.acked_at.map_or(sent, |acked| acked.max(sent)));
            }
            self.fetched_at = None;
            self.fresh = false;
            self.quiet = QUIET_BEATS;
            out.push(ChildOutput::Complete);
        } else if self.fetched_at.is_none_or(|at| now.boot.since(at) >= 1_000) {
            self.fetched_at = Some(now.boot);
            let fetch = self.orders.fetch(SetKind::Orders);
            out.push(ChildOutput::Send(self.outbox.frame(Body::Fetch(fetch))));
        }
    }

    fn beat_soon(&mut self, now: Now) {
        self.quiet = 0;
        self.next_at = self.next_at.min(now.boot.plus(SOON_MS));
    }

    fn close(&mut self) -> Vec<ChildOutput> {
        let was = std::mem::take(&mut self.welcomed);
        self.quiet = 0;
        // Everything is compared anew in the next session; nothing needs to be sent twice.
        self.changed_status.clear();
        if was {
            vec![ChildOutput::Connected(false)]
        } else {
            Vec::new()
        }
    }
}
