//! To containers of other nodes. Each kind of tunnel is one device, [`LINK`], over which the blocks of other nodes are
//! routed; what it may bring in is in the rules.
//!
//! VXLAN is for a trusted segment: it is not encrypted, and whoever can forge the address of a node there can send for it.
//! Nothing is learned from what arrives and nothing is ever broadcast: where a node is and which hardware address its
//! device has is written down on both sides. Another kind is another variant of [`TunnelKind`] and another arm of
//! [`ensure`].

use super::link::{self, Link};
use super::netlink::{To, ensure_address, ensure_mtu, ensure_neighbour, ensure_route, ensure_up, failed};
use super::{DatapathConfig, DatapathError, RemoteNode, sysctl};
use futures_util::TryStreamExt as _;
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Error, Handle, LinkVxlan};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Name of the device.
pub const LINK: &str = "rbl-vx";

/// UDP port, unless told otherwise.
pub const DEFAULT_PORT: u16 = 50_103;

/// What VXLAN adds to a packet over IPv4 and over IPv6, in bytes: outer IP, UDP, VXLAN, inner Ethernet.
const OVERHEAD: [u32; 2] = [20 + 8 + 8 + 14, 40 + 8 + 8 + 14];

/// How this node reaches others, and is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// This node's address in its site; one of its interfaces must have it.
    pub address: IpAddr,
    /// How packets travel.
    pub kind: TunnelKind,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    /// In the clear, in UDP.
    Vxlan {
        /// UDP port, the same on all nodes.
        port: u16,
        /// Number of the segment, 24 bits, the same on all nodes.
        vni: u32,
    },
}

impl Tunnel {
    /// Largest packet that fits through it, in bytes, if the way there takes `underlay` bytes.
    pub const fn mtu(&self, underlay: u32) -> u32 {
        let TunnelKind::Vxlan { .. } = self.kind;
        underlay.saturating_sub(OVERHEAD[self.address.is_ipv6() as usize])
    }
}

/// Hardware address of a node's device, from its block.
fn mac(block: Block) -> [u8; 6] {
    let [a, b, c, d] = block.gateway().octets();
    [0x02, 0x72, a, b, c, d]
}

/// MTU of the interface that has `address`.
///
/// # Errors
/// [`DatapathError::Netlink`]; [`DatapathError::TunnelAddress`] if there is none.
pub async fn underlay_mtu(node: &Handle, address: IpAddr) -> Result<u32, DatapathError> {
    let addresses = node.address().get().execute().try_collect::<Vec<_>>();
    let addresses = addresses.await.map_err(failed("list addresses"))?;
    let is_it = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(found) => *found == address,
        // IPv6 addresses have no other.
        AddressAttribute::Address(found) => found.is_ipv6() && *found == address,
        _ => false,
    };
    let missing = DatapathError::TunnelAddress { address };
    let found = addresses
        .iter()
        .find(|message| message.attributes.iter().any(is_it))
        .ok_or(missing)?;
    let links = link::list(node).await?;
    let link = links.iter().find(|link| link.index == found.header.index);
    Ok(link.ok_or(DatapathError::TunnelAddress { address })?.mtu)
}

/// Brings the device, its neighbours and the routes over it to what they shall be. Returns its index.
///
/// `existing`: the device, if there is one.
///
/// # Errors
/// [`DatapathError`]; what was done so far stays and is taken up by the next call.
pub async fn ensure(
    node: &Handle,
    tunnel: &Tunnel,
    config: &DatapathConfig,
    existing: Option<&Link>,
    has_v6: bool,
    mtu: u32,
) -> Result<u32, DatapathError> {
    let index = ensure_device(node, tunnel, config.range, existing).await?;
    sysctl::prepare_tunnel(LINK, has_v6)?;
    ensure_mtu(node, index, mtu).await?;
    for gateway in both(&config.plan, config.range.gateway(), has_v6) {
        ensure_address(node, index, gateway).await?;
    }
    ensure_up(node, index).await?;
    for gateway in both(&config.plan, config.range.gateway(), has_v6).filter(IpAddr::is_ipv6) {
        link::wait_local(node, gateway).await?;
    }
    let (mut networks, mut gateways, mut stations) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for peer in config.peers() {
        let mac = mac(peer.block);
        ensure_station(node, index, peer, mac).await?;
        stations.insert(mac.to_vec());
        let addresses = both(&config.plan, peer.block.gateway(), has_v6);
        for (gateway, network) in addresses.zip(both(&config.plan, peer.block.network(), has_v6)) {
            ensure_neighbour(node, index, gateway, &mac).await?;
            let prefix = peer.block.prefix() + if network.is_ipv6() { 96 } else { 0 };
            let to = To::Network {
                network,
                prefix,
                gateway,
            };
            ensure_route(node, index, to).await?;
            networks.insert((network, prefix));
            gateways.insert(gateway);
        }
    }
    remove_others(node, index, &networks, &gateways, &stations).await?;
    Ok(index)
}

