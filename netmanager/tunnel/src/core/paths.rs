//! The ways to a peer, and which one is used.
//!
//! A peer with one known address roams as WireGuard does: the newest authentic message moves its endpoint to where it came
//! from. One with candidates or a relay is heard from on several ways at once; [`Paths::sight`] then prefers what is better
//! and stays where it is if nothing is.

use std::net::SocketAddr;
use std::time::Duration;

/// A way that was heard from within this time is good.
pub const FRESH: Duration = Duration::from_secs(10);

/// A way that was not heard from for this time may be broken.
const SILENT: Duration = Duration::from_secs(5);

/// The ways to a peer.
#[derive(Debug, Default)]
pub struct Paths {
    current: Option<SocketAddr>,
    /// When [`Self::current`] was last heard from.
    heard: Option<Duration>,
    /// It should have answered and did not.
    is_suspect: bool,
    /// What was set last; setting the same again does nothing.
    configured: Option<SocketAddr>,
    relay: Option<SocketAddr>,
    candidates: Vec<SocketAddr>,
}

/// An authentic message came from there.
#[derive(Debug, Clone, Copy)]
pub struct Sighting {
    /// Its source.
    pub from: SocketAddr,
    /// It is newer than all before it.
    pub is_newest: bool,
    /// It is more than a sign of life: the peer uses this way.
    pub has_data: bool,
    /// This side chooses among good ways; the other follows.
    pub is_controlling: bool,
    /// When.
    pub now: Duration,
}

impl Paths {
    /// Where packets go.
    pub const fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// Whether packets go through the relay.
    pub fn is_relayed(&self) -> bool {
        self.current.is_some() && self.current == self.relay
    }

    /// Addresses besides the endpoint, as they were set.
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Whether there is an address at all.
    pub fn has_any(&self) -> bool {
        self.current.is_some() || self.relay.is_some() || !self.candidates.is_empty()
    }

    /// Whether there may be more than one way.
    pub fn has_several(&self) -> bool {
        self.relay.is_some() || !self.candidates.is_empty()
    }

