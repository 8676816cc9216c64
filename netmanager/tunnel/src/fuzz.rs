//! What strangers' bytes pass through, as plain functions of those bytes, for `tests/fuzz`. They panic if something is wrong.

use crate::core::{Core, Now};
use crate::counters::DropCounters;
use crate::key::{PresharedKey, PrivateKey};
use crate::noise::{Codes, Identity};
use crate::packet::coalesce::Coalescer;
use crate::packet::segment::Segments;
use crate::packet::vnet::{GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, VNET, Vnet};
use crate::packet::{Ip, ecn, fragment, icmp};
use crate::session::{OVERHEAD, Session, TYPE};
use crate::types::{DeviceConfig, PeerConfig};
use crate::uapi::{Answer, Request, encode_answer, encode_request};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use crate::uapi::fuzz_uapi;

const NOW: Now = Now {
    boot: Duration::from_secs(1_000),
    unix: Duration::from_secs(1_700_000_000),
};

/// A device with one peer and a session with it.
struct Device {
    core: Core,
    session: Arc<Session>,
}

fn device() -> &'static Mutex<Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let keys = [PrivateKey::from_bytes([0x50; 32]), PrivateKey::from_bytes([0x58; 32])];
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let [mut one, mut other] = [0, 1].map(|of| {
            let mut core = Core::new(Arc::<DropCounters>::default());
            let mut peer = PeerConfig::new(keys[1 - of].public());
            peer.endpoint = Some(at(2 - of as u16));
            peer.persistent_keepalive = Some(25);
            let config = DeviceConfig {
                private_key: Some(keys[of].clone()),
                peers: vec![peer],
                ..DeviceConfig::default()
            };
            core.apply(&config, NOW).expect("a peer that is named once");
            core
        });
        one.tick(NOW);
        let initiation = one
            .take_output()
            .pop()
            .expect("a peer that is to be kept alive gets an initiation");
        other.handshake(&initiation.bytes, at(1), NOW);
        let response = other.take_output().pop().expect("an answer");
        one.handshake(&response.bytes, at(2), NOW);
        let number = u32::from_le_bytes(response.bytes[8..12].try_into().expect("four bytes"));
        let session = one.session(number).expect("a session");
        one.take_output();
        Mutex::new(Device { core: one, session })
    })
}

/// A datagram from anybody: nobody who does not know the keys gets through, is answered at length, or stops the device.
///
/// # Panics
/// If one does.
pub fn fuzz_datagram(bytes: &[u8]) {
    let mut device = device().lock().unwrap_or_else(PoisonError::into_inner);
    let mut message = bytes.to_vec();
    if message.starts_with(&[TYPE, 0, 0, 0]) && message.len() >= OVERHEAD {
        assert!(
            device.session.open(&mut message).is_err(),
            "opened what was never sealed"
        );
    }
    let from = ([192, 0, 2, 1], 5).into();
    let before = device.core.endpoints();
    device.core.handshake(bytes, from, NOW);
    let answer: usize = device.core.take_output().iter().map(|sent| sent.bytes.len()).sum();
    assert!(answer <= bytes.len(), "an answer of {answer} bytes");
    assert_eq!(device.core.endpoints(), before);
}

/// What a peer sealed: packets in pieces of the size that the first byte says. They are joined and come apart again.
///
/// # Panics
/// If other packets come out.
pub fn fuzz_inner(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let mut arena = bytes.to_vec();
    let mut coalescer = Coalescer::new(true, true);
    let size = usize::from(*size).max(1) * 4;
    let mut packets = Vec::new();
    for start in (0..arena.len()).step_by(size) {
        let text = start..(start + size).min(arena.len());
        let Some(ip) = Ip::parse(&arena[text]) else { continue };
        let packet = start..start + ip.length;
        if let Some(mark) = ecn::combine(ip.tos, 3) {
            ecn::set(&mut arena[packet.clone()], mark);
        }
        let _ = icmp::too_big(&arena[packet.clone()], 1_280);
        let length: usize = fragment::fragments(&arena[packet.clone()], 576)
            .map(|piece| piece.len())
            .sum();
        assert!(length < 2 * packet.len() + 60 * (packet.len() / 8 + 1));
        packets.push(packet);
    }
    for packet in &packets {
        coalescer.add(&arena, packet.clone());
    }
    let mut count = 0;
    for frame in coalescer.finish(&arena) {
        let mut whole = frame.head().to_vec();
        frame
            .pieces()
            .iter()
            .for_each(|piece| whole.extend_from_slice(&arena[piece.clone()]));
        count += cut(&whole);
    }
    assert_eq!(count, packets.len());
}

/// A frame as the kernel hands it over: header and packet.
///
/// # Panics
/// If what comes out of it is no packet.
pub fn fuzz_frame(bytes: &[u8]) {
    cut(bytes);
}

/// How many packets a frame holds.
fn cut(frame: &[u8]) -> usize {
    let Some((head, packet)) = frame.split_first_chunk::<VNET>() else {
        return 0;
    };
    let mut packet = packet.to_vec();
    let Ok(mut segments) = Segments::new(Vnet::read(head), &mut packet) else {
        return 0;
    };
    let mut count = 0;
    while let Some(length) = segments.next_length() {
        let mut out = vec![0; length];
        segments.write_next(&mut out);
        assert!(length <= segments.largest() && Ip::parse(&out).is_some_and(|ip| ip.length <= length));
        count += 1;
    }
    count
}

