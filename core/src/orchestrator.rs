//! Desired and observed state of a tier that places instances on children: the root (on clusters) and a cluster (on
//! nodes) are this same machine.
//!
//! It holds the wishes given by the tier above, what is known of the children, and one placement per instance. Facts
//! come in by `set_wish`, `hear_*`, `tick`; [`Orchestrator::reconcile`] then plans and applies until nothing is left to
//! do, and [`Orchestrator::take_effects`] hands out what changed, to be written and sent by the tier around it.
//!
//! Invariants:
//! - an instance has at most one placement; the child that had it before is in `leaving` until it has confirmed;
//! - what is placed or leaving is reserved; the sum of reservations on a node never exceeds its allocatable;
//! - the own epoch of an instance rises with each placement and is in the record that is stored before the order is sent;
//! - a status counts only if it answers exactly the version that was ordered last.

mod hear;
mod plan;
mod view;

pub use plan::Step;

use crate::ids::{ApplicationId, ChildId, InstanceId};
use crate::liveness::{self, Clocks, Standing};
use crate::placement::{Explanation, Level, Profile};
use crate::planted::{Bug, is_planted};
use crate::ports::Protocol;
use crate::resources::Resources;
use crate::spec::{Assignment, WhenCutOff};
use crate::status::{InstanceStatus, Phase, Reason};
use crate::time::{Boottime, Now};
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A child's own refusal of an order.
#[derive(Debug, Clone)]
struct Refused {
    reason: Reason,
    /// [`Child::changes`] at that time.
    changes: u64,
    /// Forgotten from here on in any case.
    until: Boottime,
}

/// What an instance holds on a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where.
    pub child: ChildId,
    /// This tier's count of placements of the instance, from 1.
    pub epoch: u64,
    /// Reserved there for it.
    pub reserved: Resources,
    /// Node ports reserved there for it.
    pub ports: Vec<(Protocol, u16)>,
    /// The generation whose constraints and size were checked against the child.
    pub checked: crate::version::Generation,
    /// An at-most-one instance must not run elsewhere before this copy has surely stopped.
    pub fenced: bool,
}

/// What is stored of an instance, beside the wish itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRecord {
    /// Highest epoch ever used.
    pub epoch: u64,
    /// Where it is.
    pub placement: Option<Placement>,
    /// Where it was and has not been confirmed gone.
    pub leaving: Vec<Placement>,
    /// Why it is where it is.
    #[serde(default)]
    pub explanation: Option<Explanation>,
    /// How it ended for good, if it did. It is not run again in that generation, also if the child that ran it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<InstanceStatus>,
    /// What it is a part of, also while it leaves and is no longer wished. Older records do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<ApplicationId>,
}

/// One instance as this tier knows it.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// From above; `None` once it is to be gone. Stored by the tier around.
    wish: Option<Assignment>,
    /// Stored.
    record: PlacementRecord,
    /// The last report that counted; lost on restart, sent again by the child.
    status: Option<InstanceStatus>,
    /// Children that refused this generation. Lost on restart.
    refused: BTreeMap<ChildId, Refused>,
    /// Why it is nowhere; derived.
    pending: Option<Explanation>,
    /// The tier above was told that there is no place here for this version.
    declined: Option<Version>,
}

/// What a child said last of an instance, whether or not it was ordered from it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    version: Version,
    phase: Phase,
}

/// One child as this tier knows it.
#[derive(Debug, Clone, Default)]
struct Child {
    /// What it said of itself last; stored by the tier around.
    profile: Profile,
    /// Last sign of life; lost on restart.
    last_beat: Option<Boottime>,
    /// Derived from `last_beat` at each tick.
    standing: Option<Standing>,
    /// A person said: nothing new.
    cordoned: bool,
    /// How many instances it has endpoint addresses for; `None`: as many as come.
    addresses: Option<u32>,
    /// Instances it has reported and not withdrawn, and what it said of them last; lost on restart.
    held: BTreeMap<InstanceId, Held>,
    /// Raised when it may take what it could not take before: refusals of earlier are void.
    changes: u64,
    /// It refused something since then.
    has_refused: bool,
    /// All that it reports was heard; lost on restart.
    heard_out: bool,
    /// When it last said that it had lost what it knew: below it, at-most-one copies may run that it does not report.
    forgot_at: Option<Boottime>,
}

