//! Beside the rules of other programs, as these write them: what the overlay sends arrives, or the rule that drops it is named.
//! Needs root, `ip`, `nft`, `nsenter`; for rules of the older iptables also `iptables-legacy` and a kernel with them.

#[allow(dead_code)] // Shared with other tests.
mod lab;
#[allow(dead_code)]
mod site;

use lab::inside;
use site::{Site, tcp, udp};
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

const NEAR: &str = "packets between containers of this node";
const TO: &str = "packets to other nodes";
const FROM: &str = "packets from other nodes";
const NAMES: &str = "containers' questions for names";
const TUNNEL: &str = "the tunnel of other nodes";

/// Two nodes by VXLAN; `a` and `b` on the first, where other programs set their rules, `c` on the second.
fn site() -> Site {
    let mut site = Site::new(2);
    for (name, node) in [("a", 0), ("b", 0), ("c", 1)] {
        site.add(name, node, Some(1));
    }
    site.serve_all();
    site.service(1, 1, &[1]);
    site.apply();
    let names = |gateway: IpAddr| {
        inside(&site.node_name(0), move || {
            let socket = UdpSocket::bind((gateway, 53)).unwrap();
            std::thread::spawn(move || {
                while let Ok((_, caller)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(b"answer", caller);
                }
            });
        });
    };
    GATEWAYS.into_iter().for_each(|gateway| names(gateway.parse().unwrap()));
    site
}

const GATEWAYS: [&str; 2] = ["10.18.0.1", "fc00::a12:1"];

/// Whether all of a kind arrives, over both families.
fn arrives(site: &Site) -> BTreeMap<&'static str, bool> {
    let reach = |from: &'static str, to: &str| {
        let mut addresses = site.addresses(to).into_iter();
        addresses.all(|address| tcp(site, from, address).is_ok() && udp(site, from, address).is_ok())
    };
    let asks = |gateway: &str| {
        let gateway: IpAddr = gateway.parse().unwrap();
        inside(&site.name("a"), move || {
            let any: IpAddr = if gateway.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.send_to(b"question", (gateway, 53)).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    let names = GATEWAYS.into_iter().all(asks);
    [
        (NEAR, reach("a", "b")),
        (TO, reach("a", "c")),
        (FROM, reach("c", "a")),
        (NAMES, names),
    ]
    .into()
}

/// Everything arrives or is named, and what is named does not arrive; the messages.
fn arrives_or_is_named(site: &Site) -> Vec<String> {
    let arrives = arrives(site);
    let messages: Vec<String> = site.findings(0).into_iter().map(|finding| finding.message).collect();
    let is_named = |what: &str| messages.iter().any(|message| message.contains(what));
    for (what, arrives) in arrives {
        // Between nodes both the packets and what carries them must pass.
        let is_named = is_named(what) || ([TO, FROM].contains(&what) && is_named(TUNNEL));
        assert_eq!(arrives, !is_named, "{what}: {messages:#?}");
    }
    messages
}

fn load(site: &Site, name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/foreign")
        .join(name);
    site.node(0, "nft", &["-f", path.to_str().unwrap()]);
}

/// The rules of a program drop what `dropped` says, by the rules of which `by` has parts of; after what is advised nothing is dropped.
fn beside(program: &str, dropped: &[&str], by: &[&str], advice: &[&str]) {
    let site = site();
    assert_eq!(arrives_or_is_named(&site), [""; 0]);
    load(&site, &format!("{program}.nft"));
    let messages = arrives_or_is_named(&site);
    let is_said = |what: &&str| messages.iter().any(|message| message.contains(*what));
    assert!(dropped.iter().chain(by).all(is_said), "{messages:#?}");
    let hints: Vec<String> = site.findings(0).into_iter().map(|finding| finding.hint).collect();
    for part in advice {
        assert!(hints.iter().any(|hint| hint.contains(part)), "{part}: {hints:#?}");
    }
    load(&site, &format!("{program}-mended.nft"));
    assert_eq!(arrives_or_is_named(&site), [""; 0]);
}

#[test]
fn beside_docker() {
    beside(
        "docker",
        &[NEAR, TO, FROM],
        &["the policy of chain `FORWARD` of table `ip filter`"],
        &["iptables -I DOCKER-USER -i rbl-+ -j ACCEPT", "-o rbl-+ -j ACCEPT"],
    );
}

#[test]
fn beside_ufw() {
    beside(
        "ufw",
        &[NEAR, TO, FROM, NAMES, TUNNEL],
        &[
            "the policy of chain `FORWARD` of table `ip6 filter`",
            "the policy of chain `INPUT` of table `ip filter`",
        ],
        &[
            "ufw route allow in on rbl-+",
            "ufw allow in on rbl-+ to any port 53",
            "ufw allow 50103/udp",
        ],
    );
}

#[test]
fn beside_firewalld() {
    beside(
        "firewalld",
        &[NEAR, TO, FROM, NAMES, TUNNEL],
        &[
            "rule `reject with icmpx admin-prohibited` of chain `filter_FWD_public`",
            "chain `filter_IN_public`",
        ],
        &["--zone=trusted --add-interface=rbl-+", "--add-port=50103/udp"],
    );
}

#[test]
fn beside_the_older_iptables() {
    let site = site();
    let set = |arguments: &str| site.node(0, "sh", &["-c", &format!("iptables-legacy {arguments}")]);
    let can = "iptables-legacy -w -S FORWARD && grep -q filter /proc/thread-self/net/ip_tables_names";
    if !inside(&site.node_name(0), move || {
        std::process::Command::new("sh")
            .args(["-c", can])
            .status()
            .unwrap()
            .success()
    }) {
        eprintln!("SKIPPED: no iptables-legacy, or a kernel without it");
        return;
    }
    set("-P FORWARD DROP");
    let messages = arrives_or_is_named(&site);
    let policy = "the policy of chain `FORWARD` of table `ip filter of iptables-legacy`";
    assert!(messages.iter().any(|message| message.contains(policy)), "{messages:#?}");
    set("-A FORWARD -i rbl-+ -j ACCEPT");
    set("-A FORWARD -o rbl-+ -m conntrack --ctstate NEW,ESTABLISHED -m comment --comment 'to them' -j ACCEPT");
    assert_eq!(arrives_or_is_named(&site), [""; 0]);
}
