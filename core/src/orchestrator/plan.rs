//! Planning: from what is wished and known to the next steps, and carrying them out on the own state.

use super::{Effect, Entry, Held, Orchestrator, Placement, host_ports};
use crate::ids::{ChildId, InstanceId};
use crate::liveness::Standing;
use crate::placement::{self, Candidate, Explanation, Level, Readiness};
use crate::planted::{Bug, is_planted};
use crate::ports::Protocol;
use crate::resources::Resources;
use crate::spec::{Assignment, InstanceSpec};
use crate::status::Phase;
use crate::time::{Boottime, Now};
use std::collections::BTreeSet;

/// One decision. Applying it makes no further choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Order the instance from this child.
    Place(InstanceId, ChildId, Box<Explanation>),
    /// This child has it already, in the wished generation: it stays there under a new order, undisturbed.
    Adopt(InstanceId, ChildId, Box<Explanation>),
    /// No place; keep why.
    Park(InstanceId, Box<Explanation>),
    /// Take it away from where it is; it is placed anew in a later step, if still wished.
    Withdraw(InstanceId),
    /// The new generation was checked against the child that holds the instance, and fits.
    Keep(InstanceId),
    /// Gone everywhere and not wished: forget it.
    Forget(InstanceId),
}

impl Orchestrator {
    /// Plans and applies until nothing is left to do. Returns the steps taken, for logs and tests.
    pub fn reconcile(&mut self, now: Now) -> Vec<Step> {
        let mut taken = Vec::new();
        // Each round moves an instance one step on; withdraw, place, park are at most three.
        while let Some(instance) = self.attention.pop_first() {
            if let Some(step) = self.plan_one(instance, now) {
                self.apply(&step);
                taken.push(step);
                self.attention.insert(instance);
            } else if self.holder(instance).is_none() && self.contains(instance) {
                self.waiting.insert(instance);
            }
        }
        taken
    }

    /// Every step that is due now, over all instances. After [`Self::reconcile`] it is empty.
    pub fn plan(&self, now: Now) -> Vec<Step> {
        self.entries
            .keys()
            .filter_map(|instance| self.plan_one(*instance, now))
            .filter(|step| match step {
                // Why it is nowhere is told anew when it is looked at again; it is no decision.
                Step::Park(instance, _) => self.entries.get(instance).is_some_and(|entry| entry.pending.is_none()),
                _ => true,
            })
            .collect()
    }

    fn plan_one(&self, instance: InstanceId, now: Now) -> Option<Step> {
        let entry = self.entries.get(&instance)?;
        let Some(wish) = &entry.wish else {
            return match (&entry.record.placement, entry.record.leaving.is_empty()) {
                (Some(_), _) => Some(Step::Withdraw(instance)),
                (None, true) => Some(Step::Forget(instance)),
                (None, false) if is_planted(Bug::ForgetTombstone) => Some(Step::Forget(instance)),
                (None, false) => None,
            };
        };
        match &entry.record.placement {
            Some(placement) => self.plan_placed(entry, wish, placement, now),
            None if entry.ended().is_some() => None,
            None => self
                .plan_adoption(entry, wish, now)
                .or_else(|| self.plan_anew(entry, wish, now)),
        }
    }

    fn plan_anew(&self, entry: &Entry, wish: &Assignment, now: Now) -> Option<Step> {
        let is_declined = entry.declined.as_ref() == Some(&wish.version);
        if is_declined || self.must_wait(entry, wish, None, now) {
            return None;
        }
        Some(self.plan_unplaced(entry, wish)).filter(|step| match step {
            Step::Park(_, explanation) => entry.pending.as_ref() != Some(explanation),
            _ => true,
        })
    }

