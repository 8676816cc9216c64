//! Links and WireGuard devices over netlink: one question, its answer, nothing in between.

use super::{Change, Found, FoundPeer};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::types::AllowedIp;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use zeroize::Zeroize as _;

/// How long the kernel may take to answer.
const TIMEOUT_S: i64 = 5;

/// A list is asked for again so often if it changed while it was told.
const TRIES: usize = 4;

/// Most bytes of peers in one message; an attribute of netlink takes 64 KiB.
const MOST_BYTES: usize = 30 << 10;

/// A link, as far as it is of interest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Whether the kernel's WireGuard is behind it.
    pub is_wireguard: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// Sockets to the kernel, in the network namespace in which they were opened.
#[derive(Debug)]
pub struct Netlink {
    route: Socket,
    generic: Socket,
    sequence: u32,
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(TIMEOUT_S, 0))?;
    Ok(socket)
}

impl Netlink {
    /// Opens them in the namespace of the calling thread.
    ///
    /// # Errors
    /// No sockets left.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            route: open(NETLINK_ROUTE)?,
            generic: open(NETLINK_GENERIC)?,
            sequence: 0,
        })
    }

    /// The number of WireGuard's family; the kernel loads its module for this.
    ///
    /// # Errors
    /// `ENOENT` if it has none.
    pub fn wireguard(&mut self) -> io::Result<u16> {
        let mut question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        question.finalize();
        let answers = self.ask_generic(question, NLM_F_ACK)?;
        let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
        let mut numbers = attributes.filter_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(number) => Some(number),
            _ => None,
        });
        numbers.next().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The link of that name.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = match self.ask_route(RouteNetlinkMessage::GetLink(question), NLM_F_ACK) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(read_link(link)),
            _ => None,
        }))
    }

    /// Makes a WireGuard link.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the kernel has none; `EEXIST`; `EPERM`.
    pub fn make_link(&mut self, name: &str) -> io::Result<()> {
        let mut wish = LinkMessage::default();
        wish.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.ask_route(RouteNetlinkMessage::NewLink(wish), flags).map(drop)
    }

    /// Sets the largest packet of a link.
    ///
    /// # Errors
    /// `EINVAL` if the kernel does not take it.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut wish = LinkMessage::default();
        wish.header.index = index;
        wish.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.ask_route(RouteNetlinkMessage::SetLink(wish), NLM_F_ACK).map(drop)
    }

    /// Removes a link, with its addresses and routes. None is fine.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn remove_link(&mut self, index: u32) -> io::Result<()> {
        let mut wish = LinkMessage::default();
        wish.header.index = index;
        match self.ask_route(RouteNetlinkMessage::DelLink(wish), NLM_F_ACK) {
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            done => done.map(drop),
        }
    }

    /// A WireGuard device as it is.
    ///
    /// # Errors
    /// `ENODEV`; `EOPNOTSUPP` if the link is of another kind.
    pub fn device(&mut self, family: u16, name: &str) -> io::Result<Found> {
        let payload = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfName(name.to_owned())],
        };
        let question = GenlMessage::new(header(&payload), payload, family);
        Ok(read_device(
            self.ask_generic(question, NLM_F_DUMP)?
                .into_iter()
                .flat_map(|answer| answer.payload.attributes),
        ))
    }

    /// Changes a WireGuard device.
    ///
    /// # Errors
    /// As the kernel says; with many peers, those of former messages are changed by then.
    pub fn change(&mut self, family: u16, name: &str, change: &Change) -> io::Result<()> {
        for attributes in write_device(name, change) {
            let payload = WireguardMessage {
                cmd: WireguardCmd::SetDevice,
                attributes,
            };
            let question = GenlMessage::new(header(&payload), payload, family);
            self.ask_generic(question, NLM_F_ACK)?;
        }
        Ok(())
    }

    fn ask_route(&mut self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        ask(&self.route, question, flags, self.sequence).map(|(answers, _)| answers)
    }

    fn ask_generic<F>(&mut self, question: GenlMessage<F>, flags: u16) -> io::Result<Vec<GenlMessage<F>>>
    where
        GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            let (answers, is_whole) = ask(&self.generic, question.clone(), flags, self.sequence)?;
            if is_whole {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}

