//! The overlay at the root: blocks of endpoint addresses for clusters, addresses of services, and the tables.

use super::model::{self, Service};
use super::{Act, Refusal, RootTier};
use roble_core::descriptor::{ApplicationDescriptor, ServiceDescriptor};
use roble_core::ids::{ChildId, ClusterId, InstanceId, OrganizationId, ServiceId};
use roble_core::overlay::blocks::{BlockRecord, Blocks, CLUSTER_PREFIX, NODE_PREFIX};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::pool::Pool;
use roble_core::overlay::row::{Allowed, InstanceRow, Policy, Row, RowKey, ServiceRow};
use roble_core::overlay::tables::Writer;
use roble_core::tier::{Output, Write};
use roble_core::time::{Now, Timestamp};
use roble_link::tables::{MAX_WANTS, TableServer, TablesOutput};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Kind of record: a block that a cluster has or had.
pub(super) const BLOCK: &str = "block";
/// Kind of record: a service address that was given back, and when.
pub(super) const RESTED: &str = "rested-address";
/// Nodes that a cluster may take without asking: it has blocks for so many more than it has.
const SPARE_NODES: usize = 16;

/// Which service an IPv4 service address belongs to, under which policy.
type Holder = (ServiceId, Policy);

/// What the root gives and tells.
#[derive(Debug)]
pub(super) struct Overlay {
    plan: Plan,
    pub server: TableServer,
    blocks: Blocks,
    services: Pool<Holder>,
    /// Somebody whom a rule may name has come or gone.
    pub is_renamed: bool,
}

impl Overlay {
    pub fn new(plan: Plan, server: TableServer) -> Self {
        let mut blocks = Blocks::new(CLUSTER_PREFIX);
        blocks.add_range(plan.endpoints.0, plan.endpoints.1);
        // Neither the first nor the last address of the range: they look like its network and broadcast.
        let services = Pool::new(plan.services.last().to_bits() - plan.services.network().to_bits() - 1);
        let mut overlay = Self {
            plan,
            server,
            blocks,
            services,
            is_renamed: true,
        };
        overlay.server.set(Writer::Own, RowKey::Plan, Some(Row::Plan(plan)));
        overlay
    }

    fn number(&self, address: Ipv4Addr) -> Option<u32> {
        let number = address
            .to_bits()
            .checked_sub(self.plan.services.network().to_bits() + 1)?;
        (number < self.services.size()).then_some(number)
    }

    const fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.plan.services.network().to_bits() + 1 + number)
    }

    /// Takes up a stored block.
    pub fn restore_block(&mut self, record: &BlockRecord) {
        self.blocks.restore(record);
    }

    /// Takes up an address that was given back.
    pub fn restore_rested(&mut self, address: Ipv4Addr, since: Timestamp) {
        if let Some(number) = self.number(address) {
            self.services.restore_resting(number, since);
        }
    }

    /// Takes up the addresses of a stored service. `false` if one of them is another's, or of no range any more.
    pub fn restore_service(&mut self, service: &Service) -> bool {
        let mut is_whole = true;
        for (policy, address) in &service.addresses {
            let number = self.number(*address);
            is_whole &= number.is_some_and(|number| self.services.claim(number, (service.id, *policy)));
        }
        is_whole
    }

    /// Tells of a service and of those who may call it.
    pub fn publish(&mut self, service: &Service, allows: Vec<Allowed>) {
        let wished = &service.descriptor.addresses;
        let v6 = [
            (Policy::RoundRobin, wished.round_robin_v6),
            (Policy::Closest, wished.closest_v6),
        ];
        let row = Row::Service(ServiceRow {
            service: service.id,
            organization: service.organization,
            application: service.application,
            path: service.path.clone(),
            v4: service.addresses.clone(),
            v6: v6
                .into_iter()
                .filter_map(|(policy, address)| Some((policy, address?)))
                .collect(),
            allows,
        });
        self.server.set(Writer::Own, row.key(), Some(row));
    }

    /// Every service address that the tables tell of, for the users.
    pub fn addresses_of(&self, service: ServiceId) -> BTreeMap<Policy, Vec<IpAddr>> {
        let Some(Row::Service(row)) = self.server.tables().row(RowKey::Service(service)) else {
            return BTreeMap::new();
        };
        [Policy::RoundRobin, Policy::Closest, Policy::LeastUsed]
            .into_iter()
            .map(|policy| (policy, row.addresses(&self.plan, policy).collect()))
            .collect()
    }

    /// Service addresses of one instance.
    pub fn addresses_of_instance(&self, instance: InstanceId) -> Vec<IpAddr> {
        match self.server.tables().row(RowKey::Service(instance.service)) {
            Some(Row::Service(row)) => row.addresses(&self.plan, Policy::Instance(instance.number)).collect(),
            _ => Vec::new(),
        }
    }
}

