//! What listens in every namespace of a tree is what docs/network.md says, and from a container nothing else is reached.

use roble_e2e::{PROBE, Tree, command, wait_for};
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("../../../docs/network.md");
/// Published by an instance of each node.
const PUBLISHED: u16 = 18_098;

/// A row of the page's table: where, protocol, port, by whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    place: String,
    protocol: String,
    port: u16,
    program: String,
    /// In a tree with default settings and a relay.
    is_default: bool,
}

/// The table below the heading `Ports`.
fn listed() -> Vec<Listed> {
    let (_, section) = PAGE
        .split_once("\n## Ports\n")
        .expect("docs/network.md has a section on ports");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [place, protocol, port, program, when] = cells[..] else {
            panic!("five cells: {row}")
        };
        Listed {
            place: place.to_owned(),
            protocol: protocol.to_owned(),
            port: port.parse().unwrap_or_else(|_| panic!("a port: {row}")),
            program: program.trim_matches('`').to_owned(),
            is_default: !when.contains("vxlan"),
        }
    })
    .collect()
}

/// A socket that listens: protocol, address, port, program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Socket {
    protocol: String,
    address: String,
    port: u16,
    program: String,
}

/// What listens where `enter` leads: all sockets of TCP that listen, and all of UDP that are bound and not connected.
fn sockets(enter: &[&str]) -> BTreeSet<Socket> {
    let words = [enter, &["ss", "-lntupH"]].concat();
    let done = command(words[0], &words[1..]);
    assert!(done.ok, "{}", done.err);
    let lines = done.out.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words[4].rsplit_once(':').expect("an address and a port");
        let program = line.split("((\"").nth(1).and_then(|rest| rest.split('"').next());
        Socket {
            protocol: words[0].to_uppercase(),
            address: address.trim_matches(['[', ']']).to_owned(),
            port: port.parse().expect("a port"),
            program: program.unwrap_or("the kernel").to_owned(),
        }
    });
    lines.collect()
}

fn here(sockets: &BTreeSet<Socket>) -> BTreeSet<(String, u16, String)> {
    let of = |one: &Socket| (one.protocol.clone(), one.port, one.program.clone());
    sockets.iter().map(of).collect()
}

fn expected(listed: &[Listed], places: &[&str]) -> BTreeSet<(String, u16, String)> {
    let rows = listed
        .iter()
        .filter(|row| row.is_default && places.contains(&&*row.place));
    rows.map(|row| (row.protocol.clone(), row.port, row.program.clone()))
        .collect()
}

/// Ports that take a connection, by address.
fn scan(netns: &str, addresses: &[&str]) -> BTreeMap<String, Vec<u16>> {
    let netns = format!("--net={netns}");
    let done = command(
        "nsenter",
        &[&[netns.as_str(), "python3", "-c", PROBE, "scan"], addresses].concat(),
    );
    assert!(done.ok, "{}", done.err);
    let lines = done.out.lines().map(|line| {
        let mut words = line.split(' ').map(str::to_owned);
        let address = words.next().expect("an address");
        (address, words.filter_map(|port| port.parse().ok()).collect())
    });
    lines.collect()
}

