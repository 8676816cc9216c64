//! One container's link: a veth pair, made by one request with its far end already inside the container's namespace, so
//! that a crash leaves a whole pair or none. No bridge: each container has a link of its own, with host routes and static
//! neighbours on both sides, so containers share no broadcast domain and nobody answers for another's address.

use super::netlink::{
    To, ensure_address, ensure_mtu, ensure_neighbour, ensure_route, ensure_up, errno, failed, is_local,
};
use super::netns::{Connection, Netns};
use super::{DatapathError, Endpoint, NODE_MAC, sysctl};
use futures_util::TryStreamExt as _;
use roble_daemon::failpoint;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// How long a new link may take to carry packets; usually 1 ms, up to a second when many links change.
const OPERATIONAL_DEADLINE: Duration = Duration::from_secs(3);

/// Name of the interface inside a container.
pub const CONTAINER_INTERFACE: &str = "eth0";

/// What the kernel says about one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index in its namespace; never used twice there.
    pub index: u32,
    /// Index of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// Administratively up.
    pub up: bool,
    /// Carries packets; comes a moment after both ends are up.
    pub operational: bool,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// It is a WireGuard device of the kernel.
    pub is_wireguard: bool,
}

/// What all links of a node have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// The node's own addresses on every link, the containers' gateways: IPv4, and IPv6 if the node has it.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes.
    pub mtu: u32,
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let (mut name, mut peer, mut mac, mut operational, mut mtu) = (String::new(), None, Vec::new(), false, 0);
        let mut is_wireguard = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name.clone_from(text),
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::Address(bytes) => mac.clone_from(bytes),
                LinkAttribute::OperState(state) => operational = *state == State::Up,
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::LinkInfo(infos) => {
                    is_wireguard = infos.contains(&LinkInfo::Kind(InfoKind::Wireguard));
                }
                _ => {}
            }
        }
        let up = message.header.flags.contains(LinkFlags::Up);
        Self {
            name,
            index: message.header.index,
            peer,
            mac,
            up,
            operational,
            mtu,
            is_wireguard,
        }
    }
}

/// All interfaces of the namespace of `handle`.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn list(handle: &Handle) -> Result<Vec<Link>, DatapathError> {
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("list links"))?;
    Ok(links.iter().map(Link::read).collect())
}

/// The interface of that name, if there is one.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, DatapathError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link.as_ref().map(Link::read)),
        Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(failed(format!("find link {name}"))(error)),
    }
}

/// Removes a link with all its addresses and routes, and its other end; nothing happens if it is gone.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn remove(handle: &Handle, link: &Link) -> Result<(), DatapathError> {
    match handle.link().del(link.index).execute().await {
        Err(error) if errno(&error) != Some(nix::libc::ENODEV) => {
            Err(failed(format!("remove link {}", link.name))(error))
        }
        _ => Ok(()),
    }
}

/// Brings the link of `endpoint` to what it shall be, making it anew if its ends do not belong together.
/// Returns the index of the node's side.
///
/// `addresses`: of the container, one of each family of `common.gateways`. `existing`: the link of that name, if there is one.
///
/// # Errors
/// [`DatapathError`]; what was done so far stays and is taken up by the next call.
pub async fn ensure(
    node: &Handle,
    netns: &Netns,
    endpoint: &Endpoint,
    addresses: &[IpAddr],
    common: &Common,
    existing: Option<&Link>,
) -> Result<u32, DatapathError> {
    let name = endpoint.link.as_str();
    let inside = netns.connect().await?;
    let container = find(&inside.handle, CONTAINER_INTERFACE).await?;
    let is_pair = |host: &Link, container: &Link| {
        host.peer == Some(container.index) && container.peer == Some(host.index) && container.mac == endpoint.mac()
    };
    let (host, container) = match (existing, container) {
        (Some(host), Some(container)) if is_pair(host, &container) => (host.index, container.index),
        (existing, container) => {
            if let Some(host) = existing {
                remove(node, host).await?;
            }
            if container.is_some() && find(&inside.handle, CONTAINER_INTERFACE).await?.is_some() {
                return Err(DatapathError::InterfaceTaken {
                    path: netns.path.clone(),
                });
            }
            let missing = || failed(format!("find link {name} after making it"))(Error::RequestFailed);
            let host = make(node, netns, endpoint).await?;
            let container = find(&inside.handle, CONTAINER_INTERFACE).await?.ok_or_else(missing)?;
            (host.index, container.index)
        }
    };
    let has_v6 = common.gateways.iter().any(IpAddr::is_ipv6);
    sysctl::prepare_link(name, has_v6)?;
    failpoint!("net.link.parameters");
    ensure_mtu(node, host, common.mtu).await?;
    for gateway in &common.gateways {
        ensure_address(node, host, *gateway).await?;
    }
    failpoint!("net.link.address");
    ensure_up(node, host).await?;
    failpoint!("net.link.up");
    if has_v6 {
        netns.run(sysctl::prepare_container).await??;
    }
    configure_container(&inside, container, addresses, common).await?;
    failpoint!("net.link.container");
    for address in addresses {
        ensure_route(node, host, To::Host(*address)).await?;
        failpoint!("net.link.route");
        ensure_neighbour(node, host, *address, &endpoint.mac()).await?;
    }
    failpoint!("net.link.neighbour");
    wait_operational(node, name).await?;
    wait_operational(&inside.handle, CONTAINER_INTERFACE).await?;
    for address in common.gateways.iter().filter(|address| address.is_ipv6()) {
        wait_local(node, *address).await?;
    }
    for address in addresses.iter().filter(|address| address.is_ipv6()) {
        wait_local(&inside.handle, *address).await?;
    }
    Ok(host)
}