impl RootTier {
    /// Refuses addresses that a descriptor asks for and cannot have.
    pub(super) fn check_addresses(
        &self,
        organization: OrganizationId,
        application: &ApplicationDescriptor,
    ) -> Result<(), Refusal> {
        application
            .services
            .iter()
            .try_for_each(|service| self.check_service_addresses(organization, &application.name, service))
    }

    fn check_service_addresses(
        &self,
        organization: OrganizationId,
        application: &str,
        wanted: &ServiceDescriptor,
    ) -> Result<(), Refusal> {
        let path = format!("{application}/{}", wanted.name);
        let own = self
            .tenant(organization)
            .services()
            .find(|service| service.path == path && !service.deleting)
            .map(|service| service.id);
        let plan = &self.overlay.plan;
        let addresses = &wanted.addresses;
        for (policy, address) in [
            (Policy::RoundRobin, addresses.round_robin),
            (Policy::Closest, addresses.closest),
        ] {
            let Some(address) = address else { continue };
            let Some(number) = self.overlay.number(address) else {
                return Err(outside(&path, address.into(), &plan.services.to_string()));
            };
            let holder = self.overlay.services.holder(number);
            if holder.is_some_and(|(service, held)| Some(*service) != own || *held != policy) {
                return Err(taken(&path, address.into()));
            }
        }
        for (policy, address) in [
            (Policy::RoundRobin, addresses.round_robin_v6),
            (Policy::Closest, addresses.closest_v6),
        ] {
            let Some(address) = address else { continue };
            if !plan.may_have_v6(policy, address) {
                return Err(outside(&path, address.into(), &plan.range_v6(policy)));
            }
            let is_anothers = |other: &Service| {
                let wished = &other.descriptor.addresses;
                let given = [
                    wished.round_robin_v6,
                    wished.closest_v6,
                    plan.service_v6(policy, other.id),
                ];
                Some(other.id) != own && given.contains(&Some(address))
            };
            if self.services.values().any(is_anothers) {
                return Err(taken(&path, address.into()));
            }
        }
        Ok(())
    }

    /// Gives a service the IPv4 addresses it lacks and takes back what it asks for no longer, then tells of it. What finds
    /// none has IPv6 addresses only.
    pub(super) fn give_addresses(&mut self, service: &mut Service, now: Now, out: &mut Output<Act>) {
        let wished = &service.descriptor.addresses;
        let mut wanted = vec![(Policy::RoundRobin, wished.round_robin)];
        wanted.extend(wished.closest.map(|address| (Policy::Closest, Some(address))));
        let used = service
            .used
            .iter()
            .filter(|policy| wished.closest.is_none() || **policy != Policy::Closest);
        wanted.extend(used.map(|policy| (*policy, None)));
        wanted.extend((0..service.replicas).map(|number| (Policy::Instance(number), None)));
        let superfluous = service.addresses.iter().filter(|(policy, address)| {
            let wish = wanted.iter().find(|(wanted, _)| wanted == *policy);
            match wish {
                Some((_, Some(other))) => other != *address,
                Some((_, None)) => false,
                // Numbers that are gone for now keep theirs: they may come back.
                None => !matches!(policy, Policy::Instance(_)),
            }
        });
        let superfluous: Vec<Policy> = superfluous.map(|(policy, _)| *policy).collect();
        for policy in superfluous {
            if let Some(address) = service.addresses.remove(&policy) {
                self.take_back(address, now, out);
            }
        }
        for (policy, wish) in wanted {
            if service.addresses.contains_key(&policy) {
                continue;
            }
            let holder = (service.id, policy);
            let number = match wish.map(|address| self.overlay.number(address)) {
                Some(number) => number.filter(|number| self.overlay.services.claim(*number, holder)),
                None => self.overlay.services.lease(holder, now.wall),
            };
            if let Some(number) = number {
                let address = self.overlay.address(number);
                service.addresses.insert(policy, address);
                out.writes.push(Write::delete(RESTED, address));
            }
        }
        let allows = self.resolve_rules(service);
        self.overlay.publish(service, allows);
    }