/// Something that the tier around must write, send or show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The stored record of this instance changed: write [`Orchestrator::record`].
    Record(InstanceId),
    /// The instance is gone for good: delete its record.
    Forget(InstanceId),
    /// What this child should run changed for this instance: send [`Orchestrator::order`] for it (or its absence).
    Order(ChildId, InstanceId),
    /// What is known of the instance changed: report [`Orchestrator::view`] upwards.
    Status(InstanceId),
    /// What may be given away changed: report [`Orchestrator::offers`] upwards.
    Capacity,
    /// A child's standing changed.
    Child(ChildId, Standing),
    /// The brake took hold (`true`) or let go.
    Brake(bool),
}

/// The machine. See the module's text.
#[derive(Debug, Clone)]
pub struct Orchestrator {
    level: Level,
    clocks: Clocks,
    started: Boottime,
    entries: BTreeMap<InstanceId, Entry>,
    children: BTreeMap<ChildId, Child>,
    /// Instances by the child that holds or held them: derived.
    on_child: BTreeMap<ChildId, BTreeSet<InstanceId>>,
    /// Instances to plan for at the next reconcile.
    attention: BTreeSet<InstanceId>,
    /// Instances without a place, looked at again when something frees up.
    waiting: BTreeSet<InstanceId>,
    /// Children removed for good that may still run at-most-one copies, and since when they can hear of no lease.
    ghosts: BTreeMap<ChildId, Boottime>,
    /// The tier above hears at once what is reported: what it was told is declined is its to place, not ours.
    parent_hears: bool,
    /// Records of earlier placements may have been lost: others may hold at-most-one copies that are not known here.
    fresh: bool,
    /// When [`Self::tick`] was called last.
    ticked: Boottime,
    brake: bool,
    /// How often a child that had refused something could take it again.
    revision: u64,
    effects: Vec<Effect>,
}

impl Orchestrator {
    /// An empty machine that starts listening at `started`.
    pub fn new(level: Level, clocks: Clocks, started: Boottime) -> Self {
        Self {
            level,
            clocks,
            started,
            entries: BTreeMap::new(),
            children: BTreeMap::new(),
            on_child: BTreeMap::new(),
            attention: BTreeSet::new(),
            waiting: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            parent_hears: false,
            fresh: false,
            ticked: started,
            brake: false,
            revision: 0,
            effects: Vec::new(),
        }
    }

    /// The store is new or was lost: nothing is known of copies that an earlier life of this tier may have placed.
    pub const fn set_fresh(&mut self) {
        self.fresh = true;
    }

    /// Whether, after the loss of the records, children not heard yet may still run what only they know of.
    pub const fn is_unsure(&self) -> bool {
        self.fresh && self.ticked.since(self.started) < self.clocks.replace_fenced_ms
    }

    /// A session with the tier above stands, or is lost. While it stands, an instance that was declined is placed elsewhere by
    /// that tier; without it, here as soon as there is room.
    pub fn set_parent_hears(&mut self, hears: bool) {
        self.parent_hears = hears;
        self.entries.values_mut().for_each(|entry| entry.declined = None);
        self.effects.extend(self.waiting.iter().map(|id| Effect::Status(*id)));
        self.wake_waiting();
    }

    /// Takes up a stored instance at start, after the children. `wish` is `None` for one that is being deleted.
    pub fn restore(&mut self, instance: InstanceId, wish: Option<Assignment>, mut record: PlacementRecord) {
        if let Some(wish) = &wish {
            record.application = Some(wish.spec.application);
        }
        for placement in record.placement.iter().chain(&record.leaving) {
            self.on_child.entry(placement.child).or_default().insert(instance);
            if !self.children.contains_key(&placement.child) {
                self.ghosts.insert(placement.child, self.started);
            }
        }
        self.entries.insert(
            instance,
            Entry {
                wish,
                record,
                ..Entry::default()
            },
        );
        self.attention.insert(instance);
    }

    /// Gives or changes the wish for an instance; an older version than the present one is ignored.
    pub fn set_wish(&mut self, assignment: Assignment) {
        let instance = assignment.instance;
        let entry = self.entries.entry(instance).or_default();
        match &entry.wish {
            Some(wish) if assignment.version < wish.version && !is_planted(Bug::SkipGeneration) => return,
            Some(wish) if assignment == *wish => return,
            Some(wish) if wish.version.generation != assignment.version.generation => entry.refused.clear(),
            _ => {}
        }
        entry.record.application = Some(assignment.spec.application);
        entry.wish = Some(assignment);
        let child = entry.record.placement.as_ref().map(|placement| placement.child);
        self.attention.insert(instance);
        self.effects.push(Effect::Record(instance));
        self.effects.push(Effect::Status(instance));
        if let Some(child) = child {
            self.effects.push(Effect::Order(child, instance));
        }
    }

