//! One instance on the node: its order, its container, and the one operation that may be under way.

use super::{
    Assignment, Backoff, Boottime, Command, Exit, HEALTHY_MS, InstanceId, InstanceStatus, Lease, Now, Observed,
    ObservedState, Phase, Reason, Resources, RestartPolicy, RngCore, StartFailure, StartedInfo, Timestamp, Version,
    WhenCutOff,
};
use crate::ports::PortMapping;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Longest polite farewell of an at-most-one copy that lost its lease, milliseconds: with [`crate::liveness::Clocks`]' fence
/// it ends well before the replacement starts.
const FENCE_GRACE_MS: u64 = 5_000;

/// How an instance ended for good under a version; stored, so that a reboot does not run it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version that ended.
    pub version: Version,
    /// Completed or failed.
    pub completed: bool,
    /// Its exit code.
    pub exit_code: i32,
    /// Why.
    pub reason: Option<Reason>,
}

/// What the container of a slot does, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// Not looked at yet since this process started.
    Unknown,
    /// No container.
    Absent,
    /// The order cannot be taken here now: looked at again when room is made.
    Refused(Reason),
    /// The runtime refused the order: not tried again before another one comes.
    Unfit(Reason),
    /// A start is under way.
    Starting(Version),
    /// It runs.
    Running {
        /// For which version.
        version: Version,
        /// Since when, for people.
        started_at: Option<Timestamp>,
        /// Since when this process knows it to run.
        since: Boottime,
    },
    /// A container that ended is still there, for its logs.
    Ended(Version),
    /// Waits before the next start.
    BackingOff(Boottime),
    /// A stop is under way.
    Stopping,
    /// A stop failed and is tried again.
    StopFailed(Boottime, Reason),
}

/// One instance on the node.
#[derive(Debug, Clone)]
pub struct Slot {
    pub(super) order: Option<Assignment>,
    pub(super) outcome: Option<Outcome>,
    state: SlotState,
    /// What is reserved: size and ports of the accepted order.
    accepted: Option<(Resources, Vec<PortMapping>)>,
    failures: u32,
    restarts: u32,
    last_exit: Option<i32>,
    /// How a container ended that was found while there was no order for it: judged once there is one.
    found: Option<Exit>,
    reason: Option<Reason>,
    image_digest: Option<String>,
    addresses: Vec<IpAddr>,
    /// The last look showed it without a network; asked for once per look.
    is_detached: bool,
}

impl Slot {
    pub(super) const fn new() -> Self {
        Self {
            order: None,
            outcome: None,
            state: SlotState::Absent,
            accepted: None,
            failures: 0,
            restarts: 0,
            last_exit: None,
            found: None,
            reason: None,
            image_digest: None,
            addresses: Vec::new(),
            is_detached: false,
        }
    }

    pub(super) fn restored(order: Assignment, outcome: Option<Outcome>) -> Self {
        Self {
            order: Some(order),
            outcome,
            state: SlotState::Unknown,
            ..Self::new()
        }
    }

    pub(super) fn replace_order(&mut self, order: Assignment) {
        let new_spec = self
            .order
            .as_ref()
            .is_none_or(|held| held.version.generation != order.version.generation);
        self.order = Some(order);
        if new_spec {
            self.outcome = None;
            self.failures = 0;
            self.restarts = 0;
            self.reason = None;
            self.last_exit = None;
        }
        if matches!(self.state, SlotState::Refused(_) | SlotState::Unfit(_)) {
            self.state = SlotState::Absent;
        }
        if let SlotState::BackingOff(until) = &mut self.state
            && new_spec
        {
            *until = Boottime::default();
        }
    }

    /// What the runtime shows. Returns whether that was news. An operation under way knows better.
    pub(super) fn hear_observed(&mut self, container: &Observed, now: Now, rng: &mut dyn RngCore) -> bool {
        let is_moved = !container.addresses.is_empty() && self.addresses != container.addresses;
        if is_moved {
            self.addresses.clone_from(&container.addresses);
        }
        self.is_detached = container.detached;
        self.hear_container(container, now, rng) || is_moved || container.detached
    }

