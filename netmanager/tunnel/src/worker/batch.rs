//! Sealed datagrams of one size to one address, sent together.

use super::{Sockets, Worker};
use crate::core::Grant;
use crate::packet::segment::Segments;
use crate::session::{HEADER, OVERHEAD};
use crate::sys::udp::{MOST_BYTES, MOST_SEGMENTS};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

/// Texts are padded to a multiple of this, as WireGuard does.
const PADDING: usize = 16;

/// A run that grows until it must go.
pub struct Batch {
    bytes: Vec<u8>,
    length: usize,
    count: usize,
    segment: usize,
    /// Its last datagram is shorter than the others: it is complete.
    is_closed: bool,
    to: SocketAddr,
    tos: u8,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: vec![0; MOST_BYTES],
            length: 0,
            count: 0,
            segment: 0,
            is_closed: false,
            to: (Ipv4Addr::UNSPECIFIED, 0).into(),
            tos: 0,
        }
    }
}

impl Batch {
    /// Seals all packets of a frame; sends what is full.
    pub fn add(&mut self, worker: &Worker, sockets: &Sockets, grant: &Grant, segments: &mut Segments<'_>, mtu: usize) {
        let tos = segments.ip().tos;
        let (mut bytes, mut packets) = (0, 0);
        while let Some(length) = segments.next_length() {
            // Not beyond the MTU: what arrives must fit the other side's too.
            let padded = length.next_multiple_of(PADDING).min(mtu.max(length));
            let whole = padded + OVERHEAD;
            self.make_room(worker, sockets, grant.to, tos, whole);
            let message = &mut self.bytes[self.length..self.length + whole];
            segments.write_next(&mut message[HEADER..HEADER + length]);
            message[HEADER + length..HEADER + padded].fill(0);
            if !grant.session.seal(message) {
                return;
            }
            self.is_closed = whole < self.segment;
            self.length += whole;
            self.count += 1;
            bytes += whole as u64;
            packets += 1;
        }
        grant.session.traffic.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        grant.session.traffic.tx_packets.fetch_add(packets, Ordering::Relaxed);
    }

    fn make_room(&mut self, worker: &Worker, sockets: &Sockets, to: SocketAddr, tos: u8, whole: usize) {
        let fits = self.count > 0
            && !self.is_closed
            && self.count < MOST_SEGMENTS
            && whole <= self.segment
            && self.length + whole <= MOST_BYTES
            && (self.to, self.tos) == (to, tos);
        if !fits {
            self.flush(worker, sockets);
            (self.to, self.tos, self.segment) = (to, tos, whole);
        }
    }

    /// Sends what there is.
    pub fn flush(&mut self, worker: &Worker, sockets: &Sockets) {
        if self.count > 0 {
            worker.send(sockets, self.to, &self.bytes[..self.length], self.segment, self.tos);
        }
        (self.length, self.count, self.is_closed) = (0, 0, false);
    }
}
