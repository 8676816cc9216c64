//! The protocol's state: peers, sessions, paths, timers. No I/O and no clock: what happens comes in with the time, what is
//! to be sent comes out of [`Core::take_output`]. Packets are sealed and opened outside, with the [`Session`]s it hands out,
//! so that its lock is held once per batch and never during a cipher.
//!
//! Source: the WireGuard paper, sections 5 and 6. Candidates, relays and rotation are ours (docs/tunnel.md).

mod apply;
mod handshake;
mod limits;
mod paths;
mod peer;
#[cfg(test)]
mod tests;
mod timers;

use crate::counters::{DropCounters, Reason};
use crate::key::PublicKey;
use crate::noise::Identity;
use crate::routes::Routes;
use crate::session::Session;
pub use apply::BadConfig;
use limits::Limits;
use paths::Sighting;
use peer::Peer;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A peer's number in this process; never given twice.
pub type PeerId = u32;

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since boot, counting suspension.
    pub boot: Duration,
    /// Since 1970, as far as the clock is right.
    pub unix: Duration,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What is needed to seal and send packets to a peer.
#[derive(Clone)]
pub struct Grant {
    /// Seals.
    pub session: Arc<Session>,
    /// Where to.
    pub to: SocketAddr,
    /// Largest inner packet that fits the path, in bytes.
    pub mtu: u16,
}

/// Why a packet is not sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// There is no session yet: give it to [`Core::stage`].
    Stage(PeerId),
    /// Never.
    Drop(Reason),
}

/// What arrived in one session from one address.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Its source.
    pub from: SocketAddr,
    /// Something among it is newer than all before.
    pub is_newest: bool,
    /// Bytes of its datagrams.
    pub bytes: u64,
    /// Inner packets among it; 0: keep-alives only.
    pub packets: u64,
}

/// Whose a session's number is.
enum Slot {
    Handshake(PeerId),
    Session(Arc<Session>),
}

/// A device's state.
pub struct Core {
    identity: Option<Identity>,
    /// The key before, and until when it counts.
    former: Option<(Identity, Duration)>,
    peers: BTreeMap<PeerId, Peer>,
    by_key: HashMap<PublicKey, PeerId>,
    routes: Routes<PeerId>,
    slots: HashMap<u32, Slot>,
    limits: Limits,
    output: Vec<Transmit>,
    /// Peers whose waiting packets may go.
    ready: Vec<PeerId>,
    /// When [`Core::tick`] is due.
    wake_at: Option<Duration>,
    next_id: PeerId,
    last_stamp: Duration,
    /// MTU of every path until it is known better.
    default_mtu: u16,
    drops: Arc<DropCounters>,
}

impl Core {
    /// A device without key and peers.
    pub fn new(drops: Arc<DropCounters>) -> Self {
        Self {
            identity: None,
            former: None,
            peers: BTreeMap::new(),
            by_key: HashMap::new(),
            routes: Routes::default(),
            slots: HashMap::new(),
            limits: Limits::default(),
            output: Vec::new(),
            ready: Vec::new(),
            wake_at: None,
            next_id: 1,
            last_stamp: Duration::ZERO,
            default_mtu: 1420,
            drops,
        }
    }

    /// What a packet to `destination` is sealed with, now. The timers take it as sent.
    ///
    /// # Errors
    /// [`Hold`].
    pub fn outgoing(&mut self, destination: IpAddr, now: Now) -> Result<Grant, Hold> {
        let id = self.routes.find(destination).ok_or(Hold::Drop(Reason::NoRoute))?;
        let peer = self.peers.get_mut(&id).ok_or(Hold::Drop(Reason::NoRoute))?;
        let Some(session) = peer.sealing_session(now.boot) else {
            if !peer.paths.has_any() {
                return Err(Hold::Drop(Reason::NoEndpoint));
            }
            return Err(Hold::Stage(id));
        };
        let to = peer.paths.current().ok_or(Hold::Drop(Reason::NoEndpoint))?;
        let grant = Grant {
            session: session.clone(),
            to,
            mtu: peer.mtu,
        };
        let is_old = peer.wants_rekey_after_sending(now.boot);
        let due = peer.note_sent(true, now.boot);
        self.wake_by(due);
        if is_old {
            self.initiate(id, now);
        }
        Ok(grant)
    }

