//! Desired and observed state of a tier that runs instances itself: the node engine.
//!
//! Orders come from the cluster, observations from the runtime; [`Engine::reconcile`] answers with commands for the
//! runtime, at most one under way per instance. Nothing here waits or touches a container.
//!
//! Invariants:
//! - an order with a lower version than one ever seen for the instance is ignored;
//! - a container of an older version is gone before one of a newer version starts;
//! - what is accepted never exceeds what the node may give away;
//! - a healthy container of the ordered version is never touched, whatever restarts around it.

mod slot;

pub use slot::{Outcome, Slot, SlotState};

use crate::backoff::Backoff;
use crate::ids::InstanceId;
use crate::labels::{ARCH, Labels};
use crate::planted::{Bug, is_planted};
use crate::resources::Resources;
use crate::spec::{Assignment, InstanceSpec, RestartPolicy, WhenCutOff};
use crate::status::{InstanceStatus, Phase, Reason};
use crate::time::{Boottime, Now, Timestamp};
use crate::version::Version;
use rand::RngCore;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Running this long makes a restart count as the first again, milliseconds.
const HEALTHY_MS: u64 = 600_000;

/// What the node is and may give away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// May be reserved in all.
    pub allocatable: Resources,
    /// Labels, [`ARCH`] among them.
    pub labels: Labels,
    /// What it can run.
    pub virtualizations: Vec<String>,
}

/// A container as the runtime shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Which instance it is.
    pub instance: InstanceId,
    /// The version it was started for.
    pub version: Version,
    /// What it does.
    pub state: ObservedState,
    /// Its endpoint addresses, if they are known.
    pub addresses: Vec<IpAddr>,
    /// The net manager answers and does not know of it: it has no network.
    pub detached: bool,
}

/// What an observed container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedState {
    /// Its process runs.
    Running {
        /// Since when, if known.
        started_at: Option<Timestamp>,
    },
    /// Its process has ended, or was never started.
    Ended(Option<Exit>),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
}

/// What a start achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedInfo {
    /// When the process started.
    pub started_at: Timestamp,
    /// Digest of the manifest that runs.
    pub image_digest: Option<String>,
    /// Its endpoint addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a start failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// For people.
    pub reason: Reason,
    /// Trying again here may help.
    pub retryable: bool,
    /// Another node might do better: the order is refused.
    pub refuse: bool,
}

/// Whether at-most-one copies may run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Not heard since the start: what runs goes on, nothing of this kind is started.
    Unknown,
    /// The parent answers.
    Held,
    /// The parent has not answered for too long: they are stopped.
    Lost,
}

/// Work for the runtime. At most one start or stop per instance is under way; its end comes back as `hear_started` or `hear_gone`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Prepare and start the container; one of another version does not exist any more.
    Start(Assignment),
    /// The container runs and has lost its network: give it one again. Nothing is told of its end; the next list shows it.
    Attach(Assignment),
    /// Stop politely, then hard after `grace_ms`, and remove.
    Stop {
        /// Which instance.
        instance: InstanceId,
        /// Milliseconds between the polite signal and the kill.
        grace_ms: u64,
    },
}

/// Something that the tier around must write or send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Store the order and outcome of the instance ([`Engine::stored`]), or delete them if there are none.
    Store(InstanceId),
    /// Report [`Engine::status`] upwards, or its absence.
    Status(InstanceId),
}

/// What is stored of an instance: enough to start from cold without anyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The order.
    pub order: &'a Assignment,
    /// How it ended for good, if it did.
    pub outcome: Option<&'a Outcome>,
}

/// The machine. See the module's text.
#[derive(Debug, Clone)]
pub struct Engine {
    facts: NodeFacts,
    slots: BTreeMap<InstanceId, Slot>,
    /// Highest version ever seen, also of instances that are gone.
    floors: BTreeMap<InstanceId, Version>,
    /// The runtime was listed at least once since the start.
    observed: bool,
    /// The stored orders are known to be whole: containers without an order may be removed.
    complete: bool,
    /// Whether at-most-one copies may run.
    lease: Lease,
    attention: BTreeSet<InstanceId>,
    effects: Vec<Effect>,
}

