//! Passes sealed datagrams on between nodes that cannot reach each other, without being able to read them. No I/O.
//!
//! The relay is a device itself, without inner addresses: every node keeps a session with it, which proves where the node
//! is and keeps its NAT open. A node sends what is for another node to the relay as it would to the other node itself. The
//! relay knows whom an initiation is for by its first code, which is keyed with the receiver's public key; all that follows
//! carries the number that the receiver gave. Nodes need not know that there is a relay: the kernel's WireGuard uses it too.
//!
//! Only nodes whose place is proven are heard, only towards nodes whose place is proven. Nothing is stored but numbers.

use crate::core::{Arrival, Core, Now, PeerId, Transmit};
use crate::key::{PrivateKey, PublicKey};
use crate::noise::{Codes, INITIATION, RESPONSE, index_at};
use crate::replay::Seen;
use crate::session::{HEADER, OVERHEAD, TYPE};
use crate::types::{DeviceConfig, PeerConfig};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A place counts for so long after it was proven; nodes do that every 25 s.
const PLACE_LIFE: Duration = Duration::from_secs(120);
/// A number is forgotten so long after it was last used: longer than a session lives.
const WAY_LIFE: Duration = Duration::from_secs(240);
/// Most numbers that are known at once: two for each session of two nodes.
const MAX_WAYS: usize = 1 << 17;
/// Most initiations of nodes to others in a second: for each, all keys are tried.
const MAX_INITIATIONS: u32 = 2_000;

/// A node that the relay serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its key.
    pub key: PublicKey,
    /// The one before.
    pub previous: Option<PublicKey>,
}

/// What was passed on and what was not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Datagrams passed on.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams of or for nobody known.
    pub refused: u64,
}

struct Way {
    to: PeerId,
    used: Duration,
}

/// The relay. See the module's text.
pub struct Relay {
    core: Core,
    codes: HashMap<PeerId, (PublicKey, Vec<Codes>)>,
    /// Who is where, and since when that is known.
    senders: HashMap<SocketAddr, PeerId>,
    places: HashMap<PeerId, (SocketAddr, Duration)>,
    /// Who means whom by a number.
    ways: HashMap<(PeerId, u32), Way>,
    initiations: (u64, u32),
    passed: Passed,
}

impl Relay {
    /// Serves nobody yet.
    pub fn new(key: PrivateKey, now: Now) -> Self {
        let mut core = Core::new(Arc::default());
        let config = DeviceConfig {
            private_key: Some(key),
            ..DeviceConfig::default()
        };
        // It names no peer, so none twice.
        let _ = core.apply(&config, now);
        Self {
            core,
            codes: HashMap::new(),
            senders: HashMap::new(),
            places: HashMap::new(),
            ways: HashMap::new(),
            initiations: (0, 0),
            passed: Passed::default(),
        }
    }

    /// Serves `members` and nobody else. A key that two of them have is the first one's.
    pub fn set_members(&mut self, members: &[Member], now: Now) {
        let mut names = std::collections::HashSet::new();
        let mut peers: Vec<PeerConfig> = Vec::new();
        for member in members.iter().filter(|member| names.insert(member.key)) {
            peers.push(PeerConfig {
                previous_public_key: member.previous,
                ..PeerConfig::new(member.key)
            });
        }
        for peer in &mut peers {
            peer.previous_public_key = peer.previous_public_key.filter(|former| names.insert(*former));
        }
        let codes = peers.iter().map(|peer| {
            let keys = [peer.public_key].into_iter().chain(peer.previous_public_key);
            (peer.public_key, keys.map(Codes::of).collect())
        });
        let codes: Vec<(PublicKey, Vec<Codes>)> = codes.collect();
        let config = DeviceConfig {
            replace_peers: true,
            peers,
            ..DeviceConfig::default()
        };
        // No name is there twice.
        let _ = self.core.apply(&config, now);
        let known = codes
            .into_iter()
            .filter_map(|(key, codes)| Some((self.core.peer(&key)?, (key, codes))));
        self.codes = known.collect();
        let codes = &self.codes;
        self.places.retain(|peer, _| codes.contains_key(peer));
        self.senders.retain(|_, peer| codes.contains_key(peer));
        self.ways
            .retain(|(peer, _), way| codes.contains_key(peer) && codes.contains_key(&way.to));
    }

