//! Cutting and joining against a plain model: a frame cut by hand, packet by packet.

use super::checksum::{finish, sum};
use super::coalesce::Coalescer;
use super::segment::Segments;
use super::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET, Vnet};
use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Flow {
    is_v6: bool,
    is_tcp: bool,
    port: u16,
    size: usize,
    payload: usize,
    options: usize,
    tos: u8,
    flags: u8,
    keep_whole: bool,
}

fn flow() -> impl Strategy<Value = Flow> {
    let bools = any::<[bool; 3]>();
    (
        bools,
        1..4u16,
        1..1_400usize,
        1..40_000usize,
        0..3usize,
        any::<u8>(),
        any::<bool>(),
    )
        .prop_map(|(bools, port, size, payload, options, tos, ends)| Flow {
            is_v6: bools[0],
            is_tcp: bools[1],
            port,
            // No more packets than a frame may have.
            size: size.max(payload / 60 + 1),
            payload,
            options: options * 4,
            tos,
            flags: if ends { 0x18 } else { 0x10 },
            keep_whole: bools[2],
        })
}

impl Flow {
    fn headers(&self) -> (usize, usize) {
        let ip = if self.is_v6 { 40 } else { 20 };
        (ip, ip + if self.is_tcp { 20 + self.options } else { 8 })
    }

    /// A packet with these bytes of the flow's payload, checksums right.
    fn packet(&self, from: usize, to: usize, id: u16, is_last: bool) -> Vec<u8> {
        let (ip, headers) = self.headers();
        let mut packet = vec![0; headers];
        if self.is_v6 {
            (packet[0], packet[1]) = (0x60 | self.tos >> 4, self.tos << 4);
            (packet[6], packet[7]) = (if self.is_tcp { TCP } else { UDP }, 63);
            (packet[8], packet[24]) = (0xfd, 0xfd);
        } else {
            (packet[0], packet[1]) = (0x45, self.tos);
            put_half(&mut packet, 4, id);
            packet[6] = if self.keep_whole { 0x40 } else { 0 };
            (packet[8], packet[9]) = (63, if self.is_tcp { TCP } else { UDP });
            packet[12..20].copy_from_slice(&[10, 18, 0, 2, 10, 18, 1, 2]);
        }
        put_half(&mut packet, ip, self.port);
        put_half(&mut packet, ip + 2, 443);
        if self.is_tcp {
            packet[ip + 4..ip + 8].copy_from_slice(&(0xffff_f000_u32.wrapping_add(from as u32)).to_be_bytes());
            packet[ip + 11] = 9;
            packet[ip + 12] = (((20 + self.options) / 4) << 4) as u8;
            packet[ip + 13] = if is_last { self.flags } else { self.flags & 0x10 };
            packet[ip + 14] = 7;
        }
        packet.extend((from..to).map(|at| (at * 7 + at / 251) as u8));
        finish_ip(&mut packet, None);
        let length = packet.len() - ip;
        if !self.is_tcp {
            put_half(&mut packet, ip + 4, length as u16);
        }
        let place = ip + if self.is_tcp { 16 } else { 6 };
        let protocol = if self.is_tcp { TCP } else { UDP };
        let pseudo = pseudo_header(&packet, protocol, length);
        let checksum = finish(sum(&packet[ip..], pseudo));
        put_half(
            &mut packet,
            place,
            if checksum == 0 && !self.is_tcp {
                0xffff
            } else {
                checksum
            },
        );
        packet
    }

    /// Cut by hand.
    fn packets(&self) -> Vec<Vec<u8>> {
        let starts: Vec<_> = (0..self.payload).step_by(self.size).collect();
        let cut = |(count, from): (usize, &usize)| {
            let to = (from + self.size).min(self.payload);
            self.packet(*from, to, 500 + count as u16, to == self.payload)
        };
        starts.iter().enumerate().map(cut).collect()
    }

