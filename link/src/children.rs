//! A tier's children: the orchestrator of the core and one session per child, joined. Root and cluster are built on it.

use crate::parent::{ParentClocks, ParentEnd, ParentOutput};
use crate::{Source, unknown_member};
use roble_core::ids::{ChildId, InstanceId};
use roble_core::liveness::{Clocks, Standing};
use roble_core::orchestrator::{Effect, Orchestrator, PlacementRecord, Step};
use roble_core::placement::{Level, Profile};
use roble_core::spec::Assignment;
use roble_core::time::{Boottime, Now};
use roble_proto::convert::{decode_status, encode_assignment};
use roble_proto::wire;
use std::collections::BTreeMap;

/// What the tier around must do, in order; everything to be stored comes before what is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum ChildrenOutput {
    /// Store [`Orchestrator::record`] of the instance.
    Record(InstanceId),
    /// Delete the record of the instance: it is gone everywhere.
    Forget(InstanceId),
    /// What is known of the instance changed.
    Status(InstanceId),
    /// What may be given away changed.
    Capacity,
    /// A child's standing changed.
    Standing(ChildId, Standing),
    /// Eviction is held, or no longer.
    Brake(bool),
    /// What this child should run changed.
    Ordered(ChildId),
    /// A decision was taken: for logs and events.
    Step(Step),
    /// A child said what it is: store it.
    Profile(ChildId),
    /// A child opened a session.
    Opened(ChildId),
    /// Two living processes use the identity of this child.
    Cloned(ChildId),
    /// A child answers a request.
    Response(ChildId, wire::Response),
    /// A child broke the protocol.
    Violation(ChildId, String),
    /// Send this frame to the child; it may be lost.
    Send(ChildId, wire::Frame),
}

/// The children. See the module's text.
#[derive(Debug, Clone)]
pub struct Children {
    level: Level,
    clocks: ParentClocks,
    complete: bool,
    orchestrator: Orchestrator,
    ends: BTreeMap<ChildId, ParentEnd>,
    out: Vec<ChildrenOutput>,
}

struct Orders<'a>(&'a Orchestrator, ChildId);

impl Source for Orders<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        let instance = key.parse().ok()?;
        self.0.order(self.1, instance).map(|order| encode_assignment(&order))
    }
}

impl Children {
    /// No children yet. `complete`: the wishes known here are whole, so that children may delete what is not in them.
    pub fn new(level: Level, clocks: Clocks, complete: bool, started: Boottime) -> Self {
        let orchestrator = Orchestrator::new(level, clocks, started);
        Self {
            level,
            clocks: ParentClocks {
                beat_ms: clocks.beat_ms,
                fence_ms: clocks.fence_ms,
            },
            complete,
            orchestrator,
            ends: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    /// See [`Orchestrator::set_fresh`].
    pub const fn set_fresh(&mut self) {
        self.orchestrator.set_fresh();
    }

    /// What is known and decided.
    pub const fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// Takes up a stored instance at start; children must have been added before.
    pub fn restore(&mut self, instance: InstanceId, wish: Option<Assignment>, record: PlacementRecord) {
        let holder = record.placement.as_ref().map(|placement| placement.child);
        self.orchestrator.restore(instance, wish, record);
        if let Some(child) = holder {
            self.sync_order(child, instance);
        }
    }

    /// Makes a child known, from the store or after it joined. It may open sessions from now on.
    pub fn add_child(&mut self, child: ChildId, profile: Profile, cordoned: bool) {
        self.orchestrator.add_child(child, profile, cordoned);
        self.ends
            .entry(child)
            .or_insert_with(|| ParentEnd::new(self.clocks, self.complete));
    }

    /// Removes a child for good: its frames are ignored, what it held is placed elsewhere.
    pub fn remove_child(&mut self, child: ChildId) {
        self.ends.remove(&child);
        self.orchestrator.remove_child(child);
    }

    /// The wishes known here are whole from now on.
    pub fn set_complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.ends.values_mut().for_each(ParentEnd::set_complete);
        }
    }

    /// Whether the wishes known here are whole.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether everything is known here that a lost store may have held: the wishes, and who runs what.
    pub fn is_settled(&self) -> bool {
        self.complete && !self.orchestrator.is_unsure()
    }

    /// See [`Orchestrator::set_wish`].
    pub fn set_wish(&mut self, assignment: Assignment) {
        self.orchestrator.set_wish(assignment);
    }

    /// See [`Orchestrator::set_parent_hears`].
    pub fn set_parent_hears(&mut self, hears: bool) {
        self.orchestrator.set_parent_hears(hears);
    }

    /// See [`Orchestrator::raise_epoch`].
    pub fn raise_epoch(&mut self, instance: InstanceId, floor: u64) {
        self.orchestrator.raise_epoch(instance, floor);
    }

    /// See [`Orchestrator::remove_wish`].
    pub fn remove_wish(&mut self, instance: InstanceId) {
        self.orchestrator.remove_wish(instance);
    }

    /// See [`Orchestrator::set_cordoned`].
    pub fn set_cordoned(&mut self, child: ChildId, cordoned: bool) {
        self.orchestrator.set_cordoned(child, cordoned);
    }

    /// See [`Orchestrator::set_addresses`].
    pub fn set_addresses(&mut self, child: ChildId, addresses: Option<u32>) {
        self.orchestrator.set_addresses(child, addresses);
    }

