//! From addresses of services to backends, for callers of the same application and those whom the service's rules name.
//!
//! Only the first packet of a flow comes here, and is counted for its service; connection tracking remembers what was chosen. The entry looks up caller and
//! address together and goes to a chain of that caller and that service, whose counters nobody else moves: turns are exact
//! for each caller, and for TCP, UDP and all else separately. There is one such chain for each policy: among all, among the
//! near, among the idle. Backends are in maps of the service, which its callers share: a map for each rule would make the kernel
//! take a minute for a thousand chains. Addresses of single instances need no turns: one map per application, and one for each
//! service of another application.

use super::ours;
use crate::datapath::ruleset::Ruleset;
use crate::datapath::{Backend, DatapathConfig, Endpoint, Service};
use roble_core::ids::ApplicationId;
use roble_core::overlay::block::Block;
use roble_core::overlay::row::Policy;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// The chain that packets of containers go through.
pub const ENTRY: &str = "services";

pub(super) fn render(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint]) {
    rules.map("turns4", "ipv4_addr . ipv4_addr : verdict");
    rules.map("turns6", "ipv6_addr . ipv6_addr : verdict");
    rules.map("callers4", "ipv4_addr : verdict");
    rules.map("callers6", "ipv6_addr : verdict");
    count(rules, config);
    let entry = [
        "counter name ip daddr map @flows4",
        "counter name ip6 daddr map @flows6",
        "ip saddr . ip daddr vmap @turns4",
        "ip6 saddr . ip6 daddr vmap @turns6",
        "ip saddr vmap @callers4",
        "ip6 saddr vmap @callers6",
    ];
    rules.chain(ENTRY, entry);
    refuse(rules, config);
    let mut applications = BTreeSet::new();
    for endpoint in endpoints {
        let Some(tenant) = &endpoint.tenant else { continue };
        let may_call = |service: &&Service| service.may_be_called_by(tenant.application, tenant.instance.service);
        let v6 = config.plan.endpoint_v6(endpoint.address);
        for service in config.services.iter().filter(may_call) {
            turns(rules, service, endpoint.address, v6.into());
            if service.application != tenant.application {
                singles(rules, service, endpoint.address, v6.into());
            }
        }
        rules.insert(
            "callers4",
            endpoint.address.to_string(),
            format!("goto {}", instances_of(tenant.application)),
        );
        rules.insert(
            "callers6",
            v6.to_string(),
            format!("goto {}", instances_of(tenant.application)),
        );
        applications.insert(tenant.application);
    }
    for application in applications {
        instances(rules, config, application);
    }
}

/// Beginning of the name of the counter of new flows to a service; its id follows.
pub const FLOWS: &str = "flows_";
/// The same of all that passes between callers and a service.
pub const PASSED: &str = "passed_";

/// For packets between links of ours: where those go first that were sent to a service, and their answers.
pub(super) const COUNTED: &str = "ct status dnat jump counted";

/// New flows to each service, by whatever address of it, and what they carry both ways.
fn count(rules: &mut Ruleset, config: &DatapathConfig) {
    for kind in [FLOWS, PASSED] {
        rules.map(&kind.replace('_', "4"), "ipv4_addr : counter");
        rules.map(&kind.replace('_', "6"), "ipv6_addr : counter");
    }
    for service in &config.services {
        for kind in [FLOWS, PASSED] {
            let counter = format!("{kind}{}", service.service);
            rules.counter(&counter);
            for address in service.addresses.values().flatten() {
                let family = if address.is_ipv4() { "4" } else { "6" };
                let map = kind.replace('_', family);
                rules.insert(&map, address.to_string(), format!("\"{counter}\""));
            }
        }
    }
    let lines = [("ip", 4), ("ip6", 6)];
    let lines = lines.map(|(family, number)| format!("counter name ct original {family} daddr map @passed{number}"));
    rules.chain("counted", lines);
}

/// What was not translated leads nowhere: refused at once, and never let out by the default route.
fn refuse(rules: &mut Ruleset, config: &DatapathConfig) {
    let (v4, v6): (Block, u16) = (config.plan.services, config.plan.services_v6);
    let mut lines = vec![format!("iifname != {} accept", ours())];
    lines.extend(super::misses::pass(config.misses.as_ref()));
    lines.extend([
        "meta l4proto tcp counter reject with tcp reset comment \"no backend\"".into(),
        "counter reject with icmpx port-unreachable comment \"no backend\"".into(),
    ]);
    rules.chain("unserved", lines);
    let of_services = [
        format!("ip daddr {v4} goto unserved"),
        format!("ip6 daddr {v6:x}::/16 goto unserved"),
    ];
    // Right after the translation of destinations, at -100.
    rules.base_chain("untranslated", "filter hook prerouting priority -99", of_services);
}