    /// A child that answers may have the instance although it is placed nowhere: it came back after it was given up, or
    /// this tier lost its records. What is as wished stays where it is.
    fn plan_adoption(&self, entry: &Entry, wish: &Assignment, now: Now) -> Option<Step> {
        let instance = wish.instance;
        let fenced = entry.is_fenced();
        let adoptable = |held: &Held| {
            held.version.generation == wish.version.generation
                && match held.phase {
                    // What ended runs nothing, and an at-most-one copy that runs has a lease, so there is no other.
                    Phase::Running | Phase::Completed | Phase::Failed => true,
                    Phase::Starting | Phase::BackingOff => !fenced,
                    _ => false,
                }
        };
        let (id, held) = self
            .children
            .iter()
            .filter(|(_, child)| child.standing == Some(Standing::Ready))
            .filter_map(|(id, child)| Some((*id, child.held.get(&instance).filter(|held| adoptable(held))?)))
            .max_by_key(|(_, held)| &held.version)?;
        if fenced && !held.phase.is_final() && self.must_wait(entry, wish, Some(id), now) {
            return None;
        }
        let left = entry.record.leaving.iter().find(|left| left.child == id);
        let reserved = match self.level {
            // It has taken the instance, so what it says is free is beside it.
            Level::Clusters => wish.spec.resources,
            Level::Nodes => left.map_or(Resources::ZERO, |left| left.reserved),
        };
        let mut explanation = self.fits_where_it_is(wish, id, &reserved)?;
        explanation.kept = true;
        Some(Step::Adopt(instance, id, Box::new(explanation)))
    }

    /// Whether a child that has the instance may keep it under this wish. Only what is asked for beyond its own
    /// reservation must be free, and a silent child is not a reason to move.
    fn fits_where_it_is(&self, wish: &Assignment, child: ChildId, reserved: &Resources) -> Option<Explanation> {
        let mut candidate = self.candidate(child, wish)?;
        if !matches!(candidate.readiness, Readiness::Refused(_)) {
            candidate.readiness = Readiness::Ready;
        }
        let growth = InstanceSpec {
            resources: wish.spec.resources.minus(reserved),
            ..(*wish.spec).clone()
        };
        // Ports are of nodes: a cluster has as many of each as it has nodes, and looks after them itself.
        let others = match self.level {
            Level::Clusters => BTreeSet::new(),
            Level::Nodes => self.ports_on(child, Some(wish.instance)),
        };
        candidate.ports = &others;
        let (chosen, explanation) = placement::place(self.level, &growth, &[candidate]);
        chosen.map(|_| explanation)
    }

    fn plan_placed(&self, entry: &Entry, wish: &Assignment, placement: &Placement, now: Now) -> Option<Step> {
        let instance = wish.instance;
        if entry.status.as_ref().is_some_and(|status| {
            status.phase == Phase::Refused && status.version == wish.version.child(placement.epoch)
        }) {
            return Some(Step::Withdraw(instance));
        }
        if self.may_evict(placement, now) && entry.ended().is_none() {
            return Some(Step::Withdraw(instance));
        }
        if placement.checked == wish.version.generation {
            return None;
        }
        // A new generation: does it still fit where it is?
        self.children.get(&placement.child)?;
        Some(
            match self.fits_where_it_is(wish, placement.child, &placement.reserved) {
                Some(_) => Step::Keep(instance),
                None => Step::Withdraw(instance),
            },
        )
    }

    fn plan_unplaced(&self, entry: &Entry, wish: &Assignment) -> Step {
        let ports: Vec<(ChildId, BTreeSet<(Protocol, u16)>)> =
            if wish.spec.ports.is_empty() || self.level == Level::Clusters {
                Vec::new()
            } else {
                self.children
                    .keys()
                    .map(|child| (*child, self.ports_on(*child, None)))
                    .collect()
            };
        let mut candidates: Vec<Candidate<'_>> = self
            .children
            .keys()
            .filter_map(|child| self.candidate(*child, wish))
            .collect();
        for candidate in &mut candidates {
            if let Some((_, taken)) = ports.iter().find(|(child, _)| *child == candidate.id) {
                candidate.ports = taken;
            }
            let changes = self.children.get(&candidate.id).map(|child| child.changes);
            if let Some(refused) = entry.refused.get(&candidate.id)
                && Some(refused.changes) == changes
                && candidate.readiness == Readiness::Ready
            {
                candidate.readiness = Readiness::Refused(refused.reason.clone());
            }
        }
        let (chosen, explanation) = placement::place(self.level, &wish.spec, &candidates);
        match chosen {
            Some(child) => Step::Place(wish.instance, child, Box::new(explanation)),
            None => Step::Park(wish.instance, Box::new(explanation)),
        }
    }