pub(super) fn both(plan: &Plan, v4: Ipv4Addr, has_v6: bool) -> impl Iterator<Item = IpAddr> + use<> {
    let v6 = has_v6.then(|| plan.endpoint_v6(v4).into());
    [v4.into()].into_iter().chain(v6)
}

async fn ensure_device(
    node: &Handle,
    tunnel: &Tunnel,
    range: Block,
    existing: Option<&Link>,
) -> Result<u32, DatapathError> {
    let TunnelKind::Vxlan { port, vni } = tunnel.kind;
    if let Some(link) = existing {
        if link.mac == mac(range) && is_as_wanted(node, link.index, tunnel).await? {
            return Ok(link.index);
        }
        link::remove(node, link).await?;
    }
    let device = LinkVxlan::new(LINK, vni)
        .port(port)
        .learning(false)
        .address(mac(range).to_vec());
    let device = match tunnel.address {
        IpAddr::V4(v4) => device.local(v4),
        IpAddr::V6(v6) => device.local6(v6),
    };
    let request = node.link().add(device.build()).execute();
    request.await.map_err(failed(format!("make tunnel {LINK}")))?;
    let made = link::find(node, LINK).await?;
    let missing = || failed(format!("find tunnel {LINK} after making it"))(Error::RequestFailed);
    Ok(made.ok_or_else(missing)?.index)
}

/// Whether the device has number, port and address of `tunnel`, which cannot be changed later.
async fn is_as_wanted(node: &Handle, index: u32, tunnel: &Tunnel) -> Result<bool, DatapathError> {
    let TunnelKind::Vxlan { port, vni } = tunnel.kind;
    let request = node.link().get().match_index(index).execute().try_collect::<Vec<_>>();
    let links = request.await.map_err(failed(format!("look at tunnel {LINK}")))?;
    let infos = links
        .iter()
        .flat_map(|link| &link.attributes)
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    let found: Vec<&InfoVxlan> = infos
        .flatten()
        .filter_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        })
        .flatten()
        .collect();
    let local = match tunnel.address {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    };
    let wanted = [
        InfoVxlan::Id(vni),
        InfoVxlan::Port(port),
        InfoVxlan::Learning(false),
        local,
    ];
    Ok(wanted.iter().all(|one| found.contains(&one)))
}

/// Where frames for a node's hardware address go.
async fn ensure_station(node: &Handle, index: u32, peer: &RemoteNode, mac: [u8; 6]) -> Result<(), DatapathError> {
    let request = node.neighbours().add_bridge(index, &mac).destination(peer.address);
    let request = request
        .flags(NeighbourFlags::Own)
        .state(NeighbourState::Permanent)
        .replace();
    let attempt = format!("send to node {} at {}", peer.node, peer.address);
    request.execute().await.map_err(failed(attempt))
}

/// Removes routes, neighbours and stations of nodes that are no longer wanted.
async fn remove_others(
    node: &Handle,
    index: u32,
    networks: &BTreeSet<(IpAddr, u8)>,
    gateways: &BTreeSet<IpAddr>,
    stations: &BTreeSet<Vec<u8>>,
) -> Result<(), DatapathError> {
    remove_routes(node, index, networks).await?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let request = node.neighbours().get().set_address_family(family).execute();
        let entries: Vec<NeighbourMessage> = request.try_collect().await.map_err(failed("list neighbours"))?;
        for entry in entries.into_iter().filter(|entry| entry.header.ifindex == index) {
            let is_wanted = entry.attributes.iter().any(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) if family == AddressFamily::Inet => {
                    gateways.contains(&IpAddr::from(*v4))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) if family == AddressFamily::Inet6 => {
                    gateways.contains(&IpAddr::from(*v6))
                }
                NeighbourAttribute::LinkLayerAddress(mac) if family == AddressFamily::Bridge => stations.contains(mac),
                _ => false,
            });
            // Those of multicast and of the device itself come and go with it.
            let is_ours = entry.header.state == NeighbourState::Permanent;
            if is_ours && !is_wanted {
                let removed = node.neighbours().del(entry).execute().await;
                removed.map_err(failed("remove neighbour of a tunnel"))?;
            }
        }
    }
    Ok(())
}

/// Removes routes over a device but those to `networks`.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub(super) async fn remove_routes(
    node: &Handle,
    index: u32,
    networks: &BTreeSet<(IpAddr, u8)>,
) -> Result<(), DatapathError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let routes: Vec<RouteMessage> = node
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))?;
        for route in routes {
            if is_over(&route, index) && !destination(&route).is_some_and(|to| networks.contains(&to)) {
                node.route()
                    .del(route)
                    .execute()
                    .await
                    .map_err(failed("remove route of a tunnel"))?;
            }
        }
    }
    Ok(())
}

fn is_over(route: &RouteMessage, index: u32) -> bool {
    let is_static = route.header.protocol == RouteProtocol::Static;
    is_static && route.attributes.contains(&RouteAttribute::Oif(index))
}

fn destination(route: &RouteMessage) -> Option<(IpAddr, u8)> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
            Some(((*v4).into(), route.header.destination_prefix_length))
        }
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
            Some(((*v6).into(), route.header.destination_prefix_length))
        }
        _ => None,
    })
}
