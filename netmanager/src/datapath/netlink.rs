//! Requests to the kernel about addresses, neighbours and routes; each brings one thing to what it shall be, and may be
//! repeated.

use super::DatapathError;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType};
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use std::net::IpAddr;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// One host on the link itself.
    Host(IpAddr),
    /// Everywhere, by way of this gateway.
    Everywhere(IpAddr),
    /// A network, by way of a gateway that is on the link although no route says so.
    Network {
        /// Its first address.
        network: IpAddr,
        /// Leading bits that its addresses have in common.
        prefix: u8,
        /// On the link.
        gateway: IpAddr,
    },
    /// A network, into a device that needs no gateway.
    Device {
        /// Its first address.
        network: IpAddr,
        /// Leading bits that its addresses have in common.
        prefix: u8,
        /// Largest packet, if the way takes less than the device.
        mtu: Option<u32>,
    },
}

/// Makes a request's failure one of the datapath's, with what was tried.
pub fn failed(attempt: impl Into<String>) -> impl FnOnce(Error) -> DatapathError {
    let attempt = attempt.into();
    move |source| DatapathError::Netlink { attempt, source }
}

/// The error number of a refused request, e.g. 19 for ENODEV.
pub fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Sets a link up.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn ensure_up(handle: &Handle, index: u32) -> Result<(), DatapathError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    let request = handle.link().set(message).execute();
    request.await.map_err(failed("set link up"))
}

/// Sets the largest packet of a link.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn ensure_mtu(handle: &Handle, index: u32, mtu: u32) -> Result<(), DatapathError> {
    let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
    let request = handle.link().set(message).execute();
    request.await.map_err(failed(format!("set MTU {mtu}")))
}

/// Gives a link an address of a host. IPv6: usable at once, nobody else can have it.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn ensure_address(handle: &Handle, index: u32, address: IpAddr) -> Result<(), DatapathError> {
    let mut request = handle.address().add(index, address, host_prefix(address)).replace();
    if address.is_ipv6() {
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        request.message_mut().attributes.push(AddressAttribute::Flags(flags));
    }
    let request = request.execute();
    request.await.map_err(failed(format!("add address {address}")))
}

/// Says for good which hardware address `address` has on a link.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn ensure_neighbour(handle: &Handle, index: u32, address: IpAddr, mac: &[u8]) -> Result<(), DatapathError> {
    let request = handle.neighbours().add(index, address).link_layer_address(mac);
    let request = request.state(NeighbourState::Permanent).replace().execute();
    request.await.map_err(failed(format!("add neighbour {address}")))
}

/// Routes `to` over a link.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn ensure_route(handle: &Handle, index: u32, to: To) -> Result<(), DatapathError> {
    let message = route(index, to);
    let request = handle.route().add(message).replace().execute();
    request.await.map_err(failed(format!("add route {to:?}")))
}

fn route(index: u32, to: To) -> RouteMessage {
    let fits = "addresses of one route are of one family";
    let route = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    match to {
        To::Host(host) => on_link(route.destination_prefix(host, host_prefix(host)).expect(fits), host),
        To::Everywhere(gateway) => {
            let everywhere = if gateway.is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0_u16; 8])
            };
            let route = route.destination_prefix(everywhere, 0).expect(fits);
            route.gateway(gateway).expect(fits).build()
        }
        To::Network {
            network,
            prefix,
            gateway,
        } => {
            let route = route.destination_prefix(network, prefix).expect(fits);
            route.gateway(gateway).expect(fits).onlink().build()
        }
        To::Device { network, prefix, mtu } => {
            let mut route = on_link(route.destination_prefix(network, prefix).expect(fits), network);
            let metrics = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
            route.attributes.extend(metrics);
            route
        }
    }
}

fn on_link(route: RouteMessageBuilder<IpAddr>, to: IpAddr) -> RouteMessage {
    let route = if to.is_ipv4() {
        route.scope(RouteScope::Link)
    } else {
        route
    };
    route.build()
}

/// Whether packets to `address` are for this namespace itself.
///
/// # Errors
/// [`DatapathError::Netlink`].
pub async fn is_local(handle: &Handle, address: IpAddr) -> Result<bool, DatapathError> {
    let route = RouteMessageBuilder::<IpAddr>::new();
    let question = route
        .destination_prefix(address, host_prefix(address))
        .expect("a host has a prefix")
        .build();
    match handle.route().get(question).execute().try_next().await {
        Ok(answer) => Ok(answer.is_some_and(|route| route.header.kind == RouteType::Local)),
        Err(error) if errno(&error) == Some(nix::libc::ENETUNREACH) => Ok(false),
        Err(error) => Err(failed(format!("look for the way to {address}"))(error)),
    }
}

const fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
