//! Which endpoints reach each other: those of one application. Containers without an instance are a group of their own.
//!
//! Enforced at the caller and, for callers of other nodes, at the destination. Rules of descriptors that allow more belong
//! into the chain of the application that they are about, after its own members.

use crate::datapath::ruleset::Ruleset;
use crate::datapath::{DatapathConfig, Endpoint};
use roble_core::ids::ApplicationId;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The chain for packets from one link of ours to another, tunnels too.
pub const ENTRY: &str = "between";

pub(super) fn render(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint]) {
    rules.map("groups4", "ipv4_addr : verdict");
    rules.map("groups6", "ipv6_addr : verdict");
    let tunnel = crate::datapath::tunnel::LINK;
    let entry = [
        format!("iifname \"{tunnel}\" oifname \"{tunnel}\" counter drop comment \"from a tunnel to elsewhere\""),
        "ct state established,related accept".into(),
        // A service of the same application, or a published port.
        "ct status dnat accept".into(),
        "ip saddr vmap @groups4".into(),
        "ip6 saddr vmap @groups6".into(),
        "ip daddr vmap @groups4".into(),
        "ip6 daddr vmap @groups6".into(),
        "counter reject with icmpx admin-prohibited comment \"another application\"".into(),
    ];
    rules.chain(ENTRY, entry);
    let groups: BTreeSet<Option<ApplicationId>> = endpoints.iter().map(|endpoint| endpoint.application()).collect();
    for group in groups {
        let name = group.map_or("none".into(), |application| application.to_string());
        let (chain, members4, members6) = (
            format!("group_{name}"),
            format!("members4_{name}"),
            format!("members6_{name}"),
        );
        rules.set(&members4, "ipv4_addr");
        rules.set(&members6, "ipv6_addr");
        for (v4, v6) in members(config, endpoints, group) {
            rules.put(&members4, v4.to_string());
            rules.put(&members6, v6.to_string());
        }
        let lines = [
            format!("ip saddr @{members4} ip daddr @{members4} accept"),
            format!("ip6 saddr @{members6} ip6 daddr @{members6} accept"),
        ];
        rules.chain(&chain, lines);
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.application() == group) {
            let v6 = config.plan.endpoint_v6(endpoint.address);
            rules.insert("groups4", endpoint.address.to_string(), format!("jump {chain}"));
            rules.insert("groups6", v6.to_string(), format!("jump {chain}"));
        }
    }
}

/// Endpoints of a group: here, and as backends of its services elsewhere.
fn members(
    config: &DatapathConfig,
    endpoints: &[&Endpoint],
    group: Option<ApplicationId>,
) -> BTreeSet<(Ipv4Addr, Ipv6Addr)> {
    let here = endpoints.iter().filter(|endpoint| endpoint.application() == group);
    let here = here.map(|endpoint| (endpoint.address, config.plan.endpoint_v6(endpoint.address)));
    let services = config
        .services
        .iter()
        .filter(|service| Some(service.application) == group);
    let backends = services.flat_map(|service| &service.backends);
    here.chain(backends.map(|backend| (backend.v4, backend.v6))).collect()
}
