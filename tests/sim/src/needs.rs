//! What every net manager must know, and every machine have, once all has settled: built from the containers, their links, the
//! engines' orders and what the users see.

use crate::node::{Container, State};
use crate::tables::application_name;
use crate::world::World;
use roble_core::ids::{ApplicationId, InstanceId, NodeId, ServiceId};
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{InstanceRow, NodeRow, Policy, Row, RowKey, ServiceRow, WantRow, Wanted, name_of};
use roble_core::status::Phase;
use roble_net::tier::Told;
use roble_proto::rest::{InstanceView, ServiceView};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// What changed so lately may not have got everywhere, milliseconds.
const ON_ITS_WAY_MS: u64 = 10_000;

type Found = Vec<(&'static str, String)>;

impl World {
    /// Everything that must hold of addresses and tables once all has settled.
    pub fn check_tables(&mut self, services: &[ServiceView], instances: &[InstanceView]) {
        let mut found = Vec::new();
        for index in 0..self.nodes.len() {
            if self.nodes[index].expelled {
                continue;
            }
            self.check_links(index, &mut found);
            match &self.nodes[index].net.daemon.tier {
                Some(tier) if tier.is_connected() => {
                    self.check_told(index, tier.told(), services, instances, &mut found);
                }
                _ => found.push(("settle", format!("net manager {index} is not connected"))),
            }
        }
        for view in instances {
            let Ok(instance) = view.id.parse::<InstanceId>() else {
                continue;
            };
            let mut hosts = self.nodes.iter().filter(|host| Some(host.id) == view.node);
            let Some(host) = hosts.next().filter(|_| view.phase == Phase::Running) else {
                continue;
            };
            let link = host.net.links.get(&instance).map(|v4| IpAddr::V4(*v4));
            if link.is_none_or(|link| !view.addresses.contains(&link)) && self.is_old(host.containers.get(&instance)) {
                found.push(("I15", format!("{} has {link:?}, not {:?}", view.path, view.addresses)));
            }
        }
        self.check_left_rows(services, &mut found);
        for (invariant, detail) in found {
            self.violate(invariant, detail);
        }
        for index in 0..self.nodes.len() {
            if !self.nodes[index].expelled {
                self.watch_addresses(index);
                self.watch_blocks(index);
            }
        }
    }

    fn is_old(&self, container: Option<&Container>) -> bool {
        container.is_some_and(|one| one.changed_at + ON_ITS_WAY_MS <= self.t)
    }

    /// What runs has its link, and nothing else has one (I14).
    fn check_links(&self, index: usize, found: &mut Found) {
        let host = &self.nodes[index];
        for (instance, container) in &host.containers {
            if container.state == State::Running && !host.net.links.contains_key(instance) {
                found.push((
                    "I27",
                    format!("{} {instance} on n{index} has no network", container.spec.path),
                ));
            }
        }
        let attached = host.net.state.attachments.keys().map(|container| container.parse());
        let attached = attached
            .filter_map(Result::ok)
            .chain(host.net.namespaces.iter().copied());
        let left: BTreeSet<InstanceId> = attached.filter(|id| !host.containers.contains_key(id)).collect();
        if !left.is_empty() {
            found.push(("I14", format!("n{index} still has the network of {left:?}")));
        }
    }

    /// What a net manager was told, against what it should have been told.
    fn check_told(
        &self,
        index: usize,
        told: &Told,
        services: &[ServiceView],
        instances: &[InstanceView],
        found: &mut Found,
    ) {
        let host = &self.nodes[index];
        let Some(engine) = host.daemon.tier.as_ref().map(|tier| tier.engine()) else {
            return;
        };
        let orders = engine.instances().filter_map(|instance| engine.order_of(instance));
        let own = orders.map(|order| (order.spec.application, application_name(&order.spec.path).to_owned()));
        let need = Need {
            world: self,
            wants: &host.net.wants,
            own: own.collect(),
        };
        let blocks: Vec<Block> = told
            .rows()
            .filter_map(|row| match row {
                Row::Block(block) => Some(*block),
                _ => None,
            })
            .collect();
        if blocks.len() != 1 || host.net.state.block != blocks.first().copied() {
            let in_force = host.net.state.block;
            found.push((
                "I13",
                format!("n{index} is told of the blocks {blocks:?} and uses {in_force:?}"),
            ));
        }
        if told.plan() != Plan::default() || !told.rows().any(|row| matches!(row, Row::Plan(_))) {
            found.push(("I12", format!("n{index} does not have the plan")));
        }
        let mut rows: BTreeMap<ServiceId, &ServiceRow> = told.services().map(|row| (row.service, row)).collect();
        for service in services {
            let name = application_name(&service.path);
            match (need.has(name).or(need.calls(name)), rows.remove(&service.id)) {
                (Is::Sure | Is::Open, Some(row)) => found.extend(compare_service(index, row, service, instances)),
                (Is::Sure, None) => found.push(("I12", format!("n{index} does not know {}", service.path))),
                (Is::Not, Some(row)) => {
                    found.push(("I10", format!("n{index} has no use of {} and knows it", row.path)))
                }
                (Is::Not | Is::Open, None) => {}
            }
        }
        for row in rows.values() {
            found.push(("I2", format!("n{index} still knows {}", row.path)));
        }
        need.check_answers(index, told, services, found);
        let mut rows: BTreeMap<InstanceId, &InstanceRow> = told.instances().map(|row| (row.instance, row)).collect();
        let mut talked_to: BTreeSet<NodeId> = BTreeSet::new();
        let mut maybe: BTreeSet<NodeId> = BTreeSet::new();
        for host in self.nodes.iter().filter(|host| !host.expelled) {
            for (instance, container) in &host.containers {
                let name = application_name(&container.spec.path);
                let is_told = need.has(name).or(need.calls(name)).or(need.lets_in(name));
                if is_told == Is::Not {
                    continue;
                }
                let row = rows.remove(instance);
                maybe.insert(host.id);
                if !self.is_old(Some(container)) || is_told == Is::Open {
                    continue;
                }
                let right = match (container.state, container.address) {
                    (State::Running, Some(_)) => host.net.links.get(instance).map(|v4| InstanceRow {
                        instance: *instance,
                        application: container.spec.application,
                        node: host.id,
                        v4: *v4,
                        v6: Plan::default().endpoint_v6(*v4),
                        ready: true,
                    }),
                    _ => None,
                };
                talked_to.extend(right.as_ref().map(|row| row.node));
                if row != right.as_ref() {
                    found.push(("I12", format!("n{index} is told {row:?}, right is {right:?}")));
                }
            }
        }
        for row in rows.values() {
            found.push(("I2", format!("n{index} still knows {row:?}, which runs nowhere")));
        }
        for row in told.nodes() {
            if !talked_to.remove(&row.node) && !maybe.contains(&row.node) {
                found.push(("I10", format!("n{index} knows {row:?}, which has nothing for it")));
            }
            found.extend(self.compare_node(index, row));
        }
        if !talked_to.is_empty() {
            found.push(("I12", format!("n{index} does not know the nodes {talked_to:?}")));
        }
    }

    fn compare_node(&self, index: usize, row: &NodeRow) -> Option<(&'static str, String)> {
        let found = self.nodes.iter().position(|host| host.id == row.node);
        let Some(node) = found else {
            return Some(("I12", format!("n{index} knows {row:?}, which is not there")));
        };
        let host = &self.nodes[node];
        let address = Some(crate::net_manager::tunnel(node).address);
        let right = row.cluster == self.clusters[host.cluster].id
            && row.address == address
            && Some(row.block) == host.net.state.block;
        (!right).then(|| {
            let block = host.net.state.block;
            (
                "I12",
                format!("n{index} is told {row:?}; n{node} is at {address:?} with {block:?}"),
            )
        })
    }

    /// I2: no cluster keeps a row of a service that is gone.
    fn check_left_rows(&self, services: &[ServiceView], found: &mut Found) {
        for cluster in &self.clusters {
            for record in cluster.daemon.disk.records() {
                if record.kind != "row" {
                    continue;
                }
                if let Ok(RowKey::Service(id)) = record.id.parse()
                    && !services.iter().any(|service| service.id == id)
                {
                    found.push(("I2", format!("{} still knows service {id}", cluster.config.name)));
                }
            }
        }
    }
}

/// What must be so; `Open`: a call about it had no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Is {
    Not,
    Open,
    Sure,
}

