//! The invariants of addresses and tables. They are told from the machines' side (links, containers, the engines' orders) and
//! from what users see at the root, not from the tables that are checked.
//!
//! At every instant: no two running containers have one address (I13); nodes' blocks do not overlap, and lie in their
//! cluster's (I13); a net manager hears only of applications that its node was given something of, of those that these let in, and of those that it asked
//! for and that let these in (I10); a service keeps its
//! addresses, and has them alone; a row does not go back to what it was; where nothing below the root's and the clusters'
//! daemons fails, no row of what is well is withdrawn (I12, I27).
//! What must hold in the end is in [`crate::needs`].

use crate::node::State;
use crate::world::World;
use roble_core::ids::{ApplicationId, InstanceId, NodeId, ServiceId};
use roble_core::orchestrator::Step;
use roble_core::overlay::block::Block;
use roble_core::overlay::blocks::CLUSTER_PREFIX;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{InstanceRow, Policy, Row, RowKey, ServiceRow};
use roble_core::status::Phase;
use roble_net::tier::{NetTier, Told};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What changed so lately may not have got everywhere, milliseconds.
const ON_ITS_WAY_MS: u64 = 10_000;
/// A container is well when it has run for so long, milliseconds.
const WELL_MS: u64 = 10_000;

/// What the checks remember over a run.
#[derive(Default)]
pub struct Ledger {
    /// The cluster that has each of the root's blocks.
    sites: BTreeMap<Ipv4Addr, usize>,
    /// Applications that a node was given something of, ever.
    given: BTreeSet<(NodeId, ApplicationId)>,
    /// Their names.
    names: BTreeMap<ApplicationId, String>,
    /// Applications, each with one that it has ever let in.
    pub opened: BTreeSet<(String, String)>,
    /// Applications that something on a node has ever asked for.
    pub asked: BTreeSet<(NodeId, String)>,
    /// Whose each service address is.
    holders: BTreeMap<Ipv4Addr, (ServiceId, Policy)>,
    /// The address of each service and policy.
    addresses: BTreeMap<(ServiceId, Policy), Ipv4Addr>,
    /// Which of all decisions of clusters was the last that put an instance on a node.
    decisions: BTreeMap<(InstanceId, NodeId), u64>,
    decided: u64,
    /// The decision behind the row of each instance that each net manager has, as it was when it heard it.
    heard: BTreeMap<(usize, InstanceId), u64>,
    /// When a link was last opened again after nothing got through.
    pub healed_at: u64,
    /// Since when there has been a link that lets nothing through.
    pub cut_at: Option<u64>,
}

/// An address of a running container.
struct Use {
    node: usize,
    instance: InstanceId,
    address: Ipv4Addr,
}

