//! The device to which packets for unknown service addresses are routed, and back from which they come when these are known.
//!
//! It lives and dies with the process that has it open: while nobody reads from it there is none, and such packets are
//! refused at once.

use super::DatapathError;
use super::link::Link;
use super::netlink::{To, ensure_address, ensure_mtu, ensure_route, ensure_up};
use super::sysctl;
use nix::libc;
use roble_core::overlay::plan::Plan;
use rtnetlink::Handle;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use tokio::io::unix::AsyncFd;

/// Name of the device.
pub const LINK: &str = "rbl-miss";

/// Largest packet: none is refused for its size, what it is cut to is decided on its way.
const MTU: u32 = 65_535;

// linux/if_tun.h
const IFF_TUN: libc::c_short = 1;
const IFF_NO_PI: libc::c_short = 0x1000;

/// TUNSETIFF.
mod request {
    #![allow(missing_docs)]
    nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, super::Request);
}

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    _rest: [u8; 22],
}

/// The device, open.
#[derive(Debug)]
pub struct Device(AsyncFd<File>);

impl Device {
    /// Makes the device in the namespace of this process. Must be called within the runtime.
    ///
    /// # Errors
    /// If the kernel has no TUN devices, or another process has this one.
    #[allow(unsafe_code)]
    pub fn open() -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            flags: IFF_TUN | IFF_NO_PI,
            _rest: [0; 22],
        };
        request.name[..LINK.len()].copy_from_slice(LINK.as_bytes());
        // SAFETY: `request` has the layout and at least the size of `struct ifreq` (40 bytes), lives through the call, and
        // the kernel keeps no pointer to it.
        unsafe { request::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
        // SAFETY: the file owns its descriptor, and is neither replaced nor closed while it is in here.
        Ok(Self(unsafe { AsyncFd::register(file) }?))
    }

    /// The next packet, from its IP header on. Cancelling loses nothing.
    ///
    /// # Errors
    /// What the kernel says, e.g. if the device was removed.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|file| file.get_ref().read(buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Hands a packet to the kernel as one that has arrived.
    ///
    /// # Errors
    /// What the kernel says; the packet is lost.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.0.get_ref().write_all(packet)
    }
}

/// Brings the device up and routes service addresses to it.
///
/// # Errors
/// [`DatapathError`]; may be repeated.
pub async fn ensure(
    node: &Handle,
    link: &Link,
    plan: &Plan,
    gateway: Ipv4Addr,
    has_v6: bool,
) -> Result<(), DatapathError> {
    sysctl::prepare_miss(LINK, has_v6)?;
    ensure_mtu(node, link.index, MTU).await?;
    // On a link without an address the kernel takes only what it would send there, whatever `rp_filter` says.
    ensure_address(node, link.index, gateway.into()).await?;
    ensure_up(node, link.index).await?;
    let services_v6 = (u128::from(plan.services_v6) << 112).to_be_bytes();
    let ranges: [(IpAddr, u8); 2] = [
        (plan.services.network().into(), plan.services.prefix()),
        (services_v6.into(), 16),
    ];
    for (network, prefix) in ranges.into_iter().filter(|(network, _)| network.is_ipv4() || has_v6) {
        ensure_route(
            node,
            link.index,
            To::Device {
                network,
                prefix,
                mtu: None,
            },
        )
        .await?;
    }
    Ok(())
}
