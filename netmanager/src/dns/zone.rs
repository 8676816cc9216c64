//! The tables by name and by address.

use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{InstanceRow, MAX_WANTED_NAME, Policy, Row, ServiceRow};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

/// Whose container asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Owner of the container: its services are what the caller sees.
    pub organization: OrganizationId,
    /// The application that the container belongs to.
    pub application: ApplicationId,
}

/// The containers of this node by their endpoint addresses, IPv4 and IPv6.
pub type Callers = HashMap<IpAddr, Caller>;

/// A snapshot of the tables, made for questions.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    plan: Plan,
    services: BTreeMap<ServiceId, Entry>,
    /// Names below the domain, in lower case, with all that lies between them and the domain.
    names: HashMap<OrganizationId, HashMap<String, Place>>,
    /// Addresses that do not follow from an id.
    addresses: HashMap<IpAddr, (ServiceId, Policy)>,
}

#[derive(Debug, Clone)]
struct Entry {
    row: ServiceRow,
    name: String,
    /// By number: whether it is ready.
    instances: BTreeMap<u32, bool>,
}

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Service(ServiceId),
    /// Nothing, but there are names below it.
    Inner,
}

/// What a caller finds at a name below the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A service under a policy.
    Service(ServiceId, Policy),
    /// Nothing, but there are names below it.
    Inner,
    /// Nothing, and nothing below it.
    Nothing,
}