    /// The transport lost the child.
    pub fn transport_down(&mut self, child: ChildId) {
        if let Some(end) = self.ends.get_mut(&child) {
            end.transport_down();
        }
    }

    /// Whether the child may open sessions.
    pub fn is_known(&self, child: ChildId) -> bool {
        self.ends.contains_key(&child)
    }

    /// Whether a session with the child stands.
    pub fn is_open(&self, child: ChildId) -> bool {
        self.ends.get(&child).is_some_and(ParentEnd::is_open)
    }

    /// Asks a child something; `None` if it is not connected.
    pub fn request(&mut self, child: ChildId, what: wire::request::What) -> Option<u64> {
        let (id, output) = self.ends.get_mut(&child)?.request(what)?;
        if let ParentOutput::Send(frame) = output {
            self.out.push(ChildrenOutput::Send(child, frame));
        }
        Some(id)
    }

    /// A frame of a child. `child` comes from its certificate; an unknown one is told that it is unknown, no more.
    pub fn receive(&mut self, child: ChildId, frame: wire::Frame, now: Now) {
        let Some(end) = self.ends.get_mut(&child) else {
            if matches!(frame.body, Some(wire::frame::Body::Hello(_))) {
                self.out
                    .push(ChildrenOutput::Send(child, unknown_member(frame.session)));
            }
            return;
        };
        let outputs = end.receive(frame, &Orders(&self.orchestrator, child), now);
        for output in outputs {
            self.handle(child, output, now);
        }
    }

    fn handle(&mut self, child: ChildId, output: ParentOutput, now: Now) {
        match output {
            ParentOutput::Send(frame) => self.out.push(ChildrenOutput::Send(child, frame)),
            ParentOutput::Opened { fresh, .. } => {
                if fresh {
                    self.orchestrator.renew_orders(child, now);
                }
                self.orchestrator.hear_opened(child);
                self.out.push(ChildrenOutput::Opened(child));
            }
            ParentOutput::Cloned => self.out.push(ChildrenOutput::Cloned(child)),
            ParentOutput::Beat => self.orchestrator.hear_beat(child, now),
            ParentOutput::Profile(profile) => {
                self.orchestrator.hear_profile(child, profile);
                self.out.push(ChildrenOutput::Profile(child));
            }
            ParentOutput::Status { key, value } => match decode_status(&key, &value) {
                Ok(mut status) => {
                    match self.level {
                        Level::Clusters => status.cluster = Some(roble_core::ids::ClusterId(child.0)),
                        Level::Nodes => {
                            status.node = Some(roble_core::ids::NodeId(child.0));
                            if let Some(view) = self.orchestrator.child(child, now) {
                                status.node_address = Some(view.profile.address.clone());
                                status.node_name = Some(view.profile.name.clone());
                            }
                        }
                    }
                    self.orchestrator.hear_status(child, status, now);
                }
                Err(error) => self.out.push(ChildrenOutput::Violation(child, error.to_string())),
            },
            ParentOutput::StatusRemoved(key) => {
                if let Ok(instance) = key.parse() {
                    self.orchestrator.hear_status_removed(child, instance);
                }
            }
            ParentOutput::HeardOut => self.orchestrator.hear_all(child),
            ParentOutput::Settled => self.orchestrator.hear_settled(child),
            ParentOutput::Response(response) => self.out.push(ChildrenOutput::Response(child, response)),
            ParentOutput::Violation(what) => self.out.push(ChildrenOutput::Violation(child, what.to_owned())),
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now: Now) {
        self.orchestrator.tick(now);
    }

    /// Decides what is due and hands out everything that is to be done. Call after every event.
    pub fn settle(&mut self, now: Now) -> Vec<ChildrenOutput> {
        let mut out = Vec::new();
        for step in self.orchestrator.reconcile(now) {
            out.push(ChildrenOutput::Step(step));
        }
        for effect in self.orchestrator.take_effects() {
            out.push(match effect {
                Effect::Record(instance) if self.orchestrator.contains(instance) => ChildrenOutput::Record(instance),
                Effect::Record(_) => continue,
                Effect::Forget(instance) => ChildrenOutput::Forget(instance),
                Effect::Order(child, instance) => {
                    self.sync_order(child, instance);
                    ChildrenOutput::Ordered(child)
                }
                Effect::Status(instance) => ChildrenOutput::Status(instance),
                Effect::Capacity => ChildrenOutput::Capacity,
                Effect::Child(child, standing) => ChildrenOutput::Standing(child, standing),
                Effect::Brake(held) => ChildrenOutput::Brake(held),
            });
        }
        for (child, end) in &mut self.ends {
            for output in end.flush(&Orders(&self.orchestrator, *child)) {
                if let ParentOutput::Send(frame) = output {
                    self.out.push(ChildrenOutput::Send(*child, frame));
                }
            }
        }
        out.append(&mut self.out);
        out
    }

    fn sync_order(&mut self, child: ChildId, instance: InstanceId) {
        if let Some(end) = self.ends.get_mut(&child) {
            let order = self.orchestrator.order(child, instance);
            let value = order.as_ref().map(encode_assignment);
            end.set_order(&instance.to_string(), value.as_deref());
        }
    }
}