    /// Whether the child of `placement` has been silent long enough for its copy to be replaced.
    fn may_evict(&self, placement: &Placement, now: Now) -> bool {
        let Some(child) = self.children.get(&placement.child) else {
            return true;
        };
        let silent_since = child.last_beat.unwrap_or(self.started);
        let lost = child.standing == Some(Standing::Lost);
        lost && !self.brake && self.is_safe_to_replace(placement, silent_since, now.boot)
    }

    fn is_safe_to_replace(&self, placement: &Placement, silent_since: Boottime, now: Boottime) -> bool {
        !placement.fenced || now.since(silent_since) >= self.clocks.replace_fenced_ms
    }

    /// Whether an unplaced instance must wait for a former holder other than `except`: one that answers confirms soon,
    /// and an at-most-one copy must surely have stopped.
    fn must_wait(&self, entry: &Entry, wish: &Assignment, except: Option<ChildId>, now: Now) -> bool {
        if is_planted(Bug::SkipFence) {
            return false;
        }
        let instance = wish.instance;
        let fence = self.clocks.replace_fenced_ms;
        let fenced = entry.is_fenced();
        // Records were lost. What the tier above has ordered before may run on a child that is not back yet.
        if self.fresh && entry.record.epoch == 0 && except.is_none() {
            let was_ordered = wish.version.epochs.last() > 1;
            let listen_ms = match self.clocks.lost_ms {
                _ if fenced => fence,
                Some(lost_ms) if was_ordered => lost_ms,
                _ => 0,
            };
            if now.boot.since(self.started) < listen_ms {
                return true;
            }
        }
        let holds_back = |id: &ChildId, fenced: bool| {
            if Some(*id) == except {
                return false;
            }
            let Some(child) = self.children.get(id) else {
                return fenced && self.ghosts.contains_key(id);
            };
            let answers = child.standing == Some(Standing::Ready);
            let silent_since = child.last_beat.unwrap_or(self.started);
            answers || (fenced && (self.clocks.lost_ms.is_none() || now.boot.since(silent_since) < fence))
        };
        let mut leaving = entry.record.leaving.iter();
        // What a child reports it has, whether or not this tier remembers having ordered it.
        let mut holders = self
            .children
            .iter()
            .filter(|(_, child)| child.held.contains_key(&instance));
        leaving.any(|left| holds_back(&left.child, left.fenced || fenced))
            || holders.any(|(child, _)| holds_back(child, fenced))
    }

