//! The invariants: what is watched at every instant, and what must hold once everything has settled.

use crate::node::{State, content};
use crate::work::{CANARY, SESSIONS, Wanted, descriptor};
use crate::world::{Acts, Who, World};
use roble_cluster::tier::{Act, Note};
use roble_core::ids::InstanceId;
use roble_core::liveness::Standing;
use roble_core::orchestrator::{Orchestrator, Step};
use roble_core::registry::MemberState;
use roble_core::resources::Resources;
use roble_core::spec::InstanceSpec;
use roble_core::status::Phase;
use roble_proto::rest::{Applied, InstanceView, ServiceView};
use roble_root::tier::{Call, Caller};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Reasons for which a start before the calm failed again and again.
const FAULTS: [&str; 3] = ["bad-luck", "net-unavailable", "no-block"];

impl World {
    /// After every event of a daemon: reservations never exceed what is there.
    pub fn watch(&mut self, who: Who) {
        if let Who::Node(index) = who {
            let daemon = &mut self.nodes[index].daemon;
            daemon.complete |= daemon.tier.as_ref().is_some_and(|tier| tier.engine().is_complete());
        }
        let Who::Cluster(index) = who else { return };
        let host = &mut self.clusters[index];
        let now = host.daemon.now(self.t);
        let Some(tier) = &host.daemon.tier else { return };
        host.daemon.complete |= tier.is_settled();
        let mut over = Vec::new();
        for child in tier.children().orchestrator().children(now) {
            let offers = &child.profile.offers;
            let allocatable = offers
                .iter()
                .fold(Resources::ZERO, |sum, offer| sum.plus(&offer.allocatable));
            if !offers.is_empty() && !allocatable.covers(&child.reserved) {
                over.push(format!(
                    "{} reserves {} of {allocatable}",
                    child.profile.name, child.reserved
                ));
            }
        }
        for over in over {
            self.violate("I7", over);
        }
    }

    /// The steps a cluster took: no eviction under the brake.
    pub fn watch_steps(&mut self, who: Who, acts: &Acts) {
        let (Who::Cluster(index), Acts::Cluster(acts)) = (who, acts) else {
            return;
        };
        for act in acts {
            if let Act::Note(Note::Step(step)) = act {
                self.note_given(index, step);
                self.watch_step(index, step);
            }
        }
    }

    fn watch_step(&mut self, index: usize, step: &Step) {
        let Step::Withdraw(instance) = step else { return };
        let host = &self.clusters[index];
        let Some(tier) = &host.daemon.tier else { return };
        let orchestrator = tier.children().orchestrator();
        let now = host.daemon.now(self.t);
        let evicted = orchestrator
            .record(*instance)
            .and_then(|record| record.leaving.last())
            .is_some_and(|left| {
                let lost = orchestrator
                    .child(left.child, now)
                    .is_some_and(|child| child.standing == Standing::Lost);
                let wished = orchestrator
                    .wish(*instance)
                    .is_some_and(|wish| wish.version.generation == left.checked);
                // What it refused itself is taken from it whenever it says so.
                let refused = orchestrator.said(left.child, *instance) == Some(Phase::Refused);
                lost && wished && !refused
            });
        if orchestrator.is_braked() && evicted {
            let detail = format!("c{index} evicts {instance} under the brake");
            self.violate("I22", detail);
        }
    }

    /// What the root answers one of the [`SESSIONS`]; `None`: a refusal.
    pub fn read<T: DeserializeOwned>(&mut self, session: usize, call: Call) -> Option<T> {
        let answer = self.call_now(Caller::Session(SESSIONS[session].to_owned()), call);
        serde_json::from_value(answer.ok()?).ok()
    }

    /// Everything that must hold once all has settled.
    pub fn check(&mut self) {
        if !self.is_up(Who::Root) {
            self.violate("settle", "the root is down".to_owned());
            return;
        }
        for index in 0..self.nodes.len() {
            let host = &self.nodes[index];
            if !host.expelled
                && !host
                    .daemon
                    .tier
                    .as_ref()
                    .is_some_and(roble_node::tier::NodeTier::is_connected)
            {
                let detail = format!("n{index} is not connected");
                self.violate("settle", detail);
            }
        }
        let mut instances: Vec<InstanceView> = Vec::new();
        let mut services: Vec<ServiceView> = Vec::new();
        for session in 0..SESSIONS.len() {
            instances.extend(
                self.read::<Vec<InstanceView>>(session, Call::Instances(None))
                    .unwrap_or_default(),
            );
            services.extend(
                self.read::<Vec<ServiceView>>(session, Call::Services(None))
                    .unwrap_or_default(),
            );
        }
        self.check_promises(&services);
        self.check_instances(&instances, &services);
        self.check_strays(&instances);
        self.check_isolation(&services);
        self.check_tokens();
        self.check_plans();
        self.check_tables(&services, &instances);
        if self.plan.gentle {
            self.check_restarts();
        }
    }

