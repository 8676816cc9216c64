//! What is counted, lock-free, since the worker's start.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet or datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A datagram shorter than any message.
    TooShort,
    /// A datagram that is no message of WireGuard: type or length.
    Garbage,
    /// A handshake whose first code is wrong: the sender does not know this device's key.
    BadMac,
    /// Handshakes beyond what is worked on per second, answered with a cookie at most.
    RateLimited,
    /// A handshake that is not authentic, or answers none of ours.
    BadHandshake,
    /// A handshake that was seen before.
    StaleHandshake,
    /// A handshake of somebody who is no peer.
    UnknownPeer,
    /// A message of a session that is not there.
    UnknownSession,
    /// A message that is not authentic.
    BadAuth,
    /// A message that was seen before, or is too late to tell.
    Replay,
    /// A message of a session that is too old.
    Expired,
    /// What was inside is no IP packet.
    BadInner,
    /// A packet from an address that the peer does not own.
    BadSource,
    /// A packet marked as congested on its way whose ends do not know of congestion marks (RFC 6040).
    Congested,
    /// The TUN device did not take it.
    TunWrite,
    /// From the TUN device: no IP packet, or a frame that contradicts itself.
    BadFrame,
    /// No peer owns the destination.
    NoRoute,
    /// The peer has no endpoint yet.
    NoEndpoint,
    /// No session in time, or too many packets waiting for one.
    NoSession,
    /// Too large for the peer's path; the sender was told.
    TooBig,
    /// The socket did not take it.
    UdpSend,
    /// The flow's queue was full.
    QueueFull,
}

/// Every reason with its word on the control socket.
pub const REASONS: [(Reason, &str); 22] = [
    (Reason::TooShort, "too_short"),
    (Reason::Garbage, "garbage"),
    (Reason::BadMac, "bad_mac"),
    (Reason::RateLimited, "rate_limited"),
    (Reason::BadHandshake, "bad_handshake"),
    (Reason::StaleHandshake, "stale_handshake"),
    (Reason::UnknownPeer, "unknown_peer"),
    (Reason::UnknownSession, "unknown_session"),
    (Reason::BadAuth, "bad_auth"),
    (Reason::Replay, "replay"),
    (Reason::Expired, "expired"),
    (Reason::BadInner, "bad_inner"),
    (Reason::BadSource, "bad_source"),
    (Reason::Congested, "congested"),
    (Reason::TunWrite, "tun_write"),
    (Reason::BadFrame, "bad_frame"),
    (Reason::NoRoute, "no_route"),
    (Reason::NoEndpoint, "no_endpoint"),
    (Reason::NoSession, "no_session"),
    (Reason::TooBig, "too_big"),
    (Reason::UdpSend, "udp_send"),
    (Reason::QueueFull, "queue_full"),
];

/// Drops by reason, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; REASONS.len()]);

impl Drops {
    /// How often.
    pub const fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Puts a figure down.
    pub const fn set(&mut self, reason: Reason, count: u64) {
        self.0[reason as usize] = count;
    }
}

/// Drops by reason, counted by several threads.
#[derive(Debug, Default)]
pub struct DropCounters([AtomicU64; REASONS.len()]);

impl DropCounters {
    /// One more.
    pub fn add(&self, reason: Reason) {
        self.add_many(reason, 1);
    }

    /// So many more.
    pub fn add_many(&self, reason: Reason, count: u64) {
        self.0[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// As they are now.
    pub fn read(&self) -> Drops {
        let mut drops = Drops::default();
        for (reason, _) in REASONS {
            drops.set(reason, self.0[reason as usize].load(Ordering::Relaxed));
        }
        drops
    }
}

/// Traffic with one peer, counted by several threads.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes of datagrams accepted.
    pub rx_bytes: AtomicU64,
    /// Bytes of datagrams sent.
    pub tx_bytes: AtomicU64,
    /// Inner packets accepted.
    pub rx_packets: AtomicU64,
    /// Inner packets sent.
    pub tx_packets: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place_and_word() {
        let counters = DropCounters::default();
        for (at, (reason, word)) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert_eq!(REASONS.iter().filter(|(_, other)| *other == word).count(), 1);
            counters.add_many(reason, 1 + at as u64);
        }
        assert_eq!(counters.read().of(Reason::QueueFull), REASONS.len() as u64);
    }
}
