//! The way into the encrypted tunnel: routes over its device, which whoever seals and opens the packets has made.
//!
//! The device checks that an inner source address is its sender's; here is only what leads into it.

use super::link::Link;
use super::netlink::{To, ensure_address, ensure_mtu, ensure_route, ensure_up};
use super::{DatapathConfig, DatapathError, sysctl, tunnel};
use roble_core::overlay::block::Block;
use rtnetlink::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Name of the device.
pub const LINK: &str = "rbl-wg";

/// What encryption adds to a packet at most, in bytes: IPv6, UDP, and 32 of WireGuard's own.
pub const OVERHEAD: u32 = 40 + 8 + 32;

/// The encrypted tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// This node's address, whose interface says how large packets may be.
    pub address: IpAddr,
    /// UDP port of what is sealed.
    pub port: u16,
    /// Blocks of the nodes behind it.
    pub blocks: Vec<Block>,
    /// Largest packet to a block, by its first address, where its way takes less than the device and nobody else tells senders.
    pub narrow: BTreeMap<Ipv4Addr, u32>,
}

/// Brings the routes over `device` to what they shall be.
///
/// # Errors
/// [`DatapathError`]; what was done so far stays and is taken up by the next call.
pub async fn ensure(
    node: &Handle,
    sealed: &Sealed,
    config: &DatapathConfig,
    device: &Link,
    has_v6: bool,
    mtu: u32,
) -> Result<(), DatapathError> {
    sysctl::prepare_tunnel(LINK, has_v6)?;
    ensure_mtu(node, device.index, mtu).await?;
    // Others measure the way to here by it.
    for gateway in tunnel::both(&config.plan, config.range.gateway(), has_v6) {
        ensure_address(node, device.index, gateway).await?;
    }
    ensure_up(node, device.index).await?;
    let mut networks = BTreeSet::new();
    for block in sealed.blocks.iter().filter(|block| **block != config.range) {
        for network in tunnel::both(&config.plan, block.network(), has_v6) {
            let prefix = block.prefix() + if network.is_ipv6() { 96 } else { 0 };
            let mtu = sealed.narrow.get(&block.network()).copied();
            ensure_route(node, device.index, To::Device { network, prefix, mtu }).await?;
            networks.insert((network, prefix));
        }
    }
    tunnel::remove_routes(node, device.index, &networks).await
}
