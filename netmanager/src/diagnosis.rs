//! What on this node gets into the overlay's way, found by looking, and named. Reading is at the edge, judging is pure.

use roble_core::overlay::plan::Plan;
use roble_proto::local_net::Finding;
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
pub async fn look(plan: &Plan) -> Vec<Finding> {
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
    let listed = Command::new("nft")
        .args(["--stateless", "list", "chains"])
        .kill_on_drop(true)
        .output();
    if let Ok(listed) = listed.await {
        found.extend(droppers(&String::from_utf8_lossy(&listed.stdout)));
    }
    found
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
fn full(count: u64, most: u64) -> Option<Finding> {
    (most > 0 && count * 100 >= most * FULL_PERCENT).then(|| Finding {
        code: "conntrack-full".to_owned(),
        message: format!("{count} of {most} connections are tracked: new ones are dropped when it is full"),
        hint: "raise net.netfilter.nf_conntrack_max, or find who opens them: conntrack -L".to_owned(),
    })
}

/// Chains of others that drop what is forwarded unless they were told of it.
fn droppers(listed: &str) -> Vec<Finding> {
    let (mut table, mut chain) = ("", "");
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(['{', ' ']);
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(['{', ' ']);
        } else if line.contains("hook forward")
            && line.contains("policy drop")
            && table != crate::datapath::ruleset::TABLE
        {
            found.push(Finding {
                code: "forward-drop".to_owned(),
                message: format!("chain `{chain}` of table `{table}` drops what is forwarded, containers' packets too"),
                hint: format!(
                    "let them pass there: Docker: iptables -I DOCKER-USER -i {OURS}+ -j ACCEPT and the same with -o; ufw: ufw route \
                     allow in on IFACE; firewalld: put {OURS}+ into the zone `trusted`"
                ),
            });
        }
    }
    found
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
    fn a_full_table_and_chains_that_drop_are_named() {
        assert!(full(0, 0).is_none() && full(89, 100).is_none());
        assert!(full(90, 100).unwrap().message.contains("90 of 100"));
        let listed = "table inet roble {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
                      table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n\
                      \tchain INPUT {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n";
        let found = droppers(listed);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("`FORWARD` of table `ip filter`"), "{found:?}");
    }
}
