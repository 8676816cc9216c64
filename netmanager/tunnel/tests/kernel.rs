//! The kernel's WireGuard and the worker, each with each: needs a kernel that has it, so `tests/vm/run.sh --only tunnel` runs
//! these in a virtual machine. Without one they fail.

#[expect(dead_code, reason = "the tests of the worker need more of it")]
mod lab;

use lab::{DEVICE, Lab, Node, PORT, echo, exchange, ping, wait};
use rand::{Rng as _, SeedableRng as _};
use roble_tunnel::core::{Now, Transmit};
use roble_tunnel::kernel::{self, LinkKind};
use roble_tunnel::relay::{Member, Relay};
use roble_tunnel::{Device as _, DeviceConfig, DeviceError, KernelDevice, PeerConfig, PrivateKey};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What seals at one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    User,
}

use Kind::{Kernel, User};

/// How long a key of the kernel's device that was replaced is kept here.
const KEY_DELAY: Duration = Duration::from_secs(3);

fn node(lab: &Lab, kind: Kind, name: &'static str, inner: [&str; 2]) -> Node {
    if kind == User {
        return lab.worker(name, inner);
    }
    let device = lab.inside(name, || KernelDevice::ensure(DEVICE).unwrap().with_key_delay(KEY_DELAY));
    let device = Arc::new(device);
    let tended = Arc::downgrade(&device);
    std::thread::spawn(move || {
        while let Some(Ok(pause)) = tended.upgrade().map(|device| device.tend()) {
            std::thread::sleep(pause);
        }
    });
    let node = lab.node(name, inner, device, None);
    lab.bring_up(name, DEVICE, inner);
    node
}

/// Two nodes with a link, each told of the other at its IPv4 address.
fn pair(kinds: [Kind; 2]) -> (Lab, Node, Node) {
    let mut lab = Lab::new();
    lab.add("a");
    lab.add("b");
    lab.link(
        "a",
        "b",
        [&["10.77.0.1/24", "fd77::1/64"], &["10.77.0.2/24", "fd77::2/64"]],
    );
    let a = node(&lab, kinds[0], "a", ["10.18.0.1", "fd18::1"]);
    let b = node(&lab, kinds[1], "b", ["10.18.0.2", "fd18::2"]);
    a.set(vec![b.as_peer(Some("10.77.0.2"))]);
    b.set(vec![a.as_peer(Some("10.77.0.1"))]);
    (lab, a, b)
}

#[test]
fn tcp_udp_and_icmp_between_all_kinds() {
    for kinds in [[Kernel, User], [User, Kernel], [Kernel, Kernel], [User, User]] {
        let (lab, a, b) = pair(kinds);
        for name in ["a", "b"] {
            lab.serve_echo(name, 7000);
        }
        for (from, to) in [("a", &b), ("b", &a)] {
            for inner in to.inner {
                echo(&lab.connect(from, (inner, 7000).into()), 1, 1);
                ping(&lab, from, inner, 56);
                ping(&lab, from, inner, 4_000);
            }
        }
        for any in ["0.0.0.0:7001", "[::]:7001"] {
            let (server, client) = (lab.udp("b", any), lab.udp("a", &any.replace("7001", "0")));
            let to = b.inner[usize::from(any.starts_with('['))];
            for length in [0, 1, 1_392, 1_393, 8_000] {
                exchange(&client, &server, (to, 7001).into(), length);
            }
        }
        // Over the other family.
        a.set(vec![b.as_peer(Some("fd77::2"))]);
        b.set(vec![a.as_peer(Some("fd77::1"))]);
        echo(&lab.connect("a", (b.inner[0], 7000).into()), 1, 2);
        for (node, port) in [(&a, "fd77::2"), (&b, "fd77::1")] {
            let peer = node.status().peers.remove(0);
            assert_eq!(peer.endpoint.unwrap().ip().to_string(), port, "{kinds:?}");
            assert!(peer.last_handshake.is_some() && peer.rx_bytes > 1 << 20, "{kinds:?}");
        }
        eprintln!("{kinds:?}: as it should be");
    }
}

