//! Reading the machine: orders for children, status and capacity for the tier above and for people.

use super::{Child, Orchestrator, PlacementRecord};
use crate::ids::{ApplicationId, ChildId, InstanceId, NodeId};
use crate::liveness::Standing;
use crate::placement::{Explanation, LARGEST_FREE, Level, Offer, Profile};
use crate::resources::Resources;
use crate::spec::Assignment;
use crate::status::{InstanceStatus, Phase, Reason};
use crate::time::{Boottime, Now};
use std::collections::{BTreeMap, BTreeSet};

/// A child as shown to people.
#[derive(Debug, Clone)]
pub struct ChildView<'a> {
    /// Which child.
    pub id: ChildId,
    /// What it says of itself.
    pub profile: &'a Profile,
    /// How it stands.
    pub standing: Standing,
    /// Milliseconds since its last sign of life; `None` if not heard since this process started.
    pub silent_ms: Option<u64>,
    /// A person said: nothing new.
    pub cordoned: bool,
    /// Reserved on it.
    pub reserved: Resources,
    /// Instances placed on it.
    pub instances: u32,
}

impl Orchestrator {
    /// Every child that is known.
    pub fn child_ids(&self) -> impl Iterator<Item = ChildId> + '_ {
        self.children.keys().copied()
    }

    /// Whether everything that children report is known: since the start each was heard out, `and_also`, or is lost; or they
    /// have been waited for as long as anybody waits here.
    pub fn has_heard_all(&self, and_also: impl Fn(ChildId) -> bool) -> bool {
        let has_waited =
            self.clocks.lost_ms.is_some() && self.ticked.since(self.started) >= self.clocks.replace_fenced_ms;
        let is_heard = |(id, child): (&ChildId, &Child)| {
            child.standing == Some(Standing::Lost) || child.heard_out && and_also(*id)
        };
        has_waited || !self.fresh && self.children.iter().all(is_heard)
    }

    /// Applications that a child runs, or still has, something of.
    pub fn applications_on(&self, child: ChildId) -> BTreeSet<ApplicationId> {
        let instances = self.on_child.get(&child).into_iter().flatten();
        let applications = instances.filter_map(|instance| self.entries.get(instance)?.record.application);
        applications.collect()
    }

    /// Whether the row that tells where an instance of this child is, `at` that node, stays as it is although its status has
    /// no addresses: the child has not reported it since it was ordered anew, runs it and has not heard of its addresses
    /// since it started itself, or waits for that node to report after its own start.
    pub fn keeps_row(&self, instance: InstanceId, child: ChildId, at: NodeId) -> bool {
        let is_blank = |status: InstanceStatus| {
            status.addresses.is_empty()
                && match status.phase {
                    Phase::Running => true,
                    Phase::Scheduled => status.node == Some(at),
                    _ => false,
                }
        };
        self.is_awaited(instance, child)
            || self.holder(instance) == Some(child) && self.view(instance).is_some_and(is_blank)
    }

    /// Whether this child has the instance, and has neither reported it since it was ordered last nor fallen silent: what was
    /// known of it before may still be so.
    fn is_awaited(&self, instance: InstanceId, child: ChildId) -> bool {
        let is_unreported = self.entries.get(&instance).is_some_and(|entry| entry.status.is_none());
        let standing = self.children.get(&child).and_then(|child| child.standing);
        self.holder(instance) == Some(child) && is_unreported && standing != Some(Standing::Lost)
    }

    /// All instances known, wished or not yet gone.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        self.entries.keys().copied()
    }

    /// The wish for an instance.
    pub fn wish(&self, instance: InstanceId) -> Option<&Assignment> {
        self.entries.get(&instance)?.wish.as_ref()
    }

    /// Whether the instance is known at all.
    pub fn contains(&self, instance: InstanceId) -> bool {
        self.entries.contains_key(&instance)
    }

    /// What is to be stored beside the wish; `None` if the instance is unknown.
    pub fn record(&self, instance: InstanceId) -> Option<&PlacementRecord> {
        self.entries.get(&instance).map(|entry| &entry.record)
    }

    /// The child that holds the instance.
    pub fn holder(&self, instance: InstanceId) -> Option<ChildId> {
        self.entries
            .get(&instance)?
            .record
            .placement
            .as_ref()
            .map(|placement| placement.child)
    }

    /// What `child` should run of `instance`: `None` means nothing.
    pub fn order(&self, child: ChildId, instance: InstanceId) -> Option<Assignment> {
        let entry = self.entries.get(&instance)?;
        let version = entry.ordered_version(child)?;
        let wish = entry.wish.as_ref()?;
        Some(Assignment {
            instance,
            version,
            spec: wish.spec.clone(),
        })
    }

    /// Everything `child` should run.
    pub fn orders(&self, child: ChildId) -> impl Iterator<Item = Assignment> + '_ {
        let instances = self.on_child.get(&child).into_iter().flatten();
        instances.filter_map(move |instance| self.order(child, *instance))
    }

    /// The instance as the tier above sees it: in the version it gave. `None` once it is gone.
    pub fn view(&self, instance: InstanceId) -> Option<InstanceStatus> {
        let entry = self.entries.get(&instance)?;
        let Some(wish) = &entry.wish else {
            let left = entry.record.leaving.first().or(entry.record.placement.as_ref());
            let mut view = InstanceStatus::new(instance, Default::default(), Phase::Stopping);
            view.reason = left.map(|left| self.waiting_for(left.child, "to confirm that it is gone"));
            return Some(view);
        };
        let placed = entry.record.placement.as_ref();
        if let (None, Some(ended)) = (&entry.status, entry.ended()) {
            return Some(InstanceStatus {
                version: wish.version.clone(),
                ..ended.clone()
            });
        }
        let standing = placed
            .and_then(|placement| self.children.get(&placement.child))
            .and_then(|child| child.standing);
        let mut view = match (&entry.status, placed) {
            // The report may still answer an older generation: its own version says so.
            (Some(status), Some(_)) => InstanceStatus {
                version: status.version.parent(),
                ..status.clone()
            },
            (None, Some(placement)) => InstanceStatus {
                node: (self.level == Level::Nodes).then_some(NodeId(placement.child.0)),
                ..InstanceStatus::new(instance, wish.version.clone(), Phase::Scheduled)
            },
            (_, None) => InstanceStatus::new(instance, wish.version.clone(), Phase::Pending),
        };
        match (placed, standing) {
            (Some(placement), Some(Standing::Lost)) if !view.phase.is_final() => {
                view.phase = Phase::Lost;
                view.reason = Some(self.waiting_for(placement.child, "to answer again"));
            }
            (Some(placement), Some(Standing::Unreachable) | None) if view.reason.is_none() => {
                view.reason = Some(self.waiting_for(placement.child, "to answer; this is what it said last"));
            }
            (None, _) => {
                view.reason = Some(match (entry.record.leaving.first(), &entry.pending) {
                    (Some(left), _) => self.waiting_for(left.child, "to confirm that its copy has stopped"),
                    (None, Some(explanation)) => explanation.reason(),
                    (None, None) => Reason::new("new", "accepted, not looked at yet"),
                });
                if self.is_refused(instance) {
                    view.phase = Phase::Refused;
                }
            }
            _ => {}
        }
        Some(view)
    }

    /// To the tier above, "no place here" is a refusal: it may know another child. Not while children are still expected back
    /// after a restart of this tier: they may have room.
    pub(super) fn is_refused(&self, instance: InstanceId) -> bool {
        let is_nowhere = |entry: &super::Entry| {
            let record = &entry.record;
            entry.wish.is_some() && entry.pending.is_some() && record.placement.is_none() && record.leaving.is_empty()
        };
        self.entries.get(&instance).is_some_and(is_nowhere) && !self.is_listening()
    }

    /// Why the instance is where it is, or nowhere.
    pub fn explain(&self, instance: InstanceId) -> Option<&Explanation> {
        let entry = self.entries.get(&instance)?;
        entry.pending.as_ref().or(entry.record.explanation.as_ref())
    }

    /// What a child said last of an instance that it has.
    pub fn said(&self, child: ChildId, instance: InstanceId) -> Option<Phase> {
        Some(self.children.get(&child)?.held.get(&instance)?.phase)
    }

    /// The brake holds eviction.
    pub const fn is_braked(&self) -> bool {
        self.brake
    }

    /// Every child, by id.
    pub fn children(&self, now: Now) -> impl Iterator<Item = ChildView<'_>> + '_ {
        self.children.keys().filter_map(move |id| self.child(*id, now))
    }

    /// One child.
    pub fn child(&self, id: ChildId, now: Now) -> Option<ChildView<'_>> {
        let child = self.children.get(&id)?;
        let instances = self.on_child.get(&id);
        let placed = instances
            .into_iter()
            .flatten()
            .filter(|instance| self.holder(**instance) == Some(id))
            .count();
        Some(ChildView {
            id,
            profile: &child.profile,
            standing: child.standing.unwrap_or(Standing::Unreachable),
            silent_ms: child.last_beat.map(|last: Boottime| now.boot.since(last)),
            cordoned: child.cordoned,
            reserved: self.reserved_on(id),
            instances: placed as u32,
        })
    }

    /// Sum of reservations on a child.
    pub fn reserved_on(&self, id: ChildId) -> Resources {
        let mut sum = Resources::ZERO;
        for entry in self
            .on_child
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|instance| self.entries.get(instance))
        {
            for held in entry
                .record
                .leaving
                .iter()
                .chain(&entry.record.placement)
                .filter(|held| held.child == id)
            {
                sum = sum.plus(&held.reserved);
            }
        }
        sum
    }

    /// What all children that answer may give away, as one offer per class of labels: the capacity report upwards.
    pub fn offers(&self) -> Vec<Offer> {
        let mut classes: BTreeMap<_, Offer> = BTreeMap::new();
        for (id, child) in &self.children {
            if child.standing != Some(Standing::Ready) || child.cordoned {
                continue;
            }
            for offer in &child.profile.offers {
                let class = classes.entry(&offer.labels).or_insert_with(|| Offer {
                    labels: offer.labels.clone(),
                    ..Offer::default()
                });
                class.count += offer.count;
                class.allocatable = class.allocatable.plus(&offer.allocatable);
                if offer.count == 1 {
                    class.largest_free.push(offer.allocatable.minus(&self.reserved_on(*id)));
                } else {
                    class.largest_free.extend_from_slice(&offer.largest_free);
                }
            }
        }
        let mut offers: Vec<Offer> = classes.into_values().collect();
        for offer in &mut offers {
            offer
                .largest_free
                .sort_by_key(|free| std::cmp::Reverse((free.memory_bytes, free.cpu_millis)));
            offer.largest_free.truncate(LARGEST_FREE);
        }
        offers
    }

    /// Another number: children may take now what they refused, and the tier above may try again.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// What the children that answer can run.
    pub fn virtualizations(&self) -> Vec<String> {
        let ready = self
            .children
            .values()
            .filter(|child| child.standing == Some(Standing::Ready));
        let mut all: Vec<String> = ready
            .flat_map(|child| child.profile.virtualizations.iter().cloned())
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Whether a child has not been heard since the start and is not given up yet.
    fn is_listening(&self) -> bool {
        let unheard = |child: &super::Child| {
            let is_known = child.last_beat.is_some() && (child.heard_out || !self.fresh);
            !is_known && child.standing != Some(Standing::Lost)
        };
        self.level == Level::Nodes && self.children.values().any(unheard)
    }

    fn waiting_for(&self, child: ChildId, what: &str) -> Reason {
        let name = self
            .children
            .get(&child)
            .map_or("a removed child", |child| child.profile.name.as_str());
        Reason::new("waiting-for-child", format!("waiting for {name} {what}"))
    }
}