    /// Sets the endpoint. What is as it was set before stays as it is now.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr, is_relay: bool) {
        let was_relayed = self.is_relayed();
        let relay = if is_relay {
            Some(endpoint)
        } else {
            self.relay.filter(|relay| *relay != endpoint)
        };
        let is_new = self.configured != Some(endpoint);
        self.configured = Some(endpoint);
        self.relay = if is_relay || !is_new { relay } else { None };
        let moves = match is_relay {
            // A direct way that was found is better than any relay.
            true => self.current.is_none() || was_relayed,
            false => is_new,
        };
        if moves && self.current != Some(endpoint) {
            self.go(endpoint);
        }
    }

    /// Sets the candidates; with `replace`, these alone.
    pub fn set_candidates(&mut self, candidates: &[SocketAddr], replace: bool) {
        if replace {
            self.candidates.retain(|known| candidates.contains(known));
        }
        for candidate in candidates {
            if !self.candidates.contains(candidate) && self.candidates.len() < crate::types::MAX_CANDIDATES {
                self.candidates.push(*candidate);
            }
        }
    }

    /// Candidates that are not in use: what is to be tried.
    pub fn others(&self) -> impl Iterator<Item = SocketAddr> {
        let others = self.candidates.iter().copied();
        others.filter(|candidate| Some(*candidate) != self.current)
    }

    /// Every address, the one in use first, none twice.
    pub fn all(&self) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.current.into_iter().collect();
        for address in self.relay.into_iter().chain(self.candidates.iter().copied()) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// The peer did not answer: if the way in use is silent, a relay is used at once, and whatever answers first is better.
    pub fn suspect(&mut self, now: Duration) {
        if self.heard.is_some_and(|heard| now < heard + SILENT) {
            return;
        }
        self.is_suspect = true;
        if let Some(relay) = self.relay.filter(|relay| self.current != Some(*relay)) {
            self.go(relay);
            self.is_suspect = true;
        }
    }

    /// Takes note of where a message came from; true if packets go there from now on and did not before.
    pub fn sight(&mut self, sighting: Sighting) -> bool {
        if self.current == Some(sighting.from) {
            self.heard = Some(sighting.now);
            self.is_suspect = false;
            return false;
        }
        let moves = self.is_better(sighting);
        if moves {
            self.go(sighting.from);
            self.heard = Some(sighting.now);
        }
        moves
    }

    fn is_better(&self, sighting: Sighting) -> bool {
        let Sighting {
            from,
            is_newest,
            has_data,
            ..
        } = sighting;
        let is_fresh = self.heard.is_some_and(|heard| sighting.now < heard + FRESH);
        let is_bad = self.is_suspect || !is_fresh;
        if self.current.is_none() {
            return true;
        }
        if !is_newest {
            // A late message says nothing about where the peer is.
            return false;
        }
        if !self.has_several() {
            return true;
        }
        if self.relay == Some(from) {
            return is_bad;
        }
        if self.is_relayed() || is_bad {
            return true;
        }
        // Both ways are good. Signs of life come on all of them; data come where the peer sends. If both sides followed
        // each other they could swap ways for ever: the one that chooses follows only to an address that is news to it.
        has_data && !(sighting.is_controlling && self.candidates.contains(&from))
    }

    fn go(&mut self, to: SocketAddr) {
        self.current = Some(to);
        self.heard = None;
        self.is_suspect = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: u16 = 1;
    const LAN: u16 = 2;
    const WAN: u16 = 3;
    const NEW: u16 = 4;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn paths(current: u16, several: bool) -> Paths {
        let mut paths = Paths::default();
        if several {
            paths.set_endpoint(at(RELAY), true);
            paths.set_candidates(&[at(LAN), at(WAN)], true);
        }
        paths.go(at(current));
        paths.heard = Some(Duration::from_secs(100));
        paths
    }

    /// (known ways, in use, from, seconds since the one in use was heard, newest, data, this side chooses) -> moves.
    #[test]
    fn table() {
        let (one, several) = (false, true);
        let cases = [
            ((one, WAN, NEW, 1, true, false, true), true, "WireGuard's roaming"),
            ((one, WAN, NEW, 1, false, true, true), false, "a late message"),
            (
                (several, RELAY, LAN, 1, true, false, true),
                true,
                "direct instead of relayed",
            ),
            (
                (several, RELAY, NEW, 1, true, false, false),
                true,
                "direct from behind a NAT",
            ),
            (
                (several, LAN, RELAY, 9, true, true, true),
                false,
                "late through the relay",
            ),
            (
                (several, LAN, RELAY, 11, true, false, true),
                true,
                "the direct way is silent",
            ),
            (
                (several, LAN, WAN, 1, true, false, false),
                false,
                "a sign of life on another good way",
            ),
            ((several, LAN, WAN, 1, true, true, false), true, "the other side chose"),
            ((several, LAN, WAN, 1, true, true, true), false, "this side chooses"),
            ((several, LAN, NEW, 1, true, true, true), true, "its address changed"),
            (
                (several, LAN, NEW, 11, true, false, true),
                true,
                "its address changed, seen late",
            ),
            (
                (several, LAN, NEW, 1, true, false, true),
                false,
                "a probe through a NAT",
            ),
        ];
        for ((known, current, from, since, is_newest, has_data, is_controlling), moves, why) in cases {
            let mut paths = paths(current, known);
            let now = Duration::from_secs(100 + since);
            let from = at(from);
            let sighting = Sighting {
                from,
                is_newest,
                has_data,
                is_controlling,
                now,
            };
            assert_eq!(paths.sight(sighting), moves, "{why}");
            assert_eq!(paths.current() == Some(from), moves, "{why}");
        }
    }

    #[test]
    fn setting_the_same_again_moves_nothing() {
        let mut paths = paths(LAN, true);
        paths.set_endpoint(at(RELAY), true);
        assert_eq!(paths.current(), Some(at(LAN)));
        paths.set_endpoint(at(NEW), true);
        assert_eq!(paths.current(), Some(at(LAN)), "another relay is no better");
        paths.suspect(Duration::from_secs(104));
        assert_eq!(paths.current(), Some(at(LAN)), "one lost message says little");
        paths.suspect(Duration::from_secs(105));
        assert_eq!((paths.current(), paths.is_relayed()), (Some(at(NEW)), true));
        paths.set_endpoint(at(RELAY), true);
        assert_eq!(paths.current(), Some(at(RELAY)), "the relay moved");
        paths.set_endpoint(at(WAN), false);
        assert_eq!((paths.current(), paths.is_relayed()), (Some(at(WAN)), false));
        paths.go(at(NEW));
        paths.set_endpoint(at(WAN), false);
        assert_eq!(paths.current(), Some(at(NEW)));
    }
}
