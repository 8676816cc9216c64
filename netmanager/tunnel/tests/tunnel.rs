//! Real workers in network namespaces: what kinds of packets travel, and what they survive.

mod lab;

use lab::{DEVICE, Lab, PORT, echo, exchange, ping, run, wait};
use nix::sys::socket::{setsockopt, sockopt};
use rand::{Rng as _, SeedableRng as _};
use roble_tunnel::{Device as _, Reason};
use std::net::SocketAddr;

#[test]
fn tcp_udp_and_icmp_of_both_families() {
    let (lab, a, b) = Lab::pair();
    lab.serve_echo("b", 7000);
    for inner in b.inner {
        echo(&lab.connect("a", (inner, 7000).into()), 8, 1);
        ping(&lab, "a", inner, 56);
        // Larger than the device's MTU: the kernel sends fragments.
        ping(&lab, "a", inner, 9_000);
    }
    for any in ["0.0.0.0:7001", "[::]:7001"] {
        let (server, client) = (lab.udp("b", any), lab.udp("a", &any.replace("7001", "0")));
        let to = b.inner[usize::from(any.starts_with('['))];
        for length in [0, 1, 1_392, 1_393, 8_000, 60_000] {
            exchange(&client, &server, (to, 7001).into(), length);
        }
    }
    let status = a.status();
    assert!(status.peers[0].last_handshake.is_some() && status.peers[0].rx_packets > 1_000);
    let harmless = [Reason::NoRoute, Reason::NoSession];
    for node in [&a, &b] {
        let drops = node.status().drops;
        for (reason, word) in roble_tunnel::counters::REASONS {
            assert!(
                drops.of(reason) == 0 || harmless.contains(&reason),
                "{} {word}",
                drops.of(reason)
            );
        }
    }
}

#[test]
fn over_ipv6_and_with_large_udp_runs() {
    let (lab, a, b) = Lab::pair();
    a.set(vec![b.as_peer(Some("fd77::2"))]);
    b.set(vec![a.as_peer(Some("fd77::1"))]);
    lab.serve_echo("b", 7000);
    echo(&lab.connect("a", (b.inner[0], 7000).into()), 4, 2);
    assert!(a.endpoint().unwrap().is_ipv6() && b.endpoint().unwrap().is_ipv6());
    // Datagrams that the sender gives to the kernel in one piece, to be cut by the tunnel.
    let (server, client) = (lab.udp("b", "0.0.0.0:7001"), lab.udp("a", "0.0.0.0:0"));
    nix::sys::socket::setsockopt(&client, sockopt::UdpGsoSegment, &1_000).unwrap();
    let sent: Vec<u8> = (0..20_500_u32).map(|at| (at * 7) as u8 ^ (at >> 8) as u8).collect();
    client.send_to(&sent, (b.inner[0], 7001)).unwrap();
    let (mut got, mut bytes) = (Vec::new(), [0; 2_000]);
    while got.len() < sent.len() {
        let length = wait("a datagram", || server.recv(&mut bytes).ok());
        assert!(length <= 1_000);
        got.extend_from_slice(&bytes[..length]);
    }
    assert_eq!(got, sent);
}

#[test]
fn an_address_changes_while_a_stream_runs() {
    let (lab, _a, b) = Lab::pair();
    lab.serve_echo("b", 7000);
    let stream = lab.connect("a", (b.inner[0], 7000).into());
    echo(&stream, 1, 3);
    lab.run_in("a", "ip", &["addr", "add", "10.77.0.9/25", "dev", "to-b"]);
    lab.run_in("a", "ip", &["addr", "del", "10.77.0.1/24", "dev", "to-b"]);
    echo(&stream, 4, 4);
    assert_eq!(b.endpoint(), Some(SocketAddr::from(([10, 77, 0, 9], PORT))));
}

/// What a NAT of a site does: nothing gets in that was not asked for.
const NAT: &str = "table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname \"to-net\" masquerade; }
  chain in { type filter hook input priority filter; policy drop; ct state established,related accept; }
  chain through { type filter hook forward priority filter; policy drop; iifname != \"to-net\" accept; ct state established,related accept; }
}";

