//! The node's tier: the engine of the core and the lower end of its link, joined. No I/O.

use prost::Message;
use rand::RngCore;
use roble_core::engine::{
    Command, Effect, Engine, Exit, Lease, NodeFacts, Observed, Outcome, StartFailure, StartedInfo,
};
use roble_core::ids::InstanceId;
use roble_core::placement::{Offer, Profile};
use roble_core::status::Reason;
use roble_core::tier::{Output, Record, Tier, Write};
use roble_core::time::{Boottime, Now};
use roble_core::version::Version;
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_proto::convert::{decode_assignment, encode_status};
use roble_proto::wire;
use std::collections::BTreeSet;

/// Kind of record: an order exactly as received.
const ORDER: &str = "order";
/// Kind of record: how an instance ended for good.
const OUTCOME: &str = "outcome";
/// Kind of record: the last lease known to be held.
const LEASE: &str = "lease";
/// Its only id.
const LAST: &str = "last";
/// How old a stored lease may grow while at-most-one instances are here, milliseconds.
const LEASE_STORE_MS: u64 = 10_000;
/// Kind of record: the highest version seen of an instance that is gone.
const FLOOR: &str = "floor";
/// So many of them are kept, those of the newest services: an order that is late by more than that does not come.
const FLOORS: usize = 1_000;

/// What happens to a node.
#[derive(Debug)]
pub enum Event {
    /// The transport to the cluster came up.
    LinkUp,
    /// The transport to the cluster went down.
    LinkDown,
    /// A message of the cluster.
    Message(Vec<u8>),
    /// The cluster has put this node out for good: it said so to a question of ours.
    Revoked,
    /// Everything the runtime has.
    Listed(Vec<Observed>),
    /// A start ended.
    Started {
        /// Which instance.
        instance: InstanceId,
        /// For which version.
        version: Version,
        /// How.
        result: Result<StartedInfo, StartFailure>,
    },
    /// A stop ended.
    Gone {
        /// Which instance.
        instance: InstanceId,
        /// How.
        result: Result<(), Reason>,
    },
    /// The net manager was asked.
    NetAnswered {
        /// The number of the request.
        request: u64,
        /// Its answer; else why there is none.
        answer: Result<Vec<u8>, Reason>,
    },
    /// A container ended by itself.
    Exited {
        /// Which instance.
        instance: InstanceId,
        /// The version it ran for.
        version: Version,
        /// How.
        exit: Exit,
    },
}

/// What a node asks of its shell.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Send this to the cluster; it may be lost.
    Send(Vec<u8>),
    /// Let the runtime work.
    Run(Command),
    /// Dial a stream to the cluster and send the logs of an instance.
    OpenStream {
        /// The stream's id.
        stream: String,
        /// Whose logs.
        instance: InstanceId,
        /// Go on as they grow.
        follow: bool,
        /// Lines from the end; `None`: all.
        tail: Option<u32>,
    },
    /// Ask the net manager, and hear its answer as [`Event::NetAnswered`].
    AskNet {
        /// The number of the request.
        request: u64,
        /// What, as the net manager takes it.
        question: Vec<u8>,
    },
    /// The link's session stands, or is lost: for logs and readiness.
    Connected(bool),
    /// The cluster does not know this node: ask it what we are to it.
    CheckMembership,
    /// A message could not be understood: counted.
    Violation(String),
}

/// The node. See the module's text.
#[derive(Debug)]
pub struct NodeTier {
    engine: Engine,
    link: ChildEnd,
    /// When the lease was stored last, and how long it held from then. In another boot of the machine it means nothing,
    /// and nothing runs that it could stop.
    stored_lease: Option<StoredLease>,
    /// The transport is up, told to the link once the runtime was listed.
    is_up: bool,
    /// Instances of which only the highest version is stored.
    floors: BTreeSet<InstanceId>,
}

/// The last lease as stored.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
struct StoredLease {
    /// `CLOCK_BOOTTIME` of the last acknowledged beat, milliseconds.
    acked_ms: u64,
    /// How long it holds from then, milliseconds.
    fence_ms: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name.
    pub name: String,
    /// Address at which its published ports are reached.
    pub address: String,
    /// What it is and may give away.
    pub facts: NodeFacts,
    /// Timing of the link.
    pub clocks: ChildClocks,
    /// Software version.
    pub software: String,
}

struct Reports<'a>(&'a Engine);

impl Source for Reports<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.status(key.parse().ok()?).map(|status| encode_status(&status))
    }
}