impl Engine {
    /// An empty engine. `complete`: the store was read and is not known to have lost anything; if `false`, containers
    /// without an order are left alone until the parent's orders are known to be whole.
    pub fn new(facts: NodeFacts, complete: bool) -> Self {
        Self {
            facts,
            slots: BTreeMap::new(),
            floors: BTreeMap::new(),
            observed: false,
            complete,
            lease: Lease::Unknown,
            attention: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Takes up a stored order at start.
    pub fn restore(&mut self, order: Assignment, outcome: Option<Outcome>) {
        let instance = order.instance;
        self.floors.insert(instance, order.version.clone());
        self.slots.insert(instance, Slot::restored(order, outcome));
        self.attention.insert(instance);
    }

    /// Takes up the highest version seen of an instance that is gone.
    pub fn restore_floor(&mut self, instance: InstanceId, version: Version) {
        self.floors.entry(instance).or_insert(version);
    }

    /// The highest version ever seen of an instance.
    pub fn floor(&self, instance: InstanceId) -> Option<&Version> {
        self.floors.get(&instance)
    }

    /// Forgets the highest version seen of an instance that is gone: it cannot be ordered any more.
    pub fn forget_floor(&mut self, instance: InstanceId) {
        if !self.slots.contains_key(&instance) {
            self.floors.remove(&instance);
        }
    }

    /// What the node may give away.
    pub const fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// An order. Lower versions than ever seen are ignored, equal ones change nothing.
    pub fn order(&mut self, order: Assignment) {
        let instance = order.instance;
        let is_old = self.floors.get(&instance).is_some_and(|floor| order.version < *floor);
        if is_old && !is_planted(Bug::SkipGeneration) {
            return;
        }
        if self
            .slots
            .get(&instance)
            .and_then(|slot| slot.order.as_ref())
            .is_some_and(|held| *held == order)
        {
            return;
        }
        self.floors.insert(instance, order.version.clone());
        self.slots
            .entry(instance)
            .or_insert_with(Slot::new)
            .replace_order(order);
        self.effects.push(Effect::Store(instance));
        self.effects.push(Effect::Status(instance));
        self.attention.insert(instance);
    }

    /// The parent no longer wants the instance here.
    pub fn withdraw(&mut self, instance: InstanceId) {
        if let Some(slot) = self.slots.get_mut(&instance)
            && slot.order.take().is_some()
        {
            slot.outcome = None;
            self.effects.push(Effect::Store(instance));
            self.effects.push(Effect::Status(instance));
            self.attention.insert(instance);
        }
    }

    /// Whether the parent's orders are known to be whole.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// The parent's orders are known to be whole: what has none may go.
    pub fn set_complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.attention.extend(self.slots.keys());
            self.effects
                .extend(self.slots.keys().map(|instance| Effect::Status(*instance)));
        }
    }

    /// The parent has (not) answered within the fence.
    pub fn set_lease(&mut self, lease: Lease) {
        if self.lease != lease {
            self.lease = lease;
            self.attention.extend(self.slots.keys());
        }
    }

    /// Everything the runtime has, at start and now and then. Operations under way are not disturbed by it.
    pub fn hear_list(&mut self, list: &[Observed], now: Now, rng: &mut dyn RngCore) {
        let first = !self.observed;
        self.observed = true;
        let mut seen = BTreeSet::new();
        for container in list {
            seen.insert(container.instance);
            // A container tells which version was here even if the store does not.
            let floor = self.floors.entry(container.instance).or_default();
            if *floor < container.version {
                floor.clone_from(&container.version);
            }
            let slot = self.slots.entry(container.instance).or_insert_with(Slot::new);
            if slot.hear_observed(container, now, rng) {
                self.attention.insert(container.instance);
                self.effects.push(Effect::Store(container.instance));
                self.effects.push(Effect::Status(container.instance));
            }
        }
        for (instance, slot) in &mut self.slots {
            if !seen.contains(instance) && slot.hear_absent() {
                self.attention.insert(*instance);
                self.effects.push(Effect::Status(*instance));
            }
        }
        if first {
            self.attention.extend(self.slots.keys());
        }
    }

    /// A start under way has ended.
    pub fn hear_started(
        &mut self,
        instance: InstanceId,
        version: &Version,
        result: Result<StartedInfo, StartFailure>,
        now: Now,
        rng: &mut dyn RngCore,
    ) {
        let Some(slot) = self.slots.get_mut(&instance) else {
            return;
        };
        slot.hear_started(version, result, now, rng);
        self.after(instance);
    }

    /// A stop under way has ended; on failure it is tried again.
    pub fn hear_gone(&mut self, instance: InstanceId, result: Result<(), Reason>, now: Now, rng: &mut dyn RngCore) {
        let Some(slot) = self.slots.get_mut(&instance) else {
            return;
        };
        let was_unknown = slot.is_of_unknown_size();
        slot.hear_gone(result, now, rng);
        self.after(instance);
        if was_unknown {
            self.attention.extend(self.slots.keys());
        }
    }

    /// A container ended by itself.
    pub fn hear_exit(&mut self, instance: InstanceId, version: &Version, exit: Exit, now: Now, rng: &mut dyn RngCore) {
        let Some(slot) = self.slots.get_mut(&instance) else {
            return;
        };
        if slot.hear_exit(version, exit, now, rng) {
            self.after(instance);
        }
    }