    /// As the kernel hands it over, not cut.
    fn frame(&self) -> (Vnet, Vec<u8>) {
        let (ip, headers) = self.headers();
        let mut frame = self.packet(0, self.payload, 500, true);
        let protocol = if self.is_tcp { TCP } else { UDP };
        let csum_offset = if self.is_tcp { 16 } else { 6 };
        let pseudo = checksum::fold(pseudo_header(&frame, protocol, frame.len() - ip));
        put_half(&mut frame, ip + csum_offset, pseudo);
        let gso_type = match (self.payload > self.size, self.is_tcp, self.is_v6) {
            (false, ..) => GSO_NONE,
            (_, true, false) => GSO_TCPV4,
            (_, true, true) => GSO_TCPV6,
            (_, false, _) => GSO_UDP_L4,
        };
        let vnet = Vnet {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: headers as u16,
            gso_size: if gso_type == GSO_NONE { 0 } else { self.size as u16 },
            csum_start: ip as u16,
            csum_offset: csum_offset as u16,
        };
        (vnet, frame)
    }
}

fn cut(vnet: Vnet, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(vnet, &mut frame).unwrap();
    let mut packets = Vec::new();
    while let Some(length) = segments.next_length() {
        assert!(length <= segments.largest());
        let mut packet = vec![0xaa; length];
        segments.write_next(&mut packet);
        packets.push(packet);
    }
    packets
}

/// What a batch of packets becomes: frames as they are written to the device.
fn join(packets: &[Vec<u8>], udp: bool) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new(true, udp);
    let (mut arena, mut ranges) = (vec![0xbb; 16], Vec::new());
    for packet in packets {
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend_from_slice(packet);
        arena.extend_from_slice(&[0xcc; 32]);
    }
    for range in ranges {
        coalescer.add(&arena, range);
    }
    let whole = |frame: &coalesce::Frame| {
        let mut bytes = frame.head().to_vec();
        frame
            .pieces()
            .iter()
            .for_each(|piece| bytes.extend_from_slice(&arena[piece.clone()]));
        let again: usize = frame.packets().map(|packet| packet.len()).sum();
        assert!(again >= bytes.len() - VNET);
        bytes
    };
    coalescer.finish(&arena).iter().map(whole).collect()
}

fn cut_again(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let cut = |frame: &Vec<u8>| cut(Vnet::read(frame.first_chunk().unwrap()), frame[VNET..].to_vec());
    frames.iter().flat_map(cut).collect()
}

