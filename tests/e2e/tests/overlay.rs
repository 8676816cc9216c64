//! Services find and reach each other: names and service addresses, over both nodes of a tree, with real containers.

use roble_e2e::{Tree, command, texts, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;

/// Asks from inside an instance's network; what the server says, without the head.
fn ask(tree: &Tree, node: &str, instance: &str, address: &str) -> Option<String> {
    let netns = tree.path(&format!("{node}/netns/{instance}"));
    let script = format!("exec 3<>/dev/tcp/{address}/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && timeout 3 cat <&3");
    let done = command(
        "nsenter",
        &[&format!("--net={netns}"), "timeout", "5", "bash", "-c", &script],
    );
    done.out.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned())
}

/// Where an instance is: its id and its node.
fn place(tree: &Tree, path: &str) -> (String, String) {
    let view = tree.json(&["get", "instance", path]);
    let text = |name: &str| view[name].as_str().unwrap_or_default().to_owned();
    (text("id"), text("node_name"))
}

fn turns(tree: &Tree, from: &(String, String), address: &str, calls: usize) -> BTreeMap<String, usize> {
    let mut turns = BTreeMap::new();
    for _ in 0..calls {
        let answer = ask(tree, &from.1, &from.0, address).unwrap_or_else(|| "nobody".to_owned());
        *turns.entry(answer).or_default() += 1;
    }
    turns
}

const TWO: &str = "application: NAME\nservices:\n  web:\n    image: docker.io/library/roble-hello:latest\n    replicas: 2\n    \
                   ports: [\"PORT:8080\"]\n    environment: {GREETING: NAME}\n    cpu: 50m\n    memory: 32MiB\n";

fn two(name: &str, port: u16) -> String {
    TWO.replace("NAME", name).replace("PORT", &port.to_string())
}