/// The kernel opens a link for packets in a work queue of its own, after the request to set it up was answered; whoever is
/// told that a container is attached may send at once, and a first packet that is lost costs TCP a second.
async fn wait_operational(handle: &Handle, name: &str) -> Result<(), DatapathError> {
    let deadline = Instant::now() + OPERATIONAL_DEADLINE;
    while !find(handle, name).await?.is_some_and(|link| link.operational) {
        if Instant::now() > deadline {
            return Err(failed(format!("wait for link {name} to carry packets"))(
                Error::RequestFailed,
            ));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// The kernel takes packets for a new IPv6 address only when a work queue has seen it, even without looking for duplicates.
///
/// # Errors
/// [`DatapathError::Netlink`], also if that takes longer than it may.
pub async fn wait_local(handle: &Handle, address: IpAddr) -> Result<(), DatapathError> {
    let deadline = Instant::now() + OPERATIONAL_DEADLINE;
    while !is_local(handle, address).await? {
        if Instant::now() > deadline {
            let attempt = format!("wait for address {address} to be usable");
            return Err(failed(attempt)(Error::RequestFailed));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Makes the link of `endpoint`, which must not be there; neither side is up. Returns the node's side.
///
/// # Errors
/// [`DatapathError::Netlink`], also if one of its interfaces is there; nothing is made then.
pub async fn make(node: &Handle, netns: &Netns, endpoint: &Endpoint) -> Result<Link, DatapathError> {
    let name = endpoint.link.as_str();
    let far_end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(CONTAINER_INTERFACE)
        .address(endpoint.mac().to_vec())
        .setns_by_fd(netns.file.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(endpoint.link.as_str(), CONTAINER_INTERFACE)
        .address(NODE_MAC.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)))
        .build();
    let request = node.link().add(pair).execute();
    request.await.map_err(failed(format!("make link {name}")))?;
    failpoint!("net.link.made");
    let missing = || failed(format!("find link {name} after making it"))(Error::RequestFailed);
    find(node, name).await?.ok_or_else(missing)
}

async fn configure_container(
    inside: &Connection,
    index: u32,
    addresses: &[IpAddr],
    common: &Common,
) -> Result<(), DatapathError> {
    let handle = &inside.handle;
    if let Some(loopback) = find(handle, "lo").await? {
        ensure_up(handle, loopback.index).await?;
    }
    failpoint!("net.inside.loopback");
    ensure_mtu(handle, index, common.mtu).await?;
    for address in addresses {
        ensure_address(handle, index, *address).await?;
    }
    failpoint!("net.inside.address");
    ensure_up(handle, index).await?;
    failpoint!("net.inside.up");
    for gateway in &common.gateways {
        ensure_neighbour(handle, index, *gateway, &NODE_MAC).await?;
        failpoint!("net.inside.neighbour");
        ensure_route(handle, index, To::Host(*gateway)).await?;
        failpoint!("net.inside.gateway");
        ensure_route(handle, index, To::Everywhere(*gateway)).await?;
    }
    Ok(())
}