fn header(payload: &WireguardMessage) -> netlink_packet_generic::GenlHeader {
    use netlink_packet_generic::GenlFamily as _;
    netlink_packet_generic::GenlHeader {
        cmd: payload.command(),
        version: payload.version(),
    }
}

/// The answers, and whether nothing changed while they were told.
fn ask<M>(socket: &Socket, question: M, flags: u16, sequence: u32) -> io::Result<(Vec<M>, bool)>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(question));
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let sent = socket.send(&bytes, 0);
    // There may be keys in it.
    bytes.zeroize();
    sent?;
    let (mut answers, mut is_whole) = (Vec::new(), true);
    loop {
        let (mut bytes, _) = socket.recv_from_full()?;
        let is_last = read(&bytes, sequence, &mut answers, &mut is_whole);
        bytes.zeroize();
        if is_last? {
            return Ok((answers, is_whole));
        }
    }
}

/// Reads the messages of one datagram; true if nothing follows.
fn read<M: NetlinkDeserializable>(
    mut bytes: &[u8],
    sequence: u32,
    answers: &mut Vec<M>,
    is_whole: &mut bool,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4).min(bytes.len());
        if length == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes = &bytes[length..];
        // Of a question that was given up.
        if message.header.sequence_number != sequence {
            continue;
        }
        *is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
        match message.payload {
            NetlinkPayload::Done(done) if done.code != 0 => return Err(io::Error::from_raw_os_error(done.code.abs())),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) => return Ok(true),
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
    }
    Ok(false)
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_wireguard: false,
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.is_wireguard = infos.contains(&LinkInfo::Kind(InfoKind::Wireguard));
            }
            _ => {}
        }
    }
    link
}

fn read_device(attributes: impl Iterator<Item = WireguardAttribute>) -> Found {
    let mut found = Found::default();
    for attribute in attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => {
                found.private_key = Some(PrivateKey::from_bytes(key)).filter(|key| !key.is_zero());
            }
            WireguardAttribute::ListenPort(port) => found.listen_port = port,
            WireguardAttribute::Fwmark(mark) => found.fwmark = mark,
            WireguardAttribute::Peers(peers) => peers.into_iter().for_each(|peer| read_peer(peer.0, &mut found.peers)),
            _ => {}
        }
    }
    found
}

/// A peer with many ranges is told in several parts; each has its key.
fn read_peer(attributes: Vec<WireguardPeerAttribute>, peers: &mut BTreeMap<PublicKey, FoundPeer>) {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer = peers.entry(key).or_default();
    for attribute in attributes {
        match attribute {
            WireguardPeerAttribute::PresharedKey(key) => peer.preshared_key = PresharedKey::from_bytes(key),
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.persistent_keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(at) => {
                let (seconds, nanos) = (u64::try_from(at.seconds), u32::try_from(at.nano_seconds));
                let at = Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0).min(999_999_999));
                peer.last_handshake = Some(at).filter(|at| !at.is_zero());
            }
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(ranges) => {
                peer.allowed_ips.extend(ranges.iter().filter_map(read_range));
            }
            _ => {}
        }
    }
}

fn read_range(range: &WireguardAllowedIp) -> Option<AllowedIp> {
    let (mut address, mut prefix) = (None, None);
    for attribute in &range.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => prefix = Some(*bits),
            _ => {}
        }
    }
    AllowedIp::new(address?, prefix?).ok()
}

fn write_range(range: &AllowedIp) -> WireguardAllowedIp {
    let family = match range.address() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(range.address()),
        WireguardAllowedIpAttr::Cidr(range.prefix()),
    ])
}