impl Is {
    fn or(self, other: Self) -> Self {
        self.max(other)
    }

    fn any(all: impl Iterator<Item = Self>) -> Self {
        all.max().unwrap_or(Self::Not)
    }
}

/// What a node must be told of, by names of applications.
struct Need<'a> {
    world: &'a World,
    wants: &'a BTreeMap<RowKey, WantRow>,
    /// Applications that it was given something of.
    own: BTreeMap<ApplicationId, String>,
}

impl Need<'_> {
    fn has(&self, name: &str) -> Is {
        match self.own.values().any(|own| own == name) {
            true => Is::Sure,
            false => Is::Not,
        }
    }

    /// Whether an application lets another one in, as its users described it.
    fn opens(&self, called: &str, caller: &str) -> Is {
        let Some(known) = self.world.users.services.get(called) else {
            return Is::Not;
        };
        let may_be = known.may_be.iter();
        let mut answers = may_be.map(|wanted| wanted.as_ref().is_some_and(|it| it.caller.as_deref() == Some(caller)));
        match (answers.clone().any(|is_open| is_open), answers.all(|is_open| is_open)) {
            (_, true) => Is::Sure,
            (true, false) => Is::Open,
            (false, false) => Is::Not,
        }
    }

    /// Whether a want is answered with a service.
    fn answers(&self, want: &WantRow) -> Is {
        let (Some(own), Wanted::Name(name)) = (self.own.get(&want.application), &want.wanted) else {
            return Is::Not;
        };
        let called = name.strip_prefix("web.").unwrap_or(name);
        match own == called {
            true => Is::Sure,
            false => self.opens(called, own),
        }
    }

    /// Whether it has asked for an application, and is let in.
    fn calls(&self, name: &str) -> Is {
        let wanted = Wanted::Name(format!("web.{name}"));
        let wants = self.wants.values().filter(|want| want.wanted == wanted);
        Is::any(wants.map(|want| self.answers(want)))
    }

    /// Whether anything of its own lets an application in.
    fn lets_in(&self, name: &str) -> Is {
        Is::any(self.own.values().map(|own| self.opens(own, name)))
    }

    /// Every want has the right answer, and no other has one.
    fn check_answers(&self, index: usize, told: &Told, services: &[ServiceView], found: &mut Found) {
        let mut answers: BTreeMap<RowKey, &WantRow> = BTreeMap::new();
        for row in told.rows() {
            if let Row::Want(want) = row {
                answers.insert(want.key(), want);
            }
        }
        for (key, want) in self.wants {
            let Wanted::Name(name) = &want.wanted else { continue };
            let meant = services.iter().find(|service| name_of(&service.path) == *name);
            let right = match self.answers(want) {
                Is::Sure => meant.map(|service| service.id),
                Is::Open => answers.get(key).and_then(|answer| answer.service),
                Is::Not => None,
            };
            let answer = answers.remove(key);
            if answer.is_none_or(|answer| answer.service != right) {
                found.push((
                    "I12",
                    format!("n{index} is told {answer:?} of {want:?}, right is {right:?}"),
                ));
            }
        }
        for answer in answers.values() {
            found.push(("I2", format!("n{index} is still told {answer:?}")));
        }
    }
}

