//! Who may call whom, as data: what the rules say, and what tracked flows are measured by when it changes.
//!
//! Containers of one application reach each other; those without an instance are a group of their own. Beside that, the
//! rules of a service let in callers of other applications, all ports or some.

use super::{DatapathConfig, Endpoint};
use roble_core::ids::{ApplicationId, InstanceId, ServiceId};
use roble_core::overlay::row::Allowed;
use roble_core::ports::{PortRange, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An instance somewhere, as a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Which.
    pub instance: InstanceId,
    /// Its application.
    pub application: ApplicationId,
    /// Its endpoint address.
    pub v4: Ipv4Addr,
    /// Its endpoint address.
    pub v6: Ipv6Addr,
}

/// An application, or those without one.
pub type Group = Option<ApplicationId>;

/// Callers of another application: all of it, or one service.
pub type Callers = (ApplicationId, Option<ServiceId>);

/// A flow between two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub from: IpAddr,
    /// Who answers.
    pub to: IpAddr,
    /// Transport and destination port; `None` for what has no ports.
    pub port: Option<(Protocol, u16)>,
}

/// Who may call whom. See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permits {
    /// Endpoints of each group, here and elsewhere.
    pub groups: BTreeMap<Group, BTreeSet<(Ipv4Addr, Ipv6Addr)>>,
    /// Services with rules: who may call which ports.
    pub rules: BTreeMap<ServiceId, BTreeMap<Callers, BTreeSet<PortRange>>>,
    /// Their endpoints.
    pub called: BTreeMap<ServiceId, BTreeSet<(Ipv4Addr, Ipv6Addr)>>,
    /// Endpoints of those whom rules name.
    pub callers: BTreeMap<Callers, BTreeSet<(Ipv4Addr, Ipv6Addr)>>,
}

/// All ports, and what has none: as ports of a rule.
pub fn is_everything(ports: &BTreeSet<PortRange>) -> bool {
    ports.is_empty()
}

impl Permits {
    /// As `config` says, for its endpoints that are there.
    pub fn of(config: &DatapathConfig, endpoints: &[&Endpoint]) -> Self {
        let mut permits = Self::default();
        for endpoint in endpoints {
            let both = (endpoint.address, config.plan.endpoint_v6(endpoint.address));
            permits.groups.entry(endpoint.application()).or_default().insert(both);
        }
        for service in &config.services {
            let backends = service.backends.iter().map(|backend| (backend.v4, backend.v6));
            let group = permits.groups.entry(Some(service.application)).or_default();
            group.extend(backends.clone());
            if service.allows.is_empty() {
                continue;
            }
            permits.called.entry(service.service).or_default().extend(backends);
            let rules = permits.rules.entry(service.service).or_default();
            for allowed in &service.allows {
                add_rule(rules, allowed);
            }
        }
        let named: BTreeSet<Callers> = permits.rules.values().flat_map(BTreeMap::keys).copied().collect();
        for callers in named {
            let members = permits.callers.entry(callers).or_default();
            members.extend(members_of(config, endpoints, callers));
        }
        permits
    }

    /// Whether a flow is let through.
    pub fn connects(&self, flow: &Flow) -> bool {
        let is_in = |members: &BTreeSet<(Ipv4Addr, Ipv6Addr)>| holds(members, flow.from) && holds(members, flow.to);
        self.groups.values().any(is_in) || self.lets_in(flow)
    }

    /// Whether a rule lets a flow through.
    pub fn lets_in(&self, flow: &Flow) -> bool {
        let called = self.called.iter().filter(|(_, called)| holds(called, flow.to));
        let rules = called.filter_map(|(service, _)| self.rules.get(service)).flatten();
        let is_met = |(callers, ports): (&Callers, &BTreeSet<PortRange>)| {
            let is_from = self
                .callers
                .get(callers)
                .is_some_and(|callers| holds(callers, flow.from));
            let has_port = |(protocol, port)| ports.iter().any(|range| range.holds(protocol, port));
            is_from && (is_everything(ports) || flow.port.is_some_and(has_port))
        };
        rules.into_iter().any(is_met)
    }

    /// Whether something that a rule of `before` let through may not be any more.
    pub fn is_less_than(&self, before: &Self) -> bool {
        let is_part =
            |new: Option<&BTreeSet<(Ipv4Addr, Ipv6Addr)>>, old: &BTreeSet<_>| new.is_some_and(|new| old.is_subset(new));
        before
            .rules
            .iter()
            .any(|(service, rules)| self.rules.get(service) != Some(rules))
            || before
                .called
                .iter()
                .any(|(service, old)| !is_part(self.called.get(service), old))
            || before
                .callers
                .iter()
                .any(|(callers, old)| !is_part(self.callers.get(callers), old))
    }
}

fn add_rule(rules: &mut BTreeMap<Callers, BTreeSet<PortRange>>, allowed: &Allowed) {
    let key = (allowed.application, allowed.service);
    match rules.get_mut(&key) {
        // All ports already.
        Some(ports) if is_everything(ports) => {}
        Some(ports) if allowed.ports.is_empty() => ports.clear(),
        Some(ports) => ports.extend(&allowed.ports),
        None => drop(rules.insert(key, allowed.ports.iter().copied().collect())),
    }
}

fn members_of(
    config: &DatapathConfig,
    endpoints: &[&Endpoint],
    (application, service): Callers,
) -> BTreeSet<(Ipv4Addr, Ipv6Addr)> {
    let is_meant = |of: ApplicationId, instance: InstanceId| {
        of == application && service.is_none_or(|service| service == instance.service)
    };
    let here = endpoints.iter().filter(|endpoint| {
        let tenant = endpoint.tenant.as_ref();
        tenant.is_some_and(|tenant| is_meant(tenant.application, tenant.instance))
    });
    let here = here.map(|endpoint| (endpoint.address, config.plan.endpoint_v6(endpoint.address)));
    let members = config
        .members
        .iter()
        .filter(|member| is_meant(member.application, member.instance));
    here.chain(members.map(|member| (member.v4, member.v6))).collect()
}

fn holds(members: &BTreeSet<(Ipv4Addr, Ipv6Addr)>, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => members
            .range((v4, Ipv6Addr::UNSPECIFIED)..)
            .next()
            .is_some_and(|(first, _)| *first == v4),
        IpAddr::V6(v6) => members.iter().any(|(_, second)| *second == v6),
    }
}