impl NodeTier {
    /// Takes up what was stored. `complete`: the store is not known to have lost anything.
    /// Returns the records that could not be read, for the log.
    pub fn new(
        config: NodeConfig,
        records: &[Record],
        complete: bool,
        now: Now,
        rng: &mut dyn RngCore,
    ) -> (Self, Vec<String>) {
        let mut engine = Engine::new(config.facts.clone(), complete);
        let mut link = ChildEnd::new(config.clocks, rng.next_u64(), &config.software);
        let mut bad = Vec::new();
        for record in records.iter().filter(|record| record.kind == ORDER) {
            let outcome = records
                .iter()
                .find(|other| other.kind == OUTCOME && other.id == record.id)
                .and_then(|other| serde_json::from_slice::<Outcome>(&other.value).ok());
            match decode_assignment(&record.id, &record.value) {
                Ok(order) => {
                    link.restore_order(&record.id, &record.value);
                    engine.restore(order, outcome);
                }
                Err(error) => bad.push(format!("order {}: {error}", record.id)),
            }
        }
        let mut floors = BTreeSet::new();
        for record in records.iter().filter(|record| record.kind == FLOOR) {
            if let (Ok(instance), Ok(version)) = (record.id.parse(), serde_json::from_slice(&record.value)) {
                engine.restore_floor(instance, version);
                floors.insert(instance);
            }
        }
        let stored_lease = records
            .iter()
            .find(|record| record.kind == LEASE)
            .and_then(|record| serde_json::from_slice::<StoredLease>(&record.value).ok())
            .filter(|lease| lease.acked_ms <= now.boot.as_millis());
        if !complete {
            link.set_fresh();
        }
        link.set_profile(profile(&config));
        let mut tier = Self {
            engine,
            link,
            stored_lease,
            is_up: false,
            floors,
        };
        let instances: Vec<InstanceId> = tier.engine.instances().collect();
        for instance in instances {
            tier.report(instance);
        }
        (tier, bad)
    }

    /// The engine, to be looked at.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether the session with the cluster stands.
    pub const fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    fn report(&mut self, instance: InstanceId) {
        let status = self.engine.status(instance).map(|status| encode_status(&status));
        self.link.set_status(&instance.to_string(), status.as_deref());
    }

    fn handle(&mut self, outputs: Vec<ChildOutput>, out: &mut Output<Act>) {
        for output in outputs {
            match output {
                ChildOutput::Send(frame) => out.acts.push(Act::Send(frame.encode_to_vec())),
                ChildOutput::Order { key, value } => match decode_assignment(&key, &value) {
                    Ok(order) => {
                        let instance = order.instance;
                        self.engine.order(order.clone());
                        if self.engine.order_of(instance) == Some(&order) {
                            // Stored exactly as received, so that its digest stays the parent's.
                            out.writes.push(Write::put(ORDER, &key, value));
                            if self.floors.remove(&instance) {
                                out.writes.push(Write::delete(FLOOR, &key));
                            }
                        }
                    }
                    Err(error) => out.acts.push(Act::Violation(format!("order {key}: {error}"))),
                },
                ChildOutput::Withdraw(key) => {
                    if let Ok(instance) = key.parse() {
                        self.engine.withdraw(instance);
                    }
                }
                ChildOutput::Complete => self.engine.set_complete(),
                ChildOutput::Request(request) => self.answer(request, out),
                ChildOutput::Connected(connected) => out.acts.push(Act::Connected(connected)),
                ChildOutput::Unknown => out.acts.push(Act::CheckMembership),
            }
        }
    }

    fn answer(&mut self, request: wire::Request, out: &mut Output<Act>) {
        let what = match request.what {
            Some(wire::request::What::OpenStream(open)) => match (open.instance.parse(), open.logs) {
                (Ok(instance), Some(logs)) => {
                    out.acts.push(Act::OpenStream {
                        stream: open.stream,
                        instance,
                        follow: logs.follow,
                        tail: logs.tail,
                    });
                    wire::response::What::Json(b"{}".to_vec())
                }
                _ => failure("invalid", "which stream is not understood"),
            },
            Some(wire::request::What::AskNet(ask)) => {
                let (request, question) = (request.id, ask.question);
                return out.acts.push(Act::AskNet { request, question });
            }
            _ => failure("unsupported", "a node does not answer this"),
        };
        self.respond(request.id, what, out);
    }

    fn respond(&mut self, request: u64, what: wire::response::What, out: &mut Output<Act>) {
        if let Some(ChildOutput::Send(frame)) = self.link.respond(request, what) {
            out.acts.push(Act::Send(frame.encode_to_vec()));
        }
    }

    /// Decides what is due, stores what changed, reports it.
    fn settle(&mut self, now: Now, out: &mut Output<Act>) {
        let lease = self.lease(now, out);
        self.engine.set_lease(lease);
        self.link.set_eager(self.engine.is_fenced());
        let commands = self.engine.reconcile(now);
        for effect in self.engine.take_effects() {
            match effect {
                Effect::Store(instance) => self.store(instance, out),
                Effect::Status(instance) => self.report(instance),
            }
        }
        out.acts.extend(commands.into_iter().map(Act::Run));
        let outputs = self.link.flush(&Reports(&self.engine));
        self.handle(outputs, out);
    }

