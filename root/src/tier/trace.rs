//! What tracing a way needs of the root: both ends as it knows them, and questions to the nodes.

use super::model::{Service, User};
use super::{Answer, GatherKind, RootTier, views};
use crate::trace::{Ends, MOST_ENDPOINTS};
use roble_core::ids::{InstanceId, OrganizationId};
use roble_core::overlay::row::{Policy, Row, name_of};
use roble_core::ports::PortRange;
use roble_core::time::Now;
use roble_proto::local_net::{About, Question};
use roble_proto::rest::InstanceView;
use roble_proto::trace::{Relay, Rule, Stop};
use roble_proto::wire::{self, request::What};

/// From where to where.
#[derive(Debug, Clone)]
pub struct Traced {
    /// The calling instance.
    pub from: String,
    /// The service, or an instance of it.
    pub to: String,
    /// Under which policy, if it is a service.
    pub policy: Policy,
    /// Which port is meant.
    pub port: Option<PortRange>,
}

impl RootTier {
    /// Both ends of a way.
    pub(super) fn ends(&self, user: &User, traced: &Traced, now: Now) -> Answer {
        let tenant = self.tenant(user.organization);
        let (from, caller) = tenant.instance(&traced.from)?;
        let (policy, called) = match tenant.service(&traced.to) {
            Ok(called) => (traced.policy, called),
            Err(refusal) => match tenant.instance(&traced.to) {
                Ok((instance, called)) => (Policy::Instance(instance.number), called),
                Err(_) => return Err(refusal),
            },
        };
        let missing = || super::tenant::not_found("instance", &traced.from, "roble ps");
        let view = self.instance_view(from, caller, now).ok_or_else(missing)?;
        let is_meant = |instance: &InstanceId| !matches!(policy, Policy::Instance(number) if number != instance.number);
        let instances = tenant.instances(called.id).into_iter().filter(is_meant);
        let backends = instances.filter_map(|instance| self.instance_view(instance, called, now));
        let (to, name) = match policy {
            Policy::RoundRobin => (called.path.clone(), name_of(&called.path)),
            Policy::Instance(number) => (
                format!("{}.{number}", called.path),
                format!("{number}.{}", name_of(&called.path)),
            ),
            Policy::Closest => (called.path.clone(), format!("closest.{}", name_of(&called.path))),
            Policy::LeastUsed => (called.path.clone(), format!("least.{}", name_of(&called.path))),
        };
        let addresses = match policy {
            Policy::Instance(number) => self.overlay.addresses_of_instance(InstanceId {
                service: called.id,
                number,
            }),
            policy => self.overlay.addresses_of(called.id).remove(&policy).unwrap_or_default(),
        };
        views::json(&Ends {
            from: stop(view),
            to,
            service: called.path.clone(),
            name: format!("{name}.roble"),
            policy,
            addresses,
            is_same_application: caller.application == called.application,
            rules: self.rules_about(called, caller),
            port: traced.port,
            backends: backends.map(stop).take(MOST_ENDPOINTS).collect(),
            relays: self.relays(),
            is_operator: user.is_admin,
        })
    }

    /// The rules of a service that name another one.
    fn rules_about(&self, called: &Service, caller: &Service) -> Vec<Rule> {
        let rules = called.descriptor.allow.iter().enumerate();
        let about = rules.filter(|(_, rule)| {
            let resolved = self.resolve_rule(called, rule);
            resolved
                .iter()
                .any(|allowed| allowed.is_about(caller.application, caller.id))
        });
        let rule = |(number, rule): (usize, &roble_core::descriptor::AllowRule)| Rule {
            path: format!("services.{}.allow[{number}]", called.descriptor.name),
            ports: rule.ports.clone(),
        };
        about.map(rule).collect()
    }

    fn relays(&self) -> Vec<Relay> {
        let rows = self.overlay.server.tables().rows();
        let relays = rows.filter_map(|(_, _, row)| match row {
            Row::Relay(relay) => Some(Relay {
                address: relay.address,
                cluster: Some(self.cluster_name(relay.cluster.into())),
            }),
            _ => None,
        });
        relays.collect()
    }

    /// Asks the net manager of the node that holds an instance.
    pub(super) fn ask_net(
        &mut self,
        number: u64,
        own: OrganizationId,
        reference: &str,
        about: About,
        now: Now,
    ) -> Option<Answer> {
        let (instance, holder) = match self.held(own, reference) {
            Ok(held) => held,
            Err(refusal) => return Some(Err(refusal)),
        };
        let what = What::AskNet(wire::AskNet {
            instance: instance.to_string(),
            question: serde_json::to_vec(&Question { instance, about }).expect("a question is JSON"),
        });
        self.gather(number, &[holder], &what, GatherKind::One, now)
    }
}

fn stop(view: InstanceView) -> Stop {
    Stop {
        instance: view.path,
        phase: view.phase,
        cluster: view.cluster,
        node: view.node_name.or_else(|| view.node.map(|node| node.to_string())),
        addresses: view.addresses,
    }
}
