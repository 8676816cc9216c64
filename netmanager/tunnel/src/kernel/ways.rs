//! Which of a peer's addresses the kernel is told. It knows one per peer and moves it to where the newest authentic packet
//! came from; all else is decided here, from what it says of the peer.
//!
//! The decision is a function of [`Ways`] and a [`Look`], without clock or kernel. docs/tunnel.md has it in words.

use crate::types::MAX_CANDIDATES;
use std::net::SocketAddr;
use std::time::Duration;

/// Sessions end at this age (`REJECT_AFTER_TIME`).
const SESSION_LIFE: Duration = Duration::from_secs(180);
/// The kernel begins a handshake every 5 s at most (`REKEY_TIMEOUT`, and a third of a second by chance).
const TURN: Duration = Duration::from_secs(6);
/// A relay passes nothing on before it has heard both ends: it gets three tries of the kernel.
const RELAY_TURN: Duration = Duration::from_secs(17);
/// The same, if nobody has answered for [`LONG`].
const SLOW_TURN: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_secs(90);
/// Whoever receives data answers within 10 s (`KEEPALIVE_TIMEOUT`), with an empty message if there is nothing else.
const SILENCE: Duration = Duration::from_secs(12);
/// More than signs of life: what was sent asks for an answer.
const DATA: u64 = 200;
/// Between two looks for a direct way while packets are relayed: at first, and at most. Shorter than NATs remember.
const GLANCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(20)];
/// A direct way that was heard from is insisted on for so long.
const SIGHT: Duration = Duration::from_secs(5);
/// So often.
const HOLDS: u8 = 3;

/// What the kernel says of a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Where packets go.
    pub endpoint: Option<SocketAddr>,
    /// Age of the newest session.
    pub session_age: Option<Duration>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// When, since boot.
    pub now: Duration,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Stay,
    /// Send there from now on, a sign of life at once.
    Go(SocketAddr),
    /// Send a sign of life to each, then to where packets went before.
    Glance(Vec<SocketAddr>),
}

/// The addresses of a peer, and what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    relay: Option<SocketAddr>,
    configured: Option<SocketAddr>,
    candidates: Vec<SocketAddr>,
    received: u64,
    /// When something came, and what was sent by then.
    heard: Option<(Duration, u64)>,
    /// When an address was tried last, since when none answers, and which is next.
    tried: Option<Duration>,
    lost: Option<Duration>,
    turn: usize,
    /// When to look for a direct way, and how long after that again.
    glance: Option<(Duration, Duration)>,
    sighted: Option<Sighted>,
}

/// A direct way that was heard from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sighted {
    address: SocketAddr,
    /// In use without a break since then, and until then.
    since: Duration,
    until: Duration,
    /// How often it was insisted on.
    holds: u8,
}

impl Ways {
    /// Takes note of a wish. Returns where packets shall go at once, if that is another address than before the wish.
    ///
    /// `current`: where they go; `is_new`: the peer was not known before, neither here nor to the kernel.
    pub fn set(
        &mut self,
        wish: &crate::types::PeerConfig,
        current: Option<SocketAddr>,
        is_new: bool,
    ) -> Option<SocketAddr> {
        if wish.replace_candidates {
            self.candidates.clear();
        }
        for candidate in &wish.candidates {
            if !self.candidates.contains(candidate) && self.candidates.len() < MAX_CANDIDATES {
                self.candidates.push(*candidate);
            }
        }
        let was_relayed = current.is_some() && current == self.relay;
        if let Some(endpoint) = wish.endpoint {
            let is_news = self.configured.is_some_and(|before| before != endpoint);
            self.configured = Some(endpoint);
            self.relay = wish.endpoint_relayed.then_some(endpoint);
            let moves = match wish.endpoint_relayed {
                true => is_new || current.is_none() || was_relayed,
                // Nobody knows what was wished before this process: the kernel knows better.
                false => is_new || current.is_none() || is_news,
            };
            if moves && current != Some(endpoint) {
                return Some(endpoint);
            }
        }
        match current {
            None => self.candidates.first().copied(),
            Some(_) => None,
        }
    }

    /// Whether `endpoint` is the relay.
    pub fn is_relay(&self, endpoint: Option<SocketAddr>) -> bool {
        endpoint.is_some() && endpoint == self.relay
    }

