//! Two organisations with the same applications and services on the same nodes: each reaches its own by every address and name,
//! and nothing of the other.

use roble_e2e::{Done, PROBE, Tree, command, serve, texts, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;

/// One of each on every node, as the port of the node is told; and a second application that lets the first one in by its name.
fn descriptor(port: u16) -> String {
    let image = "image: docker.io/library/roble-hello:latest\n        cpu: 50m\n        memory: 32MiB";
    format!(
        "applications:\n  - application: shop\n    services:\n      web:\n        {image}\n        replicas: 2\n        ports: [\"{port}:8080\"]\n  \
         - application: data\n    services:\n      db:\n        {image}\n        allow: [{{from: shop/web}}]\n"
    )
}

/// An organisation: the tree's first one, or one that was made.
struct Tenant<'a> {
    tree: &'a Tree,
    organization: Option<&'static str>,
}

impl Tenant<'_> {
    fn roble(&self, args: &[&str]) -> String {
        let done: Done = match self.organization {
            Some(organization) => self.tree.roble_of(organization, args),
            None => self.tree.roble(args),
        };
        assert!(done.ok, "roble {}: {}", args.join(" "), done.err);
        done.out
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.roble(&[args, &["-o", "json"]].concat())).expect("roble prints JSON")
    }

    fn deploy(&self, port: u16) {
        let file = self.tree.path(&format!("tenant-{port}.yaml"));
        std::fs::write(&file, descriptor(port)).expect("the folder is writable");
        self.roble(&["apply", "-f", &file]);
        for service in ["shop/web", "data/db"] {
            self.roble(&["wait", service, "--for", "running", "--timeout", "90s"]);
        }
    }

    /// Addresses that stand for a service or one of its instances: endpoints, instances, round robin, of both families.
    fn addresses(&self, service: &str, instances: u32) -> Vec<String> {
        let view = self.json(&["get", "service", service]);
        let mut all = texts(&view["addresses"]["round-robin"]);
        for number in 0..instances {
            let view = self.json(&["get", "instance", &format!("{service}.{number}")]);
            all.extend([texts(&view["addresses"]), texts(&view["service_addresses"])].concat());
        }
        assert_eq!(all.len(), 2 + 4 * instances as usize, "{all:?}");
        all
    }

    fn netns(&self, instance: &str) -> String {
        let view = self.json(&["get", "instance", instance]);
        let (node, id) = (view["node_name"].as_str(), view["id"].as_str());
        self.tree
            .path(&format!("{}/netns/{}", node.expect("a node"), id.expect("an id")))
    }
}

/// What the probe prints, by the words before the last.
fn probe(netns: &str, mode: &str, args: &[String]) -> String {
    let netns = format!("--net={netns}");
    let mut words = vec![netns.as_str(), "python3", "-c", PROBE, mode];
    words.extend(args.iter().map(String::as_str));
    let done = command("nsenter", &words);
    assert!(done.ok, "{}", done.err);
    done.out
}

fn reach(netns: &str, addresses: &[String]) -> BTreeMap<String, bool> {
    let said = probe(netns, "reach", addresses);
    let cells = said.lines().filter_map(|line| line.rsplit_once(' '));
    cells
        .map(|(cell, answered)| (cell.to_owned(), answered == "1"))
        .collect()
}

#[test]
fn two_tenants_with_the_same_names_meet_nowhere() {
    let tree = Tree::up("tenants");
    tree.organization("rival");
    let tenants = [None, Some("rival")].map(|organization| Tenant {
        tree: &tree,
        organization,
    });
    for (tenant, port) in tenants.iter().zip([18_095, 18_096]) {
        tenant.deploy(port);
    }
    let all: Vec<Vec<String>> = tenants
        .iter()
        .map(|tenant| [tenant.addresses("shop/web", 2), tenant.addresses("data/db", 1)].concat())
        .collect();
    let callers = ["shop/web.0", "shop/web.1"];
    let mut servers = Vec::new();
    for tenant in &tenants {
        for instance in callers.iter().chain(&["data/db.0"]) {
            servers.push(serve(&tenant.netns(instance)));
        }
    }
    for (own, tenant) in tenants.iter().enumerate() {
        let (ours, theirs) = (&all[own], &all[1 - own]);
        assert!(
            ours.iter().all(|address| !theirs.contains(address)),
            "{ours:?} {theirs:?}"
        );
        for caller in callers {
            let netns = tenant.netns(caller);
            // That it is not open to itself only because nobody has asked yet would prove nothing.
            let mut last = BTreeMap::new();
            wait_for("all of one's own", 60, || {
                last = reach(&netns, ours);
                last.values().all(|answered| *answered)
            });
            assert_eq!(last.len(), 3 * ours.len());
            let reached = reach(&netns, theirs);
            assert_eq!(reached.len(), 3 * theirs.len());
            let open: Vec<_> = reached.iter().filter(|(_, answered)| **answered).collect();
            println!(
                "organisation {own}, {caller}: {} of {} of its own, {} of {} of the other's",
                last.len(),
                last.len(),
                open.len(),
                reached.len()
            );
            assert!(open.is_empty(), "{caller} reaches {open:?}");

            // Names are one's own.
            let names = [
                "web.shop.roble",
                "closest.web.shop.roble",
                "1.web.shop.roble",
                "db.data.roble",
            ]
            .map(str::to_owned);
            let mut said = String::new();
            wait_for("names", 30, || {
                said = probe(&netns, "resolve", &names);
                !said.contains('-')
            });
            for line in said.lines() {
                let mut found = line.split(' ').skip(1).map(str::to_owned);
                let own_only = found.all(|address| !theirs.contains(&address));
                assert!(own_only, "{line}");
            }
            let db = texts(&tenant.json(&["get", "service", "data/db"])["addresses"]["round-robin"]);
            let expected = format!("db.data.roble {} {}", db[0], db[1]);
            assert!(said.lines().any(|line| line == expected), "{said}");
        }
    }

    // A rule that names an application names the own one, whatever others are called; the same name of the other stays out after
    // the own one is gone.
    tenants[0].roble(&["delete", "app", "shop", "--wait"]);
    let netns = tenants[1].netns("shop/web.0");
    let db = tenants[0].addresses("data/db", 1);
    assert!(reach(&netns, &db).values().all(|answered| !answered));
    assert!(reach(&netns, &all[1]).values().all(|answered| *answered));

    drop(servers);
    tenants[1].roble(&["delete", "app", "shop", "--wait"]);
    for tenant in &tenants {
        tenant.roble(&["delete", "app", "data", "--wait"]);
    }
    assert!(tree.containers().is_empty());
    drop(tree.down());
}