#[test]
fn what_listens_is_what_is_documented() {
    let listed = listed();
    assert!(listed.len() >= 8, "{listed:?}");
    let tree = Tree::up_with("ports", &[("ROBLE_CLUSTER_RELAY_ADDRESS", "10.99.77.1:50104")]);
    let text = format!(
        "application: ports\nservices:\n  web:\n    image: docker.io/library/roble-hello:latest\n    replicas: 2\n    \
         ports: [\"{PUBLISHED}:8080\"]\n    cpu: 50m\n    memory: 32MiB\n"
    );
    assert!(tree.apply(&text).ok);
    tree.must(&["wait", "ports/web", "--for", "running", "--timeout", "90s"]);
    let instances: Vec<_> = (0..2)
        .map(|number| tree.json(&["get", "instance", &format!("ports/web.{number}")]))
        .collect();
    let word = |number: usize, name: &str| instances[number][name].as_str().expect("a word").to_owned();
    let address = |number: usize| {
        instances[number]["addresses"][0]
            .as_str()
            .expect("an address")
            .to_owned()
    };
    let netns = |number: usize| tree.path(&format!("{}/netns/{}", word(number, "node_name"), word(number, "id")));

    // The machine's: it is also anybody else's, so only what our programs have.
    let own = |socket: &Socket| socket.program.starts_with("roble-") || socket.program == "containerd";
    let of_machine: BTreeSet<Socket> = sockets(&["env"]).into_iter().filter(own).collect();
    let above = expected(&listed, &["root", "cluster"]);
    assert_eq!(here(&of_machine), above, "{of_machine:?}");
    for socket in &of_machine {
        let is_meant = socket.address == "10.99.77.1" || socket.port == 50_104;
        assert!(is_meant, "{socket:?} is not asked for");
    }

    // The nodes': all of it. The workers are there once there is something to say to the other node.
    let below = expected(&listed, &["node", "gateway"]);
    for node in ["n1", "n2"] {
        let enter = format!("--net=/run/netns/roble-dev-{node}");
        let mut found = BTreeSet::new();
        wait_for("the node's sockets", 30, || {
            found = sockets(&["nsenter", &enter]);
            here(&found) == below
        });
        println!("{node}: {found:#?}");
        let gateways: BTreeSet<&str> = found
            .iter()
            .filter(|one| one.port == 53)
            .map(|one| &*one.address)
            .collect();
        assert!(
            gateways
                .iter()
                .all(|it| it.starts_with("10.18.") || it.starts_with("fc00:")),
            "names are served to containers only: {gateways:?}"
        );
    }

    // The containers': what their program has.
    for number in 0..2 {
        let found = sockets(&["nsenter", &format!("--net={}", netns(number))]);
        let ports: Vec<_> = found.iter().map(|one| (one.protocol.as_str(), one.port)).collect();
        assert_eq!(ports, [("TCP", 8080)], "{found:?}");
    }

    // From a container, every port: of its node by all addresses, of the other node, of the machine with root and cluster.
    let gateway = |number: usize| {
        let address = address(number);
        let (front, last) = address.rsplit_once('.').expect("an address");
        let last: u8 = last.parse().expect("a number");
        format!("{front}.{}", (last & 0xc0) + 1)
    };
    let underlay = |number: usize| word(number, "node_address");
    let (own_gateway, other_gateway) = (gateway(0), gateway(1));
    assert_ne!(own_gateway, other_gateway);
    let addresses = [
        own_gateway,
        underlay(0),
        other_gateway,
        underlay(1),
        "10.99.77.1".to_owned(),
    ];
    let targets: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let names = expected(&listed, &["gateway"]);
    let names: Vec<u16> = names.iter().filter(|row| row.0 == "TCP").map(|row| row.1).collect();
    // The scan sees what is open.
    let of_itself = scan(&netns(0), &["127.0.0.1"]);
    assert_eq!(of_itself["127.0.0.1"], [8080]);
    let open = scan(&netns(0), &targets);
    println!("{open:#?}");
    let with_published = |ports: &[u16]| [ports, &[PUBLISHED]].concat();
    assert_eq!(open[targets[0]], with_published(&names), "the own gateway");
    assert_eq!(open[targets[1]], with_published(&[]), "the own node");
    for closed in &targets[2..] {
        assert_eq!(open[*closed], Vec::<u16>::new(), "{closed}");
    }
    // From outside: the published port of both nodes, as the page says.
    for number in 0..2 {
        let host = underlay(number);
        assert!(
            std::net::TcpStream::connect((host.as_str(), PUBLISHED)).is_ok(),
            "{host}"
        );
    }
    tree.must(&["delete", "app", "ports", "--wait"]);
    drop(tree.down());
}