#[test]
fn a_hole_is_punched_through_two_nats() {
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
        lab.run_in(nat, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        lab.rules(nat, NAT);
    }
    lab.run_in("net", "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    let (a, b) = (
        lab.worker("a", ["10.18.0.1", "fd18::1"]),
        lab.worker("b", ["10.18.0.2", "fd18::2"]),
    );
    // Each knows the other's address inside its site, where it is not, and the one that others have seen.
    let with_candidates = |node: &lab::Node, seen: &str| {
        let mut peer = node.as_peer(None);
        peer.candidates = vec![
            ([192, 168, 1, 2], PORT).into(),
            SocketAddr::new(seen.parse().unwrap(), PORT),
        ];
        peer
    };
    a.set(vec![with_candidates(&b, "203.0.113.2")]);
    b.set(vec![with_candidates(&a, "198.51.100.2")]);
    let found = |node: &lab::Node| node.status().peers[0].last_handshake.is_some().then(|| node.endpoint());
    assert_eq!(
        wait("a way to b", || found(&a)).unwrap().ip().to_string(),
        "203.0.113.2"
    );
    assert_eq!(
        wait("a way to a", || found(&b)).unwrap().ip().to_string(),
        "198.51.100.2"
    );
    lab.serve_echo("b", 7000);
    echo(&lab.connect("a", (b.inner[0], 7000).into()), 2, 5);
}

#[test]
fn a_worker_is_killed_and_started_again_while_a_stream_runs() {
    let (lab, mut a, b) = Lab::pair();
    lab.serve_echo("b", 7000);
    let stream = lab.connect("a", (b.inner[0], 7000).into());
    echo(&stream, 1, 6);
    a.kill();
    let addresses = lab.run_in("a", "ip", &["addr", "show", "dev", DEVICE]);
    assert!(addresses.contains("10.18.0.1/16"), "the device stays: {addresses}");
    let mut a = a.start();
    a.set(vec![b.as_peer(Some("10.77.0.2"))]);
    echo(&stream, 2, 7);
    // The same again disturbs nothing.
    let before = a.status().peers[0].last_handshake;
    a.set(vec![b.as_peer(Some("10.77.0.2"))]);
    echo(&stream, 1, 8);
    assert_eq!(a.status().peers[0].last_handshake, before);
    // And it goes only if it is told to.
    a.client().stop().unwrap();
    assert!(a.wait_end());
    assert!(!lab.run_in("a", "ip", &["link"]).contains(DEVICE));
    assert!(a.client().get().is_err() && !a.client().socket().exists());
}

#[test]
fn garbage_on_the_port_is_counted_and_harmless() {
    let (lab, a, b) = Lab::pair();
    lab.serve_echo("b", 7000);
    let stream = lab.connect("a", (b.inner[0], 7000).into());
    echo(&stream, 1, 9);
    let attacker = lab.udp("a", "10.77.0.1:0");
    let to = SocketAddr::from(([10, 77, 0, 2], PORT));
    let mut rng = rand::rngs::SmallRng::seed_from_u64(4);
    for length in (0..1_500).chain([9_000, 65_000]) {
        for kind in [0, 1, 2, 3, 4, 255_u8] {
            let mut bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            if let Some(head) = bytes.get_mut(..4) {
                head.copy_from_slice(&[kind, 0, 0, 0]);
            }
            // The path does not take the largest as one; fragments are welcome here.
            let _ = attacker.send_to(&bytes, to);
        }
    }
    for reason in [
        Reason::TooShort,
        Reason::Garbage,
        Reason::BadMac,
        Reason::UnknownSession,
    ] {
        wait("garbage to be counted", || (b.drops(reason) > 0).then_some(()));
    }
    echo(&stream, 1, 10);
    assert_eq!(b.endpoint(), Some(SocketAddr::from(([10, 77, 0, 1], PORT))));
    // A peer that sends from an address it does not own.
    let sent = a.status().peers[0].tx_packets;
    lab.run_in("a", "ip", &["addr", "add", "10.18.9.9/32", "dev", DEVICE]);
    let liar = lab.udp("a", "10.18.9.9:0");
    liar.send_to(b"x", (b.inner[0], 7001)).unwrap();
    wait("the lie to be counted", || {
        (b.drops(Reason::BadSource) > 0).then_some(())
    });
    assert!(a.status().peers[0].tx_packets > sent, "it was let out, and not let in");
}

#[test]
fn a_narrow_path_is_found_and_announced() {
    let (lab, a, b) = Lab::pair();
    lab.serve_echo("b", 7000);
    for node in ["a", "b"] {
        let link = if node == "a" { "to-b" } else { "to-a" };
        lab.run_in(node, "ip", &["link", "set", link, "mtu", "1320"]);
    }
    for inner in b.inner {
        echo(&lab.connect("a", (inner, 7000).into()), 2, 11);
        ping(&lab, "a", inner, 1_300);
    }
    assert_eq!(a.status().peers[0].mtu, 1_320 - 28 - 32);
    assert!(a.drops(Reason::TooBig) > 0, "somebody was told");
    assert!(
        lab.run_in("a", "ip", &["route", "get", "10.18.0.2"])
            .contains("mtu 1260")
    );
}