    fn hear_container(&mut self, container: &Observed, now: Now, rng: &mut dyn RngCore) -> bool {
        let (known, version) = match &self.state {
            SlotState::Starting(_) | SlotState::Stopping | SlotState::StopFailed(..) => return false,
            SlotState::Running { version, .. } => (true, version.clone()),
            SlotState::Ended(_) => return false,
            SlotState::BackingOff(_) if matches!(container.state, ObservedState::Ended(_)) => return false,
            SlotState::Unknown => return self.hear_found(container, now, rng),
            SlotState::Absent | SlotState::Refused(_) | SlotState::Unfit(_) | SlotState::BackingOff(_) => {
                (false, container.version.clone())
            }
        };
        match &container.state {
            ObservedState::Running { .. } if known && version == container.version => false,
            ObservedState::Running { started_at } => {
                self.state = SlotState::Running {
                    version: container.version.clone(),
                    started_at: *started_at,
                    since: now.boot,
                };
                true
            }
            ObservedState::Ended(exit) if known => {
                let exit = exit.unwrap_or(Exit {
                    code: 255,
                    oom_killed: false,
                });
                self.hear_exit(&version, exit, now, rng)
            }
            ObservedState::Ended(exit) => {
                // With an order: left over by a start that failed, and removed before the next one.
                self.found = exit.filter(|_| self.order.is_none());
                self.state = SlotState::Ended(container.version.clone());
                true
            }
        }
    }

    /// What the runtime shows when it is listed first: a process that ended while nobody looked has ended now.
    fn hear_found(&mut self, container: &Observed, now: Now, rng: &mut dyn RngCore) -> bool {
        let version = container.version.clone();
        let started_at = match &container.state {
            ObservedState::Running { started_at } => *started_at,
            ObservedState::Ended(_) => None,
        };
        self.state = match container.state {
            ObservedState::Ended(None) => SlotState::Ended(version.clone()),
            _ => SlotState::Running {
                version: version.clone(),
                started_at,
                since: now.boot,
            },
        };
        if let ObservedState::Ended(Some(exit)) = container.state {
            if self.outcome.is_some() {
                self.state = SlotState::Ended(version);
            } else {
                self.hear_exit(&version, exit, now, rng);
            }
        }
        true
    }

    /// The runtime does not show it. Returns whether that was news.
    pub(super) fn hear_absent(&mut self) -> bool {
        match &self.state {
            SlotState::Unknown => {
                self.state = SlotState::Absent;
                true
            }
            // Removed behind our back: start it again.
            SlotState::Running { .. } => {
                self.restarts += 1;
                self.reason = Some(Reason::new(
                    "container-vanished",
                    "its container was removed by someone else",
                ));
                self.state = SlotState::Absent;
                true
            }
            _ => false,
        }
    }

    pub(super) fn hear_started(
        &mut self,
        version: &Version,
        result: Result<StartedInfo, StartFailure>,
        now: Now,
        rng: &mut dyn RngCore,
    ) {
        if !matches!(&self.state, SlotState::Starting(starting) if starting == version) {
            return;
        }
        let is_current = self
            .order
            .as_ref()
            .is_some_and(|order| order.version.generation == version.generation);
        match result {
            Ok(info) => {
                self.image_digest = info.image_digest;
                self.addresses = info.addresses;
                self.reason = None;
                let started_at = Some(info.started_at);
                self.state = SlotState::Running {
                    version: version.clone(),
                    started_at,
                    since: now.boot,
                };
            }
            // Says nothing of the order that came since; what is left of the try is removed first.
            Err(_) if !is_current => self.state = SlotState::Ended(version.clone()),
            Err(failure) if failure.refuse => {
                self.accepted = None;
                self.state = SlotState::Unfit(failure.reason);
            }
            Err(failure) => {
                if failure.retryable {
                    self.state = SlotState::BackingOff(now.boot.plus(Backoff::RESTART.delay_ms(self.failures, rng)));
                    self.failures = self.failures.saturating_add(1);
                    self.reason = Some(failure.reason);
                } else {
                    // What is left of the try is removed before another order starts.
                    self.state = SlotState::Ended(version.clone());
                    self.end(version, false, 255, Some(failure.reason));
                }
            }
        }
    }

    pub(super) fn hear_gone(&mut self, result: Result<(), Reason>, now: Now, rng: &mut dyn RngCore) {
        if self.state != SlotState::Stopping {
            return;
        }
        self.found = None;
        self.state = match result {
            Ok(()) => SlotState::Absent,
            Err(reason) => {
                let wait = Backoff::RESTART.delay_ms(self.failures.min(5), rng);
                self.failures = self.failures.saturating_add(1);
                SlotState::StopFailed(now.boot.plus(wait), reason)
            }
        };
    }

