//! The daemon with real namespaces, links and rules. Needs root, `ip`, `nft`, `nsenter`.

mod lab;

use lab::{Lab, NODE, NODE_V6, OUTSIDE, OUTSIDE_V6, inside, wait};
use std::net::UdpSocket;
use std::time::Duration;

#[test]
fn published_ports_are_reached_from_everywhere_and_nothing_else_is() {
    let mut lab = Lab::new();
    lab.start();
    let (web, other) = (lab.attach("web", &["8080:80/tcp"]), lab.attach("other", &[]));
    assert_ne!(web, other);
    lab.serve("web", 80);
    lab.serve("out", 8080);

    for own in ["127.0.0.1", NODE, "10.18.0.1"] {
        let greeting = lab.call("node", &format!("{own}:8080")).unwrap();
        assert!(greeting.starts_with("web "), "from the node by {own}: {greeting}");
    }
    assert_eq!(
        lab.call("out", &format!("{NODE}:8080")).unwrap(),
        format!("web {OUTSIDE}"),
        "the source is kept"
    );
    assert_eq!(
        lab.call("other", &format!("{NODE}:8080")).unwrap(),
        format!("web {other}")
    );
    assert_eq!(
        lab.call("web", &format!("{NODE}:8080")).unwrap(),
        "web 10.18.0.1",
        "a container calls itself"
    );
    assert_eq!(lab.call("node", &format!("{web}:80")).unwrap(), "web 10.18.0.1");
    assert_eq!(lab.call("other", &format!("{web}:80")).unwrap(), format!("web {other}"));
    assert_eq!(
        lab.call("web", "127.0.0.1:80").unwrap(),
        "web 127.0.0.1",
        "loopback inside is up"
    );

    // The same port of another machine is not ours to take.
    assert_eq!(
        lab.call("web", &format!("{OUTSIDE}:8080")).unwrap(),
        format!("out {NODE}"),
        "masqueraded"
    );
    assert_eq!(
        lab.call("node", &format!("{OUTSIDE}:8080")).unwrap(),
        format!("out {NODE}")
    );

    // From outside only what is published; endpoint addresses are not.
    lab::run(
        "ip",
        &["-n", &lab.name("out"), "route", "add", "10.18.0.0/26", "via", NODE],
    );
    assert!(lab.call("out", &format!("{web}:80")).is_err());
}

#[test]
fn ipv6_is_as_ipv4() {
    let mut lab = Lab::new();
    lab.start();
    let (web, other) = (lab.attach("web", &["8080:80/tcp"]), lab.attach("other", &[]));
    let (_, list) = lab.request("GET", "/v1/attachments", "").unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let of = |v4: &str| {
        let found = list.as_array().unwrap().iter().find(|one| one["address"] == v4);
        found.unwrap()["address_v6"].as_str().unwrap().to_owned()
    };
    let (web, other) = (of(&web), of(&other));
    assert!(web.starts_with("fc00::a12:") && other.starts_with("fc00::a12:"));
    lab.serve("web", 80);
    lab.serve("out", 8080);
    assert_eq!(
        lab.call("other", &format!("[{web}]:80")).unwrap(),
        format!("web {other}")
    );
    assert_eq!(lab.call("node", &format!("[{web}]:80")).unwrap(), "web fc00::a12:1");
    for (from, seen) in [("out", OUTSIDE_V6), ("other", &other), ("web", "fc00::a12:1")] {
        let greeting = lab.call(from, &format!("[{NODE_V6}]:8080")).unwrap();
        assert_eq!(greeting, format!("web {seen}"));
    }
    assert!(
        lab.call("node", &format!("[{NODE_V6}]:8080"))
            .unwrap()
            .starts_with("web ")
    );
    assert_eq!(
        lab.call("web", &format!("[{OUTSIDE_V6}]:8080")).unwrap(),
        format!("out {NODE_V6}"),
        "masqueraded, and the port of another machine is not ours"
    );
    lab.run_in("out", "ip", &["route", "add", "fc00::a12:0/122", "via", NODE_V6]);
    assert!(lab.call("out", &format!("[{web}]:80")).is_err());
    // Nothing to wait for, nothing but ours: no tentative and no link-local address.
    for name in ["web", "node"] {
        let links = lab.run_in(name, "ip", &["-6", "-o", "addr"]);
        let ours: Vec<_> = links
            .lines()
            .filter(|line| line.contains("eth0") || line.contains("rbl-"))
            .collect();
        assert!(
            !ours.is_empty()
                && !ours
                    .iter()
                    .any(|line| line.contains("tentative") || line.contains("fe80")),
            "{links}"
        );
    }
    // A foreign source gets nowhere; without neighbours known for good the two sides still find each other.
    lab.run_in("other", "ip", &["-6", "neigh", "flush", "dev", "eth0", "nud", "all"]);
    assert!(lab.call("other", &format!("[{web}]:80")).is_ok());
    lab.run_in(
        "other",
        "ip",
        &["addr", "add", "fc00::a12:3c/128", "dev", "eth0", "nodad"],
    );
    lab.run_in(
        "other",
        "ip",
        &["route", "add", OUTSIDE_V6, "via", "fc00::a12:1", "src", "fc00::a12:3c"],
    );
    assert!(lab.call("other", &format!("[{OUTSIDE_V6}]:8080")).is_err());
}

