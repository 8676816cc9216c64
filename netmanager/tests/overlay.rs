//! Service addresses, isolation and tunnels with real namespaces, links and rules. Needs root, `ip`, `nft`, `nsenter`.

#[allow(dead_code)] // Shared with the tests of the daemon.
mod lab;
#[allow(dead_code)]
mod site;

use lab::{inside, wait};
use site::{Site, tcp, udp};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

/// Everything that was heard, in order, by what was used to call.
type Heard = BTreeMap<(&'static str, &'static str, bool), Vec<String>>;

/// `rounds` calls of each caller by TCP and UDP over both families, one after another.
fn interleaved(site: &Site, callers: &[&'static str], service: u8, rounds: usize) -> Heard {
    let mut heard = Heard::new();
    for _ in 0..rounds {
        for caller in callers {
            for (protocol, call) in [("tcp", tcp as site::Call), ("udp", udp)] {
                for address in [site.v4(service), site.v6(service)] {
                    let (name, source) = call(site, caller, address).unwrap();
                    if name != *caller {
                        assert!(site.addresses(caller).contains(&source), "{caller} is seen as {source}");
                    }
                    heard
                        .entry((caller, protocol, address.is_ipv6()))
                        .or_default()
                        .push(name);
                }
            }
        }
    }
    heard
}

#[test]
fn turns_are_exact_for_each_caller() {
    let mut site = Site::new(1);
    for copy in 0..9 {
        site.add(["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"][copy], 0, Some(1));
    }
    site.add("x", 0, Some(1));
    site.add("y", 0, Some(1));
    site.serve_all();
    for (service, backends) in [(1, 1), (2, 2), (3, 9)] {
        site.service(service, 1, &(0..backends).collect::<Vec<_>>());
    }
    site.apply();
    for (service, backends) in [(1, 1), (2, 2), (3, 9)] {
        // A backend is a caller too: it calls itself when it is its turn.
        for (who, heard) in interleaved(&site, &["x", "b0", "y"], service, 2 * backends) {
            for turns in heard.chunks(backends) {
                let different: BTreeSet<_> = turns.iter().collect();
                assert_eq!(different.len(), backends, "{who:?} of {backends}: {heard:?}");
            }
        }
    }
    for (service, backends) in [(1, 1), (2, 2), (3, 9)] {
        // Three callers, two protocols, two families, and so many rounds.
        assert_eq!(
            site.new_flows(service),
            3 * 2 * 2 * 2 * backends,
            "to the service with {backends}"
        );
        // A call is a datagram there and one back at least, of so many bytes with their headers.
        let (flows, passed) = (site.new_flows(service), site.passed(service));
        assert!(passed.packets >= 2 * flows, "{passed:?} of {flows} flows");
        assert!(passed.bytes > 28 * passed.packets, "{passed:?}");
        let tracked = site.tracked(site.v4(service));
        assert_eq!(
            tracked.keys().len() as u64,
            backends,
            "all backends have flows: {tracked:?}"
        );
    }
    // Instance addresses, and what is not measured yet.
    for copy in [0_u32, 4, 8] {
        for address in site.instance_addresses(3, copy) {
            for call in [tcp as site::Call, udp] {
                assert_eq!(call(&site, "x", address).unwrap().0, format!("b{copy}"));
            }
        }
    }
    for address in site.closest(3) {
        assert!(tcp(&site, "y", address).unwrap().0.starts_with('b'));
    }
    for address in [site.v4(3), site.v6(3), site.addresses("b3")[0], site.addresses("b3")[1]] {
        assert!(site.echo("x", address), "echo to {address}");
    }

    // What does not concern a service leaves its turns alone; what repeats changes nothing at all.
    let next = |site: &Site| tcp(site, "x", site.v4(3)).unwrap().0;
    let first = next(&site);
    site.add("z", 0, Some(1));
    site.service(2, 1, &[0]);
    site.apply();
    let number = |name: &str| name[1..].parse::<usize>().unwrap();
    let second = next(&site);
    assert_eq!(number(&second), (number(&first) + 1) % 9);
    let (before, generation) = (site.everything(0), site.generation(0));
    for _ in 0..3 {
        site.apply();
    }
    assert_eq!(site.everything(0), before);
    assert_eq!(site.generation(0), generation);
    assert_eq!(number(&next(&site)), (number(&first) + 2) % 9);
}

#[test]
fn three_thousand_connections_of_callers_in_no_order_are_shared_exactly() {
    const CONNECTIONS: usize = 3_000;
    let mut site = Site::new(1);
    for name in ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"] {
        site.add(name, 0, Some(1));
    }
    for name in ["x", "y", "z"] {
        site.add(name, 0, Some(1));
    }
    site.serve_all();
    let services = [(1, 1), (2, 2), (3, 9)];
    for (service, backends) in services {
        site.service(service, 1, &(0..backends).collect::<Vec<_>>());
    }
    site.apply();
    for (service, backends) in services {
        // The same in each run, and without a pattern that turns could follow: a generator after Lehmer.
        let mut state = 1_u64;
        let mut next = |below: usize| {
            state = state * 48_271 % 0x7fff_ffff;
            state as usize % below
        };
        let mut heard: BTreeMap<(&str, IpAddr), Vec<String>> = BTreeMap::new();
        for _ in 0..CONNECTIONS {
            // A backend is a caller too, and one calls far more often than the others.
            let caller = ["x", "x", "x", "y", "z", "b0"][next(6)];
            let address = [site.v4(service), site.v6(service)][next(2)];
            let (name, _) = tcp(&site, caller, address).unwrap();
            heard.entry((caller, address)).or_default().push(name);
        }
        assert_eq!(heard.len(), 8);
        for ((caller, address), names) in &heard {
            let rounds: Vec<_> = names.chunks(backends).collect();
            let order = rounds[0];
            assert_eq!(
                order.iter().collect::<BTreeSet<_>>().len(),
                backends,
                "{caller} {address}: {order:?}"
            );
            // Round after round in the same order: nobody else's calls are seen.
            for round in &rounds {
                assert_eq!(*round, &order[..round.len()], "{caller} {address}");
            }
        }
        let mut shares: BTreeMap<&String, usize> = BTreeMap::new();
        for name in heard.values().flatten() {
            *shares.entry(name).or_default() += 1;
        }
        println!("{backends} backends, {CONNECTIONS} connections: {shares:?}");
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        assert!(most - least <= heard.len(), "{shares:?}");
    }
}

