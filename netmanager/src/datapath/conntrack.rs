//! Forgetting tracked flows: a flow remembers where its first packet was sent, so without this an UDP stream with fixed
//! ports would go on towards an address that is gone, or past a port that was published after it began.

use super::netfilter::{self, attribute, find, message, open};
use roble_core::ports::Protocol;
use rtnetlink::sys::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h; CTA_FILTER_F_* as in net/netfilter/nf_conntrack_netlink.c.
const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const FILTER_IP_SRC: u32 = 1;
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const IPPROTO_TCP: u8 = 6;
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

/// One tracked flow.
#[derive(Debug)]
pub struct Tracked {
    /// Who began it.
    pub from: IpAddr,
    /// What it was sent to.
    pub to: IpAddr,
    /// Where it went.
    pub answered_by: IpAddr,
    /// Transport and port that it was sent to.
    pub port: Option<(Protocol, u16)>,
    /// What names it to the kernel: its original tuple, zone and id, as attributes.
    name: Vec<u8>,
}

/// Where flows were sent and where they went instead, each pair once: all flows of the namespace of this process whose
/// destination was translated.
///
/// # Errors
/// If the kernel does not tell.
pub fn translated() -> io::Result<BTreeSet<(IpAddr, IpAddr)>> {
    let tracked = [dump(AF_INET)?, dump(AF_INET6)?].into_iter().flatten();
    let pairs = tracked.map(|flow| (flow.to, flow.answered_by));
    Ok(pairs.filter(|(to, by)| to != by).collect())
}

/// Flows to each address for which `is_meant`, and where they went instead, each pair with its number. Nothing is kept of single
/// flows.
///
/// # Errors
/// If the kernel does not tell.
pub fn tally(is_meant: impl Fn(IpAddr) -> bool) -> io::Result<BTreeMap<(IpAddr, IpAddr), u64>> {
    let mut counts = BTreeMap::new();
    // Both families at once: the kernel goes through all of its table for each request.
    netfilter::dump(&open()?, CT_GET, &[AF_UNSPEC, 0, 0, 0], |_, attributes| {
        if let Some((_, to, answered_by)) = ends(attributes)
            && to != answered_by
            && is_meant(to)
        {
            *counts.entry((to, answered_by)).or_default() += 1;
        }
    })?;
    Ok(counts)
}

/// Flows to each IPv4 destination whose address was translated from one in `from`, by where they are answered.
///
/// # Errors
/// If the kernel does not tell.
pub fn count(is_from: impl Fn(IpAddr) -> bool) -> io::Result<BTreeMap<IpAddr, u32>> {
    let mut counts = BTreeMap::new();
    let flows = [dump(AF_INET)?, dump(AF_INET6)?].into_iter().flatten();
    for flow in flows.filter(|flow| flow.to != flow.answered_by && is_from(flow.to)) {
        *counts.entry(flow.answered_by).or_default() += 1;
    }
    Ok(counts)
}

/// Who began flows whose destination was translated, and what they were sent to, each pair once.
///
/// # Errors
/// If the kernel does not tell.
pub fn begun() -> io::Result<BTreeSet<(IpAddr, IpAddr)>> {
    let tracked = [dump(AF_INET)?, dump(AF_INET6)?].into_iter().flatten();
    let translated = tracked.filter(|flow| flow.to != flow.answered_by);
    Ok(translated.map(|flow| (flow.from, flow.to)).collect())
}

/// All flows of a family.
fn dump(family: u8) -> io::Result<Vec<Tracked>> {
    let mut found = Vec::new();
    netfilter::dump(&open()?, CT_GET, &[family, 0, 0, 0], |_, attributes| {
        found.extend(tracked(attributes))
    })?;
    Ok(found)
}

/// Who began a flow, what it was sent to, and who answers.
fn ends(attributes: &[u8]) -> Option<(IpAddr, IpAddr, IpAddr)> {
    let address = |tuple: u16, is_destination: bool| {
        let ip = find(find(attributes, tuple)?, 1)?;
        let kind = 1 + u16::from(is_destination);
        if let Some(v4) = find(ip, kind) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(v4).ok()?));
        }
        Some(IpAddr::from(<[u8; 16]>::try_from(find(ip, kind + 2)?).ok()?))
    };
    Some((
        address(CTA_TUPLE_ORIG, false)?,
        address(CTA_TUPLE_ORIG, true)?,
        address(CTA_TUPLE_REPLY, false)?,
    ))
}