#[test]
fn containers_cannot_forge_and_reach_neither_loopback_nor_metadata() {
    let mut lab = Lab::new();
    lab.start();
    lab.attach("evil", &[]);
    lab.serve("out", 81);
    lab.serve("node", 82);
    let evil = lab.name("evil");
    assert!(lab.call("evil", &format!("{OUTSIDE}:81")).is_ok());
    lab::run("ip", &["-n", &evil, "addr", "add", "10.18.0.60/32", "dev", "eth0"]);
    lab::run(
        "ip",
        &[
            "-n",
            &evil,
            "route",
            "add",
            &format!("{OUTSIDE}/32"),
            "via",
            "10.18.0.1",
            "src",
            "10.18.0.60",
        ],
    );
    assert!(
        lab.call("evil", &format!("{OUTSIDE}:81")).is_err(),
        "a foreign source address gets nowhere"
    );
    lab::run("ip", &["-n", &evil, "route", "del", &format!("{OUTSIDE}/32")]);
    assert!(lab.call("evil", &format!("{OUTSIDE}:81")).is_ok());

    // The node answers for 169.254.169.254 here; its own programs may ask it.
    lab.node("ip", &["addr", "add", "169.254.169.254/32", "dev", "lo"]);
    assert!(lab.call("node", "169.254.169.254:82").is_ok());
    assert!(lab.call("evil", "169.254.169.254:82").is_err());
    // 127.0.0.0/8 of the node, by way of the link on which route_localnet is set.
    lab::run("ip", &["-n", &evil, "link", "set", "lo", "down"]);
    lab::run(
        "ip",
        &[
            "-n",
            &evil,
            "route",
            "add",
            "127.0.0.2/32",
            "via",
            "10.18.0.1",
            "src",
            "10.18.0.2",
        ],
    );
    lab::run(
        "nsenter",
        &[
            &format!("--net=/run/netns/{evil}"),
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
        ],
    );
    assert!(lab.call("evil", "127.0.0.2:82").is_err());
    let rules = lab.node("nft", &["list", "chain", "inet", "roble", "guard"]);
    let drops = |what: &str| {
        rules
            .lines()
            .any(|line| line.contains(what) && !line.contains("packets 0 "))
    };
    assert!(
        drops("foreign source") && drops("loopback") && drops("metadata"),
        "{rules}"
    );

    // The node is no router for its neighbours, although it forwards for its containers.
    lab::run(
        "ip",
        &["-n", &lab.name("out"), "route", "add", "203.0.113.0/24", "via", NODE],
    );
    lab.node("ip", &["route", "add", "203.0.113.0/24", "dev", "up0"]);
    inside(&lab.name("out"), || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"x", "203.0.113.9:9").unwrap();
    });
    wait("dropped transit", || {
        let rules = lab.node("nft", &["list", "chain", "inet", "roble", "forward"]);
        rules
            .lines()
            .any(|line| line.contains("not a router") && !line.contains("packets 0 "))
            .then_some(())
    });
}

/// Which of `ports` of an address take a connection from a namespace.
fn scan(lab: &Lab, from: &str, address: &str, ports: std::ops::RangeInclusive<u16>) -> Vec<u16> {
    let address: std::net::IpAddr = address.parse().unwrap();
    let ports: Vec<u16> = ports.collect();
    inside(&lab.name(from), move || {
        let mut open = Vec::new();
        for some in ports.chunks(400) {
            let calls: Vec<_> = some
                .iter()
                .map(|port| {
                    let port = *port;
                    std::thread::spawn(move || {
                        let to = std::net::SocketAddr::new(address, port);
                        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)).map(|_| port)
                    })
                })
                .collect();
            open.extend(calls.into_iter().filter_map(|call| call.join().unwrap().ok()));
        }
        open
    })
}