    /// Whether the cluster's word is fresh enough for at-most-one copies. After a restart of the engine what was stored
    /// before counts on, so that no number of restarts makes a lease longer.
    fn lease(&mut self, now: Now, out: &mut Output<Act>) -> Lease {
        if let Some(acked) = self.link.acked_at() {
            let fence_ms = self.link.fence_ms();
            let stored = self.stored_lease.map(|lease| (lease.acked_ms, lease.fence_ms));
            let is_old = stored.is_none_or(|(at, fence)| {
                fence != fence_ms || acked.since(Boottime::from_millis(at)) >= LEASE_STORE_MS
            });
            if is_old && self.engine.is_fenced() {
                let lease = StoredLease {
                    acked_ms: acked.as_millis(),
                    fence_ms,
                };
                self.stored_lease = Some(lease);
                let value = serde_json::to_vec(&lease).ok();
                out.writes.extend(value.map(|value| Write::put(LEASE, LAST, value)));
            }
            return if now.boot.since(acked) < fence_ms {
                Lease::Held
            } else {
                Lease::Lost
            };
        }
        match self.stored_lease {
            Some(lease) if now.boot.since(Boottime::from_millis(lease.acked_ms)) < lease.fence_ms => Lease::Unknown,
            _ => Lease::Lost,
        }
    }

    fn store(&mut self, instance: InstanceId, out: &mut Output<Act>) {
        match self.engine.stored(instance) {
            Some(stored) => match stored.outcome.and_then(|outcome| serde_json::to_vec(outcome).ok()) {
                Some(outcome) => out.writes.push(Write::put(OUTCOME, instance, outcome)),
                None => out.writes.push(Write::delete(OUTCOME, instance)),
            },
            None => {
                out.writes.push(Write::delete(ORDER, instance));
                out.writes.push(Write::delete(OUTCOME, instance));
                let floor = self
                    .engine
                    .floor(instance)
                    .and_then(|floor| serde_json::to_vec(floor).ok());
                let Some(floor) = floor else { return };
                out.writes.push(Write::put(FLOOR, instance, floor));
                self.floors.insert(instance);
                // Ids are in the order of time: the first is of the oldest service.
                while self.floors.len() > FLOORS
                    && let Some(oldest) = self.floors.pop_first()
                {
                    self.engine.forget_floor(oldest);
                    out.writes.push(Write::delete(FLOOR, oldest));
                }
            }
        }
    }
}

impl Tier for NodeTier {
    type Event = Event;
    type Act = Act;

    fn on(&mut self, event: Event, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        match event {
            Event::LinkUp => {
                self.is_up = true;
                // Before the runtime was listed, what is not reported might still run.
                if self.engine.is_observed() {
                    self.link.transport_up(now);
                }
            }
            Event::LinkDown => {
                self.is_up = false;
                let outputs = self.link.transport_down();
                self.handle(outputs, &mut out);
            }
            Event::Message(bytes) => match wire::Frame::decode(bytes.as_slice()) {
                Ok(frame) => {
                    let outputs = self.link.receive(frame, &Reports(&self.engine), now);
                    self.handle(outputs, &mut out);
                }
                Err(error) => out.acts.push(Act::Violation(error.to_string())),
            },
            Event::Revoked => {
                let outputs = self.link.dismiss();
                self.handle(outputs, &mut out);
                // Also what runs without an order known here was of this cluster.
                self.engine.set_complete();
            }
            Event::Listed(list) => {
                if !self.engine.is_observed() && self.is_up {
                    self.link.transport_up(now);
                }
                self.engine.hear_list(&list, now, rng);
            }
            Event::Started {
                instance,
                version,
                result,
            } => {
                self.engine.hear_started(instance, &version, result, now, rng);
            }
            Event::Gone { instance, result } => self.engine.hear_gone(instance, result, now, rng),
            Event::NetAnswered { request, answer } => {
                let what = match answer {
                    Ok(json) => wire::response::What::Json(json),
                    Err(reason) => failure(&reason.code, &reason.message),
                };
                self.respond(request, what, &mut out);
            }
            Event::Exited {
                instance,
                version,
                exit,
            } => self.engine.hear_exit(instance, &version, exit, now, rng),
        }
        self.settle(now, &mut out);
        out
    }

    fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        self.engine.tick(now);
        self.settle(now, &mut out);
        let outputs = self.link.tick(now, rng);
        self.handle(outputs, &mut out);
        out
    }

    fn next_due(&self) -> Option<Boottime> {
        self.engine.next_due().into_iter().chain(self.link.next_due()).min()
    }
}

fn failure(code: &str, message: &str) -> wire::response::What {
    wire::response::What::Failure(wire::Failure {
        code: code.to_owned(),
        message: message.to_owned(),
    })
}

fn profile(config: &NodeConfig) -> Profile {
    Profile {
        name: config.name.clone(),
        labels: Default::default(),
        address: config.address.clone(),
        virtualizations: config.facts.virtualizations.clone(),
        offers: vec![Offer {
            labels: config.facts.labels.clone(),
            count: 1,
            allocatable: config.facts.allocatable,
            largest_free: vec![config.facts.allocatable],
        }],
        software: config.software.clone(),
        revision: 0,
    }
}
