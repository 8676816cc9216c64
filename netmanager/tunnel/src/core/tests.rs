//! Two devices over a network in memory, in virtual time.

use super::*;
use crate::key::{PresharedKey, PrivateKey};
use crate::session::{HEADER, OVERHEAD};
use crate::types::{DeviceConfig, PeerConfig};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const LAN: [&str; 2] = ["10.1.0.1:1", "10.1.0.2:1"];
const WAN: [&str; 2] = ["192.0.2.1:1", "192.0.2.2:1"];
/// What is sent to the first comes out at the other side as from the second, and back.
const RELAY: [&str; 2] = ["198.51.100.1:1", "198.51.100.2:1"];
const INNER: [&str; 2] = ["10.18.0.1", "10.18.1.1"];

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

struct Node {
    core: Core,
    key: PrivateKey,
    /// Numbers of the inner packets that came, in order.
    inbox: Vec<u32>,
    drops: Arc<DropCounters>,
}

struct Net {
    nodes: [Node; 2],
    queue: Vec<(Duration, usize, SocketAddr, Vec<u8>)>,
    now: Duration,
    rng: SmallRng,
    /// Of 100 datagrams so many are lost, doubled.
    loss: u32,
    doubles: u32,
    /// Longest way, in milliseconds; the shortest is 5.
    slowest: u64,
    /// Addresses to which nothing gets through.
    cut: Vec<SocketAddr>,
    /// Source addresses on the direct ways: `WAN` or what they changed to.
    wan: [SocketAddr; 2],
}

impl Net {
    fn new(seed: u64) -> Self {
        let node = || {
            let drops = Arc::<DropCounters>::default();
            let (core, key) = (Core::new(drops.clone()), PrivateKey::generate());
            let inbox = Vec::new();
            Node {
                core,
                key,
                inbox,
                drops,
            }
        };
        Self {
            nodes: [node(), node()],
            queue: Vec::new(),
            now: Duration::from_secs(1_000),
            rng: SmallRng::seed_from_u64(seed),
            loss: 0,
            doubles: 0,
            slowest: 5,
            cut: Vec::new(),
            wan: WAN.map(at),
        }
    }

    fn time(&self) -> Now {
        Now {
            boot: self.now,
            unix: self.now + Duration::from_secs(1_700_000_000),
        }
    }

    fn peer(&self, of: usize) -> PeerConfig {
        let mut peer = PeerConfig::new(self.nodes[1 - of].key.public());
        peer.allowed_ips = vec![INNER[1 - of].parse::<IpAddr>().unwrap().into()];
        peer
    }

    fn set(&mut self, of: usize, peers: Vec<PeerConfig>) {
        let config = DeviceConfig {
            private_key: Some(self.nodes[of].key.clone()),
            replace_peers: true,
            peers,
            ..DeviceConfig::default()
        };
        let now = self.time();
        self.nodes[of].core.apply(&config, now).unwrap();
    }

    /// Each knows where the other is.
    fn plain(seed: u64) -> Self {
        let mut net = Self::new(seed);
        for of in [0, 1] {
            let mut peer = net.peer(of);
            peer.endpoint = Some(at(WAN[1 - of]));
            peer.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
            net.set(of, vec![peer]);
        }
        net
    }

    /// Each knows a relay and two candidates of the other.
    fn several(seed: u64) -> Self {
        let mut net = Self::new(seed);
        for of in [0, 1] {
            let peer = net.several_peer(of);
            net.set(of, vec![peer]);
        }
        net
    }

    fn several_peer(&self, of: usize) -> PeerConfig {
        let mut peer = self.peer(of);
        peer.endpoint = Some(at(RELAY[of]));
        peer.endpoint_relayed = true;
        peer.candidates = vec![at(LAN[1 - of]), at(WAN[1 - of])];
        peer
    }

    fn status(&self, of: usize) -> crate::types::PeerStatus {
        self.nodes[of].core.status().peers[0].clone()
    }