impl World {
    /// Every link of a running container.
    fn uses(&self) -> impl Iterator<Item = Use> + '_ {
        self.nodes.iter().enumerate().flat_map(|(node, host)| {
            let running = host
                .containers
                .iter()
                .filter(|(_, one)| one.state == State::Running)
                .map(|(id, _)| *id);
            running.filter_map(move |instance| {
                let address = *host.net.links.get(&instance)?;
                Some(Use {
                    node,
                    instance,
                    address,
                })
            })
        })
    }

    /// I13: addresses on a node that somebody has elsewhere or here, or that are not of its block; addresses that changed.
    pub fn watch_addresses(&mut self, index: usize) {
        let mut found = Vec::new();
        let here: Vec<Use> = self.uses().filter(|one| one.node == index).collect();
        if here.is_empty() {
            return;
        }
        let own: BTreeMap<Ipv4Addr, InstanceId> = here.iter().map(|one| (one.address, one.instance)).collect();
        if own.len() != here.len() {
            found.push(format!(
                "n{index} gives an address twice: {:?}",
                self.nodes[index].net.links
            ));
        }
        for other in self.uses().filter(|one| one.node != index) {
            if let Some(instance) = own.get(&other.address) {
                let (node, address) = (other.node, other.address);
                found.push(format!(
                    "{address} is that of {instance} on n{index} and of {} on n{node}",
                    other.instance
                ));
            }
        }
        let host = &self.nodes[index];
        for one in &here {
            let given = host.containers[&one.instance].address;
            if given != Some(one.address) && host.net.lost_at.is_none() {
                found.push(format!(
                    "{} on n{index} had {given:?} and now has {}",
                    one.instance, one.address
                ));
            }
            if host.net.state.block.is_some_and(|block| !block.contains(one.address)) {
                found.push(format!("{} on n{index} is not of its block", one.address));
            }
        }
        for detail in found {
            self.violate("I13", detail);
        }
    }

    /// I13: a node's block is its own, and its cluster's.
    pub fn watch_blocks(&mut self, index: usize) {
        let host = &self.nodes[index];
        let Some(block) = host.net.state.block else { return };
        let mut found = Vec::new();
        for (node, other) in self.nodes.iter().enumerate().filter(|(node, _)| *node != index) {
            // Who was put out keeps nothing but what still runs there.
            let holds = !other.expelled || !other.net.links.is_empty();
            let clashes = |theirs: Block| theirs.spans(block.network()) || block.spans(theirs.network());
            if let Some(theirs) = other.net.state.block.filter(|theirs| holds && clashes(*theirs)) {
                found.push(format!("n{index} has block {block} and n{node} has {theirs}"));
            }
        }
        let site = Block::new(block.network(), CLUSTER_PREFIX);
        let holder = *self.ledger.sites.entry(site.network()).or_insert(host.cluster);
        let plan = Plan::default();
        if holder != host.cluster || !(plan.endpoints.0..=plan.endpoints.1).contains(&block.network()) {
            found.push(format!(
                "n{index} of c{} has block {block}, and {site} is c{holder}'s",
                host.cluster
            ));
        }
        for detail in found {
            self.violate("I13", detail);
        }
    }

    /// A cluster gives a node something of an application.
    pub fn note_given(&mut self, cluster: usize, step: &Step) {
        let (Step::Place(instance, child, _) | Step::Adopt(instance, child, _)) = step else {
            return;
        };
        let Some(tier) = &self.clusters[cluster].daemon.tier else {
            return;
        };
        if let Some(wish) = tier.children().orchestrator().wish(*instance) {
            self.ledger.given.insert((NodeId(child.0), wish.spec.application));
            let name = application_name(&wish.spec.path).to_owned();
            self.ledger.names.insert(wish.spec.application, name);
        }
        self.ledger.decided += 1;
        let number = self.ledger.decided;
        self.ledger.decisions.insert((*instance, NodeId(child.0)), number);
    }

    /// A net manager hears other tables than before; after its start there is no before.
    pub fn watch_told(&mut self, index: usize, before: Option<&Told>, told: &Told) {
        let node = self.nodes[index].id;
        let known: BTreeMap<RowKey, &Row> = before.iter().flat_map(|told| told.rows()).map(by_key).collect();
        let mut found = Vec::new();
        for row in told.rows() {
            let former = known.get(&row.key()).copied();
            if former == Some(row) {
                continue;
            }
            if !self.may_hear(node, row) {
                found.push(("I10", format!("n{index} is told of another's {row:?}")));
            }
            match (former, row) {
                (Some(Row::Service(former)), Row::Service(row)) => {
                    if let Some((policy, address)) =
                        former.v4.iter().find(|(policy, v4)| row.v4.get(policy) != Some(v4))
                    {
                        let detail = format!("n{index}: {} no longer has {address} for {policy}", row.path);
                        found.push(("I12", detail));
                    }
                }
                (Some(Row::Instance(former)), Row::Instance(row))
                    if self.is_current(index) && self.is_older(index, row, former) =>
                {
                    found.push(("I12", format!("n{index}: from {former:?} back to {row:?}")));
                }
                _ => {}
            }
            if let Row::Instance(row) = row {
                let decision = self.decision(row);
                self.ledger.heard.insert((index, row.instance), decision);
            }
            if let Row::Service(row) = row {
                found.extend(self.note_service(row).map(|detail| ("I13", detail)));
            }
        }
        let now: BTreeSet<RowKey> = told.rows().map(Row::key).collect();
        for row in known.values().filter(|row| !now.contains(&row.key())) {
            if self.is_well(index, row) {
                found.push(("I12", format!("n{index} is told no longer of {row:?}, which is well")));
            }
        }
        for (invariant, detail) in found {
            self.violate(invariant, detail);
        }
    }

    /// Whether a node may be told of a row: of what it was given something of, of whom that lets in, and of what it asked for and
    /// is let in by.
    fn may_hear(&self, node: NodeId, row: &Row) -> bool {
        let Ledger {
            given,
            names,
            opened,
            asked,
            ..
        } = &self.ledger;
        let (application, is_instance) = match row {
            Row::Service(row) => (row.application, false),
            Row::Instance(row) => (row.application, true),
            _ => return true,
        };
        if given.contains(&(node, application)) {
            return true;
        }
        // Of what runs nowhere nobody is told that has not asked.
        let name = match row {
            Row::Service(row) => Some(application_name(&row.path)),
            _ => names.get(&application).map(String::as_str),
        };
        let Some(name) = name else { return false };
        let given = given.iter().filter(|(to, _)| *to == node);
        let mut own = given.filter_map(|(_, application)| names.get(application));
        own.any(|own| {
            let is_called =
                asked.contains(&(node, name.to_owned())) && opened.contains(&(name.to_owned(), own.clone()));
            is_called || (is_instance && opened.contains(&(own.clone(), name.to_owned())))
        })
    }

    /// Whether what a net manager hears comes in order, as a connection keeps it.
    fn is_current(&self, index: usize) -> bool {
        let is_orderly = self.plan.weather.late == 0 && self.plan.weather.twice == 0;
        let tier = &self.nodes[index].net.daemon.tier;
        is_orderly && tier.as_ref().is_some_and(NetTier::is_connected)
    }

    /// Whether a cluster had put the instance to where `row` says before it put it to where `than` says, as the net manager
    /// heard it.
    fn is_older(&self, index: usize, row: &InstanceRow, than: &InstanceRow) -> bool {
        let cluster = |node: NodeId| self.nodes.iter().find(|host| host.id == node).map(|host| host.cluster);
        let heard = self.ledger.heard.get(&(index, row.instance));
        cluster(row.node) == cluster(than.node) && heard.is_some_and(|heard| self.decision(row) < *heard)
    }

    /// The number of the decision that put the instance where this row says; 0: none.
    fn decision(&self, row: &InstanceRow) -> u64 {
        let number = self.ledger.decisions.get(&(row.instance, row.node));
        number.copied().unwrap_or_default()
    }

    /// I13 for service addresses: one holder each for the whole run, which keeps it.
    fn note_service(&mut self, row: &ServiceRow) -> Option<String> {
        for (policy, address) in &row.v4 {
            let key = (row.service, *policy);
            let holder = *self.ledger.holders.entry(*address).or_insert(key);
            let own = *self.ledger.addresses.entry(key).or_insert(*address);
            if holder != key || own != *address {
                return Some(format!(
                    "{} has {address} for {policy}; it had {own}, which is that of {holder:?}",
                    row.path
                ));
            }
        }
        None
    }

    /// Whether a row that is withdrawn from a net manager was right, and nothing on its way says otherwise: only where
    /// nothing below the clusters fails.
    fn is_well(&self, index: usize, row: &Row) -> bool {
        let quiet = self.t >= self.ledger.healed_at + ON_ITS_WAY_MS;
        if !self.plan.gentle || !quiet || self.nodes[index].expelled {
            return false;
        }
        let well = |host: &crate::node::Host, instance: InstanceId| {
            let container = host.containers.get(&instance);
            // News of it may be waiting for a link.
            let by = self.ledger.cut_at.unwrap_or(self.t);
            let runs = container.is_some_and(|one| one.state == State::Running && one.changed_at + WELL_MS <= by);
            let status = host
                .daemon
                .tier
                .as_ref()
                .and_then(|tier| tier.engine().status(instance));
            runs && status.is_some_and(|status| status.phase == Phase::Running)
        };
        // What its cluster does not want any more gets nothing new, while it ends.
        let is_wished = |host: &crate::node::Host, instance: InstanceId| {
            let tier = self.clusters[host.cluster].daemon.tier.as_ref();
            tier.is_none_or(|tier| tier.children().orchestrator().wish(instance).is_some())
        };
        // A cluster that lost its store says too little of its nodes until it has heard them and the root.
        let is_sure = |host: &&crate::node::Host| !self.clusters[host.cluster].has_lost_store;
        let on = |node: NodeId| self.nodes.iter().find(|host| host.id == node).filter(is_sure);
        // Of what the reader itself has something.
        let reads = |application: ApplicationId| {
            let own = &self.nodes[index];
            let mut running = own.containers.iter();
            running.any(|(id, one)| one.spec.application == application && well(own, *id) && is_wished(own, *id))
        };
        match row {
            Row::Service(row) => reads(row.application),
            Row::Instance(row) => {
                let host = on(row.node);
                let has = host.is_some_and(|host| host.net.links.get(&row.instance) == Some(&row.v4));
                let stays = |host: &crate::node::Host| well(host, row.instance) && is_wished(host, row.instance);
                has && reads(row.application) && host.is_some_and(stays)
            }
            Row::Node(row) => {
                let host = on(row.node);
                let shares = |host: &crate::node::Host| {
                    let mut containers = host.containers.iter();
                    containers.any(|(id, one)| reads(one.spec.application) && well(host, *id) && is_wished(host, *id))
                };
                host.is_some_and(shares)
            }
            Row::Plan(_) | Row::Block(_) => true,
            _ => false,
        }
    }
}

fn by_key(row: &Row) -> (RowKey, &Row) {
    (row.key(), row)
}

/// The application of `application/service`.
pub fn application_name(path: &str) -> &str {
    path.split_once('/').map_or(path, |(application, _)| application)
}
