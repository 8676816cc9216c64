//! Two devices behind NATs and a relay, in virtual time.

use super::*;
use crate::core::Hold;
use std::net::IpAddr;

const RELAY: &str = "198.51.100.1:50104";
/// As the relay sees them.
const OUTER: [&str; 2] = ["203.0.113.1:4096", "203.0.113.2:4097"];
const INNER: [&str; 2] = ["10.18.0.1", "10.18.1.1"];

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

struct Net {
    relay: Relay,
    relay_key: PublicKey,
    nodes: [Core; 2],
    keys: [PrivateKey; 2],
    outer: [SocketAddr; 2],
    inbox: [Vec<u32>; 2],
    now: Duration,
    /// What the relay has passed on.
    wire: Vec<Vec<u8>>,
}

impl Net {
    fn new() -> Self {
        let relay_secret = PrivateKey::generate();
        let now = Duration::from_secs(1_000);
        let mut net = Self {
            relay_key: relay_secret.public(),
            relay: Relay::new(relay_secret, time(now)),
            nodes: [Core::new(Arc::default()), Core::new(Arc::default())],
            keys: [PrivateKey::generate(), PrivateKey::generate()],
            outer: OUTER.map(at),
            inbox: Default::default(),
            now,
            wire: Vec::new(),
        };
        for of in [0, 1] {
            let other = PeerConfig {
                endpoint: Some(at(RELAY)),
                endpoint_relayed: true,
                allowed_ips: vec![INNER[1 - of].parse::<IpAddr>().unwrap().into()],
                ..PeerConfig::new(net.keys[1 - of].public())
            };
            let relay = PeerConfig {
                endpoint: Some(at(RELAY)),
                persistent_keepalive: Some(25),
                ..PeerConfig::new(net.relay_key)
            };
            let config = DeviceConfig {
                private_key: Some(net.keys[of].clone()),
                replace_peers: true,
                peers: vec![other, relay],
                ..DeviceConfig::default()
            };
            net.nodes[of].apply(&config, time(now)).unwrap();
        }
        net
    }

    fn admit(&mut self, who: &[usize]) {
        let members: Vec<Member> = who
            .iter()
            .map(|of| Member {
                key: self.keys[*of].public(),
                previous: None,
            })
            .collect();
        self.relay.set_members(&members, time(self.now));
    }

    /// An inner packet with a number.
    fn send(&mut self, from: usize, number: u32) {
        let now = time(self.now);
        match self.nodes[from].outgoing(INNER[1 - from].parse().unwrap(), now) {
            Ok(grant) => {
                let mut message = vec![0; OVERHEAD + 4];
                message[HEADER..HEADER + 4].copy_from_slice(&number.to_be_bytes());
                assert!(grant.session.seal(&mut message));
                self.carry(from, grant.to, message);
            }
            Err(Hold::Stage(peer)) => self.nodes[from].stage(peer, number.to_be_bytes().to_vec(), now),
            Err(Hold::Drop(reason)) => panic!("{reason:?}"),
        }
        self.collect(from);
    }

    fn collect(&mut self, from: usize) {
        while let Some(frame) = self.nodes[from]
            .has_ready()
            .then(|| self.nodes[from].unstage())
            .flatten()
        {
            self.send(from, u32::from_be_bytes(frame.try_into().unwrap()));
        }
        for Transmit { to, bytes } in self.nodes[from].take_output() {
            self.carry(from, to, bytes);
        }
    }

    /// All goes to the relay; what it passes on comes from it.
    fn carry(&mut self, from: usize, to: SocketAddr, mut bytes: Vec<u8>) {
        assert_eq!(to, at(RELAY));
        if let Some(to) = self.relay.receive(self.outer[from], &mut bytes, time(self.now)) {
            self.wire.push(bytes.clone());
            self.deliver(to, bytes);
        }
        for Transmit { to, bytes } in self.relay.take_output() {
            self.deliver(to, bytes);
        }
    }

