//! From what the cluster tells to what the kernel and the name server are given.

use crate::datapath::permits::Member;
use crate::datapath::sealed::Sealed;
use crate::datapath::tunnel::Tunnel;
use crate::datapath::{Backend, Misses, Overlay, RemoteNode, Service};
use crate::nearness::Nearness;
use crate::tier::Told;
use crate::wants::Answers;
use roble_core::ids::NodeId;
use roble_core::overlay::block::Block;
use roble_core::overlay::row::{InstanceRow, NodeRow, Policy, Row};
use roble_core::overlay::tunnel::TunnelEnd;
use roble_daemon::home::Home;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// This node's part in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own<'a> {
    /// Where it belongs, once it has joined.
    pub home: Option<&'a Home>,
    /// Its block, if that is from the configuration.
    pub block: Option<Block>,
    /// Its end of the tunnel to nodes of its cluster.
    pub tunnel: Option<Tunnel>,
    /// Its address and port, if it has an end of the encrypted tunnel.
    pub sealed: Option<SocketAddr>,
}

/// The tables as the datapath takes them.
pub fn overlay(told: &Told, own: Own<'_>, nearness: &mut Nearness) -> Overlay {
    let plan = told.plan();
    let node = own.home.map(|home| home.node);
    let mut instances: BTreeMap<_, Vec<&InstanceRow>> = BTreeMap::new();
    for row in told.instances() {
        instances.entry(row.instance.service).or_default().push(row);
    }
    let of = |service| instances.get(&service).map_or(&[][..], Vec::as_slice);
    let services = told.services().map(|row| {
        let rows = of(row.service);
        let numbers = rows.iter().map(|instance| Policy::Instance(instance.instance.number));
        let numbers = row.v4.keys().copied().chain(numbers);
        let policies = [Policy::RoundRobin, Policy::Closest, Policy::LeastUsed].into_iter();
        let addresses = policies
            .chain(numbers)
            .map(|policy| (policy, row.addresses(&plan, policy).collect()));
        let ready: Vec<_> = rows.iter().filter(|row| row.ready).collect();
        let nearest = nearness.nearest(row.service, node, &ready.iter().map(|row| row.node).collect());
        let idlest = nearness.idlest(&plan, &ready.iter().map(|row| row.v4).collect::<Vec<_>>());
        let backends = rows.iter().map(|row| Backend {
            number: row.instance.number,
            v4: row.v4,
            v6: row.v6,
            ready: row.ready,
            near: Some(row.node) == nearest,
            idle: idlest.contains(&row.v4),
        });
        Service {
            service: row.service,
            application: row.application,
            addresses: addresses.collect(),
            backends: backends.collect(),
            allows: row.allows.clone(),
        }
    });
    let services: BTreeMap<_, _> = services.map(|service| (service.service, service)).collect();
    let others = told.nodes().filter(|row| Some(row.node) != node);
    let vxlan = others.filter_map(|row| {
        let address = vxlan_to(own, row)?;
        Some(RemoteNode {
            node: row.node,
            address,
            block: row.block,
        })
    });
    let sealed = own.sealed.map(|address| Sealed {
        address: address.ip(),
        port: address.port(),
        blocks: sealed_nodes(told, own).map(|(row, _)| row.block).collect(),
        narrow: BTreeMap::new(),
    });
    Overlay {
        plan,
        block: own.block.or(told.block()),
        services: services.into_values().collect(),
        members: told.instances().map(member).collect(),
        nodes: vxlan.collect(),
        tunnel: own.tunnel,
        sealed,
        misses: None,
    }
}

impl Overlay {
    /// The same; packets to services that are not known are held, except those of which `told` says that they are nobody's.
    #[must_use]
    pub fn holding(self, holds: bool, told: &Told) -> Self {
        let misses = holds.then(|| Misses {
            refused: Answers::of(told.rows(), BTreeSet::new()).refused().collect(),
        });
        Self { misses, ..self }
    }

    /// The same, with the ways that take less than the device, by their blocks' first addresses.
    #[must_use]
    pub fn with_narrow(mut self, narrow: BTreeMap<Ipv4Addr, u32>) -> Self {
        if let Some(sealed) = &mut self.sealed {
            sealed.narrow = narrow;
        }
        self
    }

    /// Service addresses that the kernel will know.
    pub fn known(&self) -> BTreeSet<IpAddr> {
        let addresses = self.services.iter().flat_map(|service| service.addresses.values());
        addresses.flatten().copied().collect()
    }
}

const fn member(row: &InstanceRow) -> Member {
    Member {
        instance: row.instance,
        application: row.application,
        v4: row.v4,
        v6: row.v6,
    }
}

/// Nodes behind the encrypted tunnel, and their ends of it.
pub fn sealed_nodes<'a>(told: &'a Told, own: Own<'a>) -> impl Iterator<Item = (&'a NodeRow, &'a TunnelEnd)> {
    let others = told
        .nodes()
        .filter(move |row| own.home.is_none_or(|home| home.node != row.node));
    let sealed = others.filter(move |row| vxlan_to(own, row).is_none());
    sealed.filter_map(|row| Some((row, row.tunnel.as_ref()?)))
}

/// Where VXLAN leads to a node, if that is the way: both use it, in one cluster. Both ends decide the same.
pub fn vxlan_to(own: Own<'_>, row: &NodeRow) -> Option<IpAddr> {
    let address = row.address?;
    let is_near = own.home.is_some_and(|home| home.cluster == row.cluster);
    let is_same_family = own
        .tunnel
        .is_some_and(|tunnel| tunnel.address.is_ipv4() == address.is_ipv4());
    (is_near && is_same_family).then_some(address)
}

/// The gateway addresses of the nodes that are talked to, at which they answer echoes.
pub fn gateways(told: &Told, home: Option<&Home>) -> BTreeMap<NodeId, Ipv4Addr> {
    let own = home.map(|home| home.node);
    let others = told.nodes().filter(|row| Some(row.node) != own);
    others.map(|row| (row.node, row.block.gateway())).collect()
}

/// What this node says of itself: its block, and where its end of the tunnel is.
pub fn says(home: &Home, block: Option<Block>, tunnel: Option<Tunnel>, end: Option<TunnelEnd>) -> Vec<Row> {
    let Some(block) = block else { return Vec::new() };
    let node = NodeRow {
        node: home.node,
        cluster: home.cluster,
        address: tunnel.map(|tunnel| tunnel.address),
        block,
        tunnel: end,
    };
    vec![Row::Block(block), Row::Node(node)]
}