#[test]
fn a_wish_repeated_disturbs_nothing_and_the_device_outlives_its_process() {
    let (lab, a, b) = pair([Kernel, User]);
    lab.serve_echo("b", 7000);
    let stream = lab.connect("a", (b.inner[0], 7000).into());
    echo(&stream, 1, 1);
    // It roams, as ever.
    lab.run_in("b", "ip", &["addr", "add", "10.77.0.9/25", "dev", "to-a"]);
    lab.run_in("b", "ip", &["addr", "del", "10.77.0.2/24", "dev", "to-a"]);
    ping(&lab, "b", a.inner[0], 56);
    let moved = SocketAddr::from(([10, 77, 0, 9], PORT));
    assert_eq!(a.endpoint(), Some(moved));
    let before = a.status();
    let again = || a.set(vec![b.as_peer(Some("10.77.0.2"))]);
    again();
    let after = a.status().peers.remove(0);
    assert_eq!(after.endpoint, Some(moved), "nothing brings it back");
    assert_eq!(after.last_handshake, before.peers[0].last_handshake);
    assert!(after.rx_bytes >= before.peers[0].rx_bytes, "it is not made anew");
    echo(&stream, 1, 2);
    // Another process takes the device over, with its session.
    let wish = DeviceConfig {
        private_key: Some(a.key.clone()),
        listen_port: Some(PORT),
        replace_peers: true,
        peers: vec![b.as_peer(Some("10.77.0.2"))],
        ..DeviceConfig::default()
    };
    let next = lab.inside("a", move || {
        let next = KernelDevice::ensure(DEVICE).unwrap();
        next.set(&wish).unwrap();
        next
    });
    let taken = next.get().unwrap().peers.remove(0);
    assert_eq!(
        (taken.endpoint, taken.last_handshake),
        (Some(moved), after.last_handshake)
    );
    echo(&stream, 1, 3);
    // Peers and ranges go, and come back.
    a.set(vec![]);
    assert_eq!(a.status().peers, []);
    a.set(vec![b.as_peer(Some("10.77.0.9"))]);
    echo(&stream, 1, 4);
    // Only what is of the kernel's kind is taken over; all is removed.
    lab.inside("b", || {
        assert_eq!(kernel::kind_of(DEVICE).unwrap(), Some(LinkKind::Other));
        let refused = KernelDevice::ensure(DEVICE);
        assert!(matches!(refused, Err(DeviceError::Kernel { .. })), "{refused:?}");
    });
    lab.inside("a", || {
        assert_eq!(kernel::kind_of(DEVICE).unwrap(), Some(LinkKind::WireGuard));
        kernel::remove(DEVICE).unwrap();
        kernel::remove(DEVICE).unwrap();
        assert_eq!(kernel::kind_of(DEVICE).unwrap(), None);
    });
    assert!(next.get().is_err() && next.tend().is_err(), "it is gone, and says so");
}

#[test]
fn garbage_on_the_port_is_harmless() {
    for kinds in [[User, Kernel], [Kernel, Kernel]] {
        let (lab, _a, b) = pair(kinds);
        lab.serve_echo("b", 7000);
        let stream = lab.connect("a", (b.inner[0], 7000).into());
        echo(&stream, 1, 1);
        let attacker = lab.udp("a", "10.77.0.1:0");
        let to = SocketAddr::from(([10, 77, 0, 2], PORT));
        let mut rng = rand::rngs::SmallRng::seed_from_u64(4);
        for length in (0..300).chain([1_400, 9_000]) {
            for kind in [0, 1, 2, 3, 4, 255_u8] {
                let mut bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                if let Some(head) = bytes.get_mut(..4) {
                    head.copy_from_slice(&[kind, 0, 0, 0]);
                }
                let _ = attacker.send_to(&bytes, to);
            }
        }
        echo(&stream, 1, 2);
        assert_eq!(b.endpoint(), Some(SocketAddr::from(([10, 77, 0, 1], PORT))));
    }
}

/// Datagrams there and back, one after the other, until it is told to stop; how many, and how many of them did not come back.
struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<u64>,
}