#[test]
fn of_the_node_and_its_lan_a_container_reaches_names_and_published_ports_only() {
    let mut lab = Lab::new();
    lab.settings = &[];
    lab.start();
    lab.attach("web", &["8080:80"]);
    lab.attach("c", &[]);
    for (name, port) in [("node", 82), ("node", 8090), ("out", 81), ("web", 80)] {
        lab.serve(name, port);
    }
    let refused = |address: &str| lab.call("c", address).unwrap_err().kind();
    assert_eq!(refused(&format!("{NODE}:82")), std::io::ErrorKind::HostUnreachable);
    // Datagrams too.
    let (asked, asks) = (lab.udp("node", 5_000), lab.udp("c", 5_001));
    asks.send_to(b"x", (NODE, 5_000)).unwrap();
    asks.send_to(b"x", ("10.18.0.1", 5_000)).unwrap();
    assert!(asked.recv_from(&mut [0; 16]).is_err());
    // The node calls its containers, and is answered.
    assert!(lab.call("node", "10.18.0.2:80").unwrap().starts_with("web "));

    // The LAN: not from here, but to here. What is public is no LAN.
    assert_eq!(refused(&format!("{OUTSIDE}:81")), std::io::ErrorKind::HostUnreachable);
    assert!(lab.call("out", &format!("{NODE}:8080")).unwrap().starts_with("web "));
    assert!(lab.call("c", &format!("[{OUTSIDE_V6}]:81")).is_ok());
    lab.node("ip", &["addr", "add", "fd99::2/64", "dev", "up0", "nodad"]);
    lab.run_in("out", "ip", &["addr", "add", "fd99::3/64", "dev", "e0", "nodad"]);
    wait("the new network to be closed", || {
        lab.node("nft", &["list", "chain", "inet", "roble", "leave"])
            .contains("fd99::/64")
            .then_some(())
    });
    assert!(lab.call("c", "[fd99::3]:81").is_err());
    // Last: the kernel says no to one asker so often and then falls silent.
    let own = ["10.18.0.1", NODE, NODE_V6, "fc00::a12:1"];
    for address in own {
        assert_eq!(scan(&lab, "out", NODE, 80..=83), [82], "the scan sees what is open");
        let expected: &[u16] = if address == "10.18.0.1" || address == "fc00::a12:1" {
            &[53]
        } else {
            &[]
        };
        assert_eq!(scan(&lab, "c", address, 1..=1_100), expected, "{address}");
        assert_eq!(scan(&lab, "c", address, 8_000..=8_100), [8_080], "{address}");
    }
    let counted = |chain: &str, what: &str| {
        let rules = lab.node("nft", &["list", "chain", "inet", "roble", chain]);
        let is_counted = |line: &str| line.contains(what) && !line.contains("packets 0 ");
        assert!(rules.lines().any(is_counted), "{rules}");
    };
    counted("closed", "a program of the node");
    counted("leave", "the node's LAN");
}

#[test]
fn conflicts_name_the_owner() {
    let mut lab = Lab::new();
    lab.start();
    lab.attach("first", &["8080:80"]);
    lab.add("second");
    let (status, body) = lab.put("second", &["9000", "8080:81"]);
    assert_eq!((status, body["code"].as_str()), (409, Some("port-taken")));
    assert_eq!(body["message"], "port 8080/tcp is published by container first");
    lab.serve("node", 9000);
    let (status, body) = lab.put("second", &["9000"]);
    assert_eq!((status, body["code"].as_str()), (409, Some("port-taken")));
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains(&format!("process {}", std::process::id())),
        "{body}"
    );
    assert_eq!(lab.put("second", &["9000/udp"]).0, 200);
    let (status, body) = lab.request("PUT", "/v1/attachments/x", "{\"netns\":1}").unwrap();
    assert!(status == 400 && body.contains("\"code\":\"invalid\""), "{body}");
    let (_, metrics) = lab.request("GET", "/metrics", "").unwrap();
    assert!(
        metrics.contains("net_attachments 2") && metrics.contains("net_ports_taken_total 2"),
        "{metrics}"
    );
    assert_eq!(lab.request("GET", "/healthz", "").unwrap().0, 200);
}

