//! What is in our table, from the whole configuration.
//!
//! - a container sends from its own addresses only, and reaches neither `127.0.0.0/8` of the node nor the metadata service
//! - of the node itself it reaches the name server and nothing else; of the node's LAN nothing, unless allowed
//! - addresses of services lead to backends, see [`services`]; those that lead nowhere are refused at once
//! - published ports: traffic to any address of the node, from outside, from containers and from the node itself
//!   (`127.0.0.1` included, `::1` not), goes to the container; traffic to other machines is never touched
//! - containers of one application reach each other, and otherwise whom rules of a service name, see [`isolation`]
//! - the first packets to unknown services are held, see [`misses`]
//! - a tunnel takes from each node what comes from its block, see [`tunnels`]
//! - from outside only published ports and answers reach a container; leaving traffic gets the node's address
//! - interfaces on which we had to turn on forwarding forward to and from containers only
//!
//! Verdicts of ours are final for us only: other tables of the node still have their say.

pub mod isolation;
mod misses;
pub mod services;
pub mod tunnels;

use super::lan::Network;
use super::permits::Permits;
use super::ruleset::Ruleset;
use super::sysctl::{Opened, OpenedV6};
use super::{DatapathConfig, Endpoint, LINK_PREFIX};
use crate::dns;
use std::collections::BTreeSet;

/// What was found on the node that the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What forwards because of us.
    pub opened: Opened,
    /// The node's LAN, closed to containers.
    pub lan: BTreeSet<Network>,
}

/// The rules of `config`, with those of its endpoints that are there. `permits`: made of the same.
pub fn render(config: &DatapathConfig, endpoints: &[&Endpoint], permits: &Permits, found: &Found) -> Ruleset {
    let mut rules = Ruleset::default();
    guard(&mut rules, config, endpoints);
    close(&mut rules, config);
    services::render(&mut rules, config, endpoints);
    misses::render(&mut rules, config, endpoints);
    publish(&mut rules, config, endpoints);
    isolation::render(&mut rules, config, endpoints, permits);
    tunnels::render(&mut rules, config);
    leave(&mut rules, config, endpoints, found);
    rules
}

/// `"rbl-*"`: all links of ours, tunnels too.
fn ours() -> String {
    format!("\"{LINK_PREFIX}*\"")
}

/// Who may send from what.
fn guard(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint]) {
    rules.set("sources4", "ifname . ipv4_addr");
    rules.set("sources6", "ifname . ipv6_addr");
    for endpoint in endpoints {
        let v6 = config.plan.endpoint_v6(endpoint.address);
        rules.put("sources4", format!("\"{}\" . {}", endpoint.link, endpoint.address));
        rules.put("sources6", format!("\"{}\" . {v6}", endpoint.link));
    }
    let mut lines = vec![tunnels::elsewhere(rules, config)];
    lines.extend(pass_at_once(config));
    lines.extend(tunnels::guard(rules, config));
    lines.extend(misses::come_back(config.misses.as_ref()));
    lines.extend(
        [
            "ip6 saddr { ::, fe80::/10 } drop comment \"link-local, not used here\"",
            "meta nfproto ipv4 iifname . ip saddr != @sources4 counter drop comment \"foreign source\"",
            "meta nfproto ipv6 iifname . ip6 saddr != @sources6 counter drop comment \"foreign source\"",
            "ip daddr 127.0.0.0/8 counter drop comment \"loopback\"",
        ]
        .map(Into::into),
    );
    if !config.egress.metadata {
        lines.extend(
            ["ip daddr 169.254.0.0/16", "ip6 daddr fd00:ec2::254"]
                .map(|of| format!("{of} counter reject with icmpx admin-prohibited comment \"metadata\"")),
        );
    }
    lines.extend(misses::go(config));
    rules.base_chain("guard", "filter hook prerouting priority raw", lines);
}

/// Nearly all packets of containers: from their own address to an endpoint or a known service. Every rule is looked at for each
/// packet of each flow, so what most packets meet comes first; none of these would be stopped further down.
fn pass_at_once(config: &DatapathConfig) -> Vec<String> {
    let (plan, (first, last)) = (&config.plan, config.plan.endpoints);
    let endpoints6 = format!("{}-{}", plan.endpoint_v6(first), plan.endpoint_v6(last));
    let [services4, services6] = misses::known(config);
    let to = |family, number, to| format!("{family} daddr {to} iifname . {family} saddr @sources{number} accept");
    vec![
        to("ip", 4, format!("{first}-{last}")),
        to("ip", 4, services4),
        to("ip6", 6, endpoints6),
        to("ip6", 6, services6),
    ]
}

/// What of the node itself containers reach: names and echoes of the gateway. What began here is answered.
fn close(rules: &mut Ruleset, config: &DatapathConfig) {
    let gateway = config.range.gateway();
    let gateways = [
        (format!("ip daddr {gateway}"), "icmp"),
        (format!("ip6 daddr {}", config.plan.endpoint_v6(gateway)), "icmpv6"),
    ];
    let mut lines = vec![
        format!("iifname != {} accept", ours()),
        // They have rules of their own.
        format!("iifname {} accept", tunnels::devices()),
        "ct state established,related accept".into(),
    ];
    for (gateway, icmp) in gateways {
        lines.extend(["udp", "tcp"].map(|protocol| format!("{gateway} {protocol} dport {} accept", dns::PORT)));
        lines.push(format!("{gateway} {icmp} type echo-request accept"));
    }
    // A container that has forgotten which hardware address its gateway has.
    lines.extend(["nd-neighbor-solicit", "nd-neighbor-advert"].map(|kind| format!("icmpv6 type {kind} accept")));
    lines.push("counter reject with icmpx admin-prohibited comment \"a program of the node\"".into());
    rules.base_chain("closed", "filter hook input priority filter", lines);
}

