//! What on this node gets into the overlay's way, found by looking, and named. Reading is at the edge, judging is pure.

use crate::datapath::ruleset::TABLE;
use crate::datapath::tunnel::{self, Tunnel, TunnelKind};
use crate::datapath::{Overlay, sealed};
use crate::dns;
use crate::firewalls::{self, Drop, Packet, Tables};
use roble_core::overlay::plan::Plan;
use roble_proto::local_net::Finding;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::process::Command;

/// Prefix of our own links.
const OURS: &str = crate::datapath::LINK_PREFIX;
/// The table of connections counts as full from so many percent on.
const FULL_PERCENT: u64 = 90;

/// A network that the node has a route to: first and last address, prefix, device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    first: IpAddr,
    /// How many bits of an address it looks at.
    pub prefix: u8,
    /// Where it leads.
    pub device: String,
}

impl Route {
    /// Whether packets to `address` may take it.
    pub fn holds(&self, address: IpAddr) -> bool {
        let is_of_family = self.first.is_ipv4() == address.is_ipv4();
        is_of_family && self.first <= address && address <= last_of(self.first, self.prefix)
    }
}

/// IPv4 routes of this node.
pub fn own_routes() -> Vec<Route> {
    routes_v4(&std::fs::read_to_string("/proc/self/net/route").unwrap_or_default())
}

/// Everything that is found now. Takes some milliseconds.
pub async fn look(overlay: &Overlay) -> Vec<Finding> {
    let plan = &overlay.plan;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut routes = routes_v4(&read("/proc/self/net/route"));
    routes.extend(routes_v6(&read("/proc/self/net/ipv6_route")));
    let mut found = clashes(plan, &routes);
    let number = |path: &str| read(path).trim().parse().unwrap_or(0);
    let (count, most) = (
        number("/proc/sys/net/netfilter/nf_conntrack_count"),
        number("/proc/sys/net/netfilter/nf_conntrack_max"),
    );
    found.extend(full(count, most));
    let uplink = routes
        .iter()
        .filter(|route| !route.device.starts_with(OURS) && route.device != "lo");
    let uplink = uplink
        .min_by_key(|route| route.prefix)
        .map_or("", |route| &route.device);
    let (tables, are_unread) = tables().await;
    found.extend(drops(&tables, &packets(overlay, uplink)));
    found.extend(
        are_unread.then(|| Finding {
            code: "rules-unread".to_owned(),
            message: "iptables-legacy has rules on this node that could not be read".to_owned(),
            hint: "look whether they drop what containers send: iptables-legacy-save; or move them to iptables-nft"
                .to_owned(),
        }),
    );
    found
}

/// Tables of others, and whether some could not be read.
async fn tables() -> (Tables, bool) {
    let mut tables = Tables::default();
    let listed = output("nft", &["list", "tables"]).await.unwrap_or_default();
    for table in listed.lines().filter_map(|line| line.strip_prefix("table ")) {
        if table != TABLE {
            let arguments: Vec<&str> = ["--stateless", "list", "table"]
                .into_iter()
                .chain(table.split(' '))
                .collect();
            tables.read_listed(&output("nft", &arguments).await.unwrap_or_default());
        }
    }
    let mut are_unread = false;
    for (names, family) in [("ip_tables_names", ""), ("ip6_tables_names", "6")] {
        // What is there of the older iptables; nft does not list it.
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if names.lines().any(|name| name == "filter") {
            let script =
                format!("ip{family}tables-legacy-save -t filter | ip{family}tables-restore-translate -f /dev/stdin");
            match output("sh", &["-c", &script]).await {
                Some(text) if text.contains("add chain") => tables.read_translated(&text, " of iptables-legacy"),
                _ => are_unread = true,
            }
        }
    }
    (tables, are_unread)
}

async fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the overlay sends through other tables' chains. `uplink`: the link to other machines.
fn packets(overlay: &Overlay, uplink: &str) -> Vec<Packet> {
    let plan = &overlay.plan;
    let gateway = overlay.block.map_or(plan.endpoints.0, |block| block.gateway());
    let nth = |number: u32| Ipv4Addr::from_bits(gateway.to_bits() + number);
    let (near, here, far) = (nth(2), nth(1), plan.endpoints.1);
    let [container, other, uplink] = [format!("{OURS}0"), format!("{OURS}1"), uplink.to_owned()].map(Some);
    let vxlan = (!overlay.nodes.is_empty()).then_some(overlay.tunnel).flatten();
    let sealed = overlay.sealed.as_ref().filter(|sealed| !sealed.blocks.is_empty());
    let devices = [vxlan.map(|_| tunnel::LINK), sealed.map(|_| sealed::LINK)];
    let mut packets = Vec::new();
    let mut add = |what, hook, links: [&Option<String>; 2], ends, port, is_translated| {
        packets.push(Packet {
            what,
            hook,
            links: links.map(Clone::clone),
            ends,
            port,
            is_translated,
        });
    };
    // TEST-NET-3 and the documentation's prefix stand for the outside.
    for outside in [
        IpAddr::from([203, 0, 113, 1]),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ] {
        let [near, here, far, gateway] = [near, here, far, gateway].map(|v4| match outside {
            IpAddr::V4(_) => IpAddr::from(v4),
            IpAddr::V6(_) => plan.endpoint_v6(v4).into(),
        });
        add(
            "packets between containers of this node",
            "forward",
            [&container, &other],
            [here, near],
            ("tcp", 1),
            false,
        );
        for device in devices.into_iter().flatten() {
            let device = Some(device.to_owned());
            add(
                "packets to other nodes",
                "forward",
                [&container, &device],
                [here, far],
                ("tcp", 1),
                false,
            );
            add(
                "packets from other nodes",
                "forward",
                [&device, &container],
                [far, here],
                ("tcp", 1),
                false,
            );
        }
        add(
            "packets of containers to the outside",
            "forward",
            [&container, &uplink],
            [here, outside],
            ("tcp", 1),
            false,
        );
        add(
            "packets to published ports",
            "forward",
            [&uplink, &container],
            [outside, here],
            ("tcp", 1),
            true,
        );
        add(
            "containers' questions for names",
            "input",
            [&container, &None],
            [here, gateway],
            ("udp", dns::PORT),
            false,
        );
    }
    let ports = [
        vxlan.map(
            |Tunnel {
                 address,
                 kind: TunnelKind::Vxlan { port, .. },
             }| (address, port),
        ),
        sealed.map(|sealed| (sealed.address, sealed.port)),
    ];
    for (address, port) in ports.into_iter().flatten() {
        add(
            "the tunnel of other nodes",
            "input",
            [&uplink, &None],
            [address, address],
            ("udp", port),
            false,
        );
        add(
            "the tunnel to other nodes",
            "output",
            [&None, &uplink],
            [address, address],
            ("udp", port),
            false,
        );
    }
    packets
}

/// What drops some of the packets, once with all that it drops.
fn drops(tables: &Tables, packets: &[Packet]) -> Vec<Finding> {
    let mut by: BTreeMap<(&str, Option<u16>, Drop), BTreeSet<&str>> = BTreeMap::new();
    for packet in packets {
        let tunnel = packet.port.1;
        let tunnel = (packet.port.0 == "udp" && tunnel != dns::PORT).then_some(tunnel);
        for drop in tables.drops(packet) {
            by.entry((packet.hook, tunnel, drop)).or_default().insert(packet.what);
        }
    }
    let findings = by.into_iter().map(|((hook, port, drop), what)| {
        let Drop {
            table,
            chain,
            rule,
            is_sure,
        } = drop;
        let rule = rule.map_or("the policy".to_owned(), |rule| format!("rule `{rule}`"));
        let unless = if is_sure {
            ""
        } else {
            ", unless a rule before it lets them pass that was not understood"
        };
        let what: Vec<&str> = what.into_iter().collect();
        Finding {
            code: format!("{hook}-drop"),
            message: format!(
                "{rule} of chain `{chain}` of table `{table}` drops {}{unless}",
                what.join(", ")
            ),
            hint: firewalls::advice(tables, &table, hook, port),
        }
    });
    findings.collect()
}

