//! A TUN device with `IFF_VNET_HDR`: frames come as the kernel has them, not yet cut, and may go so.

use nix::libc::{self, c_int, c_ulong};
use nix::request_code_write;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

const TUNSETIFF: c_ulong = request_code_write!(b'T', 202, size_of::<c_int>()) as c_ulong;
const TUNSETPERSIST: c_ulong = request_code_write!(b'T', 203, size_of::<c_int>()) as c_ulong;
const TUNSETOFFLOAD: c_ulong = request_code_write!(b'T', 208, size_of::<c_int>()) as c_ulong;

const CSUM: c_ulong = 0x01;
const TSO: c_ulong = 0x02 | 0x04 | 0x08;
/// Since Linux 6.2.
const USO: c_ulong = 0x20 | 0x40;

/// Most that one read gives: [`crate::packet::vnet::VNET`] bytes and the largest IP packet.
pub const FRAME: usize = 10 + 65_535;

/// A device. It outlives the process, with addresses and routes, until it is removed.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    /// The kernel takes joined TCP, and UDP.
    pub offloads: (bool, bool),
}

impl Tun {
    /// Makes the device, or takes over the one that a process before this left.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`; `EBUSY` if another process has it; `EINVAL` if the name is too long or another kind
    /// of device has it.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = named(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        control(file.as_fd(), TUNSETIFF, (&raw mut request).addr() as c_ulong)?;
        control(file.as_fd(), TUNSETPERSIST, 1)?;
        let offloads = [
            (CSUM | TSO | USO, (true, true)),
            (CSUM | TSO, (true, false)),
            (0, (false, false)),
        ];
        let offloads = offloads
            .into_iter()
            .find(|(flags, _)| control(file.as_fd(), TUNSETOFFLOAD, *flags).is_ok());
        Ok(Self {
            file,
            name: name.to_owned(),
            offloads: offloads.map_or((false, false), |(_, kinds)| kinds),
        })
    }

    /// Largest packet that the kernel puts into it, in bytes.
    ///
    /// # Errors
    /// The device is gone.
    pub fn mtu(&self) -> io::Result<u16> {
        let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
        let mut request = named(&self.name)?;
        control(
            socket.as_fd(),
            libc::SIOCGIFMTU as c_ulong,
            (&raw mut request).addr() as c_ulong,
        )?;
        // SAFETY: the call has just written this variant.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Sets it.
    ///
    /// # Errors
    /// `EINVAL` if the kernel does not take it.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
        let mut request = named(&self.name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        control(
            socket.as_fd(),
            libc::SIOCSIFMTU as c_ulong,
            (&raw mut request).addr() as c_ulong,
        )
    }

    /// Lets the device go with this process.
    ///
    /// # Errors
    /// It is gone already.
    pub fn remove_at_end(&self) -> io::Result<()> {
        control(self.file.as_fd(), TUNSETPERSIST, 0)
    }

    /// Reads one frame with its header; `WouldBlock` if there is none.
    ///
    /// # Errors
    /// As `read`.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    /// Writes one frame with its header, in parts.
    ///
    /// # Errors
    /// As `writev`: `EINVAL` for a frame that it does not like, `EIO` while it is down.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A request about the device of this name.
fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: it is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

/// `ioctl` with a number, or with the address of an `ifreq` that lives longer than the call.
fn control(file: BorrowedFd<'_>, request: c_ulong, argument: c_ulong) -> io::Result<()> {
    // SAFETY: callers are in this file; each request gets the kind of argument that it takes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