    /// Time passed: backoffs end.
    pub fn tick(&mut self, now: Now) {
        let due = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.is_due(now.boot))
            .map(|(instance, _)| *instance);
        self.attention.extend(due);
    }

    /// Whether the runtime was listed since the start: before, nothing can be said of what is not here.
    pub const fn is_observed(&self) -> bool {
        self.observed
    }

    /// Whether an at-most-one instance is ordered here.
    pub fn is_fenced(&self) -> bool {
        let mut orders = self.slots.values().filter_map(|slot| slot.order.as_ref());
        orders.any(|order| order.spec.when_cut_off == WhenCutOff::Stop)
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_due(&self) -> Option<Boottime> {
        self.slots.values().filter_map(Slot::due_at).min()
    }

    /// The commands that are due now. Asking again changes nothing until something is heard.
    pub fn reconcile(&mut self, now: Now) -> Vec<Command> {
        let mut commands = Vec::new();
        if !self.observed {
            return commands;
        }
        while let Some(instance) = self.attention.pop_first() {
            let refusal = self.admission(instance);
            let is_crowded = self.slots.values().any(Slot::is_of_unknown_size);
            let Some(slot) = self.slots.get_mut(&instance) else {
                continue;
            };
            let before = slot.report(self.complete);
            let command = slot.step(instance, refusal, is_crowded, self.complete, self.lease, now.boot);
            if slot.report(self.complete) != before {
                self.effects.push(Effect::Status(instance));
            }
            if slot.is_empty() {
                self.slots.remove(&instance);
                self.effects.push(Effect::Status(instance));
                // Room may be free for what was refused before.
                let refused = self.slots.iter().filter(|(_, slot)| slot.is_refused());
                self.attention.extend(refused.map(|(id, _)| *id));
            }
            commands.extend(command);
        }
        commands
    }

    /// What to store for an instance; `None`: nothing.
    pub fn stored(&self, instance: InstanceId) -> Option<Stored<'_>> {
        let slot = self.slots.get(&instance)?;
        Some(Stored {
            order: slot.order.as_ref()?,
            outcome: slot.outcome.as_ref(),
        })
    }

    /// The report about one instance; `None` once nothing of it is here.
    pub fn status(&self, instance: InstanceId) -> Option<InstanceStatus> {
        let slot = self.slots.get(&instance)?;
        let version = self.floors.get(&instance)?;
        slot.status(instance, version, self.complete)
    }

    /// Every instance with an order or a container here.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.slots.keys().copied()
    }

    /// The order held for an instance.
    pub fn order_of(&self, instance: InstanceId) -> Option<&Assignment> {
        self.slots.get(&instance)?.order.as_ref()
    }

    /// Sum of what is accepted.
    pub fn reserved(&self) -> Resources {
        self.slots
            .values()
            .filter(|slot| slot.is_accepted())
            .fold(Resources::ZERO, |sum, slot| sum.plus(&slot.size()))
    }

    /// What changed since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        let mut known = BTreeSet::new();
        effects.retain(|effect| match effect {
            Effect::Store(id) => known.insert((0, *id)),
            Effect::Status(id) => known.insert((1, *id)),
        });
        effects
    }

    fn after(&mut self, instance: InstanceId) {
        self.attention.insert(instance);
        self.effects.push(Effect::Store(instance));
        self.effects.push(Effect::Status(instance));
    }

    /// Why the order cannot be taken here, checked once more whatever the parent thought.
    fn admission(&self, instance: InstanceId) -> Option<Reason> {
        let slot = self.slots.get(&instance)?;
        let spec = &slot.order.as_ref()?.spec;
        if is_planted(Bug::ForgetReservation) {
            return None;
        }
        if slot.is_accepted() && slot.size().covers(&spec.resources) {
            return None;
        }
        let others = |other: &InstanceId, slot: &Slot| *other != instance && slot.is_accepted();
        let taken = self.slots.iter().filter(|(id, slot)| others(id, slot));
        let free = taken
            .clone()
            .fold(self.facts.allocatable, |free, (_, slot)| free.minus(&slot.size()));
        if !free.covers(&spec.resources) {
            let code = if free.cpu_millis < spec.resources.cpu_millis {
                "no-cpu"
            } else {
                "no-memory"
            };
            return Some(Reason::new(
                code,
                format!("{} asked for, {free} free on the node", spec.resources),
            ));
        }
        for (_, slot) in taken {
            let clash = slot
                .ports()
                .find(|taken| spec.ports.iter().any(|port| port.host_key() == taken.host_key()));
            if let Some(port) = clash {
                return Some(Reason::new(
                    "port-taken",
                    format!("port {}/{} of the node is taken", port.host, port.protocol),
                ));
            }
        }
        self.refuse_kind(spec)
    }

    fn refuse_kind(&self, spec: &InstanceSpec) -> Option<Reason> {
        if !self.facts.virtualizations.contains(&spec.virtualization) {
            return Some(Reason::new(
                "no-runtime",
                format!("the node cannot run `{}`", spec.virtualization),
            ));
        }
        let arch = self.facts.labels.get(ARCH).map(String::as_str).unwrap_or_default();
        let architectures = &spec.constraints.architectures;
        if !architectures.is_empty() && !architectures.iter().any(|allowed| allowed == arch) {
            return Some(Reason::new("wrong-architecture", format!("the node is {arch}")));
        }
        None
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
