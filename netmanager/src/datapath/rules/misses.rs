//! Packets to service addresses that are not known here go to a device from which user space takes them, see
//! [`miss`](crate::datapath::miss). Connection tracking must not see them before they come back: with an entry of its own a
//! packet that comes back would not be translated any more.

use crate::datapath::miss::LINK;
use crate::datapath::ruleset::Ruleset;
use crate::datapath::{DatapathConfig, Endpoint, Misses};
use std::net::IpAddr;

/// What is known, and what is refused to whom; and what leads away from the device.
pub(super) fn render(rules: &mut Ruleset, config: &DatapathConfig, endpoints: &[&Endpoint]) {
    let Some(misses) = &config.misses else { return };
    rules.set("known4", "ipv4_addr");
    rules.set("known6", "ipv6_addr");
    for address in config
        .services
        .iter()
        .flat_map(|service| service.addresses.values())
        .flatten()
    {
        rules.put(if address.is_ipv4() { "known4" } else { "known6" }, address.to_string());
    }
    rules.set("refused4", "ipv4_addr . ipv4_addr");
    rules.set("refused6", "ipv6_addr . ipv6_addr");
    for endpoint in endpoints {
        let of_its = misses
            .refused
            .iter()
            .filter(|(of, _)| Some(*of) == endpoint.application());
        for (_, address) in of_its {
            match address {
                IpAddr::V4(v4) => rules.put("refused4", format!("{} . {v4}", endpoint.address)),
                IpAddr::V6(v6) => {
                    let own = config.plan.endpoint_v6(endpoint.address);
                    rules.put("refused6", format!("{own} . {v6}"));
                }
            }
        }
    }
    rules.chain("miss", ["notrack accept"]);
    let outward =
        format!("oifname \"{LINK}\" counter reject with icmpx port-unreachable comment \"from the node itself\"");
    rules.base_chain("outward", "filter hook output priority filter", [outward]);
}

fn ranges(config: &DatapathConfig) -> [String; 2] {
    [
        format!("ip daddr {}", config.plan.services),
        format!("ip6 daddr {:x}::/16", config.plan.services_v6),
    ]
}

/// Service addresses that are known here, of each family; without the device all of them.
pub(super) fn known(config: &DatapathConfig) -> [String; 2] {
    match config.misses {
        Some(_) => ["@known4".into(), "@known6".into()],
        None => [
            config.plan.services.to_string(),
            format!("{:x}::/16", config.plan.services_v6),
        ],
    }
}

/// In front of the guard: what comes back has been looked at.
pub(super) fn come_back(misses: Option<&Misses>) -> Option<String> {
    misses.map(|_| format!("iifname \"{LINK}\" accept"))
}

/// At the end of the guard, which what is known does not reach: what goes to the device.
pub(super) fn go(config: &DatapathConfig) -> Vec<String> {
    let ways = ranges(config).into_iter().zip([("ip", 4), ("ip6", 6)]);
    let lines = ways.map(|(range, (family, number))| {
        format!("{range} {family} saddr . {family} daddr != @refused{number} counter goto miss")
    });
    config.misses.iter().flat_map(|_| lines.clone()).collect()
}

/// On its way to the device a packet is not refused.
pub(super) fn pass(misses: Option<&Misses>) -> Option<String> {
    misses.map(|_| "ct state untracked accept".into())
}

/// Between links of ours: to the device.
pub(super) fn between(misses: Option<&Misses>) -> Option<String> {
    misses.map(|_| format!("oifname \"{LINK}\" ct state untracked accept"))
}

/// Without the device they would leave by the default route.
pub(super) fn stay(config: &DatapathConfig) -> Vec<String> {
    let lines = ranges(config)
        .map(|range| format!("{range} counter reject with icmpx port-unreachable comment \"unknown service\""));
    config.misses.iter().flat_map(|_| lines.clone()).collect()
}
