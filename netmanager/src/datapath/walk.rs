//! What the rules do with a packet, read from the table as data: where a service address leads to, and whether one endpoint
//! reaches another. It walks the chains and sets that the kernel walks; written for the rules that [`rules`](super::rules) makes.

use super::ruleset::Ruleset;
use roble_core::ports::{PortRange, Protocol};
use roble_proto::local_net::Permit;
use std::net::{IpAddr, Ipv4Addr};

/// The endpoints that new flows of `caller` to `address` are sent to, both of one family; none if it leads nowhere.
pub fn turned(rules: &Ruleset, caller: IpAddr, address: IpAddr) -> Vec<IpAddr> {
    let (family, protocol) = match caller {
        IpAddr::V4(_) => ("4", "meta nfproto ipv4"),
        IpAddr::V6(_) => ("6", "meta nfproto ipv6"),
    };
    let turns = rules.element(&format!("turns{family}"), &format!("{caller} . {address}"));
    let verdict = turns.or_else(|| rules.element(&format!("callers{family}"), &caller.to_string()));
    let Some(chain) = verdict.and_then(|verdict| verdict.strip_prefix("goto ")) else {
        return Vec::new();
    };
    let mut chosen = rules.rules_of(chain).iter().filter(|rule| rule.starts_with(protocol));
    let Some((choice, map)) = chosen.find_map(|rule| rule.split_once(" map @")) else {
        return Vec::new();
    };
    let to: Vec<&str> = match choice.contains("numgen") {
        true => rules.elements(map).map(|(_, to)| to).collect(),
        false => rules.element(map, &address.to_string()).into_iter().collect(),
    };
    let mut to: Vec<IpAddr> = to.into_iter().filter_map(|to| to.parse().ok()).collect();
    to.sort_unstable();
    to
}

/// Whether a new flow between two endpoints is let through, to `port` or, without one, to any.
pub fn permit(rules: &Ruleset, from: Ipv4Addr, to: Ipv4Addr, port: Option<(Protocol, u16)>) -> Permit {
    let jumps = [("groups4", from), ("groups4", to), ("called4", to)];
    let mut open = Vec::new();
    for (map, by) in jumps {
        let verdict = rules.element(map, &by.to_string());
        let Some(chain) = verdict.and_then(|verdict| verdict.strip_prefix("jump ")) else {
            continue;
        };
        for rule in rules.rules_of(chain) {
            match (accepted(rules, rule, from, to), map) {
                (None, _) => {}
                (Some(_), "groups4") => return Permit::SameApplication,
                (Some(None), _) => return Permit::Rule(Vec::new()),
                (Some(Some(range)), _) => open.push(range),
            }
        }
    }
    let is_open = |(protocol, port)| open.iter().any(|range| range.holds(protocol, port));
    match port {
        _ if open.is_empty() => Permit::Refused,
        Some(port) if !is_open(port) => Permit::OtherPorts(open),
        _ => Permit::Rule(open),
    }
}

/// Whether a rule accepts a flow between these, and at which ports; `Some(None)`: at all.
fn accepted(rules: &Ruleset, rule: &str, from: Ipv4Addr, to: Ipv4Addr) -> Option<Option<PortRange>> {
    let mut words = rule.split(' ');
    let mut ports = None;
    loop {
        match words.next()? {
            "accept" => return Some(ports),
            "ip" => {
                let address = match words.next()? {
                    "saddr" => from,
                    "daddr" => to,
                    _ => return None,
                };
                let set = words.next()?.strip_prefix('@')?;
                rules.element(set, &address.to_string())?;
            }
            protocol @ ("tcp" | "udp") if words.next()? == "dport" => {
                ports = Some(format!("{}/{protocol}", words.next()?).parse().ok()?);
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 18, 0, last)
    }

    fn table() -> Ruleset {
        let mut rules = Ruleset::default();
        for map in ["turns4", "callers4", "groups4", "called4"] {
            rules.map(map, "ipv4_addr : verdict");
        }
        rules.insert("turns4", "10.18.0.2 . 10.30.0.7".into(), "goto turn_x".into());
        rules.insert("callers4", "10.18.0.2".into(), "goto instances_x".into());
        rules.numbered("turns4_x", "ip daddr");
        rules.insert("turns4_x", "0".into(), "10.18.1.9".into());
        rules.insert("turns4_x", "1".into(), "10.18.0.3".into());
        rules.map("instances4_x", "ipv4_addr : ipv4_addr");
        rules.insert("instances4_x", "10.30.0.8".into(), "10.18.0.3".into());
        rules.chain(
            "turn_x",
            [
                "meta nfproto ipv4 meta l4proto tcp dnat ip to numgen inc mod 2 map @turns4_x",
                "meta nfproto ipv4 dnat ip to numgen inc mod 2 map @turns4_x",
                "meta nfproto ipv6 dnat ip6 to numgen inc mod 2 map @turns6_x",
            ],
        );
        rules.chain(
            "instances_x",
            ["meta nfproto ipv4 dnat ip to ip daddr map @instances4_x"],
        );
        rules.set("members4_x", "ipv4_addr");
        for last in [2, 3] {
            rules.insert("groups4", v4(last).to_string(), "jump group_x".into());
            rules.put("members4_x", v4(last).to_string());
        }
        rules.chain(
            "group_x",
            [
                "ip saddr @members4_x ip daddr @members4_x accept",
                "ip6 saddr @members6_x ip6 daddr @members6_x accept",
            ],
        );
        rules.insert("called4", v4(3).to_string(), "jump allow_x".into());
        rules.set("all4", "ipv4_addr");
        rules.set("some4", "ipv4_addr");
        rules.put("all4", v4(8).to_string());
        rules.put("some4", v4(9).to_string());
        rules.chain(
            "allow_x",
            [
                "ip saddr @all4 accept",
                "ip saddr @some4 tcp dport 80 accept",
                "ip saddr @some4 udp dport 5000-5010 accept",
                "ip6 saddr @all6 accept",
            ],
        );
        rules
    }

    #[test]
    fn an_address_leads_to_all_that_take_turns_or_to_one_instance() {
        let rules = table();
        let caller = v4(2).into();
        let of = |address: [u8; 4]| turned(&rules, caller, address.into());
        assert_eq!(of([10, 30, 0, 7]), [IpAddr::from(v4(3)), IpAddr::from([10, 18, 1, 9])]);
        assert_eq!(of([10, 30, 0, 8]), [IpAddr::from(v4(3))]);
        assert!(of([10, 30, 0, 9]).is_empty());
        assert!(
            turned(&rules, v4(4).into(), [10, 30, 0, 7].into()).is_empty(),
            "nobody's"
        );
    }

    #[test]
    fn a_flow_is_let_through_by_its_application_or_by_a_rule_at_its_ports() {
        let rules = table();
        let ports: Vec<PortRange> = ["80/tcp", "5000-5010/udp"].map(|range| range.parse().unwrap()).into();
        let of = |from, port| permit(&rules, v4(from), v4(3), port);
        assert_eq!(of(2, None), Permit::SameApplication);
        assert_eq!(of(8, Some((Protocol::Udp, 1))), Permit::Rule(vec![]));
        assert_eq!(of(9, None), Permit::Rule(ports.clone()));
        assert_eq!(of(9, Some((Protocol::Udp, 5005))), Permit::Rule(ports.clone()));
        assert_eq!(of(9, Some((Protocol::Udp, 80))), Permit::OtherPorts(ports));
        assert_eq!(of(10, None), Permit::Refused);
        assert_eq!(permit(&rules, v4(8), v4(2), None), Permit::Refused, "it has no rules");
    }
}