#[test]
fn restart_adopts_and_gone_namespaces_are_forgotten() {
    let mut lab = Lab::new();
    lab.start();
    let (a, _) = (lab.attach("a", &["8080:80"]), lab.attach("b", &["8081:80"]));
    lab.serve("a", 80);
    // The device for misses lives and dies with the daemon.
    let links = |lab: &Lab| {
        let links = lab.node("ip", &["-o", "link"]);
        let lasting: Vec<&str> = links.lines().filter(|line| !line.contains("rbl-miss")).collect();
        lasting.join("\n")
    };
    let before = links(&lab);
    // Flows and links live through the end of the daemon, polite or not.
    lab.stop();
    assert!(lab.call("out", &format!("{NODE}:8080")).unwrap().starts_with("a "));
    lab.start();
    lab.kill();
    assert!(lab.call("out", &format!("{NODE}:8080")).unwrap().starts_with("a "));
    assert_eq!(links(&lab), before, "links were adopted, not made again");

    lab::run("ip", &["netns", "del", &lab.name("b")]);
    // Things that a program of ours left, or somebody broke, while the daemon was away.
    lab.node(
        "ip",
        &[
            "link",
            "add",
            "rbl-00000000000",
            "type",
            "veth",
            "peer",
            "name",
            "rbl-00000000001",
        ],
    );
    lab.node("ip", &["route", "del", &format!("{a}/32")]);
    lab.node("nft", &["flush", "ruleset"]);
    lab.start();
    let (_, list) = lab.request("GET", "/v1/attachments", "").unwrap();
    assert!(list.contains("\"a\"") && !list.contains("\"b\""), "{list}");
    assert!(lab.call("out", &format!("{NODE}:8080")).unwrap().starts_with("a "));
    assert!(!lab.node("ip", &["-o", "link"]).contains("rbl-0000000000"));
    assert!(!lab.node("nft", &["list", "ruleset"]).contains("8081"));

    // While it runs, too.
    lab.node("nft", &["delete", "table", "inet", "roble"]);
    wait("repaired rules", || lab.call("out", &format!("{NODE}:8080")).ok());
}

#[test]
fn kill_in_the_middle_of_an_attachment_is_repaired() {
    let mut lab = Lab::new();
    let baseline = lab.baseline();
    lab.start();
    for round in 0..12_u64 {
        let name = format!("c{round}");
        lab.add(&name);
        let body = format!(
            "{{\"netns\":\"/run/netns/{}\",\"ports\":[\"{}:80\"]}}",
            lab.name(&name),
            9000 + round
        );
        std::thread::scope(|scope| {
            let (path, socket_lab) = (format!("/v1/attachments/{name}"), &lab);
            let request = scope.spawn(move || socket_lab.request("PUT", &path, &body));
            // Spread over the whole of an attachment, which takes about 20 ms.
            std::thread::sleep(Duration::from_millis(round * 2));
            let pid = nix::unistd::Pid::from_raw(lab.daemon_pid());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            let _ = request.join().unwrap();
        });
        lab.kill();
        lab.start();
        let (status, body) = lab.put(&name, &[&format!("{}:80", 9000 + round)]);
        assert_eq!(status, 200, "{body}");
        lab.serve(&name, 80);
        assert!(
            lab.call("out", &format!("{NODE}:{}", 9000 + round))
                .unwrap()
                .starts_with(&name)
        );
    }
    let (_, list) = lab.request("GET", "/v1/attachments", "").unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    let addresses: std::collections::BTreeSet<_> = list.iter().map(|one| one["address"].to_string()).collect();
    assert_eq!((list.len(), addresses.len()), (12, 12));
    lab.kill();
    lab.clean_up();
    assert_eq!(lab.baseline(), baseline);
}

#[test]
fn clean_up_leaves_what_was_there() {
    let mut lab = Lab::new();
    lab.node(
        "nft",
        &["add table inet theirs; add chain inet theirs c { type filter hook input priority 0; }"],
    );
    let baseline = lab.baseline();
    lab.start();
    lab.attach("a", &["8080:80", "5353:53/udp"]);
    lab.attach("b", &[]);
    assert_ne!(lab.baseline(), baseline);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_roble-net"))
        .arg("--clean-up")
        .arg("--state-dir")
        .arg(lab.folder.path().join("state"))
        .output()
        .unwrap();
    assert!(!output.status.success(), "not while the daemon runs");
    lab.stop();
    for _ in 0..2 {
        lab.clean_up();
        assert_eq!(lab.baseline(), baseline);
    }
    assert!(!lab.socket().exists());
    lab.start();
    assert_eq!(lab.request("GET", "/v1/attachments", "").unwrap().1, "[]");
    assert_eq!(
        lab.put("a", &["8080:80"]).1["address"],
        "10.18.0.2",
        "the address is still remembered"
    );
}

#[test]
fn udp_stream_with_fixed_ports_finds_the_next_container() {
    let mut lab = Lab::new();
    lab.start();
    let client = lab.udp("out", 40000);
    let heard = |socket: &UdpSocket| {
        wait("a datagram", || {
            client.send_to(b"ping", format!("{NODE}:5353")).unwrap();
            socket.recv_from(&mut [0; 16]).ok()
        });
    };
    // The stream begins before there is anything to hear it.
    client.send_to(b"ping", format!("{NODE}:5353")).unwrap();
    lab.attach("a", &["5353:53/udp"]);
    heard(&lab.udp("a", 53));
    assert_eq!(lab.request("DELETE", "/v1/attachments/a", "").unwrap().0, 204);
    client.send_to(b"ping", format!("{NODE}:5353")).unwrap();
    lab.attach("b", &["5353:53/udp"]);
    heard(&lab.udp("b", 53));
}
