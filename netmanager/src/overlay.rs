//! From what the cluster tells to what the kernel and the name server are given.

use crate::datapath::tunnel::Tunnel;
use crate::datapath::{Backend, Overlay, RemoteNode, Service};
use crate::tier::Told;
use roble_core::overlay::block::Block;
use roble_core::overlay::row::{NodeRow, Policy, Row};
use roble_daemon::home::Home;
use std::collections::BTreeMap;

/// The tables as the datapath takes them. `block`: the one from the configuration, if there is one.
pub fn overlay(told: &Told, home: Option<&Home>, block: Option<Block>, tunnel: Option<Tunnel>) -> Overlay {
    let plan = told.plan();
    let node = home.map(|home| home.node);
    let mut services: BTreeMap<_, _> = told
        .services()
        .map(|row| {
            let numbers = row.v4.keys().copied().chain(
                told.instances()
                    .filter(|instance| instance.instance.service == row.service)
                    .map(|instance| Policy::Instance(instance.instance.number)),
            );
            let policies = [Policy::RoundRobin, Policy::Closest, Policy::LeastUsed].into_iter();
            let addresses = policies
                .chain(numbers)
                .map(|policy| (policy, row.addresses(&plan, policy).collect()));
            let service = Service {
                service: row.service,
                application: row.application,
                addresses: addresses.collect(),
                backends: Vec::new(),
            };
            (row.service, service)
        })
        .collect();
    for row in told.instances() {
        if let Some(service) = services.get_mut(&row.instance.service) {
            service.backends.push(Backend {
                number: row.instance.number,
                v4: row.v4,
                v6: row.v6,
                ready: row.ready,
                local: Some(row.node) == node,
            });
        }
    }
    let is_near = |row: &&NodeRow| home.is_some_and(|home| home.cluster == row.cluster && home.node != row.node);
    let nodes = told.nodes().filter(is_near).filter_map(|row| {
        Some(RemoteNode {
            node: row.node,
            address: row.address?,
            block: row.block,
        })
    });
    Overlay {
        plan,
        block: block.or(told.block()),
        services: services.into_values().collect(),
        nodes: nodes.collect(),
        tunnel,
    }
}

/// What this node says of itself: its block, and where its end of the tunnel is.
pub fn says(home: &Home, block: Option<Block>, tunnel: Option<Tunnel>) -> Vec<Row> {
    let Some(block) = block else { return Vec::new() };
    let node = NodeRow {
        node: home.node,
        cluster: home.cluster,
        address: tunnel.map(|tunnel| tunnel.address),
        block,
    };
    vec![Row::Block(block), Row::Node(node)]
}