    /// Keeps an instance's epochs above `floor`: for a number that was used before and forgotten.
    pub fn raise_epoch(&mut self, instance: InstanceId, floor: u64) {
        let record = &mut self.entries.entry(instance).or_default().record;
        record.epoch = record.epoch.max(floor);
    }

    /// A child has lost what it knew of earlier orders, and its own epochs with it: everything it holds is ordered anew
    /// under a higher epoch, so that whatever it decides now outranks what it decided before.
    pub fn renew_orders(&mut self, child: ChildId, now: Now) {
        if let Some(known) = self.children.get_mut(&child) {
            known.forgot_at = Some(now.boot);
        }
        for instance in self.on_child.get(&child).into_iter().flatten() {
            let Some(entry) = self.entries.get_mut(instance) else {
                continue;
            };
            let Some(placement) = entry.record.placement.as_mut().filter(|held| held.child == child) else {
                continue;
            };
            entry.record.epoch += 1;
            placement.epoch = entry.record.epoch;
            entry.status = None;
            self.effects.push(Effect::Record(*instance));
            self.effects.push(Effect::Order(child, *instance));
            self.effects.push(Effect::Status(*instance));
        }
    }

    /// Takes the wish back: the instance is to be gone. The entry stays until every child has confirmed.
    pub fn remove_wish(&mut self, instance: InstanceId) {
        if let Some(entry) = self.entries.get_mut(&instance)
            && entry.wish.take().is_some()
        {
            self.attention.insert(instance);
            self.effects.push(Effect::Record(instance));
            self.effects.push(Effect::Status(instance));
        }
    }

    /// Makes a child known, e.g. from the store at start; it is silent until it beats.
    pub fn add_child(&mut self, child: ChildId, profile: Profile, cordoned: bool) {
        let entry = self.children.entry(child).or_default();
        entry.profile = profile;
        entry.cordoned = cordoned;
    }

    /// A child is removed for good (revoked or deleted). What it held is gone with it, except at-most-one copies: they
    /// are replaced once they must have stopped for want of a lease.
    pub fn remove_child(&mut self, child: ChildId) {
        self.children.remove(&child);
        let Some(instances) = self.on_child.remove(&child) else {
            return;
        };
        let mut fenced = BTreeSet::new();
        for instance in instances {
            let Some(entry) = self.entries.get_mut(&instance) else {
                continue;
            };
            if let Some(placement) = entry.record.placement.take_if(|placement| placement.child == child) {
                entry.status = None;
                entry.record.leaving.push(placement);
            }
            entry.record.leaving.retain(|left| left.child != child || left.fenced);
            if entry.record.leaving.iter().any(|left| left.child == child) {
                fenced.insert(instance);
            }
            self.effects.push(Effect::Record(instance));
            self.effects.push(Effect::Status(instance));
            self.attention.insert(instance);
        }
        if !fenced.is_empty() {
            // It may have heard from us until now, which is at most one tick after the last.
            self.ghosts.insert(child, self.ticked.plus(1_000));
            self.on_child.insert(child, fenced);
        }
        self.effects.push(Effect::Capacity);
    }

    /// Forgets removed children whose at-most-one copies must have stopped by now.
    fn release_ghosts(&mut self, now: Boottime) {
        let fence = self.clocks.replace_fenced_ms;
        let stopped: Vec<ChildId> = self
            .ghosts
            .iter()
            .filter(|(_, since)| now.since(**since) >= fence)
            .map(|(child, _)| *child)
            .collect();
        for child in stopped {
            self.ghosts.remove(&child);
            for instance in self.on_child.remove(&child).unwrap_or_default() {
                if let Some(entry) = self.entries.get_mut(&instance) {
                    entry.record.leaving.retain(|left| left.child != child);
                    self.attention.insert(instance);
                    self.effects.push(Effect::Record(instance));
                    self.effects.push(Effect::Status(instance));
                }
            }
        }
    }

    /// Whether something new may be placed on the child.
    pub fn set_cordoned(&mut self, child: ChildId, cordoned: bool) {
        if let Some(entry) = self.children.get_mut(&child) {
            entry.cordoned = cordoned;
            self.wake_waiting();
            self.effects.push(Effect::Capacity);
        }
    }

