//! Rules of the node's other tables, walked with packets as the overlay sends them: which rule drops what.
//!
//! Reads what `nft list` prints, and `iptables-restore-translate` for rules of the older iptables. A condition that is not
//! understood counts as not met, and the finding says so; what only some packets meet (`limit`) is such a condition.

use crate::datapath::LINK_PREFIX;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One packet, the first of its flow, at one point of its way through the node.
#[derive(Debug, Clone)]
pub struct Packet {
    /// What it stands for: "packets between containers of this node".
    pub what: &'static str,
    /// `forward`, `input`, `output`.
    pub hook: &'static str,
    /// Names of the links that it came in by and will leave by, as far as there are.
    pub links: [Option<String>; 2],
    /// From where to where.
    pub ends: [IpAddr; 2],
    /// `tcp` or `udp`, and the port it is for.
    pub port: (&'static str, u16),
    /// Whether its destination was translated.
    pub is_translated: bool,
}

/// What drops a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drop {
    /// Family and name.
    pub table: String,
    /// Name.
    pub chain: String,
    /// The rule, or `None` if it is the chain's policy.
    pub rule: Option<String>,
    /// Whether all conditions in front of it were understood.
    pub is_sure: bool,
}

/// Base chain: hook, and whether its policy is to drop.
type Base = (String, bool);

/// Chains of other tables.
#[derive(Debug, Default)]
pub struct Tables {
    /// By table and name.
    chains: BTreeMap<(String, String), (Option<Base>, Vec<String>)>,
}

enum Verdict {
    Accept,
    Drop(Drop),
    Nothing,
}

impl Tables {
    /// Takes in what `nft list table` prints.
    pub fn read_listed(&mut self, text: &str) {
        let (mut table, mut chain) = (String::new(), None);
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("table ").and_then(|name| name.strip_suffix(" {")) {
                table = name.to_owned();
            } else if let Some(name) = line.strip_prefix("chain ").and_then(|name| name.strip_suffix(" {")) {
                let key = (table.clone(), name.to_owned());
                self.chains.entry(key.clone()).or_default();
                chain = Some(key);
            } else if line == "}" {
                chain = None;
            } else if let Some((base, rules)) = chain.as_ref().and_then(|key| self.chains.get_mut(key)) {
                match line.starts_with("type ") {
                    true => *base = base_of(line),
                    false => rules.push(line.to_owned()),
                }
            }
        }
    }

    /// Takes in what `iptables-restore-translate` prints. `suffix`: behind the table's name, to tell it from nft's own.
    pub fn read_translated(&mut self, text: &str, suffix: &str) {
        for line in text.lines() {
            let mut words = line.splitn(6, ' ');
            let mut next = || words.next().unwrap_or_default();
            let ("add", kind @ ("chain" | "rule")) = (next(), next()) else {
                continue;
            };
            let table = format!("{} {}{suffix}", next(), next());
            let (base, rules) = self.chains.entry((table, next().to_owned())).or_default();
            let rest = next();
            match kind {
                "chain" => *base = base_of(rest.trim_matches(['{', '}', ' '])),
                _ => rules.push(rest.to_owned()),
            }
        }
    }

    /// Whether a table has a chain whose name begins so.
    pub fn has_chain(&self, table: &str, prefix: &str) -> bool {
        self.chains
            .keys()
            .any(|(of, name)| of == table && name.starts_with(prefix))
    }

    /// All that drops the packet; each base chain of its hook has its say.
    pub fn drops(&self, packet: &Packet) -> Vec<Drop> {
        let is_of_family = |table: &str| match table.split(' ').next() {
            Some("ip") => packet.ends[1].is_ipv4(),
            Some("ip6") => packet.ends[1].is_ipv6(),
            Some("inet") => true,
            _ => false,
        };
        let mut found = Vec::new();
        for ((table, name), (base, _)) in &self.chains {
            let Some((hook, drops)) = base else { continue };
            if hook != packet.hook || !is_of_family(table) {
                continue;
            }
            let mut is_sure = true;
            match self.walk(table, name, packet, &mut is_sure, 0) {
                Verdict::Drop(by) => found.push(by),
                Verdict::Nothing if *drops => found.push(Drop {
                    table: table.clone(),
                    chain: name.clone(),
                    rule: None,
                    is_sure,
                }),
                Verdict::Accept | Verdict::Nothing => {}
            }
        }
        found
    }

    fn walk(&self, table: &str, chain: &str, packet: &Packet, is_sure: &mut bool, depth: usize) -> Verdict {
        // The kernel allows 16 jumps.
        let key = (table.to_owned(), chain.to_owned());
        let Some((_, rules)) = self.chains.get(&key).filter(|_| depth <= 16) else {
            return Verdict::Nothing;
        };
        for rule in rules {
            let words = words(rule);
            let (does_apply, statement) = apply(&words, packet);
            match (does_apply, statement) {
                (Some(false), _) | (_, []) => {}
                (None, _) => *is_sure = false,
                (Some(true), ["accept", ..]) => return Verdict::Accept,
                (Some(true), ["return", ..]) => return Verdict::Nothing,
                (Some(true), ["drop" | "reject", ..]) => {
                    return Verdict::Drop(Drop {
                        table: table.to_owned(),
                        chain: chain.to_owned(),
                        rule: Some(rule.clone()),
                        is_sure: *is_sure,
                    });
                }
                (Some(true), [how, to, ..]) => match self.walk(table, to, packet, is_sure, depth + 1) {
                    Verdict::Nothing if *how == "jump" => {}
                    verdict => return verdict,
                },
                (Some(true), _) => *is_sure = false,
            }
        }
        Verdict::Nothing
    }
}