impl Zone {
    /// The snapshot of `rows`, in any order; rows of nodes, blocks and the plan do not count. Of two services with the same
    /// name and owner the younger one has it: the other one is being removed.
    pub fn new<'a>(plan: Plan, rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut zone = Self {
            plan,
            ..Self::default()
        };
        let mut instances = Vec::new();
        for row in rows {
            match row {
                Row::Service(row) => zone.add_service(row.clone()),
                Row::Instance(row) => instances.push(row),
                Row::Plan(_) | Row::Block(_) | Row::Node(_) | Row::Relay(_) | Row::Seen(_) | Row::Want(_) => {}
            }
        }
        for row in instances {
            zone.add_instance(row);
        }
        let named: Vec<_> = zone
            .services
            .values()
            .map(|entry| (entry.row.organization, entry.row.service))
            .collect();
        for (organization, service) in named {
            zone.add_name(organization, service);
        }
        zone
    }

    fn add_service(&mut self, row: ServiceRow) {
        let v4 = row.v4.iter().map(|(policy, address)| (IpAddr::V4(*address), *policy));
        let v6 = row.v6.iter().map(|(policy, address)| (IpAddr::V6(*address), *policy));
        for (address, policy) in v4.chain(v6) {
            self.addresses.insert(address, (row.service, policy));
        }
        let name = row.name().to_ascii_lowercase();
        let entry = Entry {
            name,
            row,
            instances: BTreeMap::new(),
        };
        self.services.insert(entry.row.service, entry);
    }

    fn add_instance(&mut self, row: &InstanceRow) {
        let InstanceId { service, number } = row.instance;
        let Some(entry) = self.services.get_mut(&service) else {
            return;
        };
        entry.instances.insert(number, row.ready);
        for address in [IpAddr::V4(row.v4), IpAddr::V6(row.v6)] {
            self.addresses.insert(address, (service, Policy::Instance(number)));
        }
    }

    fn add_name(&mut self, organization: OrganizationId, service: ServiceId) {
        let Some(entry) = self.services.get(&service) else {
            return;
        };
        let names = self.names.entry(organization).or_default();
        // In order of the ids, which is the order of age.
        names.insert(entry.name.clone(), Place::Service(service));
        let mut rest = entry.name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            names.entry(parent.to_owned()).or_insert(Place::Inner);
            rest = parent;
        }
    }

    /// What `caller` finds at `name`: labels below the domain, in lower case. A service that is really called so comes
    /// before a policy in front of another one's name.
    pub fn find(&self, caller: &Caller, name: &str) -> Found {
        let names = self.names.get(&caller.organization);
        let is_open = |place: &Place| match place {
            Place::Service(service) => self
                .services
                .get(service)
                .is_some_and(|entry| entry.row.is_open_to(caller.application)),
            Place::Inner => true,
        };
        let place = |name: &str| names.and_then(|names| names.get(name)).copied().filter(is_open);
        let here = place(name);
        if let Some(Place::Service(service)) = here {
            return Found::Service(service, Policy::RoundRobin);
        }
        if let Some((label, rest)) = name.split_once('.')
            && let Some(policy) = Policy::of_label(label)
            && let Some(Place::Service(service)) = place(rest)
            && self.has(service, policy)
        {
            return Found::Service(service, policy);
        }
        // The domain itself is there for everybody.
        if here.is_some() || name.is_empty() {
            return Found::Inner;
        }
        Found::Nothing
    }

    /// Whether a service that `caller` does not find may be one of another application, of which nobody here has asked yet.
    /// Those of its own are all known.
    pub fn may_be_elsewhere(&self, caller: &Caller, name: &str) -> bool {
        let own = self
            .services
            .values()
            .find(|entry| entry.row.application == caller.application);
        let is_own = own
            .and_then(|entry| entry.row.path.split_once('/'))
            .is_some_and(|(application, _)| {
                let application = application.to_ascii_lowercase();
                name.strip_suffix(&application)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            });
        let is_name = name.len() <= MAX_WANTED_NAME && !name.contains('?');
        is_name && name.contains('.') && !is_own
    }

    /// Whether a service has an IPv4 address under `policy`.
    pub fn has_v4(&self, service: ServiceId, policy: Policy) -> bool {
        let entry = self.services.get(&service);
        entry.is_some_and(|entry| entry.row.v4.contains_key(&policy))
    }

    /// Whether a service has an address under `policy` to speak of: numbers count if they run or were given an address.
    fn has(&self, service: ServiceId, policy: Policy) -> bool {
        let Policy::Instance(number) = policy else { return true };
        self.services.get(&service).is_some_and(|entry| {
            let row = &entry.row;
            entry.instances.contains_key(&number) || row.v4.contains_key(&policy) || row.v6.contains_key(&policy)
        })
    }

    /// Addresses of a service under a policy.
    pub fn addresses(&self, service: ServiceId, policy: Policy) -> impl Iterator<Item = IpAddr> + '_ {
        let entry = self.services.get(&service);
        entry
            .into_iter()
            .flat_map(move |entry| entry.row.addresses(&self.plan, policy))
    }

    /// Numbers of a service's instances that may get new flows, ascending.
    pub fn ready(&self, service: ServiceId) -> impl Iterator<Item = u32> + '_ {
        let instances = self
            .services
            .get(&service)
            .into_iter()
            .flat_map(|entry| &entry.instances);
        instances.filter(|(_, is_ready)| **is_ready).map(|(number, _)| *number)
    }

    /// The whole name of a service under a policy; `None` if there is no such service.
    pub fn name(&self, service: ServiceId, policy: Policy) -> Option<String> {
        let name = &self.services.get(&service)?.name;
        Some(match policy {
            Policy::RoundRobin => format!("{name}.{}", super::DOMAIN),
            Policy::Closest => format!("closest.{name}.{}", super::DOMAIN),
            Policy::LeastUsed => format!("least.{name}.{}", super::DOMAIN),
            Policy::Instance(number) => format!("{number}.{name}.{}", super::DOMAIN),
        })
    }

    /// Whether all addresses from `first` to `last` are of our ranges.
    pub fn owns(&self, first: IpAddr, last: IpAddr) -> bool {
        // Each of the ranges is one piece, so its ends are enough.
        let plan = &self.plan;
        (plan.is_endpoint(first) && plan.is_endpoint(last)) || (plan.is_service(first) && plan.is_service(last))
    }

    /// The whole name that `caller` sees at an address.
    pub fn name_at(&self, caller: &Caller, address: IpAddr) -> Option<String> {
        let (service, policy) = self
            .addresses
            .get(&address)
            .copied()
            .or_else(|| self.derived(address))?;
        let entry = self.services.get(&service)?;
        let is_named = matches!(
            self.find(caller, &entry.name),
            Found::Service(named, Policy::RoundRobin) if named == service
        );
        (is_named && self.has(service, policy)).then(|| self.name(service, policy))?
    }

    fn derived(&self, address: IpAddr) -> Option<(ServiceId, Policy)> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => self.plan.service_of_v6(address),
        }
    }
}

