//! Forgetting tracked flows: a flow remembers where its first packet was sent, so without this an UDP stream with fixed
//! ports would go on towards an address that is gone, or past a port that was published after it began.

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h; CTA_FILTER_F_* as in net/netfilter/nf_conntrack_netlink.c.
const CT_GET: u16 = (1 << 8) | 1;
const NLM_F_REQUEST_DUMP: u16 = 1 | 0x300;
const NLMSG_DONE: u16 = 3;
const CT_DELETE: u16 = (1 << 8) | 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const FILTER_IP_SRC: u32 = 1;
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const IPPROTO_UDP: u8 = 17;

/// Which flows to forget, of the namespace of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// Answered from this address, whatever address the caller used.
    AnsweredBy(IpAddr),
    /// Begun from this address.
    BegunBy(IpAddr),
    /// Of the two addresses of one family: towards the first as the caller sees it, answered from the second.
    Translated {
        /// What callers sent to.
        to: IpAddr,
        /// Where it went.
        backend: IpAddr,
    },
    /// UDP towards this port, as the caller sees it, over IPv4 or IPv6.
    UdpTo {
        /// The port.
        port: u16,
        /// Of IPv6 flows.
        v6: bool,
    },
}

/// Where flows were sent and where they went instead, each pair once: all flows of the namespace of this process whose
/// destination was translated.
///
/// # Errors
/// If the kernel does not tell.
pub fn translated() -> io::Result<BTreeSet<(IpAddr, IpAddr)>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut found = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        let mut request = Vec::with_capacity(20);
        request.extend(20_u32.to_ne_bytes());
        request.extend(CT_GET.to_ne_bytes());
        request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([family, 0, 0, 0]);
        socket.send(&request, 0)?;
        loop {
            let (messages, _) = socket.recv_from_full()?;
            let mut rest = messages.as_slice();
            let mut is_last = rest.is_empty();
            while let Some((length, kind)) = header(rest) {
                let message = rest.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => is_last = true,
                    _ => found.extend(translation(message.get(20..).unwrap_or_default())),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
            if is_last {
                break;
            }
        }
    }
    Ok(found)
}

/// Length and kind of the first message.
fn header(messages: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(messages.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(messages.get(4..6)?.try_into().ok()?);
    (length >= 16).then_some((length, kind))
}

/// Destination of a flow and who answers instead, from the attributes of a message.
fn translation(attributes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let address = |tuple: u16, is_destination: bool| {
        let ip = find(find(attributes, tuple)?, 1)?;
        let kind = 1 + u16::from(is_destination);
        if let Some(v4) = find(ip, kind) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(v4).ok()?));
        }
        Some(IpAddr::from(<[u8; 16]>::try_from(find(ip, kind + 2)?).ok()?))
    };
    let (to, by) = (address(CTA_TUPLE_ORIG, true)?, address(CTA_TUPLE_REPLY, false)?);
    (to != by).then_some((to, by))
}

/// Payload of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if found & 0x3fff == kind {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Forgets `flows`; there may be none.
///
/// # Errors
/// If the kernel refuses, e.g. because it is older than filters on deletion; nothing was forgotten then.
pub fn forget(flows: Flows) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(flows), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let field = |range: std::ops::Range<usize>| answer.get(range).ok_or(io::ErrorKind::UnexpectedEof);
    let kind = u16::from_ne_bytes(field(4..6)?.try_into().expect("two bytes"));
    let code = i32::from_ne_bytes(field(16..20)?.try_into().expect("four bytes"));
    match (kind, code) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, code) if -code == nix::libc::ENOENT => Ok(()),
        (NLMSG_ERROR, code) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(flows: Flows) -> Vec<u8> {
    let is_v6 = match flows {
        Flows::AnsweredBy(address) | Flows::BegunBy(address) | Flows::Translated { to: address, .. } => {
            address.is_ipv6()
        }
        Flows::UdpTo { v6, .. } => v6,
    };
    // CTA_TUPLE_IP with source or destination, of either family (CTA_IP_V4_SRC = 1 to CTA_IP_V6_DST = 4).
    let ip = |address: IpAddr, is_destination: bool| {
        let kind = u16::from(is_destination) + 1 + 2 * u16::from(address.is_ipv6());
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        attribute(1 | NESTED, &attribute(kind, &bytes))
    };
    // Both directions: what is compared, and which of it.
    let nothing = (Vec::new(), 0);
    let (original, reply) = match flows {
        Flows::AnsweredBy(source) => (nothing, (ip(source, false), FILTER_IP_SRC)),
        Flows::BegunBy(source) => ((ip(source, false), FILTER_IP_SRC), nothing),
        Flows::Translated { to, backend } => ((ip(to, true), FILTER_IP_DST), (ip(backend, false), FILTER_IP_SRC)),
        Flows::UdpTo { port, .. } => {
            let protocol = [attribute(1, &[IPPROTO_UDP]), attribute(3, &port.to_be_bytes())].concat();
            let flags = FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT;
            ((attribute(2 | NESTED, &protocol), flags), nothing)
        }
    };
    // The flags of the two directions have the numbers of the two tuples.
    let filter = [
        attribute(CTA_TUPLE_ORIG, &original.1.to_ne_bytes()),
        attribute(CTA_TUPLE_REPLY, &reply.1.to_ne_bytes()),
    ]
    .concat();
    let mut body = vec![if is_v6 { AF_INET6 } else { AF_INET }, 0, 0, 0];
    for (kind, (tuple, _)) in [(CTA_TUPLE_ORIG, original), (CTA_TUPLE_REPLY, reply)] {
        if !tuple.is_empty() {
            body.extend(attribute(kind | NESTED, &tuple));
        }
    }
    body.extend(attribute(CTA_FILTER | NESTED, &filter));
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + payload.len().next_multiple_of(4));
    bytes.extend((4 + payload.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