/// From `type filter hook forward priority filter; policy drop;`. Chains of other types do not drop.
fn base_of(line: &str) -> Option<Base> {
    let hook = line.strip_prefix("type filter hook ")?.split(' ').next()?;
    Some((hook.to_owned(), line.contains("policy drop")))
}

/// Words of a rule; what is in quotes and what is in braces is one each.
fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim();
    while !rest.is_empty() {
        let end = match rest.as_bytes()[0] {
            b'"' => rest[1..].find('"').map(|at| at + 2),
            b'{' => rest.find('}').map(|at| at + 1),
            _ => rest.find(' '),
        };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(word);
        rest = after.trim_start();
    }
    words
}

/// Whether the conditions of a rule hold, `None` if one was not understood and no other rules it out; and its statement.
fn apply<'a>(mut words: &'a [&'a str], packet: &Packet) -> (Option<bool>, &'a [&'a str]) {
    let mut holds = Some(true);
    loop {
        let (used, result) = match words {
            ["accept" | "return" | "drop" | "reject" | "jump" | "goto", ..] => return (holds, words),
            [] => return (holds, &[]),
            ["meta", ..] => (1, Some(true)),
            ["counter", "packets", ..] => (5, Some(true)),
            ["counter", ..] => (1, Some(true)),
            ["comment" | "prefix" | "level" | "flags", ..] => (2, Some(true)),
            ["log", ..] => (1, Some(true)),
            ["fib", "daddr", "type", rest @ ..] => {
                let kind = if packet.hook == "input" { "local" } else { "unicast" };
                condition(3, rest, |value| Some(value == kind))
            }
            ["ct", "state", rest @ ..] => condition(2, rest, |value| Some(value == "new")),
            ["ct", "status", rest @ ..] => {
                condition(2, rest, |value| (value == "dnat").then_some(packet.is_translated))
            }
            ["iifname" | "iif", rest @ ..] => condition(1, rest, |value| Some(is_link(&packet.links[0], value))),
            ["oifname" | "oif", rest @ ..] => condition(1, rest, |value| Some(is_link(&packet.links[1], value))),
            ["nfproto", rest @ ..] => condition(1, rest, |value| Some((value == "ipv6") == packet.ends[1].is_ipv6())),
            ["l4proto", rest @ ..] | ["ip", "protocol", rest @ ..] | ["ip6", "nexthdr", rest @ ..] => {
                let used = words.len() - rest.len();
                condition(used, rest, |value| Some(value == packet.port.0))
            }
            [family @ ("ip" | "ip6"), end @ ("saddr" | "daddr"), rest @ ..] => {
                let address = packet.ends[usize::from(*end == "daddr")];
                match address.is_ipv4() == (*family == "ip") {
                    true => condition(2, rest, |value| is_within(address, value)),
                    false => (2, Some(false)),
                }
            }
            ["icmp" | "icmpv6", ..] => (1, Some(false)),
            [protocol @ ("tcp" | "udp"), ..] if *protocol != packet.port.0 => (1, Some(false)),
            // A port of the caller's choice is none that a rule names.
            [_, "sport", rest @ ..] => condition(2, rest, |_| Some(false)),
            ["tcp" | "udp" | "th", "dport", rest @ ..] => condition(2, rest, |value| is_port(packet.port.1, value)),
            _ => (1, None),
        };
        holds = match (holds, result) {
            (Some(false), _) | (_, Some(false)) => return (Some(false), &[]),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        };
        words = words.get(used..).unwrap_or_default();
    }
}

/// A condition whose value comes after `before` words: how many it has, and whether it holds.
fn condition(before: usize, rest: &[&str], is_met: impl Fn(&str) -> Option<bool>) -> (usize, Option<bool>) {
    let (is_negated, values) = match rest {
        ["!=", values @ ..] => (true, values),
        ["==", values @ ..] => (false, values),
        values => (false, values),
    };
    let used = before + rest.len() - values.len() + 1;
    let Some(value) = values
        .first()
        .filter(|value| !value.starts_with('@') && **value != "vmap")
    else {
        return (used, None);
    };
    let mut result = Some(false);
    for one in value.trim_matches(['{', '}', ' ']).split(',') {
        match is_met(one.trim().trim_matches('"')) {
            Some(true) => return (used, Some(!is_negated)),
            Some(false) => {}
            None => result = None,
        }
    }
    (used, result.map(|met: bool| met != is_negated))
}

fn is_link(link: &Option<String>, pattern: &str) -> bool {
    let name = link.as_deref().unwrap_or_default();
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn is_port(port: u16, value: &str) -> Option<bool> {
    let number = |text: &str| text.parse::<u16>().ok();
    match value.split_once('-') {
        Some((first, last)) => Some((number(first)?..=number(last)?).contains(&port)),
        // Or a name of a service.
        None => number(value).map(|value| value == port),
    }
}

fn is_within(address: IpAddr, value: &str) -> Option<bool> {
    if let Some((first, last)) = value.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        return Some((first..=last).contains(&address));
    }
    let (network, prefix) = value.split_once('/').unwrap_or((value, "128"));
    let prefix: u32 = prefix.parse().ok()?;
    match (network.parse().ok()?, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
            Some((network.to_bits() ^ address.to_bits()) & mask == 0)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
            Some((network.to_bits() ^ address.to_bits()) & mask == 0)
        }
        _ => Some(false),
    }
}