proptest! {
    #[test]
    fn a_frame_is_cut_as_by_hand(flow in flow()) {
        let (vnet, frame) = flow.frame();
        prop_assert_eq!(cut(vnet, frame), flow.packets());
    }

    #[test]
    fn packets_are_joined_and_come_apart_again(flow in flow()) {
        let packets = flow.packets();
        let frames = join(&packets, true);
        prop_assert_eq!(frames.len(), 1);
        prop_assert_eq!(cut_again(&frames), packets);
    }

    #[test]
    fn each_flow_keeps_its_packets_and_their_order(
        flows in proptest::collection::vec(flow(), 1..5), order: Vec<u8>, broken in any::<Option<u16>>(), udp: bool,
    ) {
        let mut flows = flows;
        flows.iter_mut().zip(1..).for_each(|(flow, port)| flow.port = port);
        let mut left: Vec<_> = flows.iter().map(|flow| flow.packets().into_iter()).collect();
        let mut packets = Vec::new();
        for pick in order.into_iter().map(usize::from).chain(0..1_000) {
            let at = pick % left.len();
            packets.extend(left[at].next());
        }
        let damaged = broken.map(|at| usize::from(at) % packets.len());
        if let Some(at) = damaged {
            *packets[at].last_mut().unwrap() ^= 1;
        }
        let frames = join(&packets, udp);
        let mut again = cut_again(&frames);
        // What is damaged stays so: it is neither joined nor put right.
        for port in 1..=flows.len() {
            let of = |packet: &&Vec<u8>| half(packet, if packet[0] >> 4 == 6 { 40 } else { 20 }) == port as u16;
            prop_assert_eq!(again.iter().filter(of).collect::<Vec<_>>(), packets.iter().filter(of).collect::<Vec<_>>());
        }
        again.sort();
        packets.sort();
        prop_assert_eq!(again, packets);
    }

    #[test]
    fn no_frame_of_the_kernel_is_trusted(
        head in any::<[u8; VNET]>(), gso in prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x81)],
        start in 0..80u16, mut frame in proptest::collection::vec(any::<u8>(), 0..300), version in prop_oneof![Just(0x45u8), Just(0x60), Just(0x4f)],
    ) {
        let mut vnet = Vnet { gso_type: gso, csum_start: start, ..Vnet::read(&head) };
        vnet.csum_offset %= 40;
        if let Some(first) = frame.first_mut() {
            *first = version;
        }
        if let Ok(mut segments) = Segments::new(vnet, &mut frame) {
            let mut out = vec![0; 70_000];
            while let Some(length) = segments.next_length() {
                segments.write_next(&mut out[..length]);
            }
        }
    }

    #[test]
    fn no_packet_of_a_peer_is_trusted(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..120), 1..10)) {
        let mut packets = packets;
        for packet in &mut packets {
            packet[0] = if packet[0] & 1 == 0 { 0x45 } else { 0x60 };
            if packet.len() > 9 {
                packet[6] = if packet[0] == 0x60 { TCP } else { 0 };
                packet[9] = UDP;
            }
            let (length, is_v6) = (packet.len() as u16, packet[0] == 0x60);
            if packet.len() >= 40 {
                put_half(packet, if is_v6 { 4 } else { 2 }, if is_v6 { length - 40 } else { length });
            }
        }
        let joined: usize = join(&packets, true).len();
        prop_assert!(joined <= packets.len());
    }

    #[test]
    fn fragments_hold_the_packet(payload in 1..4_000usize, mtu in 68..1_500usize) {
        let flow = Flow { is_v6: false, is_tcp: false, port: 1, size: payload, payload, options: 0, tos: 0, flags: 0, keep_whole: false };
        let packet = flow.packet(0, payload, 77, true);
        let mut whole = vec![0; packet.len() - 20];
        let fragments: Vec<_> = fragment::fragments(&packet, mtu).collect();
        for (at, one) in fragments.iter().enumerate() {
            prop_assert!(one.len() <= mtu);
            prop_assert_eq!(finish(sum(&one[..20], 0)), 0);
            let offset = usize::from(half(one, 6) & 0x1fff) * 8;
            prop_assert_eq!(half(one, 6) & 0x2000 == 0, at + 1 == fragments.len());
            whole[offset..offset + one.len() - 20].copy_from_slice(&one[20..]);
        }
        prop_assert_eq!(&whole[..], &packet[20..]);
    }
}

#[test]
fn too_big_is_said_to_the_sender_with_the_beginning() {
    for is_v6 in [false, true] {
        let flow = Flow {
            is_v6,
            is_tcp: false,
            port: 1,
            size: 3_000,
            payload: 3_000,
            options: 0,
            tos: 0,
            flags: 0,
            keep_whole: true,
        };
        let packet = flow.packet(0, 3_000, 1, true);
        let message = icmp::too_big(&packet, 1_280).unwrap();
        let (ip, before) = (Ip::parse(&message).unwrap(), Ip::parse(&packet).unwrap());
        assert_eq!(
            (ip.source, ip.destination, ip.length),
            (before.destination, before.source, message.len())
        );
        let body = &message[ip.header..];
        let pseudo = if is_v6 {
            pseudo_header(&message, 58, body.len())
        } else {
            0
        };
        assert_eq!(finish(sum(body, pseudo)), 0);
        assert_eq!(&body[8..], &packet[..body.len() - 8]);
        assert_eq!(if is_v6 { word(body, 4) } else { word(body, 4) & 0xffff }, 1_280);
        assert!(message.len() <= 1_280);
        assert_eq!(icmp::too_big(&message, 1_280), None, "no errors about errors");
    }
}