/// Named inputs.
pub type Samples = Vec<(&'static str, Vec<u8>)>;

/// Valid inputs of each body, by the name of its folder, from which a corpus grows. Handshakes differ each time.
///
/// # Panics
/// If one of them is not valid.
pub fn samples() -> [(&'static str, Samples); 4] {
    let device = Identity::new(PrivateKey::from_bytes([0x50; 32]));
    // Somebody whom the device does not know.
    let peer = Identity::new(PrivateKey::from_bytes([0x60; 32]));
    let made = peer.initiate(&device.public(), &PresharedKey::default(), 7, &[0x40; 12]);
    let (_, mut initiation) = made.expect("keys that are keys");
    Codes::of(device.public()).sign(&mut initiation, None);
    let mut data = vec![0; OVERHEAD + 64];
    data[0] = TYPE;
    let read = device.read_initiation(&initiation).expect("its own");
    let (mut response, _) = read.respond(&PresharedKey::default(), 9).expect("keys that are keys");
    Codes::of(device.public()).sign(&mut response, None);
    let cookie = device.cookie_reply(&initiation, &[5; 16], &[6; 24]).to_vec();
    let datagrams = vec![
        ("initiation", initiation.to_vec()),
        ("response", response.to_vec()),
        ("cookie", cookie),
        ("data", data),
        ("empty", Vec::new()),
    ];
    // Two neighbours of a TCP stream over IPv4 and of a UDP flow over IPv6, 60 bytes each.
    let mut tcp = [0_u8; 60];
    (tcp[0], tcp[3], tcp[6], tcp[8], tcp[9]) = (0x45, 60, 0x40, 64, 6);
    tcp[12..20].copy_from_slice(&[10, 18, 0, 1, 10, 18, 1, 1]);
    (tcp[32], tcp[33]) = (0x50, 0x10);
    let mut udp = [0_u8; 60];
    (udp[0], udp[5], udp[6], udp[7], udp[45], udp[46]) = (0x60, 20, 17, 64, 20, 1);
    let inner = |packet: &[u8]| [&[15], packet, packet].concat();
    let vnet = |gso_type, csum_start, csum_offset| Vnet {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: 0,
        gso_size: 4,
        csum_start,
        csum_offset,
    };
    let frame = |vnet: Vnet, packet: &[u8]| [&vnet.bytes()[..], packet].concat();
    let frames = vec![
        ("whole", frame(vnet(0, 20, 16), &tcp)),
        ("tcp", frame(vnet(GSO_TCPV4, 20, 16), &tcp)),
        ("udp", frame(vnet(GSO_UDP_L4, 40, 6), &udp)),
    ];
    let mut wish = PeerConfig::new(peer.public());
    wish.endpoint = Some(([10, 0, 0, 1], 7).into());
    wish.candidates = vec![([10, 0, 0, 2], 7).into()];
    wish.allowed_ips = "10.18.0.0/26".parse().into_iter().collect();
    let config = DeviceConfig {
        listen_port: Some(7),
        replace_peers: true,
        peers: vec![wish],
        ..DeviceConfig::default()
    };
    let status = Answer::Status(Box::default());
    let texts = vec![
        ("get", encode_request(&Request::Get).into_bytes()),
        ("set", encode_request(&Request::Set(Box::new(config))).into_bytes()),
        ("status", encode_answer(&status).into_bytes()),
        ("refused", encode_answer(&Answer::Done(-22)).into_bytes()),
    ];
    let inners = vec![("tcp", inner(&tcp)), ("udp", inner(&udp))];
    [
        ("tunnel-datagram", datagrams),
        ("tunnel-inner", inners),
        ("tunnel-frame", frames),
        ("tunnel-uapi", texts),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let starts = prop_oneof![
            Just(vec![]),
            Just(vec![1, 0, 0, 0]),
            Just(vec![2, 0, 0, 0]),
            Just(vec![4, 0, 0, 0]),
            Just(vec![15, 0x45, 0]),
            Just(vec![15, 0x60, 0]),
            Just(vec![1, 1, 52, 0, 20, 0, 20, 0, 16, 0, 0x45, 0, 0, 99]),
        ];
        let length = prop_oneof![0..200usize, Just(148 - 4), Just(92 - 4), Just(64 - 4)];
        (
            starts,
            length.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length)),
        )
            .prop_map(|(mut start, rest)| {
                start.extend(rest);
                start
            })
    }

    #[test]
    fn samples_are_what_they_are_called() {
        let [(_, datagrams), (_, inner), (_, frames), (_, texts)] = samples();
        let device = Identity::new(PrivateKey::from_bytes([0x50; 32]));
        assert!(device.codes().is_signed(&datagrams[0].1) && device.codes().is_signed(&datagrams[1].1));
        datagrams.iter().for_each(|(_, bytes)| fuzz_datagram(bytes));
        inner.iter().for_each(|(_, bytes)| fuzz_inner(bytes));
        let counts: Vec<_> = frames.iter().map(|(_, bytes)| cut(bytes)).collect();
        assert_eq!(counts, [1, 5, 3]);
        texts.iter().for_each(|(_, bytes)| fuzz_uapi(bytes));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
        #[test]
        fn bodies_take_anything(bytes in bytes()) {
            fuzz_datagram(&bytes);
            fuzz_inner(&bytes);
            fuzz_frame(&bytes);
            fuzz_uapi(&bytes);
        }
    }
}
