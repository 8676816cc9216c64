//! The node's LAN: private networks that it is directly connected to, as its routes say.

use super::DatapathError;
use super::netlink::failed;
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::collections::BTreeSet;
use std::net::IpAddr;

// linux/rtnetlink.h, RT_TABLE_LOCAL: the node itself.
const LOCAL_TABLE: u8 = 255;

/// First address and leading bits.
pub type Network = (IpAddr, u8);

/// Nobody's on the internet: RFC 1918, 6598 (what providers use between them and their customers), 4193.
const PRIVATE: [(&str, u8); 5] = [
    ("10.0.0.0", 8),
    ("172.16.0.0", 12),
    ("192.168.0.0", 16),
    ("100.64.0.0", 10),
    ("fc00::", 7),
];

/// The private networks to which the node has a route without a router between. `ours`: indices of our own links, which do
/// not count.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn connected(node: &Handle, ours: &BTreeSet<u32>) -> Result<BTreeSet<Network>, DatapathError> {
    let mut networks = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let routes = node.route().get(all).execute().try_collect::<Vec<_>>();
        let routes = routes.await.map_err(failed("list routes"))?;
        networks.extend(routes.iter().filter_map(|route| direct(route, ours)));
    }
    Ok(private(networks))
}

/// Where a route leads without a router, over a link that is not ours.
fn direct(route: &RouteMessage, ours: &BTreeSet<u32>) -> Option<Network> {
    let (mut network, mut link) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => network = Some(IpAddr::from(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => network = Some(IpAddr::from(*v6)),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    let is_direct =
        route.header.kind == RouteType::Unicast && route.header.table != LOCAL_TABLE && !ours.contains(&link?);
    is_direct.then_some((network?, route.header.destination_prefix_length))
}

/// Those that are private and not a part of another one.
fn private(networks: BTreeSet<Network>) -> BTreeSet<Network> {
    let is_private = |network: &Network| {
        let ranges = PRIVATE.map(|(first, prefix)| (first.parse().expect("a constant address"), prefix));
        ranges.iter().any(|range| holds(range, network))
    };
    let private: Vec<Network> = networks.into_iter().filter(is_private).collect();
    let is_part = |network: &Network| private.iter().any(|other| other != network && holds(other, network));
    private.iter().filter(|network| !is_part(network)).copied().collect()
}

/// Whether `inner` lies in `outer`.
fn holds(outer: &Network, inner: &Network) -> bool {
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
        IpAddr::V6(v6) => (v6.to_bits(), false),
    };
    let ((first, is_v4), (other, is_other_v4)) = (of(outer.0), of(inner.0));
    let differs = (first ^ other).checked_shr(128 - u32::from(outer.1)).unwrap_or(0);
    is_v4 == is_other_v4 && outer.1 <= inner.1 && differs == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_found_once() {
        let network = |text: &str| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        };
        let given = [
            "192.168.1.0/24",
            "192.168.1.7/32",
            "203.0.113.0/24",
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.9.0.0/16",
            "172.17.0.0/16",
            "172.32.0.0/16",
            "100.64.3.0/24",
            "2001:db8::/64",
            "fd12:3456::/64",
            "fe80::/64",
            "::/0",
        ];
        let expected = [
            "10.0.0.0/8",
            "100.64.3.0/24",
            "172.17.0.0/16",
            "192.168.1.0/24",
            "fd12:3456::/64",
        ];
        let found = private(given.into_iter().map(network).collect());
        assert_eq!(found, expected.into_iter().map(network).collect());
    }
}
