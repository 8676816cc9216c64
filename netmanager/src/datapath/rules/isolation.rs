//! Which endpoints reach each other: those of one application, and callers whom the rules of a service name. Containers
//! without an instance are a group of their own.
//!
//! Enforced at the caller and, for callers of other nodes, at the destination. A packet that was sent to a service address is
//! looked at like any other, by where it goes: only translation to a published port opens something by itself.

use crate::datapath::permits::{Callers, Permits, is_everything};
use crate::datapath::ruleset::Ruleset;
use crate::datapath::{DatapathConfig, Endpoint};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The chain for packets from one link of ours to another, tunnels too.
pub const ENTRY: &str = "between";

pub(super) fn render(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint], permits: &Permits) {
    for (name, family) in [
        ("groups4", "ipv4_addr"),
        ("groups6", "ipv6_addr"),
        ("called4", "ipv4_addr"),
        ("called6", "ipv6_addr"),
    ] {
        rules.map(name, &format!("{family} : verdict"));
    }
    let tunnels = super::tunnels::devices();
    let (v4, v6) = (config.plan.services, config.plan.services_v6);
    let entry = [
        format!("iifname {tunnels} oifname {tunnels} counter drop comment \"from a tunnel to elsewhere\""),
        // A published port.
        format!("ct status dnat ct original ip daddr != {v4} accept"),
        format!("ct status dnat ct original ip6 daddr != {v6:x}::/16 accept"),
        "ip saddr vmap @groups4".into(),
        "ip6 saddr vmap @groups6".into(),
        "ip daddr vmap @groups4".into(),
        "ip6 daddr vmap @groups6".into(),
        "ip daddr vmap @called4".into(),
        "ip6 daddr vmap @called6".into(),
        "counter reject with icmpx admin-prohibited comment \"another application\"".into(),
    ];
    let to_miss = super::misses::between(config.misses.as_ref());
    // First: all packets but a flow's first. None of them is from a tunnel to a tunnel, the guard lets no such packet in.
    let known = [super::services::COUNTED, "ct state established,related accept"];
    let known = known.into_iter().map(Into::into);
    rules.chain(ENTRY, known.chain(to_miss).chain(entry));
    let local: BTreeSet<_> = endpoints.iter().map(|endpoint| endpoint.application()).collect();
    for group in local {
        let name = group.map_or("none".into(), |application| application.to_string());
        let (chain, members4, members6) = (
            format!("group_{name}"),
            format!("members4_{name}"),
            format!("members6_{name}"),
        );
        members(rules, &members4, &members6, permits.groups.get(&group));
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
    allow(rules, permits);
}

fn members(rules: &mut Ruleset, set4: &str, set6: &str, of: Option<&BTreeSet<(Ipv4Addr, Ipv6Addr)>>) {
    rules.set(set4, "ipv4_addr");
    rules.set(set6, "ipv6_addr");
    for (v4, v6) in of.into_iter().flatten() {
        rules.put(set4, v4.to_string());
        rules.put(set6, v6.to_string());
    }
}

/// A chain for each service with rules, and sets of callers that all of them share.
fn allow(rules: &mut Ruleset, permits: &Permits) {
    for (callers, endpoints) in &permits.callers {
        let [set4, set6] = sets_of(*callers);
        members(rules, &set4, &set6, Some(endpoints));
    }
    for (service, allowed) in &permits.rules {
        let chain = format!("allow_{service}");
        for (v4, v6) in permits.called.get(service).into_iter().flatten() {
            rules.insert("called4", v4.to_string(), format!("jump {chain}"));
            rules.insert("called6", v6.to_string(), format!("jump {chain}"));
        }
        let mut lines = Vec::new();
        for (callers, ports) in allowed {
            let [set4, set6] = sets_of(*callers);
            for from in [format!("ip saddr @{set4}"), format!("ip6 saddr @{set6}")] {
                if is_everything(ports) {
                    lines.push(format!("{from} accept"));
                }
                for range in ports {
                    let port = match range.first == range.last {
                        true => range.first.to_string(),
                        false => format!("{}-{}", range.first, range.last),
                    };
                    lines.push(format!("{from} {} dport {port} accept", range.protocol));
                }
            }
        }
        rules.chain(&chain, lines);
    }
}

fn sets_of((application, service): Callers) -> [String; 2] {
    let of = match service {
        None => format!("application_{application}"),
        Some(service) => format!("service_{service}"),
    };
    ["4", "6"].map(|family| format!("callers{family}_{of}"))
}