    /// An inner packet with a number.
    fn send(&mut self, from: usize, number: u32) {
        let now = self.time();
        let destination = INNER[1 - from].parse().unwrap();
        match self.nodes[from].core.outgoing(destination, now) {
            Ok(grant) => {
                let mut message = vec![0; OVERHEAD + 4];
                message[HEADER..HEADER + 4].copy_from_slice(&number.to_be_bytes());
                assert!(grant.session.seal(&mut message));
                self.carry(from, grant.to, message);
            }
            Err(Hold::Stage(peer)) => self.nodes[from].core.stage(peer, number.to_be_bytes().to_vec(), now),
            Err(Hold::Drop(reason)) => panic!("{reason:?}"),
        }
        self.collect(from);
    }

    /// What a device wants to send goes on its way.
    fn collect(&mut self, from: usize) {
        while self.nodes[from].core.has_ready() {
            let Some(frame) = self.nodes[from].core.unstage() else {
                break;
            };
            self.send(from, u32::from_be_bytes(frame.try_into().unwrap()));
        }
        for Transmit { to, bytes } in self.nodes[from].core.take_output() {
            self.carry(from, to, bytes);
        }
    }

    fn carry(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        let ways = [(at(LAN[1 - from]), at(LAN[from])), (self.wan[1 - from], self.wan[from])];
        let ways = ways.into_iter().chain([(at(RELAY[from]), at(RELAY[1 - from]))]);
        let Some((_, source)) = ways.into_iter().find(|(other, _)| *other == to) else {
            return;
        };
        if self.cut.contains(&to) {
            return;
        }
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.doubles);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.loss {
                let delay = Duration::from_millis(self.rng.random_range(5..=self.slowest.max(5)));
                self.queue.push((self.now + delay, 1 - from, source, bytes.clone()));
            }
        }
    }

    /// As the worker does it.
    fn deliver(&mut self, to: usize, from: SocketAddr, mut message: Vec<u8>) {
        let now = self.time();
        let node = &mut self.nodes[to];
        if message.first() != Some(&crate::session::TYPE) {
            node.core.handshake(&message, from, now);
            self.collect(to);
            return;
        }
        let Some(session) = node.core.session(crate::noise::index_at(&message, 4)) else {
            node.drops.add(Reason::UnknownSession);
            return;
        };
        let length = message.len() as u64;
        match session.open(&mut message) {
            Err(reason) => node.drops.add(reason),
            Ok(opened) => {
                let mut seen = crate::replay::Seen::Before;
                session.see([(opened.counter, &mut seen)].into_iter());
                if seen == crate::replay::Seen::Before {
                    node.drops.add(Reason::Replay);
                    return;
                }
                if opened.length > 0 {
                    let number = message[HEADER..HEADER + 4].try_into().unwrap();
                    node.inbox.push(u32::from_be_bytes(number));
                }
                let arrival = Arrival {
                    from,
                    is_newest: seen == crate::replay::Seen::Newest,
                    bytes: length,
                    packets: u64::from(opened.length > 0),
                };
                node.core.received(&session, arrival, now);
                self.collect(to);
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        loop {
            let arrival = self.queue.iter().map(|entry| entry.0).min();
            let timers = self.nodes.iter().filter_map(|node| node.core.wake_at());
            let Some(next) = timers.chain(arrival).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            for of in [0, 1] {
                if self.nodes[of].core.wake_at().is_some_and(|at| at <= self.now) {
                    let now = self.time();
                    self.nodes[of].core.tick(now);
                    assert!(
                        self.nodes[of].core.wake_at().is_none_or(|at| at > self.now),
                        "time stands still"
                    );
                    self.collect(of);
                }
            }
            while let Some(place) = self.queue.iter().position(|entry| entry.0 <= self.now) {
                let (_, to, from, message) = self.queue.remove(place);
                self.deliver(to, from, message);
            }
        }
        self.now = end;
    }

    /// Both send, every `gap` seconds, for `seconds`; the numbers sent.
    fn talk(&mut self, seconds: f64, gap: f64, first: u32) -> Vec<u32> {
        let mut numbers = Vec::new();
        let end = self.now + Duration::from_secs_f64(seconds);
        let mut number = first;
        while self.now < end {
            self.send(0, number);
            self.send(1, number);
            numbers.push(number);
            number += 1;
            self.run(gap);
        }
        numbers
    }
}

#[test]
fn the_first_packets_wait_and_none_is_lost_over_many_sessions() {
    let mut net = Net::plain(1);
    let sent = net.talk(1_000.0, 0.5, 0);
    net.run(1.0);
    for node in &net.nodes {
        assert_eq!(node.inbox, sent);
    }
    let began = net.status(0).last_handshake.unwrap();
    assert!(
        began > net.time().unix - Duration::from_secs(125),
        "the session was renewed"
    );
    let total: u64 = [0, 1].map(|of| net.status(of).rx_packets).iter().sum();
    assert_eq!(total, 2 * sent.len() as u64);
    assert!(net.status(0).handshake_rtt.unwrap() <= Duration::from_millis(11));
}

#[test]
fn one_way_traffic_is_answered_by_signs_of_life_alone() {
    let mut net = Net::plain(2);
    for number in 0..400 {
        net.send(0, number);
        net.run(1.0);
    }
    assert_eq!(net.nodes[1].inbox, (0..400).collect::<Vec<_>>());
    let quiet = net.status(1).tx_bytes;
    assert!(quiet < 400 / 10 * 32 + 5 * 148 + 10 * 92, "{quiet} bytes of silence");
    // And then nothing at all: no timer goes on for ever.
    net.run(1_000.0);
    let (before, idle) = (net.status(0).tx_bytes, net.nodes[0].core.wake_at());
    net.run(1_000.0);
    assert_eq!((net.status(0).tx_bytes, idle), (before, None));
}

#[test]
fn a_peer_that_forgot_everything_is_found_again() {
    let mut net = Net::plain(3);
    net.talk(10.0, 0.5, 0);
    let key = net.nodes[1].key.clone();
    net.nodes[1].core = Core::new(Arc::default());
    net.nodes[1].key = key;
    let mut peer = net.peer(1);
    peer.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
    net.set(1, vec![peer]);
    for number in 100..140 {
        net.send(0, number);
        net.run(0.5);
    }
    net.run(5.0);
    assert_eq!(net.nodes[1].inbox.last(), Some(&139));
    assert_eq!(net.status(1).endpoint, Some(at(WAN[0])), "learned from the handshake");
}

#[test]
fn nobody_answers_and_the_waiting_packets_go() {
    let mut net = Net::plain(4);
    net.cut = vec![at(WAN[1])];
    for number in 0..100 {
        net.send(0, number);
    }
    assert_eq!(net.nodes[0].drops.read().of(Reason::NoSession), 36);
    net.run(200.0);
    assert_eq!(net.nodes[0].drops.read().of(Reason::NoSession), 100);
    assert_eq!(net.nodes[0].core.wake_at(), None, "it gave up");
    assert_eq!(net.status(0).tx_bytes / 148, 18, "one initiation each 5 s for 90 s");
    net.cut.clear();
    net.send(0, 7);
    net.run(1.0);
    assert_eq!(net.nodes[1].inbox, [7]);
}

#[test]
fn an_address_change_is_followed_at_once() {
    let mut net = Net::plain(5);
    net.talk(5.0, 0.1, 0);
    net.wan[0] = at("203.0.113.9:4");
    let sent = net.talk(1.0, 0.1, 1_000);
    net.run(1.0);
    assert_eq!(net.status(1).endpoint, Some(at("203.0.113.9:4")));
    assert!(net.nodes[1].inbox.ends_with(&sent), "from there");
    assert_eq!(net.nodes[0].inbox.last(), sent.last(), "to there");
}

#[test]
fn a_direct_way_is_taken_and_left_again() {
    let mut net = Net::several(6);
    net.cut = [LAN, WAN].into_iter().flatten().map(at).collect();
    net.talk(20.0, 0.1, 0);
    assert!(net.status(0).endpoint_relayed && net.status(1).endpoint_relayed);
    net.cut.clear();
    let sent = net.talk(5.0, 0.1, 1_000);
    net.run(1.0);
    for of in [0, 1] {
        assert!(!net.status(of).endpoint_relayed);
        assert!(
            net.nodes[of].inbox.ends_with(&sent),
            "no packet was lost on the way over"
        );
    }
    // The direct ways break: the relay is used within seconds.
    net.cut = [LAN, WAN].into_iter().flatten().map(at).collect();
    net.talk(8.0, 0.1, 2_000);
    assert!(net.status(0).endpoint_relayed && net.status(1).endpoint_relayed);
    let sent = net.talk(30.0, 0.1, 3_000);
    net.run(1.0);
    assert_eq!(net.nodes[0].inbox[net.nodes[0].inbox.len() - sent.len()..], sent);
    // Only a second one of them: that one is found.
    net.cut = LAN.into_iter().map(at).collect();
    net.talk(5.0, 0.1, 4_000);
    assert_eq!(
        [0, 1].map(|of| net.status(of).endpoint),
        [Some(at(WAN[1])), Some(at(WAN[0]))]
    );
}

#[test]
fn two_good_ways_do_not_flap() {
    let mut net = Net::several(7);
    net.talk(10.0, 0.1, 0);
    let chosen = [0, 1].map(|of| net.status(of).endpoint);
    assert!(!net.status(0).endpoint_relayed && !net.status(1).endpoint_relayed);
    for round in 0..100 {
        net.talk(2.0, 0.1, 1_000 + 100 * round);
        assert_eq!([0, 1].map(|of| net.status(of).endpoint), chosen);
    }
}

#[test]
fn idle_peers_with_several_ways_stay_reachable_and_calm() {
    let mut net = Net::several(8);
    net.run(20.0);
    assert!(net.status(0).last_handshake.is_some(), "a way is found without traffic");
    let before = net.status(0).tx_bytes;
    net.run(1_000.0);
    let used = net.status(0).tx_bytes - before;
    assert!(used < 1_000 / 25 * 3 * 32 + 10 * 600, "{used} bytes in 1,000 s");
    assert!(!net.status(0).endpoint_relayed);
    net.send(0, 5);
    net.run(0.1);
    assert_eq!(net.nodes[1].inbox, [5]);
}

/// A new key of node 0, told to node 1 before or after node 0 itself, while both send.
#[test]
fn keys_change_without_a_lost_packet() {
    for tell_first in [false, true] {
        let mut net = Net::plain(9);
        net.talk(5.0, 0.1, 0);
        let (old, new) = (net.nodes[0].key.clone(), PrivateKey::generate());
        let handshake = net.status(0).last_handshake;
        let own = |net: &mut Net| {
            net.nodes[0].key = new.clone();
            let peer = net.peer(0);
            net.set(0, vec![peer]);
        };
        let tell = |net: &mut Net| {
            let mut peer = net.peer(1);
            peer.public_key = new.public();
            peer.previous_public_key = Some(old.public());
            net.set(1, vec![peer]);
        };
        let mut sent = net.talk(1.0, 0.1, 1_000);
        if tell_first {
            tell(&mut net)
        } else {
            own(&mut net)
        }
        sent.extend(net.talk(150.0, 0.1, 2_000));
        if tell_first {
            own(&mut net)
        } else {
            tell(&mut net)
        }
        sent.extend(net.talk(200.0, 0.1, 4_000));
        net.run(1.0);
        for node in &net.nodes {
            assert!(node.inbox.ends_with(&sent), "told first: {tell_first}");
        }
        assert_eq!(net.status(1).public_key, new.public());
        assert!(net.status(0).last_handshake > handshake);
        // The old key is no longer needed.
        let mut peer = net.peer(1);
        peer.public_key = new.public();
        net.set(1, vec![peer]);
        let sent = net.talk(200.0, 0.1, 9_000);
        net.run(1.0);
        assert!(net.nodes[1].inbox.ends_with(&sent) && net.nodes[0].inbox.ends_with(&sent));
    }
}

#[test]
fn the_same_wish_again_changes_nothing() {
    let mut net = Net::several(10);
    net.talk(10.0, 0.1, 0);
    net.run(1.0);
    let (before, wake) = (net.nodes[0].core.status(), net.nodes[0].core.wake_at());
    let peer = net.several_peer(0);
    net.set(0, vec![peer]);
    assert_eq!(net.nodes[0].core.status(), before);
    let now = net.time();
    net.nodes[0].core.tick(now);
    assert_eq!(net.nodes[0].core.wake_at(), wake);
    assert!(!net.nodes[0].core.has_output());
}

#[test]
fn a_wish_that_contradicts_itself_is_refused() {
    let mut net = Net::plain(11);
    let (before, now) = (net.nodes[0].core.status(), net.time());
    let peer = net.peer(0);
    let mut other = PeerConfig::new(PublicKey([1; 32]));
    other.previous_public_key = Some(peer.public_key);
    let config = DeviceConfig {
        replace_peers: true,
        peers: vec![peer, other],
        ..DeviceConfig::default()
    };
    assert!(net.nodes[0].core.apply(&config, now).is_err());
    assert_eq!(net.nodes[0].core.status(), before);
}

#[test]
fn an_address_has_one_owner() {
    let mut net = Net::plain(12);
    let shared = INNER[1].parse::<IpAddr>().unwrap();
    let (first, second) = (net.peer(0), PublicKey([1; 32]));
    let mut thief = PeerConfig::new(second);
    thief.allowed_ips = vec![shared.into()];
    net.set(0, vec![first, thief]);
    let status = net.nodes[0].core.status();
    let owner = |key| {
        status
            .peers
            .iter()
            .find(|peer| peer.public_key == key)
            .unwrap()
            .allowed_ips
            .len()
    };
    assert_eq!((owner(second), owner(net.nodes[1].key.public())), (1, 0));
}

#[test]
fn handshakes_again_forged_or_from_strangers_are_counted() {
    let mut net = Net::plain(13);
    net.send(0, 1);
    let first = net.queue[0].3.clone();
    net.run(1.0);
    let before = net.status(1);
    let from = at("203.0.113.66:6");
    net.deliver(1, from, first.clone());
    for length in 0..first.len() {
        net.deliver(1, from, first[..length].to_vec());
    }
    for byte in 0..first.len() {
        let mut forged = first.clone();
        forged[byte] ^= 0x40;
        net.deliver(1, from, forged);
    }
    let stranger = Identity::new(PrivateKey::generate());
    let victim = net.nodes[1].key.public();
    let (_, mut message) = stranger
        .initiate(&victim, &PresharedKey::default(), 5, &[0xff; 12])
        .unwrap();
    crate::noise::Codes::of(victim).sign(&mut message, None);
    net.deliver(1, from, message.to_vec());
    let drops = net.nodes[1].drops.read();
    assert_eq!(drops.of(Reason::UnknownPeer), 1);
    // The message itself, and those whose second code alone was changed.
    assert_eq!(drops.of(Reason::StaleHandshake), 1 + 16);
    assert!(
        drops.of(Reason::BadMac) > 100 && drops.of(Reason::Garbage) > 100,
        "{drops:?}"
    );
    assert_eq!(net.status(1).endpoint, before.endpoint);
    assert!(!net.nodes[1].core.has_output(), "nobody is answered");
    net.talk(1.0, 0.1, 50);
    net.run(1.0);
    assert_eq!(net.nodes[1].inbox.last(), Some(&59));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_bad_network_doubles_and_forges_nothing(
        seed: u64, loss in 0..40u32, doubles in 0..40u32, slowest in 5..1_500u64, several: bool,
    ) {
        let mut net = if several { Net::several(seed) } else { Net::plain(seed) };
        (net.loss, net.doubles, net.slowest) = (loss, doubles, slowest);
        let sent = net.talk(400.0, 0.5, 0);
        net.run(3.0);
        for node in &net.nodes {
            let mut got = node.inbox.clone();
            got.sort_unstable();
            let all = got.len();
            got.dedup();
            prop_assert_eq!(all, got.len(), "a packet came twice");
            prop_assert!(got.iter().all(|number| sent.contains(number)));
            let share = got.len() as f64 / sent.len() as f64;
            prop_assert!(share > 0.8 * (1.0 - f64::from(loss) / 100.0) - 0.05, "{} of what was sent", share);
        }
        // And when the network is good again, all is well within a minute.
        (net.loss, net.doubles, net.slowest) = (0, 0, 5);
        net.talk(60.0, 0.5, 10_000);
        let sent = net.talk(60.0, 0.5, 20_000);
        net.run(1.0);
        prop_assert!(net.nodes[0].inbox.ends_with(&sent) && net.nodes[1].inbox.ends_with(&sent));
    }
}