    /// How many instances the child has endpoint addresses for: 0 if there are none left for it, `None` if it is not known or needs none.
    pub fn set_addresses(&mut self, child: ChildId, addresses: Option<u32>) {
        if let Some(entry) = self.children.get_mut(&child)
            && entry.addresses != addresses
        {
            entry.addresses = addresses;
            // What had no place for want of one was handed back to the tier above, which remembers it.
            self.revision += 1;
            self.wake_waiting();
            self.effects.push(Effect::Capacity);
        }
    }

    /// Time passed: judges every child's silence and the brake. Call at least once a second.
    pub fn tick(&mut self, now: Now) {
        self.ticked = now.boot;
        self.release_ghosts(now.boot);
        let clocks = self.clocks;
        let mut silences = Vec::new();
        for (id, child) in &mut self.children {
            let standing = liveness::judge(&clocks, child.last_beat, self.started, now.boot);
            silences.push((child.last_beat.unwrap_or(self.started), standing != Standing::Ready));
            if child.standing != Some(standing) {
                child.standing = Some(standing);
                self.effects.push(Effect::Child(*id, standing));
                self.effects.push(Effect::Capacity);
                for instance in self.on_child.get(id).into_iter().flatten().chain(&self.waiting) {
                    self.effects.push(Effect::Status(*instance));
                }
            }
            if standing != Standing::Ready {
                // Also while it stays so: at-most-one instances may be replaced later than others.
                self.attention.extend(self.on_child.get(id).into_iter().flatten());
            }
        }
        let brake = liveness::brake(&clocks, &silences, self.brake, now.boot);
        if brake != self.brake {
            self.brake = brake;
            self.effects.push(Effect::Brake(brake));
        }
        let mut wake = Vec::new();
        for instance in &self.waiting {
            let Some(entry) = self.entries.get_mut(instance) else {
                continue;
            };
            let before = entry.refused.len();
            entry.refused.retain(|_, refused| refused.until > now.boot);
            // One that was never parked waits for a former holder.
            if entry.refused.len() != before || !entry.record.leaving.is_empty() || entry.pending.is_none() {
                wake.push(*instance);
            }
        }
        self.attention.extend(wake);
    }

    /// What changed since the last call, in order, without repetitions.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        if self.parent_hears {
            for effect in &self.effects {
                if let Effect::Status(instance) = effect
                    && self.is_refused(*instance)
                    && let Some(entry) = self.entries.get_mut(instance)
                {
                    entry.declined = entry.wish.as_ref().map(|wish| wish.version.clone());
                }
            }
        }
        let mut seen = Vec::with_capacity(self.effects.len().min(64));
        let mut known = std::collections::HashSet::new();
        for effect in self.effects.drain(..) {
            let key = match &effect {
                Effect::Record(id) => (0, Some(*id), None),
                Effect::Forget(id) => (1, Some(*id), None),
                Effect::Order(child, id) => (2, Some(*id), Some(*child)),
                Effect::Status(id) => (3, Some(*id), None),
                Effect::Capacity => (4, None, None),
                Effect::Child(..) | Effect::Brake(_) => {
                    seen.push(effect);
                    continue;
                }
            };
            if known.insert(key) {
                seen.push(effect);
            }
        }
        seen
    }

    /// Looks again at every instance that found no place.
    fn wake_waiting(&mut self) {
        self.attention.append(&mut self.waiting.clone());
    }
}

impl Entry {
    /// The version that `child` was ordered last, if it is the one that holds the instance.
    fn ordered_version(&self, child: ChildId) -> Option<Version> {
        let placement = self
            .record
            .placement
            .as_ref()
            .filter(|placement| placement.child == child)?;
        self.wish.as_ref().map(|wish| wish.version.child(placement.epoch))
    }

    /// How it ended for good in the wished generation.
    fn ended(&self) -> Option<&InstanceStatus> {
        let generation = self.wish.as_ref()?.version.generation;
        self.record
            .ended
            .as_ref()
            .filter(|ended| ended.version.generation == generation)
    }

    fn is_fenced(&self) -> bool {
        self.wish
            .as_ref()
            .is_some_and(|wish| wish.spec.when_cut_off == WhenCutOff::Stop)
    }
}

fn host_ports(wish: &Assignment) -> Vec<(Protocol, u16)> {
    wish.spec
        .ports
        .iter()
        .map(crate::ports::PortMapping::host_key)
        .collect()
}

#[cfg(test)]
#[path = "orchestrator_tests.rs"]
mod tests;