    pub(super) fn hear_exit(&mut self, version: &Version, exit: Exit, now: Now, rng: &mut dyn RngCore) -> bool {
        let SlotState::Running {
            version: running,
            since,
            ..
        } = &self.state
        else {
            return false;
        };
        if running != version {
            return false;
        }
        if now.boot.since(*since) >= HEALTHY_MS {
            self.failures = 0;
        }
        self.judge(version, exit, now.boot, |failures| {
            Backoff::RESTART.delay_ms(failures, rng)
        });
        true
    }

    /// What follows from an exit under the present order.
    fn judge(&mut self, version: &Version, exit: Exit, now: Boottime, delay_ms: impl FnOnce(u32) -> u64) {
        self.last_exit = Some(exit.code);
        self.state = SlotState::Ended(version.clone());
        let current = self
            .order
            .as_ref()
            .filter(|order| order.version.generation == version.generation);
        let Some(order) = current.cloned() else {
            return;
        };
        let reason = if exit.oom_killed {
            Some(Reason::new("out-of-memory", "the kernel killed it at its memory limit"))
        } else if exit.code != 0 {
            Some(Reason::new(
                "exited",
                format!("its process ended with code {}", exit.code),
            ))
        } else {
            None
        };
        let well = exit.code == 0 && !exit.oom_killed;
        let again = match order.spec.restart {
            _ if well && order.spec.one_shot => false,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !well,
            RestartPolicy::Never => false,
        };
        if again {
            self.reason = Some(reason.unwrap_or_else(|| Reason::new("exited", "its process ended with code 0")));
            self.restarts = self.restarts.saturating_add(1);
            self.state = SlotState::BackingOff(now.plus(delay_ms(self.failures)));
            self.failures = self.failures.saturating_add(1);
        } else {
            self.end(&order.version, well, exit.code, reason);
        }
    }

    fn end(&mut self, version: &Version, completed: bool, exit_code: i32, reason: Option<Reason>) {
        self.outcome = Some(Outcome {
            version: version.clone(),
            completed,
            exit_code,
            reason,
        });
        self.accepted = None;
    }

    /// The next command, if one is due, and the state that goes with it. `is_crowded`: something of unknown size is here, so
    /// nothing is started.
    pub(super) fn step(
        &mut self,
        instance: InstanceId,
        refusal: Option<Reason>,
        is_crowded: bool,
        complete: bool,
        lease: Lease,
        now: Boottime,
    ) -> Option<Command> {
        let grace_ms = self.order.as_ref().map_or(10_000, |order| order.spec.stop_grace_ms);
        if let (SlotState::Ended(version), Some(_), Some(exit)) = (&self.state, &self.order, self.found) {
            let version = version.clone();
            self.found = None;
            self.judge(&version, exit, now, |_| 0);
        }
        match &self.state {
            SlotState::Unknown | SlotState::Starting(_) | SlotState::Stopping => return None,
            SlotState::Unfit(_) if self.order.is_some() => return None,
            SlotState::StopFailed(until, _) if *until > now => return None,
            SlotState::StopFailed(..) => {
                self.state = SlotState::Stopping;
                return Some(Command::Stop { instance, grace_ms });
            }
            _ => {}
        }
        let has_container = matches!(
            self.state,
            SlotState::Running { .. } | SlotState::Ended(_) | SlotState::BackingOff(_)
        );
        let Some(order) = &self.order else {
            if has_container && !complete {
                return None;
            }
            if has_container {
                self.state = SlotState::Stopping;
                return Some(Command::Stop { instance, grace_ms });
            }
            self.accepted = None;
            self.state = SlotState::Absent;
            return None;
        };
        let fenced = order.spec.when_cut_off == WhenCutOff::Stop;
        let held = fenced && lease == Lease::Lost;
        // The same spec placed anew on this very node: it answers the new version, and a healthy process is kept.
        let current = match &self.state {
            SlotState::Running { version, .. } => version.generation == order.version.generation,
            _ => false,
        };
        if current && !held {
            self.accepted
                .get_or_insert_with(|| (order.spec.resources, order.spec.ports.clone()));
            let is_detached = std::mem::take(&mut self.is_detached);
            return is_detached.then(|| Command::Attach(order.clone()));
        }
        if self
            .outcome
            .as_ref()
            .is_some_and(|outcome| outcome.version.generation == order.version.generation)
        {
            return None;
        }
        if let SlotState::BackingOff(until) = &self.state
            && *until > now
            && !held
        {
            return None;
        }
        if has_container {
            self.state = SlotState::Stopping;
            // Its replacement does not wait for a long farewell.
            let grace_ms = if held { grace_ms.min(FENCE_GRACE_MS) } else { grace_ms };
            return Some(Command::Stop { instance, grace_ms });
        }
        if fenced && lease != Lease::Held {
            self.reason = Some(Reason::new(
                "cut-off",
                "stopped, because the cluster has not answered for too long",
            ));
            return None;
        }
        if is_crowded {
            return None;
        }
        if let Some(reason) = refusal {
            self.accepted = None;
            self.state = SlotState::Refused(reason);
            return None;
        }
        self.accepted = Some((order.spec.resources, order.spec.ports.clone()));
        self.state = SlotState::Starting(order.version.clone());
        Some(Command::Start(order.clone()))
    }

