//! Packets that arrived together, joined into frames for the TUN device: segments of one TCP stream, datagrams of one UDP
//! flow. The reverse of [`super::segment`]: cut again, a frame gives the same packets, byte for byte, but for IPv4's
//! identification where fragmentation is forbidden.
//!
//! Only neighbours of a flow are joined, so that their order stays; flows are told apart, so that one does not
//! keep the other from being joined. A checksum is looked at before it is thrown away.

use super::checksum::{fold, sum};
use super::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET, Vnet};
use super::{Ip, TCP, UDP, V4_HEADER, half, pseudo_header, put_half, word};
use std::ops::Range;

/// Most packets in a frame: the kernel's limit for UDP.
pub const MOST_PIECES: usize = 64;
/// Longest headers that are joined: IPv6, TCP with options.
const MOST_HEADERS: usize = 40 + 60;
/// Flows whose last frame may still grow.
const OPEN: usize = 8;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// Place of the flags in a TCP header.
const FLAGS: usize = 13;

/// A frame: headers of its own, if any, and pieces of the arena.
#[derive(Debug)]
pub struct Frame {
    head: [u8; VNET + MOST_HEADERS],
    head_length: usize,
    pieces: Vec<Range<usize>>,
    flow: Option<Flow>,
}

/// What is known of the packets in a frame.
#[derive(Debug, Clone, Copy)]
struct Flow {
    protocol: u8,
    is_v6: bool,
    transport: usize,
    headers: usize,
    /// Payload of every packet but the last.
    size: usize,
    /// Of all packets.
    payload: usize,
    next_sequence: u32,
    is_closed: bool,
    /// FIN and PSH of the last packet.
    flags: u8,
    has_checksum: bool,
}

impl Frame {
    /// Header of the TUN device, and the headers of a joined packet.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_length]
    }

    /// What follows, as parts of the arena.
    pub fn pieces(&self) -> &[Range<usize>] {
        &self.pieces
    }

    /// Whether packets are joined in it.
    pub fn is_joined(&self) -> bool {
        self.head_length > VNET
    }

    /// The packets in it, if it is joined: the whole of each, as parts of the arena.
    pub fn packets(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let headers = self.flow.filter(|_| self.is_joined()).map_or(0, |flow| flow.headers);
        // Each payload has its headers before it.
        self.pieces.iter().map(move |piece| piece.start - headers..piece.end)
    }
}

/// Joins the packets of one batch. Keeps its memory for the next.
#[derive(Debug, Default)]
pub struct Coalescer {
    frames: Vec<Frame>,
    used: usize,
    /// The last frames of some flows, the newest last.
    open: Vec<usize>,
    /// Whether the device takes joined TCP.
    pub tcp: bool,
    /// Whether the device takes joined UDP.
    pub udp: bool,
}