    /// Addresses besides the endpoint, as they were set.
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Every address, the relay first, none twice.
    fn all(&self) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for address in self
            .relay
            .into_iter()
            .chain(self.candidates.iter().copied())
            .chain(self.configured)
        {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Looks at the peer, and says what to do about it.
    pub fn look(&mut self, look: &Look) -> Move {
        let now = look.now;
        // A device made anew counts from zero.
        if look.received != self.received || self.heard.is_none() {
            self.received = look.received;
            self.heard = Some((now, look.sent));
        }
        let (heard, sent) = self.heard.unwrap_or((now, look.sent));
        let has_session = look.session_age.is_some_and(|age| age < SESSION_LIFE);
        let is_silent = now.saturating_sub(heard) >= SILENCE && look.sent.saturating_sub(sent) > DATA;
        if !has_session || is_silent {
            return self.search(look, has_session);
        }
        (self.tried, self.lost) = (None, None);
        let Some(endpoint) = look.endpoint else {
            return Move::Stay;
        };
        if self.is_relay(look.endpoint) {
            return self.leave_relay(now);
        }
        let was_relayed = self.glance.take().is_some();
        match &mut self.sighted {
            Some(sighted) if sighted.address == endpoint && !was_relayed => {
                sighted.until = now;
                if now.saturating_sub(sighted.since) > SIGHT {
                    sighted.holds = 0;
                }
                Move::Stay
            }
            // A way that comes and goes is insisted on so often and no more.
            Some(sighted) if sighted.address == endpoint && now.saturating_sub(sighted.until) < SIGHT => {
                (sighted.since, sighted.until) = (now, now);
                Move::Stay
            }
            sighted => {
                *sighted = Some(Sighted {
                    address: endpoint,
                    since: now,
                    until: now,
                    holds: 0,
                });
                // The other side is to hear it here too.
                if self.relay.is_some() {
                    Move::Go(endpoint)
                } else {
                    Move::Stay
                }
            }
        }
    }

    /// Nobody answers: another address, the relay before all others.
    fn search(&mut self, look: &Look, has_session: bool) -> Move {
        let now = look.now;
        (self.sighted, self.glance) = (None, None);
        let all = self.all();
        let lost = *self.lost.get_or_insert(now);
        let is_alone = all.iter().all(|address| Some(*address) == look.endpoint);
        let Some(tried) = self.tried.filter(|_| !is_alone) else {
            self.tried = Some(now);
            // The way in use was good until now: a relay is good at once.
            if let Some(relay) = self.relay.filter(|relay| has_session && Some(*relay) != look.endpoint) {
                self.turn = 1;
                return Move::Go(relay);
            }
            return Move::Stay;
        };
        let pause = match now.saturating_sub(lost) < LONG {
            _ if self.is_relay(look.endpoint) => RELAY_TURN,
            true => TURN,
            false => SLOW_TURN,
        };
        if now.saturating_sub(tried) < pause {
            return Move::Stay;
        }
        self.tried = Some(now);
        let start = self.turn;
        let next = (start..start + all.len()).find(|turn| Some(all[turn % all.len()]) != look.endpoint);
        let Some(next) = next else { return Move::Stay };
        self.turn = (next + 1) % all.len();
        Move::Go(all[next % all.len()])
    }

    /// Packets are relayed, and a direct way is better.
    fn leave_relay(&mut self, now: Duration) -> Move {
        let first = (now + GLANCE[0], GLANCE[0]);
        let (at, pause) = *self.glance.get_or_insert(first);
        if let Some(sighted) = &mut self.sighted
            && now.saturating_sub(sighted.until) < SIGHT
            && sighted.holds < HOLDS
        {
            sighted.holds += 1;
            return Move::Go(sighted.address);
        }
        if now < at {
            return Move::Stay;
        }
        let pause = (pause * 2).min(GLANCE[1]);
        self.glance = Some((now + pause, pause));
        let candidates = self.candidates.iter().copied();
        let others: Vec<_> = candidates.filter(|candidate| Some(*candidate) != self.relay).collect();
        if others.is_empty() {
            return Move::Stay;
        }
        Move::Glance(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PublicKey;
    use crate::types::PeerConfig;

    const RELAY: u16 = 1;
    const LAN: u16 = 2;
    const WAN: u16 = 3;
    const NEW: u16 = 4;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn wish(relay: bool, candidates: &[u16]) -> PeerConfig {
        PeerConfig {
            endpoint: Some(at(if relay { RELAY } else { LAN })),
            endpoint_relayed: relay,
            replace_candidates: true,
            candidates: candidates.iter().map(|port| at(*port)).collect(),
            ..PeerConfig::new(PublicKey([1; 32]))
        }
    }

    /// A peer as the kernel has it, and what it was told.
    struct Peer {
        ways: Ways,
        look: Look,
        told: Vec<(u64, Move)>,
    }

    impl Peer {
        fn new(relay: bool, candidates: &[u16]) -> Self {
            let mut ways = Ways::default();
            let endpoint = ways.set(&wish(relay, candidates), None, true);
            let look = Look {
                endpoint,
                ..Look::default()
            };
            Self {
                ways,
                look,
                told: Vec::new(),
            }
        }

        fn with_session(relay: bool, candidates: &[u16], endpoint: u16) -> Self {
            let mut peer = Self::new(relay, candidates);
            peer.look.endpoint = Some(at(endpoint));
            peer.look.session_age = Some(Duration::ZERO);
            peer
        }

        /// Looks each second; `each` is what happens in between.
        fn run(&mut self, seconds: u64, mut each: impl FnMut(&mut Look)) -> Vec<Move> {
            let begin = self.told.len();
            for _ in 0..seconds {
                self.look.now += Duration::from_secs(1);
                self.look.session_age = self.look.session_age.map(|age| age + Duration::from_secs(1));
                each(&mut self.look);
                let told = self.ways.look(&self.look);
                if let Move::Go(to) = told {
                    self.look.endpoint = Some(to);
                }
                if told != Move::Stay {
                    self.told.push((self.look.now.as_secs(), told));
                }
            }
            self.told[begin..].iter().map(|(_, told)| told.clone()).collect()
        }
    }

    fn go(port: u16) -> Move {
        Move::Go(at(port))
    }

    fn glance() -> Move {
        Move::Glance(vec![at(LAN), at(WAN)])
    }

    #[test]
    fn table() {
        let silent = |_: &mut Look| {};
        let answers = |look: &mut Look| {
            look.received += 32;
            look.session_age = Some(Duration::ZERO);
        };
        let unheard = |look: &mut Look| look.sent += 1_000;
        let one_way = |look: &mut Look| {
            look.sent += 1_000;
            look.received += if look.now.as_secs().is_multiple_of(10) { 32 } else { 0 };
        };
        type Each = fn(&mut Look);
        let cases: [(&str, Peer, u64, Each, Vec<Move>); 9] = [
            (
                "without a session: the relay, then one after the other",
                Peer::new(true, &[LAN, WAN]),
                48,
                silent,
                vec![go(LAN), go(WAN), go(RELAY), go(LAN)],
            ),
            (
                "without a relay: the candidates in turn",
                Peer::new(false, &[LAN, WAN]),
                14,
                silent,
                vec![go(WAN), go(LAN)],
            ),
            (
                "one address: the kernel is left alone",
                Peer::new(false, &[LAN]),
                60,
                silent,
                vec![],
            ),
            (
                "a direct way that answers is left alone",
                Peer::with_session(false, &[LAN, WAN], LAN),
                60,
                answers,
                vec![],
            ),
            (
                "data without an answer: the relay at once",
                Peer::with_session(true, &[LAN, WAN], LAN),
                13,
                unheard,
                vec![go(LAN), go(RELAY)],
            ),
            (
                "one way only, with signs of life: left alone",
                Peer::with_session(true, &[LAN, WAN], LAN),
                60,
                one_way,
                vec![go(LAN)],
            ),
            (
                "nothing to send and nothing heard: left alone",
                Peer::with_session(false, &[LAN, WAN], LAN),
                60,
                silent,
                vec![],
            ),
            (
                "relayed: a look for a direct way now and then",
                Peer::with_session(true, &[LAN, WAN], RELAY),
                40,
                answers,
                vec![glance(), glance(), glance(), glance()],
            ),
            (
                "relayed and no other address is known",
                Peer::with_session(true, &[], RELAY),
                40,
                answers,
                vec![],
            ),
        ];
        for (why, mut peer, seconds, each, told) in cases {
            assert_eq!(peer.run(seconds, each), told, "{why}");
        }
    }

    #[test]
    fn a_direct_way_that_was_heard_from_is_insisted_on() {
        let mut peer = Peer::with_session(true, &[LAN, WAN], RELAY);
        let flows = |look: &mut Look| look.received += 100;
        assert_eq!(peer.run(2, flows), []);
        // The kernel has moved: something authentic came from there.
        peer.look.endpoint = Some(at(NEW));
        assert_eq!(peer.run(2, flows), [go(NEW)], "a sign of life, once");
        // What was on its way by the relay moves it back.
        peer.look.endpoint = Some(at(RELAY));
        assert_eq!(peer.run(1, flows), [go(NEW)]);
        assert_eq!(peer.run(30, flows), []);
        // The other side has left the direct way for good.
        let relayed = |look: &mut Look| {
            look.received += 100;
            look.endpoint = Some(at(RELAY));
        };
        let told = peer.run(60, relayed);
        let insisted = told.iter().filter(|told| **told == go(NEW)).count();
        assert_eq!((insisted, told[0].clone()), (HOLDS as usize, go(NEW)), "{told:?}");
        assert!(told.contains(&glance()));
    }

    #[test]
    fn a_wish_that_is_repeated_moves_nothing() {
        let mut ways = Ways::default();
        assert_eq!(ways.set(&wish(true, &[LAN]), None, true), Some(at(RELAY)));
        assert_eq!(ways.set(&wish(true, &[LAN]), Some(at(LAN)), false), None);
        let other_relay = PeerConfig {
            endpoint: Some(at(NEW)),
            ..wish(true, &[LAN])
        };
        assert_eq!(ways.set(&other_relay, Some(at(LAN)), false), None, "it is no better");
        assert_eq!(
            ways.set(&wish(true, &[LAN]), Some(at(NEW)), false),
            Some(at(RELAY)),
            "it moved"
        );
        assert_eq!(ways.set(&wish(false, &[]), Some(at(RELAY)), false), Some(at(LAN)));
        assert_eq!(ways.set(&wish(false, &[]), Some(at(NEW)), false), None, "it has roamed");
        // After a restart of the process that knew.
        assert_eq!(Ways::default().set(&wish(false, &[WAN]), Some(at(NEW)), false), None);
        assert_eq!(Ways::default().set(&wish(false, &[WAN]), None, false), Some(at(LAN)));
    }
}
