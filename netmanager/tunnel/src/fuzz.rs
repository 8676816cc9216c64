//! What strangers' bytes pass through, as plain functions of those bytes, for `tests/fuzz`. They panic if something is wrong.

use crate::core::{Core, Now};
use crate::counters::DropCounters;
use crate::key::PrivateKey;
use crate::packet::coalesce::Coalescer;
use crate::packet::segment::Segments;
use crate::packet::vnet::{VNET, Vnet};
use crate::packet::{Ip, ecn, fragment, icmp};
use crate::session::{OVERHEAD, Session, TYPE};
use crate::types::{DeviceConfig, PeerConfig};
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