/// A flow from the attributes of its message.
fn tracked(attributes: &[u8]) -> Option<Tracked> {
    let (from, to, answered_by) = ends(attributes)?;
    let mut name = attribute(CTA_TUPLE_ORIG | NESTED, find(attributes, CTA_TUPLE_ORIG)?);
    for kind in [CTA_ZONE, CTA_ID] {
        name.extend(
            find(attributes, kind)
                .map(|value| attribute(kind, value))
                .unwrap_or_default(),
        );
    }
    let port = || {
        let transport = find(find(attributes, CTA_TUPLE_ORIG)?, 2)?;
        let protocol = match *find(transport, 1)?.first()? {
            IPPROTO_TCP => Protocol::Tcp,
            IPPROTO_UDP => Protocol::Udp,
            _ => return None,
        };
        let port = u16::from_be_bytes(find(transport, 3)?.try_into().ok()?);
        Some((protocol, port))
    };
    Some(Tracked {
        port: port(),
        from,
        to,
        answered_by,
        name,
    })
}

/// Forgets `flows`; there may be none. All are tried, the first failure is told.
///
/// IPv4 is found by the kernel. IPv6 is listed here and removed one by one: on Linux 6.18 a deletion filtered by IPv6
/// addresses succeeds and leaves the flows.
///
/// # Errors
/// If the kernel refuses, e.g. because it is older than filters on deletion.
pub fn forget(flows: &[Flows]) -> io::Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let socket = open()?;
    let mut result = Ok(());
    let (listed, found): (Vec<Flows>, Vec<Flows>) = flows.iter().partition(|flows| flows.is_by_v6_address());
    for flows in found {
        result = result.and(delete(&socket, &request(flows)));
    }
    if !listed.is_empty() {
        for flow in dump(AF_INET6)? {
            if listed.iter().any(|flows| flows.holds(&flow)) {
                result = result.and(forget_one(&socket, AF_INET6, &flow));
            }
        }
    }
    result
}

/// Forgets the flows that `is_lost` says; there may be none. All are tried, the first failure is told.
///
/// # Errors
/// If the kernel does not list them, or refuses.
pub fn forget_where(is_lost: impl Fn(&Tracked) -> bool) -> io::Result<()> {
    let socket = open()?;
    let mut result = Ok(());
    for family in [AF_INET, AF_INET6] {
        for flow in dump(family)?.iter().filter(|flow| is_lost(flow)) {
            result = result.and(forget_one(&socket, family, flow));
        }
    }
    result
}

fn forget_one(socket: &Socket, family: u8, flow: &Tracked) -> io::Result<()> {
    let body = [&[family, 0, 0, 0], flow.name.as_slice()].concat();
    delete(socket, &message(CT_DELETE, NLM_F_REQUEST_ACK, &body))
}

fn delete(socket: &Socket, request: &[u8]) -> io::Result<()> {
    socket.send(request, 0)?;
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

impl Flows {
    fn is_by_v6_address(&self) -> bool {
        match self {
            Self::AnsweredBy(address) | Self::BegunBy(address) | Self::Translated { to: address, .. } => {
                address.is_ipv6()
            }
            Self::UdpTo { .. } => false,
        }
    }

    /// Whether a flow is among them, if they are told by addresses.
    fn holds(&self, flow: &Tracked) -> bool {
        match self {
            Self::AnsweredBy(address) => flow.answered_by == *address,
            Self::BegunBy(address) => flow.from == *address,
            Self::Translated { to, backend } => (flow.to, flow.answered_by) == (*to, *backend),
            Self::UdpTo { .. } => false,
        }
    }
}

fn request(flows: Flows) -> Vec<u8> {
    let is_v6 = matches!(flows, Flows::UdpTo { v6: true, .. });
    // CTA_TUPLE_IP with CTA_IP_V4_SRC or CTA_IP_V4_DST.
    let ip = |address: IpAddr, is_destination: bool| match address {
        IpAddr::V4(v4) => attribute(1 | NESTED, &attribute(1 + u16::from(is_destination), &v4.octets())),
        IpAddr::V6(_) => unreachable!("listed instead"),
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
    message(CT_DELETE, NLM_F_REQUEST_ACK, &body)
}