/// Chains and elements of one caller and one service.
fn turns(rules: &mut Ruleset, service: &Service, caller: Ipv4Addr, caller6: IpAddr) {
    let ready: Vec<&Backend> = service.ready().collect();
    if ready.is_empty() {
        return;
    }
    let those = |is_meant: fn(&Backend) -> bool| -> Vec<&Backend> {
        let meant: Vec<&Backend> = ready.iter().copied().filter(|backend| is_meant(backend)).collect();
        if meant.is_empty() { ready.clone() } else { meant }
    };
    for (policy, kind, backends) in [
        (Policy::RoundRobin, "turn", those(|_| true)),
        (Policy::Closest, "near", those(|backend| backend.near)),
        (Policy::LeastUsed, "idle", those(|backend| backend.idle)),
    ] {
        let addresses: Vec<_> = service.addresses_of(policy).collect();
        if addresses.is_empty() {
            continue;
        }
        let chain = format!("{kind}_{:08x}_{}", caller.to_bits(), service.service);
        for address in addresses {
            let (map, caller) = if address.is_ipv4() {
                ("turns4", IpAddr::from(caller))
            } else {
                ("turns6", caller6)
            };
            rules.insert(map, format!("{caller} . {address}"), format!("goto {chain}"));
        }
        let (map4, map6) = (
            format!("{kind}s4_{}", service.service),
            format!("{kind}s6_{}", service.service),
        );
        rules.numbered(&map4, "ip daddr");
        rules.numbered(&map6, "ip6 daddr");
        for (number, backend) in backends.iter().enumerate() {
            rules.insert(&map4, number.to_string(), backend.v4.to_string());
            rules.insert(&map6, number.to_string(), backend.v6.to_string());
        }
        let ways = [("ipv4", "ip", &map4), ("ipv6", "ip6", &map6)];
        let lines = ways.map(|(protocol, family, map)| choose(protocol, family, map, backends.len()));
        rules.chain(&chain, lines.concat());
    }
}

/// Rules that send a flow to the next of the `count` in `map`. Each counts for itself.
fn choose(protocol: &str, family: &str, map: &str, count: usize) -> [String; 3] {
    ["meta l4proto tcp ", "meta l4proto udp ", ""].map(|transport| {
        format!("meta nfproto {protocol} {transport}dnat {family} to numgen inc mod {count} map @{map}")
    })
}

/// Addresses of single instances of a service, for one caller of another application.
fn singles(rules: &mut Ruleset, service: &Service, caller: Ipv4Addr, caller6: IpAddr) {
    let id = service.service;
    let (map4, map6) = (format!("singles4_{id}"), format!("singles6_{id}"));
    rules.map(&map4, "ipv4_addr : ipv4_addr");
    rules.map(&map6, "ipv6_addr : ipv6_addr");
    for backend in service.ready() {
        for address in service.addresses_of(Policy::Instance(backend.number)) {
            let to = format!("goto single_{id}");
            match address {
                IpAddr::V4(v4) => {
                    rules.insert("turns4", format!("{caller} . {v4}"), to);
                    rules.insert(&map4, v4.to_string(), backend.v4.to_string());
                }
                IpAddr::V6(v6) => {
                    rules.insert("turns6", format!("{caller6} . {v6}"), to);
                    rules.insert(&map6, v6.to_string(), backend.v6.to_string());
                }
            }
        }
    }
    let lines = [
        format!("meta nfproto ipv4 dnat ip to ip daddr map @{map4}"),
        format!("meta nfproto ipv6 dnat ip6 to ip6 daddr map @{map6}"),
    ];
    rules.chain(&format!("single_{id}"), lines);
}

fn instances_of(application: ApplicationId) -> String {
    format!("instances_{application}")
}

/// Addresses of single instances of an application.
fn instances(rules: &mut Ruleset, config: &DatapathConfig, application: ApplicationId) {
    let (map4, map6) = (format!("instances4_{application}"), format!("instances6_{application}"));
    rules.map(&map4, "ipv4_addr : ipv4_addr");
    rules.map(&map6, "ipv6_addr : ipv6_addr");
    for service in config
        .services
        .iter()
        .filter(|service| service.application == application)
    {
        for backend in service.ready() {
            for address in service.addresses_of(Policy::Instance(backend.number)) {
                match address {
                    IpAddr::V4(v4) => rules.insert(&map4, v4.to_string(), backend.v4.to_string()),
                    IpAddr::V6(v6) => rules.insert(&map6, v6.to_string(), backend.v6.to_string()),
                }
            }
        }
    }
    let lines = [
        format!("meta nfproto ipv4 dnat ip to ip daddr map @{map4}"),
        format!("meta nfproto ipv6 dnat ip6 to ip6 daddr map @{map6}"),
    ];
    rules.chain(&instances_of(application), lines);
}