    /// I1, I2, I6.
    fn check_promises(&mut self, services: &[ServiceView]) {
        let known: Vec<_> = self.users.services.clone().into_iter().collect();
        for (name, known) in known {
            let found = services.iter().find(|service| service.path == format!("{name}/web"));
            if let Some(found) = found.filter(|service| service.deleting) {
                self.violate("I2", format!("{} is still being deleted", found.path));
                continue;
            }
            let fits = |wanted: &Option<Wanted>| match (wanted, found) {
                (None, None) => true,
                (Some(wanted), Some(found)) => {
                    found.replicas == wanted.replicas && found.image.ends_with(&format!(":{}", wanted.content))
                }
                _ => false,
            };
            if !known.may_be.iter().any(fits) {
                let seen = found.map(|service| (service.replicas, service.image.clone()));
                self.violate("I1", format!("{name} should be {:?}, is {seen:?}", known.may_be));
                continue;
            }
            if let [Some(wanted)] = known.may_be.as_slice() {
                let call = Call::Apply {
                    descriptor: descriptor(&name, wanted).into_bytes(),
                    dry_run: false,
                };
                let again: Option<Applied> = self.read(known.owner, call);
                let unchanged = again.is_some_and(|applied| {
                    applied
                        .services
                        .iter()
                        .all(|one| one.change == roble_proto::rest::Change::Unchanged)
                });
                if !unchanged {
                    self.violate("I6", format!("applying {name} again changed something"));
                }
            }
        }
    }

    /// I4, I15: every instance wished runs, where the root says it does, or there is no room.
    fn check_instances(&mut self, views: &[InstanceView], services: &[ServiceView]) {
        for service in services {
            let count = views
                .iter()
                .filter(|view| view.path.starts_with(&format!("{}.", service.path)))
                .count();
            if count != service.replicas as usize {
                self.violate(
                    "I4",
                    format!("{}: {count} instances, {} wanted", service.path, service.replicas),
                );
            }
        }
        for view in views {
            let Ok(instance) = view.id.parse::<InstanceId>() else {
                continue;
            };
            let running: Vec<usize> = (0..self.nodes.len())
                .filter(|index| {
                    let container = self.nodes[*index].containers.get(&instance);
                    container.is_some_and(|container| container.state == State::Running)
                })
                .collect();
            let detail = format!(
                "{} is {} on {:?} ({:?}); runs on {running:?}",
                view.path, view.phase, view.node_name, view.reason
            );
            let root = self.root.tier.as_ref().expect("up");
            let spec = root
                .children()
                .orchestrator()
                .wish(instance)
                .map(|wish| wish.spec.clone());
            let Some(spec) = spec else {
                self.violate("I2", detail);
                continue;
            };
            match (view.phase, running.as_slice()) {
                (Phase::Running, [node]) => {
                    let host = &self.nodes[*node];
                    let same = content(&host.containers[&instance].spec) == content(&spec);
                    if view.node_name.as_ref() != Some(&host.name) || !same {
                        self.violate("I15", detail);
                    }
                }
                (Phase::Completed, []) if spec.one_shot => {}
                (Phase::BackingOff | Phase::Starting, []) if spec.path.contains("flaky") => {}
                // A start that failed again and again before the calm may wait for minutes; one that cannot succeed is final.
                (Phase::BackingOff | Phase::Failed, [])
                    if view
                        .reason
                        .as_ref()
                        .is_some_and(|reason| FAULTS.contains(&reason.code.as_str())) => {}
                // What finds no room is offered to a cluster whenever something changes there, and looks scheduled until it is
                // refused.
                (Phase::Pending | Phase::Scheduled, []) => {
                    if let Some(node) = (0..self.nodes.len()).find(|index| self.has_room(*index, instance, &spec)) {
                        self.violate("I4", format!("{detail}, but n{node} has room"));
                    }
                }
                _ => self.violate("I15", detail),
            }
        }
    }

    /// Whether a node could take one more.
    fn has_room(&self, index: usize, instance: InstanceId, spec: &InstanceSpec) -> bool {
        let host = &self.nodes[index];
        if host.refused.contains(&(instance, content(spec))) {
            return false;
        }
        let cluster = &self.clusters[host.cluster];
        let Some(tier) = &cluster.daemon.tier else { return false };
        let Some(root) = &self.root.tier else { return false };
        let member = tier.registry().member(host.id.into());
        if !member.is_some_and(|member| member.state == MemberState::Active && !member.cordoned)
            || root
                .registry()
                .member(cluster.id.into())
                .is_none_or(|member| member.cordoned)
        {
            return false;
        }
        let constraints = &spec.constraints;
        let legal = constraints.node_selector.first_mismatch(&host.facts.labels).is_none()
            && constraints
                .cluster_selector
                .first_mismatch(&cluster.config.labels)
                .is_none()
            && constraints
                .cluster
                .as_ref()
                .is_none_or(|name| *name == cluster.config.name);
        // What waits for its next try has its place, too.
        let reserved = tier.children().orchestrator().reserved_on(host.id.into());
        let ports = host.containers.values().flat_map(|container| &container.spec.ports);
        let clash = ports
            .into_iter()
            .any(|port| spec.ports.iter().any(|own| own.host == port.host));
        legal && !clash && host.facts.allocatable.minus(&reserved).covers(&spec.resources)
    }

