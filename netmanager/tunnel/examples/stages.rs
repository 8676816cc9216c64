//! What the stages of the packet path cost, one after another on one core, in nanoseconds per packet of 1,420 bytes and in
//! Gbit/s: `cargo run --release -p roble-tunnel --example stages`.

use roble_tunnel::counters::Traffic;
use roble_tunnel::noise::Keys;
use roble_tunnel::packet::checksum::{fold, sum};
use roble_tunnel::packet::coalesce::Coalescer;
use roble_tunnel::packet::segment::Segments;
use roble_tunnel::packet::vnet::{GSO_TCPV4, NEEDS_CSUM, Vnet};
use roble_tunnel::session::{HEADER, OVERHEAD, Parties, Session};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PACKET: usize = 1_420;
const PACKETS: usize = 45;
const HEADERS: usize = 52;

fn report(what: &str, mut body: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let (began, mut rounds) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(60) {
            body();
            rounds += PACKETS;
        }
        best = best.min(began.elapsed().as_secs_f64() / f64::from(rounds as u32));
    }
    println!(
        "{what:24} {:7.0} ns/packet {:6.2} Gbit/s",
        best * 1e9,
        PACKET as f64 * 8.0 / best / 1e9
    );
}

fn session(keys: Keys) -> Session {
    let parties = Parties {
        peer: 1,
        local: 2,
        remote: 2,
        is_initiator: true,
    };
    Session::new(&keys, parties, Duration::ZERO, Arc::<Traffic>::default()).expect("keys of the right length")
}

fn main() {
    let keys = || Keys {
        send: [1; 32],
        receive: [1; 32],
    };
    let (seal, open) = (session(keys()), session(keys()));
    let mut messages = vec![vec![7; PACKET + OVERHEAD]; PACKETS];
    report("seal", || {
        messages.iter_mut().for_each(|message| assert!(seal.seal(message)))
    });
    let sealed = messages.clone();
    report("copy", || {
        messages
            .iter_mut()
            .zip(&sealed)
            .for_each(|(one, other)| one.copy_from_slice(other))
    });
    report("copy and open", || {
        for (one, other) in messages.iter_mut().zip(&sealed) {
            one.copy_from_slice(other);
            black_box(open.open(one).expect("authentic"));
        }
    });
    report("checksum", || {
        messages.iter().for_each(|message| {
            black_box(sum(&message[HEADER..], 0));
        })
    });
    let mut frame = frame();
    let vnet = Vnet {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: HEADERS as u16,
        gso_size: (PACKET - HEADERS) as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    let mut arena = vec![0; PACKETS * PACKET];
    report("cut", || {
        let mut segments = Segments::new(vnet, &mut frame).expect("a good frame");
        let mut places = arena.chunks_exact_mut(PACKET);
        while let (Some(length), Some(place)) = (segments.next_length(), places.next()) {
            segments.write_next(&mut place[..length]);
        }
    });
    let mut coalescer = Coalescer::new(true, true);
    report("join", || {
        for at in 0..PACKETS {
            coalescer.add(&arena, at * PACKET..(at + 1) * PACKET);
        }
        assert_eq!(coalescer.finish(&arena).len(), 1);
    });
}

/// One TCP frame of so many packets.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; HEADERS + PACKETS * (PACKET - HEADERS)];
    (frame[0], frame[6], frame[8], frame[9]) = (0x45, 0x40, 64, 6);
    frame[12..20].copy_from_slice(&[10, 18, 0, 1, 10, 18, 1, 1]);
    (frame[32], frame[33]) = (0x80, 0x10);
    frame
        .iter_mut()
        .skip(HEADERS)
        .zip(0_u32..)
        .for_each(|(byte, at)| *byte = (at * 7) as u8);
    let pseudo = fold(sum(&frame[12..20], u64::from(6_u16.to_be())));
    frame[36..38].copy_from_slice(&pseudo.to_be_bytes());
    frame
}