#[test]
fn what_is_traced_is_what_the_kernel_has() {
    let mut site = Site::new(1);
    for name in ["b0", "x"] {
        site.add(name, 0, Some(1));
    }
    site.service(1, 1, &[0]);
    site.apply();
    site.is_in_force(0, true);
    site.node(0, "nft", &["add", "table", "inet", "other"]);
    site.is_in_force(0, true);
    site.node(0, "nft", &["insert", "rule", "inet", "roble", "between", "drop"]);
    for _ in 0..2 {
        site.is_in_force(0, false);
    }
    site.apply();
    site.is_in_force(0, true);
}

/// A connection to a service that stays open; which backend it reached.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn open(site: &Site, from: &str, address: IpAddr) -> (Self, String) {
        let mut talk = Self(BufReader::new(site.connect(from, address).unwrap()));
        let greeting = talk.say().unwrap();
        let name = greeting.split(' ').next().unwrap().to_owned();
        (talk, name)
    }

    fn say(&mut self) -> io::Result<String> {
        self.0.get_ref().write_all(b"again\n")?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }
}

#[test]
fn flows_stay_while_their_backend_is_ready_and_leave_it_at_once() {
    let mut site = Site::new(1);
    for name in ["b0", "b1", "b2", "x"] {
        site.add(name, 0, Some(1));
    }
    site.serve_all();
    site.service(1, 1, &[0, 1]);
    site.apply();
    for address in [site.v4(1), site.v6(1)] {
        site.service(1, 1, &[0, 1]);
        site.apply();
        let mut talks: BTreeMap<String, Talk> = (0..2)
            .map(|_| Talk::open(&site, "x", address))
            .map(|(talk, name)| (name, talk))
            .collect();
        assert_eq!(talks.len(), 2);
        let stream = site.udp_socket("x", address);
        let heard = || {
            stream.send(b"frame").unwrap();
            let mut buffer = [0; 256];
            let length = stream.recv(&mut buffer).ok()?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            Some(text.split(' ').next().unwrap().to_owned())
        };
        let first = wait("the stream", heard);
        assert_eq!(heard().as_ref(), Some(&first), "a stream stays");
        // One more, and a restart: nothing moves.
        site.service(1, 1, &[0, 1, 2]);
        site.apply();
        site.restart(0);
        site.apply();
        assert_eq!(wait("the stream", heard), first);
        for talk in talks.values_mut() {
            talk.say().unwrap();
        }
        // The stream's backend is not ready any more.
        let lost = usize::from(first == "b1");
        let other: Vec<usize> = [0, 1, 2].into_iter().filter(|copy| *copy != lost).collect();
        site.service(1, 1, &other);
        let at = Instant::now();
        site.apply();
        wait("the stream at another backend", || {
            heard().filter(|name| *name != first)
        });
        assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
        for (name, talk) in &mut talks {
            let answer = talk.say();
            assert_eq!(answer.is_ok(), *name != first, "{name}: {answer:?}");
            if let Err(error) = answer {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
        for _ in 0..6 {
            assert_ne!(tcp(&site, "x", address).unwrap().0, first);
            assert_ne!(udp(&site, "x", address).unwrap().0, first);
        }
        // One that is lost while nobody looks is found lost afterwards.
        let second = wait("the stream", heard);
        let lost: usize = second[1..].parse().unwrap();
        site.restart(0);
        site.service(
            1,
            1,
            &other.iter().copied().filter(|copy| *copy != lost).collect::<Vec<_>>(),
        );
        site.apply();
        wait("the stream at the last backend", || {
            heard().filter(|name| *name != second)
        });
        // None: refused, at once.
        site.service(1, 1, &[]);
        site.apply();
        for call in [tcp as site::Call, udp] {
            let at = Instant::now();
            let error = call(&site, "x", address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(at.elapsed() < Duration::from_millis(500), "{:?}", at.elapsed());
        }
    }
}

#[test]
fn only_containers_of_one_application_meet() {
    let mut site = Site::new(1);
    site.add("a", 0, Some(1));
    site.add("b", 0, Some(1));
    site.add("other", 0, Some(2));
    site.add("p", 0, None);
    site.add("q", 0, None);
    site.serve_all();
    site.service(1, 1, &[1]);
    site.apply();
    let reach = |from: &str, to: &str| {
        let results: BTreeSet<bool> = site
            .addresses(to)
            .into_iter()
            .flat_map(|address| {
                [
                    tcp(&site, from, address).is_ok(),
                    udp(&site, from, address).is_ok(),
                    site.echo(from, address),
                ]
            })
            .collect();
        assert_eq!(results.len(), 1, "{from} to {to} differs by protocol");
        results.contains(&true)
    };
    for (from, to) in [("a", "b"), ("b", "a"), ("p", "q")] {
        assert!(reach(from, to), "{from} to {to}");
    }
    for (from, to) in [("a", "other"), ("other", "a"), ("a", "p"), ("p", "a"), ("other", "q")] {
        assert!(!reach(from, to), "{from} to {to}");
    }
    for address in [site.v4(1), site.v6(1)]
        .into_iter()
        .chain(site.instance_addresses(1, 1))
    {
        assert_eq!(tcp(&site, "a", address).unwrap().0, "b");
        for stranger in ["other", "p"] {
            assert_eq!(
                tcp(&site, stranger, address).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
            assert_eq!(
                udp(&site, stranger, address).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
        }
    }
    // With the address of another a container gets nowhere.
    let [b4, b6] = site.addresses("b").try_into().unwrap();
    site.container("other", &["addr", "add", &format!("{b4}/32"), "dev", "eth0"]);
    site.container("other", &["addr", "add", &format!("{b6}/128"), "dev", "eth0", "nodad"]);
    for (to, from, gateway) in site
        .addresses("a")
        .into_iter()
        .zip([b4, b6])
        .zip(["10.18.0.1", "fc00::a12:1"])
        .map(|((a, b), c)| (a, b, c))
    {
        site.container(
            "other",
            &[
                "route",
                "add",
                &to.to_string(),
                "via",
                gateway,
                "src",
                &from.to_string(),
            ],
        );
        assert!(tcp(&site, "other", to).is_err());
    }
    let guard = site.node(0, "nft", &["list", "chain", "inet", "roble", "guard"]);
    let dropped = guard
        .lines()
        .filter(|line| line.contains("foreign source") && !line.contains("packets 0 "));
    assert_eq!(dropped.count(), 2, "{guard}");
}

#[test]
fn two_nodes_over_vxlan() {
    let mut site = Site::new(2);
    let before = [site.everything(0), site.everything(1)];
    site.add("a", 0, Some(1));
    site.add("b", 1, Some(1));
    site.add("c", 1, Some(1));
    site.add("far", 1, Some(2));
    site.serve_all();
    site.service(1, 1, &[1, 2]);
    site.service(2, 2, &[3]);
    site.apply();
    for (from, to) in [("a", "b"), ("c", "a")] {
        for address in site.addresses(to) {
            for call in [tcp as site::Call, udp] {
                let (name, source) = call(&site, from, address).unwrap();
                assert_eq!(name, to);
                assert!(site.addresses(from).contains(&source), "{from} is seen as {source}");
            }
            assert!(site.echo(from, address), "echo from {from} to {address}");
        }
    }
    for (_, heard) in interleaved(&site, &["a", "c"], 1, 4) {
        assert!(heard.chunks(2).all(|turns| turns[0] != turns[1]), "{heard:?}");
    }
    for address in [site.v4(1), site.v6(1)] {
        assert!(site.echo("a", address));
    }
    for address in site.addresses("far") {
        assert!(tcp(&site, "a", address).is_err());
    }
    // The flows are tracked, at both ends; the datagrams that carry them are not.
    for node in 0..2 {
        let tracked = site.node(node, "cat", &["/proc/net/nf_conntrack"]);
        assert!(
            tracked.contains(&format!("dst={}", site.addresses("b")[0])),
            "{tracked}"
        );
        let carrying = format!("dport={}", roble_net::datapath::tunnel::DEFAULT_PORT);
        assert!(!tracked.contains(&carrying), "{tracked}");
    }
    // Large packets fit: the containers know what fits through the tunnel.
    assert!(site.container("a", &["link", "show", "eth0"]).contains("mtu 1450"));
    let large = site.addresses("b")[0];
    let netns = site.name("a");
    inside(&netns, move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send_to(&[7; 8000], (large, site::PORT)).unwrap();
        socket.recv(&mut [0; 16]).unwrap();
    });

    // What is not of the sender's block, or not of a node, is dropped and counted.
    let counted = |chain: &str, what: &str| {
        let rules = site.node(0, "nft", &["list", "chain", "inet", "roble", chain]);
        rules
            .lines()
            .any(|line| line.contains(what) && !line.contains("packets 0 "))
            .then_some(())
    };
    site.node(1, "ip", &["addr", "add", "10.18.0.50/32", "dev", "lo"]);
    site.node(1, "ip", &["addr", "add", "192.0.2.9/24", "dev", "up0"]);
    let a = site.addresses("a")[0];
    let send = |from: &'static str, to: IpAddr, port: u16| {
        inside(&site.node_name(1), move || {
            let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(&[0; 64], (to, port)).unwrap();
        });
    };
    send("10.18.0.50", a, site::PORT);
    wait("a foreign source", || {
        counted("peer_c0000202", "not of the sender's block")
    });
    send("192.0.2.9", "192.0.2.1".parse().unwrap(), 50_103);
    wait("a foreign node", || counted("tunnel", "not from a node"));
    site.node(1, "ip", &["addr", "del", "10.18.0.50/32", "dev", "lo"]);
    site.node(1, "ip", &["addr", "del", "192.0.2.9/24", "dev", "up0"]);

    // A restart keeps the device; a node that is gone takes its routes with it.
    let device = site.node(0, "ip", &["-o", "link", "show", "rbl-vx"]);
    let (mut talk, _) = Talk::open(&site, "a", site.v4(1));
    site.restart(0);
    site.apply();
    talk.say().unwrap();
    assert_eq!(site.node(0, "ip", &["-o", "link", "show", "rbl-vx"]), device);
    site.forget_peers(0);
    site.apply();
    for family in ["-4", "-6"] {
        let routes = site.node(0, "ip", &[family, "route", "show", "dev", "rbl-vx"]);
        assert!(!routes.contains("via"), "{routes}");
    }
    assert!(
        !site
            .node(0, "ip", &["neigh", "show", "dev", "rbl-vx", "nud", "permanent"])
            .contains("lladdr")
    );
    site.clean_up();
    assert_eq!([site.everything(0), site.everything(1)], before);
}

#[test]
fn vxlan_over_ipv6_and_a_node_that_lost_its_address() {
    let mut site = Site::over_v6(2);
    site.add("a", 0, Some(1));
    site.add("a2", 0, Some(1));
    site.add("b", 1, Some(1));
    site.serve_all();
    site.service(1, 1, &[2]);
    site.apply();
    let all = |site: &Site, to: Vec<IpAddr>| {
        let reached = to.into_iter().map(|address| {
            let results = [
                tcp(site, "a", address).is_ok(),
                udp(site, "a", address).is_ok(),
                site.echo("a", address),
            ];
            assert!(
                results.iter().all(|result| *result == results[0]),
                "{address}: {results:?}"
            );
            results[0]
        });
        reached.collect::<Vec<_>>()
    };
    let far = || [site.addresses("b"), vec![site.v4(1), site.v6(1)]].concat();
    assert_eq!(all(&site, far()), [true; 4]);
    assert!(site.container("a", &["link", "show", "eth0"]).contains("mtu 1430"));
    site.node(0, "ip", &["addr", "del", "2001:db8::1/64", "dev", "up0"]);
    site.apply_without_tunnel(0);
    assert_eq!(all(&site, site.addresses("a2")), [true; 2], "the node goes on alone");
    site.node(0, "ip", &["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"]);
    wait("the address to be usable", || {
        let route = site.node(0, "ip", &["-6", "route", "get", "2001:db8::1"]);
        route.contains("local").then_some(())
    });
    site.apply();
    assert_eq!(all(&site, far()), [true; 4]);
}

/// By every address of container `x`, a backend of service 2, from `from`: whether TCP, UDP and echoes get through. All
/// addresses must agree.
fn reach(site: &Site, from: &str, to: &str) -> [bool; 3] {
    let copy = u32::from(
        site.addresses(to)[0]
            .to_string()
            .rsplit('.')
            .next()
            .unwrap()
            .parse::<u8>()
            .unwrap(),
    ) - 2;
    let all = [
        site.addresses(to),
        site.instance_addresses(2, copy),
        vec![site.v4(2), site.v6(2)],
    ]
    .concat();
    let results: BTreeSet<[bool; 3]> = all
        .iter()
        .map(|address| {
            [
                tcp(site, from, *address).is_ok(),
                udp(site, from, *address).is_ok(),
                site.echo(from, *address),
            ]
        })
        .collect();
    assert_eq!(results.len(), 1, "{from} to {to} differs by address: {results:?}");
    results.into_iter().next().unwrap()
}

#[test]
fn rules_let_in_whom_they_name_at_their_ports_and_nobody_else() {
    let mut site = Site::new(2);
    for (name, node, application) in [("a", 0, 1), ("b", 1, 1), ("x", 1, 2), ("z", 0, 3)] {
        site.add(name, node, Some(application));
    }
    site.serve_all();
    site.service(2, 2, &[2]);
    let all = |site: &Site, expected: [bool; 3]| {
        for from in ["a", "b"] {
            assert_eq!(reach(site, from, "x"), expected, "{from}");
        }
        assert_eq!(reach(site, "z", "x"), [false; 3]);
        assert!(tcp(site, "x", site.addresses("a")[0]).is_err(), "nor back");
    };
    site.apply();
    all(&site, [false; 3]);
    site.allow(2, &[(1, &[])]);
    site.apply();
    all(&site, [true; 3]);
    site.allow(2, &[(1, &["6999-7000/udp"])]);
    site.apply();
    all(&site, [false, true, false]);
    site.allow(2, &[(1, &["7000/tcp", "80/udp"])]);
    site.apply();
    all(&site, [true, false, false]);

    // What is open ends with the rule, by each address and from both nodes.
    site.allow(2, &[(1, &["7000/tcp", "7000/udp"])]);
    site.apply();
    let addresses = [site.addresses("x"), vec![site.v4(2), site.v6(2)]].concat();
    let mut talks: Vec<Talk> = ["a", "b"]
        .iter()
        .flat_map(|from| addresses.iter().map(|address| Talk::open(&site, from, *address).0))
        .collect();
    let streams: Vec<_> = addresses.iter().map(|address| site.udp_socket("a", *address)).collect();
    let is_heard = |socket: &std::net::UdpSocket| {
        let _ = socket.send(b"x");
        socket.recv(&mut [0; 64]).is_ok()
    };
    assert!(streams.iter().all(is_heard) && talks.iter_mut().all(|talk| talk.say().is_ok()));
    site.restart(0);
    site.restart(1);
    site.apply();
    assert!(
        streams.iter().all(is_heard) && talks.iter_mut().all(|talk| talk.say().is_ok()),
        "a restart ends nothing"
    );
    site.allow(2, &[(1, &["7001/tcp"])]);
    site.apply();
    assert!(!streams.iter().any(is_heard) && !talks.iter_mut().any(|talk| talk.say().is_ok()));
    all(&site, [false; 3]);

    // Each end holds its own line.
    for node in [0, 1] {
        site.allow(2, &[(1, &[])]);
        site.set_ruleless(node, true);
        site.apply();
        assert_eq!(
            reach(&site, "a", "x"),
            [false; 3],
            "node {node} has not heard of the rule"
        );
        site.set_ruleless(node, false);
    }
    site.apply();
    all(&site, [true; 3]);
}

#[test]
fn the_first_packets_to_an_unknown_service_wait_until_it_is_known() {
    let mut site = Site::holding();
    site.add("a", 0, Some(1));
    site.add("d", 0, Some(2));
    // Of other applications, so that no late packet of one waits with those of another.
    site.add("u", 0, Some(3));
    site.add("r", 0, Some(4));
    site.add("nobody", 0, None);
    site.serve_all();
    site.service(2, 2, &[1]);
    site.allow(2, &[(1, &[]), (3, &[]), (4, &[])]);
    let held = |site: &Site| site.holds(0).metrics.packets_held.get();
    let wait_held = |site: &Site, more_than: u64| wait("held packets", || (held(site) > more_than).then_some(()));
    let refused = |socket: &std::net::UdpSocket| {
        wait("a refusal", || {
            // Whichever of the two is the next to be told.
            let error = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 64])).err()?;
            (error.kind() == io::ErrorKind::ConnectionRefused).then_some(())
        });
    };
    for address in [site.v4(2), site.v6(2)]
        .into_iter()
        .chain(site.instance_addresses(2, 1))
    {
        let tell = |site: &mut Site, is_told: bool| {
            site.set_hidden(2, !is_told);
            site.apply();
        };
        tell(&mut site, false);
        // One packet of TCP; a second connection finds the address known.
        let before = held(&site);
        let caller = site.name("a");
        let call = std::thread::spawn(move || {
            inside(&caller, move || {
                let stream = TcpStream::connect_timeout(&(address, site::PORT).into(), Duration::from_secs(10))?;
                writeln!(&stream, "who")?;
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).map(|_| line)
            })
        });
        wait_held(&site, before);
        tell(&mut site, true);
        assert!(call.join().unwrap().unwrap().starts_with("d "), "{address}");
        let before = held(&site);
        assert_eq!(tcp(&site, "a", address).unwrap().0, "d");
        assert_eq!(udp(&site, "a", address).unwrap().0, "d");
        assert_eq!(held(&site), before);

        // Datagrams: so many are held, in order, and no more.
        tell(&mut site, false);
        let stream = site.udp_socket("u", address);
        let lost = site.holds(0).metrics.packets_overheld.get();
        for number in 0..20_u8 {
            stream.send(&[number]).unwrap();
        }
        wait("those too many", || {
            (site.holds(0).metrics.packets_overheld.get() == lost + 4).then_some(())
        });
        tell(&mut site, true);
        let mut answers = 0;
        let end = loop {
            match stream.recv(&mut [0; 64]) {
                Ok(_) => answers += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(answers, 16, "{address}: {end}");

        // Nobody's: refused, and from then on at once.
        tell(&mut site, false);
        let stream = site.udp_socket("r", address);
        let before = held(&site);
        stream.send(b"x").unwrap();
        wait_held(&site, before);
        site.apply_answered(0, &BTreeSet::from([address]));
        refused(&stream);
        let before = held(&site);
        let error = tcp(&site, "r", address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // The kernel tells only so many refusals a second to one container.
        refused(&site.udp_socket("r", address));
        assert_eq!(held(&site), before);
        // Nobody answers: refused in the end.
        site.apply();
        refused(&site.udp_socket("r", address));
        // Who is no instance waits for nothing.
        let error = tcp(&site, "nobody", address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
    // Not from the node itself, and nothing leaves by another way.
    let netns = site.node_name(0);
    let address = site.v4(2);
    let error = inside(&netns, move || {
        TcpStream::connect_timeout(&(address, site::PORT).into(), Duration::from_secs(2)).unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    site.clean_up();
    assert!(!site.node(0, "ip", &["link"]).contains("rbl-"));
}