    /// Where nodes are, by key.
    pub fn places(&self, now: Now) -> impl Iterator<Item = (PublicKey, SocketAddr)> + '_ {
        let is_known = move |since: &Duration| now.boot < *since + PLACE_LIFE;
        let known = self.places.iter().filter(move |(_, (_, since))| is_known(since));
        known.filter_map(|(peer, (place, _))| Some((self.codes.get(peer)?.0, *place)))
    }

    /// What was passed on so far.
    pub const fn passed(&self) -> Passed {
        self.passed
    }

    /// When [`Self::tick`] is due, since boot.
    pub fn wake_at(&self) -> Option<Duration> {
        self.core.wake_at()
    }

    /// Time.
    pub fn tick(&mut self, now: Now) {
        self.core.tick(now);
        self.ways.retain(|_, way| now.boot < way.used + WAY_LIFE);
        self.places.retain(|_, (_, since)| now.boot < *since + PLACE_LIFE);
        let places = &self.places;
        self.senders.retain(|_, peer| places.contains_key(peer));
    }

    /// What the relay itself has to say.
    pub fn take_output(&mut self) -> Vec<Transmit> {
        self.core.take_output()
    }

    /// A datagram came. Where it is to be sent on to, unchanged; `None`: nowhere. It may be overwritten then.
    pub fn receive(&mut self, from: SocketAddr, message: &mut [u8], now: Now) -> Option<SocketAddr> {
        let to = match message.first_chunk::<4>() {
            Some([1, 0, 0, 0]) if message.len() == INITIATION => {
                if self.core.is_for_us(message, now) {
                    return self.hear(from, message, now);
                }
                self.initiation(from, message, now)
            }
            Some([2, 0, 0, 0]) if message.len() == RESPONSE => {
                if self.core.is_for_us(message, now) {
                    return self.hear(from, message, now);
                }
                self.response(from, message, now)
            }
            Some([3 | TYPE, 0, 0, 0]) => match self.follow(from, message, now) {
                None if message[0] == TYPE => return self.open(from, message, now),
                way => way,
            },
            _ => None,
        };
        match to {
            Some(_) => {
                self.passed.datagrams += 1;
                self.passed.bytes += message.len() as u64;
            }
            None => self.passed.refused += 1,
        }
        to
    }

    /// A handshake with the relay itself.
    fn hear(&mut self, from: SocketAddr, message: &[u8], now: Now) -> Option<SocketAddr> {
        self.core.handshake(message, from, now);
        // If it was authentic, its sender is there now.
        let peers: Vec<PeerId> = self.codes.keys().copied().collect();
        for peer in peers {
            if self.core.endpoint(peer) == Some(from) {
                self.place(peer, from, now);
            }
        }
        None
    }

    /// A sign of life in a session with the relay itself.
    fn open(&mut self, from: SocketAddr, message: &mut [u8], now: Now) -> Option<SocketAddr> {
        if message.len() < OVERHEAD {
            self.passed.refused += 1;
            return None;
        }
        let Some(session) = self.core.session(index_at(message, 4)) else {
            self.passed.refused += 1;
            return None;
        };
        let bytes = message.len() as u64;
        let Ok(opened) = session.open(message) else {
            self.passed.refused += 1;
            return None;
        };
        let mut seen = Seen::Before;
        session.see([(opened.counter, &mut seen)].into_iter());
        if seen != Seen::Before {
            let arrival = Arrival {
                from,
                is_newest: seen == Seen::Newest,
                bytes,
                packets: 0,
            };
            self.core.received(&session, arrival, now);
            if let Some(place) = self.core.endpoint(session.peer) {
                self.place(session.peer, place, now);
            }
        }
        None
    }

    fn place(&mut self, peer: PeerId, at: SocketAddr, now: Now) {
        if let Some((before, _)) = self.places.insert(peer, (at, now.boot))
            && before != at
        {
            self.senders.remove(&before);
        }
        self.senders.insert(at, peer);
    }

    fn place_of(&self, peer: PeerId, now: Now) -> Option<SocketAddr> {
        let (place, since) = self.places.get(&peer)?;
        (now.boot < *since + PLACE_LIFE).then_some(*place)
    }

    fn initiation(&mut self, from: SocketAddr, message: &[u8], now: Now) -> Option<SocketAddr> {
        let sender = *self.senders.get(&from)?;
        let second = now.boot.as_secs();
        if self.initiations.0 != second {
            self.initiations = (second, 0);
        }
        self.initiations.1 += 1;
        if self.initiations.1 > MAX_INITIATIONS {
            return None;
        }
        let is_its = |codes: &Vec<Codes>| codes.iter().any(|codes| codes.is_signed(message));
        let (receiver, _) = self.codes.iter().find(|(_, (_, codes))| is_its(codes))?;
        let (receiver, number) = (*receiver, index_at(message, 4));
        let to = self.place_of(receiver, now)?;
        self.learn(receiver, number, sender, now)?;
        Some(to)
    }

    fn response(&mut self, from: SocketAddr, message: &[u8], now: Now) -> Option<SocketAddr> {
        let sender = *self.senders.get(&from)?;
        let receiver = self.way(sender, index_at(message, 8), now)?;
        let to = self.place_of(receiver, now)?;
        self.learn(receiver, index_at(message, 4), sender, now)?;
        Some(to)
    }

    /// Where a message goes whose number its sender learned through here.
    fn follow(&mut self, from: SocketAddr, message: &[u8], now: Now) -> Option<SocketAddr> {
        if message.len() < HEADER {
            return None;
        }
        let sender = *self.senders.get(&from)?;
        let receiver = self.way(sender, index_at(message, 4), now)?;
        self.place_of(receiver, now)
    }

    fn way(&mut self, sender: PeerId, number: u32, now: Now) -> Option<PeerId> {
        let way = self.ways.get_mut(&(sender, number))?;
        way.used = now.boot;
        Some(way.to)
    }

    /// From now on `of` means `to` by `number`. `None` if there is no room, or if it means somebody else: a message that was
    /// seen on its way and is sent again, as if by another node, takes nothing from anybody.
    fn learn(&mut self, of: PeerId, number: u32, to: PeerId, now: Now) -> Option<()> {
        let is_used = |way: &Way| now.boot < way.used + WAY_LIFE;
        if of == to
            || self
                .ways
                .get(&(of, number))
                .is_some_and(|way| way.to != to && is_used(way))
        {
            return None;
        }
        if self.ways.len() >= MAX_WAYS {
            self.ways.retain(|_, way| is_used(way));
        }
        let has_room = self.ways.len() < MAX_WAYS;
        if has_room {
            self.ways.insert((of, number), Way { to, used: now.boot });
        }
        has_room.then_some(())
    }
}

#[cfg(test)]
mod tests;