/// Routes of the node that lead where the overlay's addresses are.
fn clashes(plan: &Plan, routes: &[Route]) -> Vec<Finding> {
    let (first, last) = plan.endpoints;
    let services = (plan.services.network(), plan.services.last());
    let services_v6 = u128::from(plan.services_v6) << 112;
    let ranges: [(&str, IpAddr, IpAddr); 4] = [
        ("endpoints", first.into(), last.into()),
        ("services", services.0.into(), services.1.into()),
        (
            "endpoints",
            plan.endpoint_v6(first).into(),
            plan.endpoint_v6(last).into(),
        ),
        (
            "services",
            Ipv6Addr::from_bits(services_v6).into(),
            Ipv6Addr::from_bits(services_v6 | (u128::MAX >> 16)).into(),
        ),
    ];
    let foreign = routes
        .iter()
        .filter(|route| route.prefix > 0 && !route.device.starts_with(OURS));
    let mut found = Vec::new();
    for route in foreign {
        let end = last_of(route.first, route.prefix);
        for (what, first, last) in &ranges {
            let overlaps = first.is_ipv4() == route.first.is_ipv4() && route.first <= *last && *first <= end;
            if overlaps {
                found.push(Finding {
                    code: "range-clash".to_owned(),
                    message: format!(
                        "the route to {}/{} over {} lies in the overlay's addresses of {what}, {first} to {last}",
                        route.first, route.prefix, route.device
                    ),
                    hint: "give the overlay another range (overlay.* at the root) or the other network another one; until then \
                           containers do not reach that network"
                        .to_owned(),
                });
            }
        }
    }
    found
}

fn last_of(first: IpAddr, prefix: u8) -> IpAddr {
    match first {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | u32::MAX.checked_shr(prefix.into()).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | u128::MAX.checked_shr(prefix.into()).unwrap_or(0)).into(),
    }
}

/// /proc/net/route: device, destination, ..., mask in the eighth column, in hex, bytes in memory's order.
pub(crate) fn routes_v4(text: &str) -> Vec<Route> {
    let read = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let address = |at: usize| Some(u32::from_str_radix(columns.get(at)?, 16).ok()?.to_ne_bytes());
        Some(Route {
            first: Ipv4Addr::from(address(1)?).into(),
            prefix: u32::from_be_bytes(address(7)?).leading_ones() as u8,
            device: (*columns.first()?).to_owned(),
        })
    };
    text.lines().skip(1).filter_map(read).collect()
}

/// /proc/net/ipv6_route: destination, prefix in hex, ..., device last. Routes to the node itself and to nowhere are there too.
fn routes_v6(text: &str) -> Vec<Route> {
    let read = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        Some(Route {
            first: Ipv6Addr::from_bits(u128::from_str_radix(columns.first()?, 16).ok()?).into(),
            prefix: u8::from_str_radix(columns.get(1)?, 16).ok()?,
            device: (*columns.last()?).to_owned(),
        })
    };
    let routes = text.lines().filter_map(read);
    routes.filter(|route| route.device != "lo").collect()
}

/// The table of connections, if there is hardly room for new ones.
/// What another node's silence cannot tell: this one has no tunnel to it. `failure`: why.
pub fn no_tunnel(failure: String) -> Finding {
    Finding {
        code: "no-tunnel".to_owned(),
        message: format!("no encrypted tunnel to other nodes: {failure}"),
        hint: "is roble-tunnel beside roble-net, or on its path? roble-net tries again every few seconds".to_owned(),
    }
}

fn full(count: u64, most: u64) -> Option<Finding> {
    (most > 0 && count * 100 >= most * FULL_PERCENT).then(|| Finding {
        code: "conntrack-full".to_owned(),
        message: format!("{count} of {most} connections are tracked: new ones are dropped when it is full"),
        hint: "raise net.netfilter.nf_conntrack_max, or find who opens them: conntrack -L".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      docker0\t0000120A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                      rbl-wg\t4000120A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0\n";
    const V6: &str = "fdff1000000000000000000000000000 14 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000100 00000001 00000000 00000001     vpn0\n\
                      00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000000 00000002 00000000 80200001       lo\n";

    #[test]
    fn networks_that_lie_in_the_plan_are_named() {
        let mut routes = routes_v4(V4);
        assert_eq!(routes.len(), 3);
        routes.extend(routes_v6(V6));
        let found = clashes(&Plan::default(), &routes);
        let messages: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].contains("10.18.0.0/16 over docker0") && messages[0].contains("endpoints"));
        assert!(messages[1].contains("fdff:1000::/20 over vpn0") && messages[1].contains("services"));
    }

    #[test]
    fn a_full_table_is_named() {
        assert!(full(0, 0).is_none() && full(89, 100).is_none());
        assert!(full(90, 100).unwrap().message.contains("90 of 100"));
    }
}