#[test]
fn marks_are_carried() {
    let (lab, _a, b) = Lab::pair();
    // Congestion on the way is marked outside, and must be seen inside.
    let chain = |table: &str, hook: &str, rule: &str| {
        format!("table {table} {{\n chain c {{\n type filter hook {hook};\n {rule} counter\n }}\n}}\n")
    };
    lab.rules("a", &chain("ip t", "output priority 0", "oifname to-b ip dscp ef"));
    let marks = chain(
        "ip t",
        "prerouting priority -400",
        "iifname to-a ip ecn ect0 ip ecn set ce",
    );
    let inside = chain(
        "ip u",
        "input priority 0",
        &format!("iifname {DEVICE} ip dscp ef ip ecn ce"),
    );
    lab.rules("b", &(marks + &inside));
    let (server, client) = (lab.udp("b", "0.0.0.0:7001"), lab.udp("a", "0.0.0.0:0"));
    setsockopt(&client, sockopt::Ipv4Tos, &(0xb8 | 2)).unwrap();
    let mut bytes = [0; 100];
    client.send_to(b"marked", (b.inner[0], 7001)).unwrap();
    wait("a datagram", || server.recv(&mut bytes).ok());
    for (node, table) in [("a", &["ip", "t"]), ("b", &["ip", "t"]), ("b", &["ip", "u"])] {
        let listed = lab.run_in(node, "nft", &["list", "table", table[0], table[1]]);
        assert!(listed.contains("counter packets 1 "), "{listed}");
    }
}

#[test]
fn nobody_else_may_control_it() {
    let (_lab, a, _b) = Lab::pair();
    run("chmod", &["666", a.client().socket().to_str().unwrap()]);
    run(
        "chmod",
        &["755", a.client().socket().parent().unwrap().to_str().unwrap()],
    );
    let path = a.client().socket().to_str().unwrap();
    let ask = format!(
        "import socket,os;os.setuid(65534);s=socket.socket(socket.AF_UNIX);s.connect('{path}');\ntry:\n s.sendall(b'get=1\\n\\n');print(len(s.recv(9)))\nexcept OSError: print(0)"
    );
    assert_eq!(run("python3", &["-c", &ask]).trim(), "0");
    assert!(a.client().get().is_ok());
}

/// Needs `scripts/install-tunnel-peers.sh FOLDER` and `ROBLE_TUNNEL_PEERS=FOLDER`.
#[test]
fn the_other_end_may_be_another_program() {
    let Some(folder) = std::env::var_os("ROBLE_TUNNEL_PEERS") else {
        eprintln!("SKIPPED: ROBLE_TUNNEL_PEERS does not say where wireguard-go, gotatun and boringtun are");
        return;
    };
    let folder = std::path::Path::new(&folder).join("bin");
    let foreground = ["--foreground", "--disable-drop-privileges"];
    for (program, args) in [
        ("wireguard", &["-f"][..]),
        ("gotatun", &foreground),
        ("boringtun-cli", &foreground),
    ] {
        if !folder.join(program).is_file() {
            eprintln!("SKIPPED: {program} is not in {}", folder.display());
            continue;
        }
        let mut lab = Lab::new();
        lab.add("a");
        lab.add("b");
        lab.link("a", "b", [&["10.77.0.1/24"], &["10.77.0.2/24"]]);
        let a = lab.worker("a", ["10.18.0.1", "fd18::1"]);
        let b = lab.foreign("b", &folder.join(program), args, ["10.18.0.2", "fd18::2"]);
        a.set(vec![b.as_peer(Some("10.77.0.2"))]);
        b.set(vec![a.as_peer(Some("10.77.0.1"))]);
        // Who calls first initiates.
        lab.serve_echo("a", 7000);
        lab.serve_echo("b", 7000);
        for (from, to) in [("b", &a), ("a", &b)] {
            echo(&lab.connect(from, (to.inner[0], 7000).into()), 4, 12);
            ping(&lab, from, to.inner[1], 4_000);
        }
        let received = a.status().peers[0].rx_packets;
        assert!(received > 1_000, "{program}");
        assert!(b.status().peers[0].last_handshake.is_some(), "{program}");
        eprintln!("{program}: as it should be");
    }
}