    /// Addresses of policies that are given at first use, for those that were used now.
    fn give_first_used(&mut self, now: Now, out: &mut Output<Act>) {
        self.overlay.server.answer_wants();
        for (id, policy) in self.overlay.server.lacking().clone() {
            let is_new = |service: &&Service| !service.deleting && !service.used.contains(&policy);
            let Some(mut service) = self.services.get(&id).filter(is_new).cloned() else {
                continue;
            };
            service.used.insert(policy);
            self.give_addresses(&mut service, now, out);
            out.writes
                .push(model::put("service", &id, Some(service.organization), &service));
            self.services.insert(id, service);
        }
    }

    fn take_back(&mut self, address: Ipv4Addr, now: Now, out: &mut Output<Act>) {
        if let Some(number) = self.overlay.number(address)
            && self.overlay.services.release(number, now.wall)
        {
            out.writes.push(model::put(RESTED, &address, None, &now.wall));
        }
    }

    /// A service is gone: so are its addresses.
    pub(super) fn end_addresses(&mut self, service: &Service, now: Now, out: &mut Output<Act>) {
        for address in service.addresses.values() {
            self.take_back(*address, now, out);
        }
        self.overlay.server.set(Writer::Own, RowKey::Service(service.id), None);
    }

    /// What is known of where an instance is changed: the tables follow. Its cluster is told by its own node.
    pub(super) fn publish_instance(&mut self, instance: InstanceId) {
        let orchestrator = self.children.orchestrator();
        let application = self.services.get(&instance.service).map(|service| service.application);
        let row = orchestrator
            .view(instance)
            .and_then(|status| InstanceRow::of(&status, application?));
        let key = RowKey::Instance(instance);
        match orchestrator.holder(instance) {
            Some(child) if row.is_some() => {
                self.overlay
                    .server
                    .set(Writer::Child(child), key, row.map(Row::Instance));
            }
            Some(child) if self.keeps_row(instance, child) => {}
            _ => self.forget_instance_row(key),
        }
    }

    /// Whether what is told of an instance of this cluster stays as it is.
    fn keeps_row(&self, instance: InstanceId, child: ChildId) -> bool {
        let (tables, key) = (self.overlay.server.tables(), RowKey::Instance(instance));
        matches!(
            (tables.writer(key), tables.row(key)),
            (Some(Writer::Child(writer)), Some(Row::Instance(row)))
                if writer == child && self.children.orchestrator().keeps_row(instance, child, row.node)
        )
    }

    fn forget_instance_row(&mut self, key: RowKey) {
        let writer = self.overlay.server.tables().writer(key);
        if let Some(writer) = writer {
            self.overlay.server.set(writer, key, None);
        }
    }

    /// A cluster takes part, from now on or again: it has its blocks and its session.
    pub(super) fn add_to_overlay(&mut self, child: ChildId, now: Now, out: &mut Output<Act>) {
        self.overlay.server.add_child(child);
        self.give_blocks(child, now, out);
        self.refresh_wants(child);
    }

    /// A cluster is gone for good.
    pub(super) fn remove_from_overlay(&mut self, child: ChildId, now: Now, out: &mut Output<Act>) {
        self.overlay.server.remove_child(child);
        for block in self.overlay.blocks.release(child, now.wall) {
            let record = BlockRecord {
                block,
                holder: None,
                since: now.wall,
            };
            out.writes.push(model::put(BLOCK, &block.network(), None, &record));
        }
    }

