//! What a tunnel may bring: from each node what its block has sent, and for our own block only.
//!
//! VXLAN shows who sent a datagram on the outside only, so that is where the inner source is looked at, in bytes: 8 of UDP,
//! 8 of VXLAN, 14 of Ethernet, then IP. The encrypted tunnel looks at it itself.

use crate::datapath::DatapathConfig;
use crate::datapath::ruleset::Ruleset;
use crate::datapath::sealed;
use crate::datapath::tunnel::{LINK, TunnelKind};
use roble_core::overlay::block::Block;
use std::net::IpAddr;

/// Bits before the inner Ethernet type and the inner IP header, from the outer UDP header.
const INNER_TYPE: u32 = (8 + 8 + 12) * 8;
const INNER_IP: u32 = (8 + 8 + 14) * 8;

pub(super) fn render(rules: &mut Ruleset, config: &DatapathConfig) {
    if config.tunnel.is_none() && config.sealed.is_none() {
        return;
    }
    let mut lines = Vec::new();
    if let Some(tunnel) = &config.tunnel {
        let TunnelKind::Vxlan { port, .. } = tunnel.kind;
        lines = vxlan(rules, config, port);
    }
    let (gateway, gateway6) = (config.range.gateway(), config.plan.endpoint_v6(config.range.gateway()));
    lines.extend([
        format!("iifname {} ct state established,related accept", devices()),
        format!("iifname {} icmp type echo-request ip daddr {gateway} accept", devices()),
        format!(
            "iifname {} icmpv6 type echo-request ip6 daddr {gateway6} accept",
            devices()
        ),
        format!(
            "iifname {} counter drop comment \"from a tunnel to this node itself\"",
            devices()
        ),
    ]);
    rules.base_chain("tunnel", "filter hook input priority filter", lines);
}

/// `{ "rbl-vx", "rbl-wg" }`: all devices of tunnels.
pub(super) fn devices() -> String {
    format!("{{ \"{LINK}\", \"{}\" }}", sealed::LINK)
}

/// Datagrams of VXLAN.
fn vxlan(rules: &mut Ruleset, config: &DatapathConfig, port: u16) -> Vec<String> {
    rules.map("peers4", "ipv4_addr : verdict");
    rules.map("peers6", "ipv6_addr : verdict");
    for node in config.peers() {
        let (map, chain) = match node.address {
            IpAddr::V4(v4) => ("peers4", format!("peer_{:08x}", v4.to_bits())),
            IpAddr::V6(v6) => ("peers6", format!("peer_{:032x}", v6.to_bits())),
        };
        rules.insert(map, node.address.to_string(), format!("goto {chain}"));
        rules.chain(&chain, from_block(config, node.block));
    }
    vec![
        format!("udp dport {port} ip saddr vmap @peers4"),
        format!("udp dport {port} ip6 saddr vmap @peers6"),
        format!("udp dport {port} counter drop comment \"not from a node\""),
    ]
}

fn from_block(config: &DatapathConfig, block: Block) -> [String; 3] {
    let mask = u32::MAX << (32 - block.prefix());
    let last = format!("& 0x{mask:08x} == 0x{:08x}", block.network().to_bits());
    let (source4, source6) = (INNER_IP + 12 * 8, INNER_IP + 8 * 8);
    let upper = config.plan.endpoint_v6(block.network()).to_bits() >> 32;
    [
        format!("@th,{INNER_TYPE},16 0x0800 @th,{source4},32 {last} accept"),
        format!(
            "@th,{INNER_TYPE},16 0x86dd @th,{source6},96 0x{upper:024x} @th,{},32 {last} accept",
            source6 + 96
        ),
        "counter drop comment \"not of the sender's block\"".into(),
    ]
}

/// In front of the guard: it is about packets of our own devices. VXLAN's datagrams are not tracked: each direction has a port of its
/// own, so tracking knows no answers, and would cost every packet between nodes two looks more.
pub(super) fn elsewhere(rules: &mut Ruleset, config: &DatapathConfig) -> String {
    let ours = super::ours();
    let Some(tunnel) = &config.tunnel else {
        return format!("iifname != {ours} accept");
    };
    let TunnelKind::Vxlan { port, .. } = tunnel.kind;
    let untracked = format!("udp dport {port} notrack");
    rules.chain("arriving", [format!("{untracked} accept")]);
    rules.base_chain("departing", "filter hook output priority raw", [untracked]);
    format!("iifname != {ours} goto arriving")
}

/// What leaves a tunnel is for our block; the rest of the guard is about containers.
pub(super) fn guard(rules: &mut Ruleset, config: &DatapathConfig) -> Option<String> {
    if config.tunnel.is_none() && config.sealed.is_none() {
        return None;
    }
    let (plan, range) = (&config.plan, &config.range);
    let range6 = format!("{}/{}", plan.endpoint_v6(range.network()), 96 + range.prefix());
    let lines = [
        format!("ip daddr {range} accept"),
        format!("ip6 daddr {range6} accept"),
        "counter drop comment \"not for this node\"".into(),
    ];
    rules.chain("brought", lines);
    Some(format!("iifname {} goto brought", devices()))
}