impl Coalescer {
    /// For a device that takes joined TCP, and UDP.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self {
            tcp,
            udp,
            ..Self::default()
        }
    }

    /// Adds a packet, which is `packet` of the arena and is a whole IP packet without padding.
    pub fn add(&mut self, arena: &[u8], packet: Range<usize>) {
        let bytes = &arena[packet.clone()];
        let flow = self.flow(bytes);
        if let Some(flow) = flow {
            let place = self
                .open
                .iter()
                .rposition(|at| is_same_flow(arena, &self.frames[*at], bytes, &flow));
            if let Some(place) = place {
                if join(arena, &mut self.frames[self.open[place]], packet.clone(), &flow) {
                    return;
                }
                self.open.remove(place);
            }
        }
        if self.frames.len() == self.used {
            self.frames.push(Frame {
                head: [0; VNET + MOST_HEADERS],
                head_length: VNET,
                pieces: Vec::with_capacity(MOST_PIECES),
                flow: None,
            });
        }
        let frame = &mut self.frames[self.used];
        frame.head = [0; VNET + MOST_HEADERS];
        frame.head_length = VNET;
        frame.pieces.clear();
        frame.pieces.push(packet);
        frame.flow = flow;
        if flow.is_some_and(|flow| !flow.is_closed) {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(self.used);
        }
        self.used += 1;
    }

    /// The frames of the batch, in the order of their first packets; the next batch begins.
    pub fn finish(&mut self, arena: &[u8]) -> &[Frame] {
        let used = std::mem::take(&mut self.used);
        self.open.clear();
        for frame in &mut self.frames[..used] {
            if frame.pieces.len() > 1 {
                close(arena, frame);
            }
        }
        &self.frames[..used]
    }

    /// Gives back memory that a burst took.
    pub fn shrink(&mut self) {
        self.frames = Vec::new();
    }

    /// What a packet is that could be joined with others; `None` if it cannot.
    fn flow(&self, packet: &[u8]) -> Option<Flow> {
        let ip = Ip::parse(packet)?;
        if !ip.is_v6() && (ip.header != V4_HEADER || half(packet, 6) & 0x3fff != 0) {
            return None;
        }
        let (transport, is_v6) = (ip.header, ip.is_v6());
        match ip.protocol {
            TCP if self.tcp => {
                let headers = transport + usize::from(packet.get(transport + 12)? >> 4) * 4;
                let flags = packet[transport..].get(FLAGS)?;
                let is_plain = flags & !(FIN | PSH) == ACK;
                if !is_plain || headers < transport + 20 || headers >= packet.len() {
                    return None;
                }
                let payload = packet.len() - headers;
                Some(Flow {
                    protocol: TCP,
                    is_v6,
                    transport,
                    headers,
                    size: payload,
                    payload,
                    next_sequence: word(packet, transport + 4).wrapping_add(payload as u32),
                    is_closed: flags & (FIN | PSH) != 0,
                    flags: flags & (FIN | PSH),
                    has_checksum: false,
                })
            }
            UDP if self.udp => {
                let headers = transport + 8;
                let is_whole =
                    headers < packet.len() && usize::from(half(packet, transport + 4)) == packet.len() - transport;
                // Without a checksum there is nothing to check; a joined frame would gain one.
                if !is_whole || half(packet, transport + 6) == 0 {
                    return None;
                }
                let payload = packet.len() - headers;
                Some(Flow {
                    protocol: UDP,
                    is_v6,
                    transport,
                    headers,
                    size: payload,
                    payload,
                    next_sequence: 0,
                    is_closed: false,
                    flags: 0,
                    has_checksum: false,
                })
            }
            _ => None,
        }
    }
}

/// The first packet of a frame.
fn first<'a>(arena: &'a [u8], frame: &Frame) -> &'a [u8] {
    let piece = frame.pieces[0].clone();
    let headers = frame.flow.filter(|_| frame.is_joined()).map_or(0, |flow| flow.headers);
    &arena[piece.start - headers..piece.end]
}

fn is_same_flow(arena: &[u8], frame: &Frame, packet: &[u8], flow: &Flow) -> bool {
    let Some(known) = &frame.flow else { return false };
    let first = first(arena, frame);
    let addresses = if flow.is_v6 { 8..40 } else { 12..20 };
    let ports = flow.transport..flow.transport + 4;
    known.protocol == flow.protocol
        && known.is_v6 == flow.is_v6
        && first[addresses.clone()] == packet[addresses]
        && first[ports.clone()] == packet[ports]
}

/// Whether headers agree in all that a joined frame has only once.
fn agrees(first: &[u8], packet: &[u8], flow: &Flow, count: usize) -> bool {
    let is_ip_same = match flow.is_v6 {
        // Version, traffic class and flow label; next header and hop limit.
        true => first[..4] == packet[..4] && first[6..8] == packet[6..8],
        // Version, length of header and TOS; flags; TTL and protocol. The identification counts, where it counts at all.
        false => {
            let is_whole = half(packet, 6) & 0x4000 != 0;
            let id = half(first, 4).wrapping_add(count as u16);
            first[..2] == packet[..2] && first[6..10] == packet[6..10] && (is_whole || half(packet, 4) == id)
        }
    };
    let at = flow.transport;
    let is_transport_same = match flow.protocol {
        // Acknowledgement; length of header; window; urgent pointer and options.
        TCP => {
            first[at + 8..at + 13] == packet[at + 8..at + 13]
                && first[at + 14..at + 16] == packet[at + 14..at + 16]
                && first[at + 18..flow.headers] == packet[at + 18..flow.headers]
        }
        _ => true,
    };
    is_ip_same && is_transport_same
}