/// What to do about it, in the words of the program whose rules these are. `port`: of the tunnel, if that is what is dropped.
pub fn advice(tables: &Tables, table: &str, hook: &str, port: Option<u16>) -> String {
    let program = if table == "inet firewalld" {
        "firewalld"
    } else if tables.has_chain(table, "ufw") {
        "ufw"
    } else if tables.has_chain(table, "DOCKER-USER") {
        "Docker"
    } else {
        ""
    };
    let iptables = if table.starts_with("ip6 ") {
        "ip6tables"
    } else {
        "iptables"
    };
    let own = LINK_PREFIX;
    match (program, hook, port) {
        ("firewalld", "input", Some(port)) => {
            format!("firewall-cmd --add-port={port}/udp, and once more with --permanent")
        }
        ("firewalld", ..) => {
            format!("firewall-cmd --zone=trusted --add-interface={own}+, and once more with --permanent")
        }
        ("ufw", "forward", _) => format!("ufw route allow in on {own}+; ufw route allow out on {own}+"),
        ("ufw", "input", Some(port)) => format!("ufw allow {port}/udp"),
        ("ufw", "input", None) => format!("ufw allow in on {own}+ to any port 53"),
        ("ufw", _, Some(port)) => format!("ufw allow out {port}/udp"),
        ("Docker", "forward", _) => {
            format!("{iptables} -I DOCKER-USER -i {own}+ -j ACCEPT; {iptables} -I DOCKER-USER -o {own}+ -j ACCEPT")
        }
        (_, _, Some(port)) => format!("let UDP port {port} pass in front of it"),
        _ => format!("let pass in front of it what comes from and goes to links `{own}*`"),
    }
}

#[cfg(test)]
mod tests;