    fn deliver(&mut self, to: SocketAddr, mut message: Vec<u8>) {
        // A NAT lets in what comes to the address that it has now.
        let Some(to) = self.outer.iter().position(|outer| *outer == to) else {
            return;
        };
        let now = time(self.now);
        if message[0] != TYPE {
            self.nodes[to].handshake(&message, at(RELAY), now);
            return self.collect(to);
        }
        let Some(session) = self.nodes[to].session(index_at(&message, 4)) else {
            return;
        };
        let Ok(opened) = session.open(&mut message) else { return };
        let mut seen = Seen::Before;
        session.see([(opened.counter, &mut seen)].into_iter());
        if opened.length > 0 {
            let number = message[HEADER..HEADER + 4].try_into().unwrap();
            self.inbox[to].push(u32::from_be_bytes(number));
        }
        let arrival = Arrival {
            from: at(RELAY),
            is_newest: true,
            bytes: message.len() as u64,
            packets: u64::from(opened.length > 0),
        };
        self.nodes[to].received(&session, arrival, now);
        self.collect(to);
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now += Duration::from_millis(100);
            for of in [0, 1] {
                if self.nodes[of].wake_at().is_some_and(|at| at <= self.now) {
                    self.nodes[of].tick(time(self.now));
                    self.collect(of);
                }
            }
            self.relay.tick(time(self.now));
        }
    }
}

fn time(boot: Duration) -> Now {
    Now {
        boot,
        unix: boot + Duration::from_secs(1_700_000_000),
    }
}

#[test]
fn nodes_talk_through_it_over_many_sessions_and_it_knows_where_they_are() {
    let mut net = Net::new();
    net.admit(&[0, 1]);
    net.run(1);
    for number in 0..500 {
        net.send(0, number);
        net.send(1, number);
        net.run(1);
    }
    for inbox in &net.inbox {
        assert_eq!(*inbox, (0..500).collect::<Vec<_>>());
    }
    let mut places: Vec<_> = net.relay.places(time(net.now)).collect();
    places.sort_by_key(|(_, place)| *place);
    assert_eq!(
        places,
        [
            (net.keys[0].public(), at(OUTER[0])),
            (net.keys[1].public(), at(OUTER[1]))
        ]
    );
    assert!(net.relay.passed().datagrams >= 1_000);
    assert!(net.relay.ways.len() < 32, "{} numbers are kept", net.relay.ways.len());
    // What it has carried it cannot open.
    for mut message in net.wire.drain(..).filter(|message| message[0] == TYPE) {
        let session = net.relay.core.session(index_at(&message, 4));
        assert!(session.is_none_or(|session| session.open(&mut message).is_err()));
    }
}

#[test]
fn a_node_whose_address_changes_is_found_again() {
    let mut net = Net::new();
    net.admit(&[0, 1]);
    net.run(1);
    net.send(0, 1);
    net.outer[1] = at("203.0.113.2:5000");
    // Its next sign of life, 25 s apart, tells.
    net.run(26);
    net.send(0, 2);
    net.send(1, 3);
    net.run(1);
    assert_eq!(net.inbox, [vec![3], vec![1, 2]]);
    assert!(net.relay.places(time(net.now)).any(|(_, place)| place == net.outer[1]));
}

#[test]
fn strangers_are_neither_heard_nor_reached() {
    let mut net = Net::new();
    net.admit(&[0]);
    net.run(1);
    net.send(0, 1);
    net.send(1, 1);
    net.run(10);
    assert_eq!(net.inbox, [vec![], vec![]]);
    assert_eq!(net.relay.passed().datagrams, 0);
    // Admitted, it is served at its next try; put out, no longer.
    net.admit(&[0, 1]);
    net.run(10);
    net.send(0, 2);
    net.run(10);
    assert!(net.inbox[1].contains(&2));
    net.admit(&[1]);
    let before = net.relay.passed().datagrams;
    net.send(0, 3);
    net.send(1, 3);
    net.run(10);
    assert_eq!(net.relay.passed().datagrams, before);
}

#[test]
fn whatever_comes_is_harmless() {
    let mut net = Net::new();
    net.admit(&[0, 1]);
    net.run(1);
    net.send(0, 1);
    net.run(6);
    assert_eq!(net.inbox, [vec![], vec![1]]);
    let wire = std::mem::take(&mut net.wire);
    for from in [OUTER[0], OUTER[1], "192.0.2.9:1"] {
        for message in wire.iter().chain([&vec![4, 0, 0, 0], &vec![1, 0, 0, 0], &Vec::new()]) {
            for length in 0..=message.len() {
                let mut cut = message[..length].to_vec();
                net.relay.receive(at(from), &mut cut, time(net.now));
                if let Some(byte) = cut.last_mut() {
                    *byte ^= 1;
                }
                net.relay.receive(at(from), &mut cut, time(net.now));
            }
        }
    }
    net.relay.take_output();
    net.send(0, 2);
    net.send(1, 3);
    assert_eq!(net.inbox, [vec![3], vec![1, 2]]);
}