/// What the users are shown of a service, against its row: the same addresses, and no more than numbers that are gone.
fn compare_service(
    index: usize,
    row: &ServiceRow,
    service: &ServiceView,
    instances: &[InstanceView],
) -> Option<(&'static str, String)> {
    let v4 = |addresses: &[IpAddr]| {
        addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    };
    let of_policies = service.addresses.iter().map(|(policy, all)| (*policy, v4(all)));
    let of_instances = instances.iter().filter_map(|view| {
        let instance: InstanceId = view.id.parse().ok()?;
        let own = instance.service == service.id;
        own.then(|| (Policy::Instance(instance.number), v4(&view.service_addresses)))
    });
    let shown: BTreeMap<Policy, Ipv4Addr> = of_policies
        .chain(of_instances)
        .filter_map(|(policy, v4)| Some((policy, v4?)))
        .collect();
    let surplus = row
        .v4
        .iter()
        .filter(|(policy, _)| !shown.contains_key(policy) && !matches!(policy, Policy::Instance(_)));
    let right = row.path == service.path
        && shown.contains_key(&Policy::RoundRobin)
        && shown
            .iter()
            .all(|(policy, address)| row.v4.get(policy) == Some(address))
        && surplus.count() == 0;
    (!right).then(|| ("I12", format!("n{index} is told {row:?}, the users {shown:?}")))
}