#[test]
fn services_are_reached_by_name_and_address_over_nodes_and_restarts() {
    let tree = Tree::up("overlay");
    // The example: a client that asks by name. The two servers take turns.
    let applied = tree.apply_file("examples/client-server.yaml");
    assert!(applied.ok, "{}", applied.err);
    tree.must(&["wait", "client-server/client", "--for", "running", "--timeout", "60s"]);
    wait_for("both servers to answer the client in turn", 40, || {
        let log = tree.must(&["logs", "client-server/client.0"]);
        let said: Vec<&str> = log
            .lines()
            .filter_map(|line| Some(line.split_once(" says: ")?.1))
            .collect();
        let last = &said[said.len().saturating_sub(4)..];
        last.len() == 4 && last[0] == last[2] && last[1] == last[3] && last[0] != last[1]
    });

    // The closest is the one beside it, always.
    let applied = tree.apply_file("examples/closest.yaml");
    assert!(applied.ok, "{}", applied.err);
    tree.must(&["wait", "near/server", "--for", "running", "--timeout", "60s"]);
    tree.must(&["wait", "near/client", "--for", "running", "--timeout", "60s"]);
    let client = place(&tree, "near/client.0");
    let beside = (0..2).find(|n| place(&tree, &format!("near/server.{n}")).1 == client.1);
    let beside = format!("instance {}", beside.expect("a server on each node"));
    wait_for("the server beside the client to answer it", 40, || {
        let log = tree.must(&["logs", "near/client.0"]);
        let said: Vec<&str> = log.lines().rev().take(4).collect();
        said.len() == 4 && said.iter().all(|line| line.ends_with(&beside))
    });
    tree.must(&["delete", "app", "near", "--wait"]);

    let taken = tree.apply("application: other\nservices:\n  web:\n    image: docker.io/library/roble-hello:latest\n    addresses: {round_robin: 10.30.55.55}\n");
    assert!(
        !taken.ok && taken.err.contains("10.30.55.55") && taken.err.contains("another service"),
        "{}",
        taken.err
    );
    let outside = tree.apply("application: other\nservices:\n  web:\n    image: docker.io/library/roble-hello:latest\n    addresses: {round_robin: 10.99.0.1}\n");
    assert!(!outside.ok && outside.err.contains("10.30.0.0/16"), "{}", outside.err);
    tree.must(&["delete", "app", "client-server", "--wait"]);

    // One on each node: every address of each family, from one to the other and to itself.
    assert!(tree.apply(&two("shop", 18090)).ok);
    tree.must(&["wait", "shop/web", "--for", "running", "--timeout", "60s"]);
    let (first, second) = (place(&tree, "shop/web.0"), place(&tree, "shop/web.1"));
    assert_ne!(first.1, second.1, "a port of the node keeps them apart");
    let service = tree.json(&["get", "service", "shop/web"]);
    let round_robin = texts(&service["addresses"]["round-robin"]);
    assert_eq!(round_robin.len(), 2, "{service}");
    wait_for("the tables to reach both nodes", 20, || {
        turns(&tree, &first, &round_robin[0], 2).len() == 2 && turns(&tree, &second, &round_robin[0], 2).len() == 2
    });
    for from in [&first, &second] {
        for address in &round_robin {
            let turns = turns(&tree, from, address, 4);
            assert_eq!(
                turns.values().copied().collect::<Vec<_>>(),
                [2, 2],
                "{address} {turns:?}"
            );
        }
        for number in 0..2 {
            let view = tree.json(&["get", "instance", &format!("shop/web.{number}")]);
            let all = [texts(&view["addresses"]), texts(&view["service_addresses"])].concat();
            assert_eq!(all.len(), 4, "{view}");
            for address in all {
                let answer = ask(&tree, &from.1, &from.0, &address).unwrap_or_default();
                assert_eq!(
                    answer,
                    format!("shop from shop-web-{number} instance {number}"),
                    "{address}"
                );
            }
        }
    }
    let before: Vec<Value> = (0..2)
        .map(|n| tree.json(&["get", "instance", &format!("shop/web.{n}")])["addresses"].clone())
        .collect();

    // Another organisation's would be closed too: another application is.
    assert!(tree.apply(&two("rival", 18091)).ok);
    tree.must(&["wait", "rival/web", "--for", "running", "--timeout", "60s"]);
    let rival = place(&tree, "rival/web.0");
    for address in round_robin.iter().chain(&texts(&before[0])).chain(&texts(&before[1])) {
        assert_eq!(
            ask(&tree, &rival.1, &rival.0, address),
            None,
            "{address} is open to another application"
        );
    }

    // Nobody above and the net managers new: names and addresses go on.
    for daemon in ["root", "cluster", "n1-net", "n2-net"] {
        tree.kill(daemon);
    }
    let alone = ["n1-net", "n2-net"].map(|daemon| tree.start_alone(daemon));
    wait_for("service addresses with cluster and root away", 20, || {
        turns(&tree, &first, &round_robin[0], 2).len() == 2
    });
    drop(alone);
    tree.start_all();
    wait_for("the same addresses after all that", 40, || {
        let now: Vec<Value> = (0..2)
            .map(|n| tree.roble(&["get", "instance", &format!("shop/web.{n}"), "-o", "json"]))
            .map(|done| serde_json::from_str::<Value>(&done.out).unwrap_or_default()["addresses"].clone())
            .collect();
        now == before
    });

    // An instance that is gone gets nothing any more, on the other node too.
    tree.must(&["scale", "shop/web", "1"]);
    wait_for("the one that is left to get all calls", 20, || {
        let turns = turns(&tree, &first, &round_robin[0], 3);
        turns.len() == 1 && turns.keys().all(|answer| answer.starts_with("shop from"))
    });
    drop(tree.down());
}

/// Whether a TCP connection from an instance's network is taken.
fn connects(tree: &Tree, from: &(String, String), address: &str, port: u16) -> bool {
    let netns = tree.path(&format!("{}/netns/{}", from.1, from.0));
    let script = format!("exec 3<>/dev/tcp/{address}/{port}");
    let done = command(
        "nsenter",
        &[&format!("--net={netns}"), "timeout", "3", "bash", "-c", &script],
    );
    done.ok
}