    /// What a cluster runs changed: so does what it is told of.
    pub(super) fn refresh_wants(&mut self, child: ChildId) {
        let applications = self.children.orchestrator().applications_on(child);
        self.overlay.server.set_wants(child, &applications);
    }

    /// A cluster has blocks for all its nodes and some more.
    fn give_blocks(&mut self, child: ChildId, now: Now, out: &mut Output<Act>) {
        let written = self.overlay.server.tables().written_by(Writer::Child(child));
        let nodes = written.iter().filter(|key| matches!(key, RowKey::Node(_))).count();
        let of_block = 1 << (NODE_PREFIX - CLUSTER_PREFIX);
        let needed = (nodes + SPARE_NODES).div_ceil(of_block);
        while self.overlay.blocks.of(child).len() < needed {
            let Some(block) = self.overlay.blocks.lease(child, now.wall) else {
                break;
            };
            let record = BlockRecord {
                block,
                holder: Some(child),
                since: now.wall,
            };
            out.writes.push(model::put(BLOCK, &block.network(), None, &record));
        }
        let blocks = self.overlay.blocks.of(child);
        self.overlay.server.set_blocks(child, blocks);
    }

    /// Passes on what the tables have for clusters, and hears what they say.
    pub(super) fn settle_overlay(&mut self, now: Now, out: &mut Output<Act>) {
        self.refresh_rules();
        let orchestrator = self.children.orchestrator();
        // Before, what is not known here may be there all the same: clusters keep what they were told.
        if orchestrator.has_heard_all(|child| self.overlay.server.has_heard(child)) {
            self.overlay.server.set_complete();
        }
        loop {
            self.give_first_used(now, out);
            let outputs = self.overlay.server.settle();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                match output {
                    TablesOutput::Send(child, frame) => out.acts.push(Act::Send(ClusterId(child.0), frame)),
                    TablesOutput::Heard(child, key, row) => self.hear_row(child, key, row, now, out),
                    TablesOutput::Violation(child, what) => {
                        out.acts.push(Act::Violation(format!("cluster {child}: {what}")));
                    }
                    // Nobody is above.
                    TablesOutput::TellParent(_) | TablesOutput::HeardOut(_) => {}
                }
            }
        }
    }

    fn hear_row(&mut self, child: ChildId, key: RowKey, row: Option<Row>, now: Now, out: &mut Output<Act>) {
        match (key, row) {
            (RowKey::Want(..), None) => drop(self.overlay.server.set_wanted(child, key, None)),
            (RowKey::Want(..), Some(Row::Want(want))) => {
                if !self.overlay.server.set_wanted(child, key, Some(want)) {
                    let what = format!("cluster {child} wants to know more than {MAX_WANTS} things");
                    out.acts.push(Act::Violation(what));
                }
            }
            (RowKey::Node(_), None) => self.overlay.server.set(Writer::Child(child), key, None),
            (RowKey::Node(_), Some(Row::Node(node))) => {
                let own = self.overlay.blocks.of(child);
                let is_own_block = own.iter().any(|block| block.spans(node.block.network()));
                if node.cluster.0 != child.0 || !is_own_block {
                    let what = format!(
                        "cluster {child}: node {} with block {} is not its own",
                        node.node, node.block
                    );
                    out.acts.push(Act::Violation(what));
                    return;
                }
                self.overlay
                    .server
                    .set(Writer::Child(child), key, Some(Row::Node(node)));
                self.give_blocks(child, now, out);
            }
            (RowKey::Relay(relay) | RowKey::Seen(_, relay), row) if relay.0 == child.0 => {
                self.overlay.server.set(Writer::Child(child), key, row);
            }
            _ => out.acts.push(Act::Violation(format!(
                "cluster {child}: row {key} is not a cluster's to write"
            ))),
        }
    }
}

fn outside(path: &str, address: IpAddr, range: &str) -> Refusal {
    let message = format!("`{path}` asks for address {address}, which is not in {range}");
    Refusal::new("address-outside", message)
}

fn taken(path: &str, address: IpAddr) -> Refusal {
    let message =
        format!("`{path}` asks for address {address}, which is another service's; leave it out or choose another");
    Refusal::new("address-taken", message)
}
