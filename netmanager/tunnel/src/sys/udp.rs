//! UDP sockets for tunnels: one for each family on one port. A send is a run of datagrams of one size (`UDP_SEGMENT`), a
//! receive several such runs (`UDP_GRO`, `recvmmsg`). Datagrams carry DF if they fit the path as the kernel knows it; larger ones go in fragments, if they are sent alone.

use super::{get_option, set_option};
use nix::libc::{self, c_int, c_void};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Most datagrams in one send (the kernel's limit before Linux 6.9).
pub const MOST_SEGMENTS: usize = 64;
/// Most bytes in one send.
pub const MOST_BYTES: usize = 65_507;
/// Most runs in one receive: as many as a frame that the other side's kernel cut has datagrams, where nothing on the way
/// joins them.
pub const MOST_RUNS: usize = 48;
/// Runs in one receive while they are long, so that they stay in the processor's cache.
const LONG_RUNS: usize = 8;
/// Most bytes in one run.
const RUN: usize = 65_536;

/// Room in the kernel for datagrams received; it doubles it for its own book-keeping. About a thousand full datagrams, as in
/// the kernel's WireGuard: what waits there waits for everybody.
const RECEIVE_BUFFER: c_int = 1 << 20;
const SEND_BUFFER: c_int = 2 << 20;

/// A socket of one family.
#[derive(Debug)]
pub struct Udp {
    socket: OwnedFd,
    is_v6: bool,
}

impl Udp {
    /// Binds to a port, 0 for a free one; `mark`: of its datagrams, 0 for none.
    ///
    /// # Errors
    /// As `bind`; `EAFNOSUPPORT` without IPv6.
    pub fn bind(is_v6: bool, port: u16, mark: u32) -> io::Result<Self> {
        let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: no pointers.
        let raw = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was opened here and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let set = |level, name, value| set_option(socket.as_fd(), level, name, value);
        let address = if is_v6 {
            set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
        } else {
            set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT)?;
            set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        };
        // Without CAP_NET_ADMIN the plain ones, up to the system's limit; without GRO each datagram is a run.
        set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER))?;
        set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER))?;
        let _ = set(libc::SOL_UDP, libc::UDP_GRO, 1);
        let (name, length) = to_raw(address);
        // SAFETY: `name` is an address of `length` bytes.
        let bound = unsafe { libc::bind(raw, (&raw const name).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let udp = Self { socket, is_v6 };
        if mark != 0 {
            udp.set_mark(mark)?;
        }
        Ok(udp)
    }

    /// The port that it is bound to.
    ///
    /// # Errors
    /// As `getsockname`.
    pub fn port(&self) -> io::Result<u16> {
        let socket = UdpSocket::from(self.socket.try_clone()?);
        Ok(socket.local_addr()?.port())
    }

    /// The same socket once more.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            is_v6: self.is_v6,
        })
    }

    /// Marks datagrams from now on.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        set_option(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
    }

    /// Whether it can send to an address.
    pub const fn is_for(&self, to: SocketAddr) -> bool {
        self.is_v6 == to.is_ipv6()
    }

    /// Sends a run of datagrams: `bytes` in pieces of `segment` bytes, the last may be shorter. Waits while the kernel has
    /// no room. `tos`: DSCP and ECN.
    ///
    /// # Errors
    /// As `sendmsg`: `EMSGSIZE` or `EINVAL` if there are several and they are larger than the path takes.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment: usize, tos: u8) -> io::Result<()> {
        let (mut name, name_length) = to_raw(to);
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut control = Control::default();
        // SAFETY: it is plain data, for which zeros are a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut name).cast();
        message.msg_namelen = name_length;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let (level, kind) = match self.is_v6 {
            true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            false => (libc::IPPROTO_IP, libc::IP_TOS),
        };
        let size = u16::try_from(segment).unwrap_or(u16::MAX);
        let is_run = bytes.len() > segment;
        let space = |size: usize| {
            // SAFETY: no pointers.
            unsafe { libc::CMSG_SPACE(size as u32) as usize }
        };
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = (space(size_of::<c_int>()) + if is_run { space(size_of::<u16>()) } else { 0 }) as _;
        // SAFETY: `control` has room for both headers with their values, as the lengths of `CMSG_SPACE` say, and is
        // aligned for them; each value is written within its header's room.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            put_control(first, level, kind, &c_int::from(tos).to_ne_bytes());
            if is_run {
                let second = libc::CMSG_NXTHDR(&raw const message, first);
                put_control(second, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
            }
        }
        loop {
            // SAFETY: all that `message` points to lives until the call returns.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for control messages, aligned for their headers.
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Default for Control {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// Writes a control message.
///
/// # Safety
/// `header` is null, or has room for a value of this size.
unsafe fn put_control(header: *mut libc::cmsghdr, level: c_int, kind: c_int, value: &[u8]) {
    if header.is_null() {
        return;
    }
    // SAFETY: as the caller promises.
    unsafe {
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(value.len() as u32) as _;
        std::ptr::copy_nonoverlapping(value.as_ptr(), libc::CMSG_DATA(header), value.len());
    }
}

/// Datagrams of one size from one address, received together.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Where its bytes begin in [`Receiver::bytes`].
    pub start: usize,
    /// How many there are.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// Their source.
    pub from: SocketAddr,
    /// DSCP and ECN that they arrived with.
    pub tos: u8,
}

/// Memory for one receive.
pub struct Receiver {
    bytes: Vec<u8>,
    runs: Vec<Run>,
    // What the system call reads and writes; it points to itself and to `bytes` only while the call lasts.
    messages: Vec<libc::mmsghdr>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    parts: Vec<libc::iovec>,
    /// Runs that the next receive has room for.
    room: usize,
}

impl Default for Receiver {
    fn default() -> Self {
        // SAFETY: plain data, for which zeros are a value.
        let (message, name, part) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            // Pages that are not written take no memory.
            bytes: vec![0; MOST_RUNS * RUN],
            runs: Vec::with_capacity(MOST_RUNS),
            messages: vec![message; MOST_RUNS],
            names: vec![name; MOST_RUNS],
            controls: (0..MOST_RUNS).map(|_| Control::default()).collect(),
            parts: vec![part; MOST_RUNS],
            room: MOST_RUNS,
        }
    }
}