fn publish(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint]) {
    rules.map("published4", "inet_proto . inet_service : ipv4_addr . inet_service");
    rules.map("published6", "inet_proto . inet_service : ipv6_addr . inet_service");
    for endpoint in endpoints {
        let (v4, v6) = (endpoint.address, config.plan.endpoint_v6(endpoint.address));
        for port in &endpoint.ports {
            let key = format!("{} . {}", port.protocol, port.host);
            rules.insert("published4", key.clone(), format!("{v4} . {}", port.container));
            rules.insert("published6", key, format!("{v6} . {}", port.container));
        }
    }
    let publish = [
        "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @published4",
        // A packet from ::1 cannot leave the node, whatever its destination.
        "meta nfproto ipv6 fib daddr type local ip6 daddr != ::1 dnat ip6 to meta l4proto . th dport map @published6",
    ];
    let to_services = format!("iifname {} jump {}", ours(), services::ENTRY);
    let prerouting = [to_services.as_str()].into_iter().chain(publish);
    rules.base_chain("prerouting", "nat hook prerouting priority dstnat", prerouting);
    // nft 1.0 knows the name `dstnat` in the prerouting hook only.
    rules.base_chain("output", "nat hook output priority -100", publish);
}

/// Between containers and other machines.
fn leave(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint], found: &Found) {
    let (plan, range, ours) = (&config.plan, &config.range, ours());
    let opened = &found.opened;
    rules.set("opened4", "ifname");
    rules.set("opened6", "ifname");
    for name in &opened.v4 {
        rules.put("opened4", format!("\"{name}\""));
    }
    if let OpenedV6::Interfaces(names) = &opened.v6 {
        for name in names {
            rules.put("opened6", format!("\"{name}\""));
        }
    }
    let no_router6 = match opened.v6 {
        OpenedV6::Everything => "meta nfproto ipv6 counter drop comment \"not a router\"",
        OpenedV6::Interfaces(_) | OpenedV6::Nothing => {
            "meta nfproto ipv6 iifname @opened6 counter drop comment \"not a router\""
        }
    };
    let forward = [
        format!("iifname {ours} oifname {ours} goto {}", isolation::ENTRY),
        format!(
            "iifname {} counter drop comment \"from a tunnel to elsewhere\"",
            tunnels::devices()
        ),
        format!("iifname {ours} goto leave"),
        format!("oifname {ours} ct state established,related accept"),
        format!("oifname {ours} ct status dnat accept"),
        format!("oifname {ours} counter drop comment \"not published\""),
        "meta nfproto ipv4 iifname @opened4 counter drop comment \"not a router\"".into(),
        no_router6.into(),
    ];
    rules.base_chain("forward", "filter hook forward priority filter", forward);
    // An endpoint that has no route here would leave by the default route.
    let (first, last) = plan.endpoints;
    let unknown = "counter reject with icmpx host-unreachable comment \"unknown endpoint\"";
    let mut leave = vec![
        format!("ip daddr {first}-{last} {unknown}"),
        format!(
            "ip6 daddr {}-{} {unknown}",
            plan.endpoint_v6(first),
            plan.endpoint_v6(last)
        ),
    ];
    leave.extend(misses::stay(config));
    let lan = |is_v4: bool| {
        let networks = found.lan.iter().filter(|(first, _)| first.is_ipv4() == is_v4);
        networks
            .map(|(first, prefix)| format!("{first}/{prefix}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let lan = [("ip", lan(true)), ("ip6", lan(false))];
    if lan.iter().any(|(_, networks)| !networks.is_empty()) {
        // To whoever called a published port from there.
        leave.push("ct direction reply accept".into());
    }
    leave.extend(lan.iter().filter(|(_, networks)| !networks.is_empty()).map(|(family, networks)| {
        format!("{family} daddr {{ {networks} }} counter reject with icmpx admin-prohibited comment \"the node's LAN\"")
    }));
    rules.chain("leave", leave);

    rules.set("hairpins4", "ipv4_addr . ipv4_addr");
    rules.set("hairpins6", "ipv6_addr . ipv6_addr");
    for endpoint in endpoints {
        let (v4, v6) = (endpoint.address, plan.endpoint_v6(endpoint.address));
        rules.put("hairpins4", format!("{v4} . {v4}"));
        rules.put("hairpins6", format!("{v6} . {v6}"));
    }
    let range6 = format!("{}/{}", plan.endpoint_v6(range.network()), 96 + range.prefix());
    let postrouting = [
        format!("ip saddr 127.0.0.0/8 oifname {ours} masquerade"),
        // Nobody takes a packet from its own address: the node steps in between.
        "ip saddr . ip daddr @hairpins4 masquerade".into(),
        "ip6 saddr . ip6 daddr @hairpins6 masquerade".into(),
        format!("ip saddr {range} ip daddr != {range} oifname != {ours} masquerade"),
        format!("ip6 saddr {range6} ip6 daddr != {range6} oifname != {ours} masquerade"),
    ];
    rules.base_chain("postrouting", "nat hook postrouting priority srcnat", postrouting);
}

#[cfg(test)]
mod tests;