impl Flow {
    fn start(lab: &Lab, from: &str, to: &Node) -> Self {
        let (server, client) = (lab.udp(to.name, "0.0.0.0:7100"), lab.udp(from, "0.0.0.0:0"));
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let to = SocketAddr::from((to.inner[0], 7100));
        let (ending, counter) = (stop.clone(), sent.clone());
        let answering = stop.clone();
        let answers = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !answering.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut bytes) {
                    let _ = server.send_to(&bytes[..length], from);
                }
            }
        });
        let thread = std::thread::spawn(move || {
            let (mut lost, mut bytes) = (0, [0; 64]);
            while !ending.load(Ordering::Relaxed) {
                let number = counter.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                client.send_to(&number, to).unwrap();
                let is_answered = loop {
                    match client.recv(&mut bytes) {
                        Ok(length) if bytes[..length] == number => break true,
                        Ok(_) => {}
                        Err(_) => break false,
                    }
                };
                lost += u64::from(!is_answered);
                std::thread::sleep(Duration::from_millis(5));
            }
            answers.join().unwrap();
            lost
        });
        Self { stop, sent, thread }
    }

    /// So many more have been sent.
    fn go_on(&self, more: u64) {
        let goal = self.sent.load(Ordering::Relaxed) + more;
        wait("datagrams to be sent", || {
            (self.sent.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let lost = self.thread.join().unwrap();
        (self.sent.load(Ordering::Relaxed), lost)
    }
}

/// Most datagrams that one change of a key may cost, of a flow that waits half a second for each: the receiver's kernel takes
/// those of the new key only when it was told, and it is looked every 50 ms.
const MOST_LOST: u64 = 2;

#[test]
fn keys_change_while_traffic_flows() {
    for kinds in [[Kernel, User], [User, Kernel], [Kernel, Kernel]] {
        let (lab, mut a, b) = pair(kinds);
        lab.serve_echo("b", 7000);
        let stream = lab.connect("a", (b.inner[0], 7000).into());
        echo(&stream, 1, 1);
        for turn in 2..4 {
            let flow = Flow::start(&lab, "a", &b);
            flow.go_on(20);
            let former = std::mem::replace(&mut a.key, PrivateKey::generate());
            let changed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            // As on a node: it takes a new key, and a moment later the others hear of it.
            a.set(vec![b.as_peer(Some("10.77.0.2"))]);
            flow.go_on(20);
            let renamed = PeerConfig {
                previous_public_key: Some(former.public()),
                persistent_keepalive: Some(25),
                ..a.as_peer(Some("10.77.0.1"))
            };
            b.set(vec![renamed.clone()]);
            wait("a session of the new key", || {
                b.set(vec![renamed.clone()]);
                let peer = b.status().peers.remove(0);
                assert_eq!(peer.public_key, a.key.public());
                let is_new = peer.last_handshake.is_some_and(|at| at > changed);
                // The worker remembers the former key; the kernel forgets it when it is of no more use.
                let is_alone = kinds[1] == User || peer.previous_public_key.is_none();
                (is_new && is_alone && a.status().private_key.as_ref() == Some(&a.key)).then_some(())
            });
            flow.go_on(20);
            echo(&stream, 1, turn);
            let (sent, lost) = flow.end();
            eprintln!("{kinds:?}: {lost} of {sent} datagrams lost by a change of keys");
            assert!(lost <= MOST_LOST, "{kinds:?}: {lost} of {sent}");
        }
    }
}

#[test]
fn data_comes_through_a_way_that_loses_one_in_a_hundred() {
    for kinds in [[Kernel, User], [User, Kernel], [Kernel, Kernel]] {
        let (lab, _a, b) = pair(kinds);
        lab.serve_echo("b", 7000);
        let stream = lab.connect("a", (b.inner[0], 7000).into());
        for (name, link) in [("a", "to-b"), ("b", "to-a")] {
            let loss = ["qdisc", "add", "dev", link, "root", "netem", "loss", "1%"];
            lab.run_in(name, "tc", &loss);
        }
        echo(&stream, 3, 1);
        let losses = lab.run_in("a", "tc", &["-s", "qdisc", "show", "dev", "to-b"]);
        let dropped = losses.split("dropped ").nth(1).and_then(|rest| rest.split(',').next());
        let dropped: u64 = dropped.unwrap().trim().parse().unwrap();
        assert!(dropped > 0, "{losses}");
        eprintln!("{kinds:?}: whole, although {dropped} datagrams were lost one way");
    }
}

/// The relay of a cluster, on a thread of its own.
struct Relaying {
    key: PrivateKey,
    stop: Arc<AtomicBool>,
    relay: Arc<Mutex<Relay>>,
}

impl Relaying {
    fn start(socket: UdpSocket) -> Self {
        let key = PrivateKey::generate();
        let now = || Now {
            boot: roble_tunnel::sys::boot_time(),
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
        };
        let relay = Arc::new(Mutex::new(Relay::new(key.clone(), now())));
        let stop = Arc::<AtomicBool>::default();
        let (ending, shared) = (stop.clone(), relay.clone());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 2_048];
            while !ending.load(Ordering::Relaxed) {
                let received = socket.recv_from(&mut bytes);
                let mut relay = shared.lock().unwrap();
                if let Ok((length, from)) = received
                    && let Some(to) = relay.receive(from, &mut bytes[..length], now())
                {
                    let _ = socket.send_to(&bytes[..length], to);
                }
                relay.tick(now());
                for Transmit { to, bytes } in relay.take_output() {
                    let _ = socket.send_to(&bytes, to);
                }
            }
        });
        Self { key, stop, relay }
    }

    fn admit(&self, nodes: [&Node; 2]) {
        let members = nodes.map(|node| Member {
            key: node.key.public(),
            previous: None,
        });
        let now = Now {
            boot: roble_tunnel::sys::boot_time(),
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
        };
        self.relay.lock().unwrap().set_members(&members, now);
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a NAT of a site does: nothing gets in that was not asked for. Nothing gets to the other site either, at first.
const NAT: &str = "table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname \"to-net\" masquerade; }
  chain in { type filter hook input priority filter; policy drop; ct state established,related accept; }
  chain through { type filter hook forward priority filter; policy drop; iifname != \"to-net\" accept; ct state established,related accept; }
  chain blocked { type filter hook forward priority filter - 1; ip daddr { 198.51.100.2, 203.0.113.2 } drop; }
}";

#[test]
fn two_sites_behind_nats_are_relayed_and_then_find_a_direct_way() {
    for kinds in [[Kernel, User], [Kernel, Kernel]] {
        let mut lab = Lab::new();
        for name in ["a", "na", "net", "nb", "b"] {
            lab.add(name);
        }
        lab.link("a", "na", [&["192.168.1.2/24"], &["192.168.1.1/24"]]);
        lab.link("b", "nb", [&["192.168.1.2/24"], &["192.168.1.1/24"]]);
        lab.link("na", "net", [&["198.51.100.2/24"], &["198.51.100.1/24"]]);
        lab.link("nb", "net", [&["203.0.113.2/24"], &["203.0.113.1/24"]]);
        for (site, nat, far) in [("a", "na", "198.51.100.1"), ("b", "nb", "203.0.113.1")] {
            lab.run_in(site, "ip", &["route", "add", "default", "via", "192.168.1.1"]);
            lab.run_in(nat, "ip", &["route", "add", "default", "via", far]);
            lab.run_in(nat, "sysctl", &["-w", "net.ipv4.ip_forward=1"]);
            lab.rules(nat, NAT);
        }
        lab.run_in("net", "sysctl", &["-w", "net.ipv4.ip_forward=1"]);
        let relaying = Relaying::start(lab.udp("net", "0.0.0.0:50104"));
        let a = node(&lab, kinds[0], "a", ["10.18.0.1", "fd18::1"]);
        let b = node(&lab, kinds[1], "b", ["10.18.0.2", "fd18::2"]);
        relaying.admit([&a, &b]);
        let relay_at = |address: [u8; 4]| SocketAddr::from((address, 50_104));
        for (own, other, relay, seen) in [
            (&a, &b, relay_at([198, 51, 100, 1]), "203.0.113.2"),
            (&b, &a, relay_at([203, 0, 113, 1]), "198.51.100.2"),
        ] {
            let mut peer = other.as_peer(None);
            (peer.endpoint, peer.endpoint_relayed) = (Some(relay), true);
            peer.persistent_keepalive = Some(25);
            // Its address inside its site, where it is not, and the one that others have seen.
            peer.candidates = vec![
                ([192, 168, 1, 2], PORT).into(),
                SocketAddr::new(seen.parse().unwrap(), PORT),
            ];
            peer.replace_candidates = true;
            let relay = PeerConfig {
                endpoint: Some(relay),
                persistent_keepalive: Some(25),
                ..PeerConfig::new(relaying.key.public())
            };
            own.set(vec![peer, relay]);
        }
        let way = |own: &Node, other: &Node| {
            let peers = own.status().peers;
            peers
                .into_iter()
                .find(|peer| peer.public_key == other.key.public())
                .unwrap()
        };
        lab.serve_echo("b", 7000);
        let stream = lab.connect("a", (b.inner[0], 7000).into());
        echo(&stream, 1, 1);
        assert!(
            way(&a, &b).endpoint_relayed && way(&b, &a).endpoint_relayed,
            "{kinds:?}"
        );
        for nat in ["na", "nb"] {
            lab.run_in(nat, "nft", &["flush", "chain", "ip", "nat", "blocked"]);
        }
        let flow = Flow::start(&lab, "a", &b);
        wait("a direct way", || {
            let is_direct = |own, other| !way(own, other).endpoint_relayed;
            (is_direct(&a, &b) && is_direct(&b, &a)).then_some(())
        });
        assert_eq!(way(&a, &b).endpoint.unwrap().ip().to_string(), "203.0.113.2");
        echo(&stream, 1, 2);
        let (sent, lost) = flow.end();
        eprintln!("{kinds:?}: direct; {lost} of {sent} datagrams lost meanwhile");
        // And back, when it is blocked again.
        for nat in ["na", "nb"] {
            lab.run_in(nat, "nft", &["delete", "table", "ip", "nat"]);
            lab.rules(nat, NAT);
        }
        let (server, client) = (lab.udp("b", "0.0.0.0:7001"), lab.udp("a", "0.0.0.0:0"));
        let mut bytes = [0; 100];
        wait("a datagram by the relay", || {
            client.send_to(&[7; 100], (b.inner[0], 7001)).unwrap();
            let is_relayed = way(&a, &b).endpoint_relayed;
            server.recv(&mut bytes).ok().filter(|_| is_relayed)
        });
        eprintln!("{kinds:?}: relayed, direct, relayed");
    }
}