/// The attributes of each message that it takes.
fn write_device(name: &str, change: &Change) -> Vec<Vec<WireguardAttribute>> {
    let named = || vec![WireguardAttribute::IfName(name.to_owned())];
    let mut first = named();
    first.extend(
        change
            .private_key
            .as_ref()
            .map(|key| WireguardAttribute::PrivateKey(*key.bytes())),
    );
    first.extend(change.listen_port.map(WireguardAttribute::ListenPort));
    first.extend(change.fwmark.map(WireguardAttribute::Fwmark));
    let mut messages = vec![first];
    let (mut peers, mut bytes) = (Vec::new(), 0);
    for peer in &change.peers {
        let attributes = write_peer(peer);
        let length = 128 + 40 * peer.allowed_ips.len();
        if bytes + length > MOST_BYTES {
            push(&mut messages, std::mem::take(&mut peers), named);
            bytes = 0;
        }
        bytes += length;
        peers.push(WireguardPeer(attributes));
    }
    push(&mut messages, peers, named);
    messages
}

fn push(
    messages: &mut Vec<Vec<WireguardAttribute>>,
    peers: Vec<WireguardPeer>,
    named: impl Fn() -> Vec<WireguardAttribute>,
) {
    if peers.is_empty() {
        return;
    }
    let attribute = WireguardAttribute::Peers(peers);
    // The first one has room; each other is a message of its own.
    match messages.last_mut().filter(|last| !last.iter().any(is_peers)) {
        Some(last) => last.push(attribute),
        None => {
            let mut message = named();
            message.push(attribute);
            messages.push(message);
        }
    }
}

const fn is_peers(attribute: &WireguardAttribute) -> bool {
    matches!(attribute, WireguardAttribute::Peers(_))
}

fn write_peer(peer: &super::PeerChange) -> Vec<WireguardPeerAttribute> {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(peer.public_key.0)];
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::RemoveMe, peer.remove);
    flags.set(WireguardPeerFlags::UpdateOnly, peer.update_only);
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, peer.replace_allowed_ips);
    if !flags.is_empty() {
        attributes.push(WireguardPeerAttribute::Flags(flags));
    }
    let shared = peer.preshared_key.as_ref();
    attributes.extend(shared.map(|key| WireguardPeerAttribute::PresharedKey(*key.bytes())));
    attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(
        peer.persistent_keepalive
            .map(WireguardPeerAttribute::PersistentKeepalive),
    );
    if !peer.allowed_ips.is_empty() {
        let ranges = peer.allowed_ips.iter().map(write_range).collect();
        attributes.push(WireguardPeerAttribute::AllowedIps(ranges));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::super::PeerChange;
    use super::*;

    /// What is written is read back as the kernel would tell it, also where it takes several messages.
    #[test]
    fn changes_are_written_as_they_are_read() {
        let peer = |number: u16| PeerChange {
            endpoint: Some(([192, 0, 2, 1], number).into()),
            persistent_keepalive: Some(25),
            allowed_ips: vec![
                format!("10.{}.{}.0/24", number >> 8, number & 255).parse().unwrap(),
                format!("fc00::{number:x}:0/112").parse().unwrap(),
            ],
            ..PeerChange::new(PublicKey(
                [number.to_be_bytes()[1].max(1); 32].map(|byte| byte ^ (number >> 8) as u8),
            ))
        };
        let key = PrivateKey::generate();
        let change = Change {
            private_key: Some(key.clone()),
            listen_port: Some(7),
            fwmark: Some(9),
            peers: (1..250).map(peer).collect(),
        };
        let messages = write_device("rbl-wg", &change);
        assert!(messages.len() > 1, "an attribute takes 64 KiB");
        let name = WireguardAttribute::IfName("rbl-wg".to_owned());
        assert!(messages.iter().all(|message| message[0] == name));
        let found = read_device(messages.into_iter().flatten());
        assert_eq!(found.private_key, Some(key));
        assert_eq!((found.listen_port, found.fwmark), (7, 9));
        assert_eq!(found.peers.len(), change.peers.len());
        for wanted in &change.peers {
            let peer = &found.peers[&wanted.public_key];
            assert_eq!(peer.endpoint, wanted.endpoint);
            assert!(peer.allowed_ips.iter().eq(&wanted.allowed_ips));
        }
        assert_eq!(write_device("x", &Change::default()).len(), 1);
    }
}