#[test]
fn a_rule_opens_one_service_to_one_application() {
    let tree = Tree::up("policy");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/allow-rule.yaml");
    let example = std::fs::read_to_string(example).expect("the example");
    let (before, rule) = example.split_once("        allow:\n").expect("a rule");
    let after = &rule[rule.find("  - application: allow-shop").expect("the other application")..];
    let closed = format!("{before}{after}");
    let applied = tree.apply(&closed);
    assert!(applied.ok, "{}", applied.err);
    assert!(tree.apply(&two("rival", 18092)).ok);
    for service in ["allow-db/db", "allow-shop/web", "rival/web"] {
        tree.must(&["wait", service, "--for", "running", "--timeout", "60s"]);
    }
    let (web, rival) = (place(&tree, "allow-shop/web.0"), place(&tree, "rival/web.0"));
    let service = tree.json(&["get", "service", "allow-db/db"]);
    let instance = tree.json(&["get", "instance", "allow-db/db.0"]);
    let addresses = [
        texts(&service["addresses"]["round-robin"]),
        texts(&instance["addresses"]),
        texts(&instance["service_addresses"]),
    ]
    .concat();
    assert_eq!(addresses.len(), 6, "{service} {instance}");
    let reached = |from: &(String, String)| -> Vec<bool> {
        let answer = |address: &String| ask(&tree, &from.1, &from.0, address).is_some();
        addresses.iter().map(answer).collect()
    };
    let says = || tree.must(&["logs", "allow-shop/web.0"]).matches(" says: ").count();
    assert_eq!((reached(&web), says()), (vec![false; 6], 0));

    // The example: the client's name is resolved at its first use, and addresses with it.
    let applied = tree.apply_file("examples/allow-rule.yaml");
    assert!(
        applied.ok && applied.out.contains("updated"),
        "{}{}",
        applied.out,
        applied.err
    );
    wait_for("the client to be answered by name", 40, || says() > 0);
    wait_for("all addresses to be open", 20, || reached(&web) == [true; 6]);
    assert_eq!(reached(&rival), [false; 6]);
    assert!(!connects(&tree, &web, &addresses[0], 8081), "another port");
    let shown = tree.must(&["get", "service", "allow-db/db", "-o", "yaml"]);
    assert!(
        shown.contains("allow-shop/web") && shown.contains("8080/tcp"),
        "{shown}"
    );

    // Restarts of everything in between change nothing; what was asked for stays known.
    for daemon in ["root", "cluster", "n1-net", "n2-net"] {
        tree.kill(daemon);
    }
    let alone = ["n1-net", "n2-net"].map(|daemon| tree.start_alone(daemon));
    wait_for("the same with cluster and root away", 30, || reached(&web) == [true; 6]);
    assert_eq!(reached(&rival), [false; 6]);
    drop(alone);
    tree.start_all();
    wait_for("the same after all that", 40, || reached(&web) == [true; 6]);
    assert_eq!(reached(&rival), [false; 6]);

    // Who calls by address alone is answered too: the first packet waits until the address is known.
    let port = "            ports: [8080/tcp]\n";
    let wider = example.replace(port, &format!("{port}          - from: rival\n"));
    assert!(wider != example && tree.apply(&wider).ok);
    wait_for("the other application to be let in", 30, || {
        reached(&rival) == [true; 6]
    });

    // The machine and its LAN are closed.
    let machine = "10.99.77.1";
    assert!(
        std::net::TcpStream::connect((machine, 10_000)).is_ok(),
        "the root listens there"
    );
    assert!(!connects(&tree, &web, machine, 10_000));

    // Without the rule all is as before.
    assert!(tree.apply(&closed).ok);
    wait_for("the rule to be gone", 20, || reached(&web) == [false; 6]);
    assert_eq!(reached(&rival), [false; 6]);
    drop(tree.down());
}
