//! What children say: that they live, what they have, how instances are, and what they refuse.

use super::{Effect, Held, Orchestrator, Placement, Refused, host_ports};
use crate::ids::{ChildId, InstanceId};
use crate::lifecycle;
use crate::liveness::Standing;
use crate::placement::Profile;
use crate::planted::{Bug, is_planted};
use crate::status::{InstanceStatus, Phase, Reason};
use crate::time::Now;

/// How long a child's own refusal of an order counts at most, milliseconds. It ends as soon as anything becomes free there;
/// this is for causes that nobody is told of, such as a port that a process outside the tree gave back.
const REFUSAL_MS: u64 = 600_000;

impl Orchestrator {
    /// A child opened a session: it may be another program, on a machine that was mended.
    pub fn hear_opened(&mut self, child: ChildId) {
        self.void_refusals_of(child);
    }

    /// A child said what it is and has.
    pub fn hear_profile(&mut self, child: ChildId, profile: Profile) {
        let entry = self.children.entry(child).or_default();
        if entry.profile != profile {
            entry.profile = profile;
            self.void_refusals_of(child);
            self.effects.push(Effect::Capacity);
        }
    }

    /// A sign of life.
    pub fn hear_beat(&mut self, child: ChildId, now: Now) {
        let entry = self.children.entry(child).or_default();
        entry.last_beat = Some(now.boot);
        if entry.standing != Some(Standing::Ready) {
            entry.standing = Some(Standing::Ready);
            self.effects.push(Effect::Child(child, Standing::Ready));
            self.effects.push(Effect::Capacity);
            self.effects.extend(
                self.on_child
                    .get(&child)
                    .into_iter()
                    .flatten()
                    .map(|id| Effect::Status(*id)),
            );
            // What found no room may be refused now that all have been heard.
            self.effects.extend(self.waiting.iter().map(|id| Effect::Status(*id)));
            self.wake_waiting();
        }
    }

    /// A report about one instance. Only the answer to the very last order counts.
    pub fn hear_status(&mut self, child: ChildId, status: InstanceStatus, now: Now) {
        let instance = status.instance;
        if let Some(known) = self.children.get_mut(&child) {
            let held = Held {
                version: status.version.clone(),
                phase: status.phase,
            };
            if known.held.insert(instance, held).is_none() {
                // From now on its own report of what is free knows of the instance.
                self.wake_waiting();
            }
        }
        let Some(entry) = self.entries.get_mut(&instance) else {
            return;
        };
        let Some(ordered) = entry.ordered_version(child) else {
            return;
        };
        if status.version != ordered && !is_planted(Bug::StaleStatus) {
            return;
        }
        let before = entry.status.as_ref().filter(|before| before.version == status.version);
        if before.is_some_and(|before| !lifecycle::is_legal(before.phase, status.phase)) {
            return;
        }
        if before == Some(&status) {
            return;
        }
        if status.phase == Phase::Refused {
            let reason = status
                .reason
                .clone()
                .unwrap_or_else(|| Reason::new("refused", "it gave no reason"));
            let refused = Refused {
                reason,
                changes: self.children.get(&child).map_or(0, |known| known.changes),
                until: now.boot.plus(REFUSAL_MS),
            };
            entry.refused.insert(child, refused);
            if let Some(known) = self.children.get_mut(&child) {
                known.has_refused = true;
            }
            self.attention.insert(instance);
        } else if let (Some(placement), Some(wish)) = (&mut entry.record.placement, &entry.wish)
            && !matches!(
                status.phase,
                Phase::Pending | Phase::Scheduled | Phase::Starting | Phase::Stopping
            )
        {
            // The old size is gone from the child, not only told to go: what it had reserved beyond is free again.
            let (reserved, ports) = (wish.spec.resources, host_ports(wish));
            if placement.reserved != reserved || placement.ports != ports {
                placement.reserved = reserved;
                placement.ports = ports;
                self.effects.push(Effect::Record(instance));
                self.effects.push(Effect::Capacity);
                self.attention.append(&mut self.waiting.clone());
            }
        }
        let capacity = before.is_none();
        let ended = status.phase.is_final().then(|| status.clone());
        if entry.record.ended != ended {
            entry.record.ended = ended;
            self.effects.push(Effect::Record(instance));
        }
        entry.status = Some(status);
        self.effects.push(Effect::Status(instance));
        if capacity {
            self.effects.push(Effect::Capacity);
        }
    }

    /// Everything that a child has was reported in this session. A refusal among it may be older than the profile that came
    /// with it: the child is asked once more.
    pub fn hear_all(&mut self, child: ChildId) {
        if let Some(known) = self.children.get_mut(&child) {
            known.heard_out = true;
            self.void_refusals_of(child);
        }
    }

    /// A child no longer reports an instance.
    pub fn hear_status_removed(&mut self, child: ChildId, instance: InstanceId) {
        if let Some(known) = self.children.get_mut(&child) {
            known.held.remove(&instance);
        }
        if !self.is_refused_by(instance, child) {
            self.void_refusals_of(child);
        }
        self.attention.insert(instance);
        if let Some(entry) = self.entries.get_mut(&instance)
            && entry
                .record
                .placement
                .as_ref()
                .is_some_and(|placement| placement.child == child)
            && entry.status.take().is_some()
        {
            self.effects.push(Effect::Status(instance));
        }
    }

    /// What a child reports and what it was told are both known to be complete on both sides: an instance that it was
    /// told to leave and does not report is gone from it.
    pub fn hear_settled(&mut self, child: ChildId) {
        let Some(known) = self.children.get(&child) else { return };
        let instances: Vec<InstanceId> = self.on_child.get(&child).into_iter().flatten().copied().collect();
        let mut freed = false;
        let forgot_at = known.forgot_at;
        let is_forgetful = forgot_at.is_some_and(|at| self.ticked.since(at) < self.clocks.replace_fenced_ms);
        for instance in instances {
            let Some(entry) = self.entries.get_mut(&instance) else {
                continue;
            };
            let stays = entry
                .record
                .placement
                .as_ref()
                .is_some_and(|placement| placement.child == child);
            let is_left = |left: &Placement| left.child == child && !(left.fenced && is_forgetful);
            if known.held.contains_key(&instance) || !entry.record.leaving.iter().any(is_left) {
                continue;
            }
            entry.record.leaving.retain(|left| !is_left(left));
            if !stays && let Some(set) = self.on_child.get_mut(&child) {
                set.remove(&instance);
                // It has nothing of the application any more, if this was the last of it.
                self.effects.push(Effect::Order(child, instance));
            }
            freed = true;
            self.attention.insert(instance);
            self.effects.push(Effect::Record(instance));
            self.effects.push(Effect::Status(instance));
        }
        if freed {
            self.wake_waiting();
            self.effects.push(Effect::Capacity);
        }
    }

    /// Whether the child refused the instance: then its leaving frees nothing.
    fn is_refused_by(&self, instance: InstanceId, child: ChildId) -> bool {
        let refused = self.entries.get(&instance).and_then(|entry| entry.refused.get(&child));
        refused.is_some_and(|refused| {
            self.children
                .get(&child)
                .is_some_and(|known| known.changes == refused.changes)
        })
    }

    /// The child may take now what it refused before.
    fn void_refusals_of(&mut self, child: ChildId) {
        if let Some(known) = self.children.get_mut(&child) {
            known.changes += 1;
            if std::mem::take(&mut known.has_refused) {
                // What was refused may have been handed back to the tier above, which remembers it.
                self.revision += 1;
                self.effects.push(Effect::Capacity);
            }
        }
        self.wake_waiting();
    }
}