impl Receiver {
    /// What was received, and where.
    pub fn received(&mut self) -> (&mut [u8], &[Run]) {
        (&mut self.bytes, &self.runs)
    }

    /// Bytes of all runs.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives memory that a burst took back to the system.
    pub fn shrink(&mut self) {
        self.bytes = Vec::new();
        self.bytes = vec![0; MOST_RUNS * RUN];
    }

    /// Receives what is there; `WouldBlock` if there is nothing.
    ///
    /// # Errors
    /// As `recvmmsg`.
    pub fn receive(&mut self, socket: &Udp) -> io::Result<()> {
        self.runs.clear();
        let all = self
            .messages
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls)
            .zip(&mut self.parts);
        for ((((message, name), control), part), run) in all.zip(self.bytes.chunks_exact_mut(RUN)).take(self.room) {
            part.iov_base = run.as_mut_ptr().cast();
            part.iov_len = RUN;
            let header = &mut message.msg_hdr;
            header.msg_name = std::ptr::from_mut(name).cast::<c_void>();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_iov = part;
            header.msg_iovlen = 1;
            header.msg_control = std::ptr::from_mut(control).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: the first `room` headers point to memory of `self`, which is borrowed until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.room as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let mut total = 0;
        for (at, (message, name)) in self.messages.iter().zip(&self.names).enumerate().take(count) {
            let length = message.msg_len as usize;
            total += length;
            let Some(from) = from_raw(name) else { continue };
            let (segment, tos) = read_controls(&message.msg_hdr);
            self.runs.push(Run {
                start: at * RUN,
                length,
                segment: segment.filter(|size| *size > 0).unwrap_or(length.max(1)),
                from,
                tos,
            });
        }
        self.room = if total > count * RUN / 4 { LONG_RUNS } else { MOST_RUNS };
        Ok(())
    }
}

/// Size of segments, if the kernel joined any, and DSCP with ECN.
fn read_controls(message: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut segment, mut tos) = (None, 0);
    // SAFETY: the kernel wrote the control messages, and their lengths, within the room that `message` says it has; values
    // are read as bytes, of which there are as many as read: an int, or the one byte of IP_TOS.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(one) = header.as_ref() {
            let data = libc::CMSG_DATA(header);
            match (one.cmsg_level, one.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => tos = *data,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => tos = data.cast::<c_int>().read_unaligned() as u8,
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    (segment, tos)
}

fn to_raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: it is plain data, for which zeros are a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: v4.ip().to_bits().to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is as large and as aligned as every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as _)
}

fn from_raw(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote an address of this family; the storage is large and aligned enough for it.
            let raw = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some((ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Largest datagram with its headers that the way to an address takes, as the kernel knows it now, in bytes.
pub fn path_mtu(to: SocketAddr, mark: u32) -> Option<u16> {
    let any: IpAddr = if to.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    if mark != 0 {
        set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed()).ok()?;
    }
    socket.connect(to).ok()?;
    let (level, name) = match to.is_ipv6() {
        true => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        false => (libc::IPPROTO_IP, libc::IP_MTU),
    };
    let mtu = get_option(socket.as_fd(), level, name).ok()?;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}