    /// Keeps a packet until there is a session; asks for one.
    pub fn stage(&mut self, id: PeerId, frame: Vec<u8>, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let dropped = peer.stage(frame);
        self.drops.add_many(Reason::NoSession, dropped);
        self.initiate(id, now);
    }

    /// A packet that waited and may go now, in order.
    pub fn unstage(&mut self) -> Option<Vec<u8>> {
        loop {
            let id = *self.ready.first()?;
            if let Some(frame) = self.peers.get_mut(&id).and_then(Peer::unstage) {
                return Some(frame);
            }
            self.ready.remove(0);
        }
    }

    /// Whether packets that waited may go.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The session of this number.
    pub fn session(&self, local: u32) -> Option<Arc<Session>> {
        match self.slots.get(&local)? {
            Slot::Session(session) => Some(session.clone()),
            Slot::Handshake(_) => None,
        }
    }

    /// Whether `peer` owns an inner address.
    pub fn is_owner(&self, peer: PeerId, source: IpAddr) -> bool {
        self.routes.find(source) == Some(peer)
    }

    /// Takes note of authentic messages that were not seen before.
    pub fn received(&mut self, session: &Arc<Session>, arrival: Arrival, now: Now) {
        session.traffic.rx_bytes.fetch_add(arrival.bytes, Ordering::Relaxed);
        session.traffic.rx_packets.fetch_add(arrival.packets, Ordering::Relaxed);
        let id = session.peer;
        let is_controlling = self.is_controlling(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let confirmed = peer.confirm(session);
        peer.paths.sight(Sighting {
            from: arrival.from,
            is_newest: arrival.is_newest,
            has_data: arrival.packets > 0,
            is_controlling,
            now: now.boot,
        });
        let due = peer.note_received(arrival.packets > 0, now.boot);
        let is_old = peer.wants_rekey_after_receiving(session, now.boot);
        if confirmed {
            self.established(id, now);
        }
        self.wake_by(due);
        if is_old {
            self.initiate(id, now);
        }
    }

    /// After a session began to carry data.
    fn established(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.established();
        peer.last_handshake = Some(now.unix);
        let due = peer.next_probe(now.boot);
        if peer.has_staged() {
            self.ready.push(id);
        }
        let live: Vec<u32> = peer.live_numbers().collect();
        self.slots.retain(|number, slot| {
            !matches!(slot, Slot::Session(session) if session.peer == id) || live.contains(number)
        });
        self.wake_by(due);
    }

    /// Seals an empty message to `to`.
    fn send_keepalive(&mut self, id: PeerId, to: SocketAddr, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(session) = peer.sealing_session(now.boot).cloned() else {
            return;
        };
        let mut bytes = vec![0; crate::session::OVERHEAD];
        if session.seal(&mut bytes) {
            session
                .traffic
                .tx_bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.output.push(Transmit { to, bytes });
            if peer.paths.current() == Some(to) {
                let due = peer.note_sent(false, now.boot);
                self.wake_by(due);
            }
        }
    }

    /// Of two peers with several ways to each other, the one that chooses: the lower key.
    fn is_controlling(&self, id: PeerId) -> bool {
        let (ours, theirs) = (self.identity.as_ref(), self.peers.get(&id));
        ours.zip(theirs)
            .is_some_and(|(ours, theirs)| ours.public() < theirs.public_key)
    }

    /// The number of the peer of a key, be it its newest or the one before.
    pub fn peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Where a peer is.
    pub fn endpoint(&self, peer: PeerId) -> Option<SocketAddr> {
        self.peers.get(&peer)?.paths.current()
    }

    /// Sets how large inner packets to `to` may be.
    pub fn set_path_mtu(&mut self, to: SocketAddr, mtu: u16) {
        for peer in self.peers.values_mut().filter(|peer| peer.paths.current() == Some(to)) {
            peer.mtu = mtu;
        }
    }

    /// Where peers are now.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let peers = self.peers.values();
        peers.filter_map(|peer| peer.paths.current()).collect()
    }

    /// What is to be sent, in order.
    pub fn take_output(&mut self) -> Vec<Transmit> {
        std::mem::take(&mut self.output)
    }

    /// Whether something is to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// When [`Core::tick`] is due.
    pub fn wake_at(&self) -> Option<Duration> {
        self.wake_at
    }

    fn wake_by(&mut self, due: Option<Duration>) {
        self.wake_at = match (self.wake_at, due) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    fn drop(&self, reason: Reason) {
        self.drops.add(reason);
    }
}