    fn candidate(&self, id: ChildId, wish: &Assignment) -> Option<Candidate<'_>> {
        const NO_PORTS: &BTreeSet<(Protocol, u16)> = &BTreeSet::new();
        let child = self.children.get(&id)?;
        let mut reserved = Resources::ZERO;
        let mut unaccounted = Vec::new();
        let (mut siblings, mut placed) = (0, 0);
        for instance in self.on_child.get(&id).into_iter().flatten() {
            let Some(entry) = self.entries.get(instance) else {
                continue;
            };
            for placement in entry
                .record
                .leaving
                .iter()
                .chain(&entry.record.placement)
                .filter(|held| held.child == id && !is_planted(Bug::ForgetReservation))
            {
                reserved = reserved.plus(&placement.reserved);
                placed += 1;
                if !child.held.contains_key(instance) {
                    unaccounted.push(placement.reserved);
                }
            }
            siblings += u32::from(
                instance.service == wish.instance.service
                    && *instance != wish.instance
                    && entry
                        .record
                        .placement
                        .as_ref()
                        .is_some_and(|placement| placement.child == id),
            );
        }
        // Without records only the child knows what it has.
        let is_known = child.heard_out || !self.fresh;
        let readiness = if child.standing != Some(Standing::Ready) || !is_known {
            Readiness::Silent
        } else if child.cordoned {
            Readiness::Cordoned
        } else {
            match child.addresses {
                Some(0) => Readiness::NoBlock,
                Some(most) if placed >= most => Readiness::NoAddress(most),
                _ => Readiness::Ready,
            }
        };
        Some(Candidate {
            id,
            profile: &child.profile,
            reserved,
            unaccounted,
            ports: NO_PORTS,
            siblings,
            readiness,
        })
    }

    fn ports_on(&self, child: ChildId, except: Option<InstanceId>) -> BTreeSet<(Protocol, u16)> {
        let mut ports = BTreeSet::new();
        for instance in self
            .on_child
            .get(&child)
            .into_iter()
            .flatten()
            .filter(|id| Some(**id) != except)
        {
            let Some(entry) = self.entries.get(instance) else {
                continue;
            };
            for held in entry
                .record
                .leaving
                .iter()
                .chain(&entry.record.placement)
                .filter(|held| held.child == child)
            {
                ports.extend(held.ports.iter().copied());
            }
        }
        ports
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Place(instance, child, explanation) | Step::Adopt(instance, child, explanation) => {
                self.apply_place(*instance, *child, explanation);
            }
            Step::Park(instance, explanation) => {
                if let Some(entry) = self.entries.get_mut(instance) {
                    entry.pending = Some((**explanation).clone());
                    self.waiting.insert(*instance);
                    self.effects.push(Effect::Status(*instance));
                }
            }
            Step::Withdraw(instance) => {
                if let Some(entry) = self.entries.get_mut(instance)
                    && let Some(placement) = entry.record.placement.take()
                {
                    entry.status = None;
                    let child = placement.child;
                    entry.record.leaving.retain(|left| left.child != child);
                    if self.children.contains_key(&child) || placement.fenced {
                        entry.record.leaving.push(placement);
                    }
                    self.effects.push(Effect::Record(*instance));
                    self.effects.push(Effect::Order(child, *instance));
                    self.effects.push(Effect::Status(*instance));
                    self.waiting.insert(*instance);
                }
            }
            Step::Keep(instance) => {
                if let Some(entry) = self.entries.get_mut(instance)
                    && let (Some(placement), Some(wish)) = (&mut entry.record.placement, &entry.wish)
                {
                    placement.checked = wish.version.generation;
                    placement.fenced |= wish.spec.when_cut_off == crate::spec::WhenCutOff::Stop;
                    // Until the child runs the new size, the larger of both is reserved.
                    let (old, new) = (placement.reserved, wish.spec.resources);
                    placement.reserved = Resources {
                        cpu_millis: old.cpu_millis.max(new.cpu_millis),
                        memory_bytes: old.memory_bytes.max(new.memory_bytes),
                    };
                    for port in host_ports(wish) {
                        if !placement.ports.contains(&port) {
                            placement.ports.push(port);
                        }
                    }
                    self.effects.push(Effect::Record(*instance));
                }
            }
            Step::Forget(instance) => {
                self.entries.remove(instance);
                for held in self.on_child.values_mut() {
                    held.remove(instance);
                }
                self.waiting.remove(instance);
                self.effects.push(Effect::Forget(*instance));
                self.effects.push(Effect::Status(*instance));
            }
        }
    }

    fn apply_place(&mut self, instance: InstanceId, child: ChildId, explanation: &Explanation) {
        let Some(entry) = self.entries.get_mut(&instance) else {
            return;
        };
        let Some(wish) = &entry.wish else { return };
        if !is_planted(Bug::SkipEpoch) || entry.record.epoch == 0 {
            entry.record.epoch += 1;
        }
        // A newer order to the same child replaces the older one there.
        entry.record.leaving.retain(|left| left.child != child);
        entry.record.placement = Some(Placement {
            child,
            epoch: entry.record.epoch,
            reserved: wish.spec.resources,
            ports: host_ports(wish),
            checked: wish.version.generation,
            fenced: entry.is_fenced(),
        });
        entry.record.explanation = Some(explanation.clone());
        entry.pending = None;
        entry.status = None;
        self.on_child.entry(child).or_default().insert(instance);
        self.waiting.remove(&instance);
        self.effects.push(Effect::Record(instance));
        self.effects.push(Effect::Order(child, instance));
        self.effects.push(Effect::Status(instance));
        self.effects.push(Effect::Capacity);
    }
}