    pub(super) fn is_due(&self, now: Boottime) -> bool {
        self.due_at().is_some_and(|at| at <= now)
    }

    pub(super) const fn due_at(&self) -> Option<Boottime> {
        match &self.state {
            SlotState::BackingOff(until) | SlotState::StopFailed(until, _) => Some(*until),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_none() && self.state == SlotState::Absent
    }

    /// Whether it has a container of which nothing is known: its order was lost with the store. One that cannot be removed does
    /// not count, or it would hold up the node.
    pub(super) const fn is_of_unknown_size(&self) -> bool {
        let has_container = matches!(self.state, SlotState::Running { .. } | SlotState::Stopping);
        has_container && self.order.is_none() && self.accepted.is_none()
    }

    pub(super) const fn is_refused(&self) -> bool {
        matches!(self.state, SlotState::Refused(_))
    }

    pub(super) const fn is_accepted(&self) -> bool {
        self.accepted.is_some()
    }

    pub(super) fn size(&self) -> Resources {
        self.accepted.as_ref().map_or(Resources::ZERO, |(size, _)| *size)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = &PortMapping> {
        self.accepted.iter().flat_map(|(_, ports)| ports)
    }

    /// `complete`: what has no order is to go; else its order may only have been lost.
    pub(super) fn report(&self, complete: bool) -> (Phase, Option<Reason>) {
        let ended = self.outcome.as_ref();
        match (&self.state, &self.order) {
            (SlotState::Running { .. }, None) if !complete => (Phase::Running, None),
            // What follows from how it ended is known once its order is.
            (SlotState::Ended(_), None) if !complete && self.found.is_some() => (Phase::BackingOff, None),
            (SlotState::Stopping, None) | (SlotState::Running { .. } | SlotState::Ended(_), None) => {
                (Phase::Stopping, None)
            }
            (SlotState::StopFailed(_, reason), _) => (Phase::Stopping, Some(reason.clone())),
            (_, Some(order)) if ended.is_some_and(|outcome| outcome.version.generation == order.version.generation) => {
                let phase = if ended.is_some_and(|outcome| outcome.completed) {
                    Phase::Completed
                } else {
                    Phase::Failed
                };
                (phase, ended.and_then(|outcome| outcome.reason.clone()))
            }
            (SlotState::Refused(reason) | SlotState::Unfit(reason), _) => (Phase::Refused, Some(reason.clone())),
            (SlotState::Running { version, .. }, Some(order)) if version.generation == order.version.generation => {
                (Phase::Running, self.reason.clone())
            }
            (SlotState::BackingOff(_), _) => (Phase::BackingOff, self.reason.clone()),
            (SlotState::Unknown, _) => (Phase::Scheduled, None),
            _ => (Phase::Starting, self.reason.clone()),
        }
    }

    pub(super) fn status(&self, instance: InstanceId, floor: &Version, complete: bool) -> Option<InstanceStatus> {
        let version = self.order.as_ref().map_or(floor, |order| &order.version).clone();
        let (phase, reason) = self.report(complete);
        let mut status = InstanceStatus::new(instance, version, phase);
        status.reason = reason;
        status.restarts = self.restarts;
        status.exit_code = self
            .outcome
            .as_ref()
            .map(|outcome| outcome.exit_code)
            .or(self.last_exit);
        status.image_digest.clone_from(&self.image_digest);
        if let SlotState::Running { started_at, .. } = &self.state {
            status.started_at = *started_at;
            status.ports = self.ports().copied().collect();
            status.addresses.clone_from(&self.addresses);
        }
        Some(status)
    }
}