/// A small zone and one who asks, for tests and fuzzing: `web.shop` of two organisations, `web.shop.test` of the caller's.
pub(super) fn sample() -> (Zone, Caller) {
    let id = |number: u8| RawId::from_bytes([number; 12]);
    let caller = sample_caller(1);
    let mut rows = Vec::new();
    for (organization, service, path) in [(1, 11, "shop/web"), (2, 21, "shop/web"), (1, 12, "shop.test/web")] {
        let application = ApplicationId(id(organization));
        let service = ServiceId(id(service));
        rows.push(Row::Service(ServiceRow {
            service,
            organization: OrganizationId(id(organization)),
            application,
            path: path.to_owned(),
            v4: BTreeMap::from([
                (Policy::RoundRobin, Ipv4Addr::new(10, 30, service.0.as_bytes()[0], 1)),
                (Policy::Instance(0), Ipv4Addr::new(10, 30, service.0.as_bytes()[0], 2)),
            ]),
            v6: BTreeMap::new(),
            allows: Vec::new(),
        }));
        for number in 0..3 {
            let v4 = Ipv4Addr::new(10, 18, service.0.as_bytes()[0], 2 + number);
            rows.push(Row::Instance(InstanceRow {
                instance: InstanceId {
                    service,
                    number: u32::from(number),
                },
                application,
                node: NodeId(id(9)),
                v4,
                v6: Plan::default().endpoint_v6(v4),
                ready: number != 2,
            }));
        }
    }
    (Zone::new(Plan::default(), &rows), caller)
}

/// A caller of the sample's organisation 1 or 2.
pub(super) fn sample_caller(organization: u8) -> Caller {
    let id = RawId::from_bytes([organization; 12]);
    Caller {
        organization: OrganizationId(id),
        application: ApplicationId(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_with_a_policy_in_front_and_by_their_owner_only() {
        let (zone, caller) = sample();
        let other = sample_caller(2);
        let found = |caller: &Caller, name: &str| match zone.find(caller, name) {
            Found::Service(service, policy) => format!("{} {policy}", service.0.as_bytes()[0]),
            other => format!("{other:?}"),
        };
        for (name, mine, others) in [
            ("web.shop", "11 round-robin", "21 round-robin"),
            ("closest.web.shop", "11 closest", "21 closest"),
            ("least.web.shop", "11 least-used", "21 least-used"),
            ("2.web.shop", "11 2", "21 2"),
            ("3.web.shop", "Nothing", "Nothing"),
            ("02.web.shop", "Nothing", "Nothing"),
            ("+2.web.shop", "Nothing", "Nothing"),
            ("web.shop.test", "12 round-robin", "Nothing"),
            ("closest.web.shop.test", "12 closest", "Nothing"),
            ("shop.test", "Inner", "Nothing"),
            ("test", "Inner", "Nothing"),
            ("shop", "Inner", "Inner"),
            ("", "Inner", "Inner"),
            ("closest", "Nothing", "Nothing"),
            ("web", "Nothing", "Nothing"),
            ("closest.closest.web.shop", "Nothing", "Nothing"),
        ] {
            assert_eq!(found(&caller, name), mine, "{name}");
            assert_eq!(found(&other, name), others, "{name}");
        }
    }

    #[test]
    fn every_address_leads_back_to_its_name_for_those_who_see_it() {
        let (zone, caller) = sample();
        let service = ServiceId(RawId::from_bytes([11; 12]));
        for policy in [
            Policy::RoundRobin,
            Policy::Closest,
            Policy::LeastUsed,
            Policy::Instance(0),
            Policy::Instance(2),
        ] {
            for address in zone.addresses(service, policy) {
                assert_eq!(zone.name_at(&caller, address), zone.name(service, policy), "{address}");
                assert_eq!(zone.name_at(&sample_caller(2), address), None);
                assert!(zone.owns(address, address));
            }
        }
        let endpoint = "fc00::a12:b03".parse().unwrap();
        assert_eq!(zone.name_at(&caller, endpoint).unwrap(), "1.web.shop.roble");
        assert_eq!(zone.name_at(&caller, "10.18.11.99".parse().unwrap()), None);
        assert!(!zone.owns("10.0.0.0".parse().unwrap(), "10.255.255.255".parse().unwrap()));
    }

    #[test]
    fn a_name_belongs_to_the_younger_of_two_services() {
        let (mut zone, caller) = sample();
        let old = zone.services[&ServiceId(RawId::from_bytes([11; 12]))].row.clone();
        let young = ServiceRow {
            service: ServiceId(RawId::from_bytes([13; 12])),
            ..old.clone()
        };
        for rows in [[young.clone(), old.clone()], [old, young.clone()]] {
            let rows = rows.map(Row::Service);
            zone = Zone::new(Plan::default(), &rows);
            let found = zone.find(&caller, "web.shop");
            assert_eq!(found, Found::Service(young.service, Policy::RoundRobin));
        }
    }
}