fn has_right_checksum(packet: &[u8], flow: &Flow) -> bool {
    let pseudo = pseudo_header(packet, flow.protocol, packet.len() - flow.transport);
    fold(sum(&packet[flow.transport..], pseudo)) == 0xffff
}

/// Adds a packet to a frame of its flow, if it goes with it.
fn join(arena: &[u8], frame: &mut Frame, packet: Range<usize>, flow: &Flow) -> bool {
    let count = frame.pieces.len();
    let Some(known) = frame.flow else { return false };
    let sequence = flow.next_sequence.wrapping_sub(flow.payload as u32);
    let fits = known.headers == flow.headers
        && !known.is_closed
        && flow.payload <= known.size
        && count < MOST_PIECES
        && known.headers + known.payload + flow.payload <= usize::from(u16::MAX)
        && (flow.protocol == UDP || sequence == known.next_sequence);
    if !fits {
        return false;
    }
    let (one, other) = (first(arena, frame), &arena[packet.clone()]);
    if !agrees(one, other, flow, count) || !has_right_checksum(other, flow) {
        return false;
    }
    if !known.has_checksum && !has_right_checksum(one, &known) {
        return false;
    }
    let Some(known) = &mut frame.flow else { return false };
    known.has_checksum = true;
    known.payload += flow.payload;
    known.next_sequence = flow.next_sequence;
    known.flags = flow.flags;
    known.is_closed = flow.is_closed || flow.payload < known.size;
    if count == 1 {
        frame.head_length = VNET + flow.headers;
        frame.pieces[0].start += flow.headers;
    }
    frame.pieces.push(packet.start + flow.headers..packet.end);
    true
}

/// Writes the headers of a joined frame.
fn close(arena: &[u8], frame: &mut Frame) {
    let Some(flow) = frame.flow else { return };
    let headers = first(arena, frame);
    let mut head = [0; VNET + MOST_HEADERS];
    head[VNET..VNET + flow.headers].copy_from_slice(&headers[..flow.headers]);
    let (vnet, packet) = head.split_at_mut(VNET);
    let packet = &mut packet[..flow.headers];
    let total = flow.headers + flow.payload;
    // The lengths are the whole frame's, the checksum is of the pseudo header alone.
    set_length(packet, total);
    let length = total - flow.transport;
    let pseudo = fold(pseudo_header(packet, flow.protocol, length));
    let csum_offset = if flow.protocol == TCP { 16 } else { 6 };
    put_half(packet, flow.transport + csum_offset, pseudo);
    let gso_type = match flow.protocol {
        TCP => {
            packet[flow.transport + FLAGS] |= flow.flags;
            if flow.is_v6 { GSO_TCPV6 } else { GSO_TCPV4 }
        }
        _ => {
            put_half(packet, flow.transport + 4, length as u16);
            GSO_UDP_L4
        }
    };
    vnet.copy_from_slice(
        &Vnet {
            flags: NEEDS_CSUM,
            gso_type: if frame.pieces.len() > 1 { gso_type } else { GSO_NONE },
            hdr_len: flow.headers as u16,
            gso_size: flow.size as u16,
            csum_start: flow.transport as u16,
            csum_offset: csum_offset as u16,
        }
        .bytes(),
    );
    frame.head = head;
}

/// Sets the IP header's length to `total`, which is more than `header` holds.
fn set_length(header: &mut [u8], total: usize) {
    if header[0] >> 4 == 6 {
        put_half(header, 4, (total - super::V6_HEADER) as u16);
        return;
    }
    put_half(header, 2, total as u16);
    put_half(header, 10, 0);
    let checksum = super::checksum::finish(sum(&header[..V4_HEADER], 0));
    put_half(header, 10, checksum);
}