    /// I2, I3: nothing runs that is not wished, and nothing twice.
    fn check_strays(&mut self, views: &[InstanceView]) {
        let mut copies: BTreeMap<InstanceId, Vec<String>> = BTreeMap::new();
        let mut strays = Vec::new();
        for index in 0..self.nodes.len() {
            let host = &self.nodes[index];
            for (instance, container) in &host.containers {
                copies.entry(*instance).or_default().push(host.name.clone());
                if !views.iter().any(|view| view.id == instance.to_string()) {
                    strays.push(format!(
                        "{} {instance} {:?} on {}",
                        container.spec.path, container.state, host.name
                    ));
                }
            }
        }
        for stray in strays {
            self.violate("I2", format!("a container is left of {stray}"));
        }
        for (instance, hosts) in copies.into_iter().filter(|(_, hosts)| hosts.len() > 1) {
            self.violate("I3", format!("{instance} has containers on {hosts:?}"));
        }
    }

    /// I9: nothing that the operators' organization reads has anything of the tenant.
    fn check_isolation(&mut self, services: &[ServiceView]) {
        let foreign = services.iter().find(|service| service.path.starts_with(CANARY));
        let mut calls = vec![
            Call::Applications(None),
            Call::Services(None),
            Call::Instances(None),
            Call::Events {
                after: None,
                about: None,
            },
        ];
        if let Some(foreign) = foreign {
            calls.push(Call::Services(Some(foreign.id.to_string())));
            calls.push(Call::Instances(Some(format!("{}.0", foreign.id))));
            calls.push(Call::DeleteService(foreign.id.to_string()));
            let replicas = 1;
            let service = foreign.id.to_string();
            calls.push(Call::Scale { service, replicas });
        }
        for call in calls {
            let name = format!("{call:?}");
            let answer = self.call_now(Caller::Session(SESSIONS[0].to_owned()), call);
            if answer.is_ok_and(|answer| answer.to_string().contains(CANARY)) {
                self.violate("I9", format!("{name} shows what belongs to another organization"));
            }
        }
    }

    /// I18.
    fn check_tokens(&mut self) {
        let reused: Vec<_> = self.users.admitted.iter().filter(|(_, keys)| keys.len() > 1).collect();
        if let Some((token, keys)) = reused.first() {
            let detail = format!("token {token} let in {keys:?}");
            self.violate("I18", detail);
        }
    }

    /// Planning again changes nothing; nothing is still leaving.
    fn check_plans(&mut self) {
        let mut found = Vec::new();
        let mut look = |name: String, orchestrator: &Orchestrator, now| {
            let plan = orchestrator.plan(now);
            if !plan.is_empty() {
                found.push(format!("{name} still plans {plan:?}"));
            }
            for instance in orchestrator.instances() {
                let left = orchestrator.record(instance).map_or(0, |record| record.leaving.len());
                // What found no room is offered to a cluster again and again, and refused.
                let wished = orchestrator.wish(instance).is_some();
                if left > 0 && !(wished && orchestrator.holder(instance).is_none()) {
                    found.push(format!("{name}: {instance} has not left {left} place(s)"));
                }
            }
        };
        if let Some(tier) = &self.root.tier {
            look(
                "the root".to_owned(),
                tier.children().orchestrator(),
                self.root.now(self.t),
            );
        }
        for cluster in &self.clusters {
            if let Some(tier) = &cluster.daemon.tier {
                let now = cluster.daemon.now(self.t);
                look(cluster.config.name.clone(), tier.children().orchestrator(), now);
            }
        }
        for detail in found {
            self.violate("plan", detail);
        }
    }

    /// I27: nothing healthy was started twice.
    fn check_restarts(&mut self) {
        let mut starts: BTreeMap<(InstanceId, u64), (u32, bool)> = BTreeMap::new();
        for host in &self.nodes {
            for (key, (count, fenced)) in &host.starts {
                let entry = starts.entry(*key).or_default();
                entry.0 += count;
                entry.1 |= fenced;
            }
        }
        for ((instance, content), (count, fenced)) in starts {
            // A cluster that lost its store while the root is away can give no lease: at-most-one copies stop.
            let excused = fenced && self.lost_stores > 0;
            if count > 1 && !excused {
                let detail = format!("{instance} was started {count} times with content {content}");
                self.violate("I27", detail);
            }
        }
    }
}
