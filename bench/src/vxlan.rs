//! `vxlan`: one TCP stream between containers of one node against two namespaces with nothing but a link between them, and between
//! containers of two nodes over our VXLAN against two namespaces with a VXLAN device of their own on the same bridge. In turns.

use crate::placed::{self, inside, ms_per_gigabit, wait_for_iperf};
use crate::process::{Owned, output};
use crate::report::Row;
use std::process::{Command, Stdio};

/// The bridge of the tree, to which the nodes' links lead.
const BRIDGE: &str = "roble-dev0";
const BARE: [&str; 2] = ["rblbench-va", "rblbench-vb"];
/// Over the link between the two.
const LINK: [&str; 2] = ["10.76.0.1", "10.76.0.2"];
/// On the bridge, and over VXLAN.
const OUTER: [&str; 2] = ["10.99.77.201", "10.99.77.202"];
const INNER: [&str; 2] = ["10.76.1.1", "10.76.1.2"];

/// Two namespaces with a link, and a VXLAN between them over the tree's bridge.
struct Bare;

impl Bare {
    /// `mtu`: of the link, as the containers' links have it.
    fn new(mtu: &str) -> anyhow::Result<Self> {
        Self::remove();
        let bare = Self;
        for netns in BARE {
            ip(&["netns", "add", netns])?;
        }
        let [a, b] = BARE;
        ip(&[
            "link", "add", "v0", "mtu", mtu, "netns", a, "type", "veth", "peer", "name", "v0", "mtu", mtu, "netns", b,
        ])?;
        for at in 0..2 {
            let (netns, outside) = (BARE[at], format!("rblbench-v{at}"));
            ip(&[
                "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", netns,
            ])?;
            ip(&["link", "set", &outside, "master", BRIDGE, "up"])?;
            let device = [
                "-n",
                netns,
                "link",
                "add",
                "vx0",
                "type",
                "vxlan",
                "id",
                "77",
                "dstport",
                "4789",
                "local",
                OUTER[at],
                "remote",
                OUTER[1 - at],
                "dev",
                "eth0",
            ];
            ip(&["-n", netns, "addr", "add", &format!("{}/24", OUTER[at]), "dev", "eth0"])?;
            ip(&["-n", netns, "link", "set", "eth0", "up"])?;
            ip(&device)?;
            for (link, address) in [("v0", LINK[at]), ("vx0", INNER[at])] {
                ip(&["-n", netns, "addr", "add", &format!("{address}/24"), "dev", link])?;
                ip(&["-n", netns, "link", "set", link, "up"])?;
            }
        }
        Ok(bare)
    }

    fn netns(at: usize) -> String {
        format!("/run/netns/{}", BARE[at])
    }

    fn remove() {
        for netns in BARE {
            let _ = Command::new("ip")
                .args(["netns", "del", netns])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        Self::remove();
    }
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    output(Command::new("ip").args(args))
}

/// Measures so many pairs of each, after one that is not counted.
///
/// # Errors
/// The tree does not start, or iperf3 fails.
pub fn run(rounds: usize, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let (_tree, instances) = placed::up(&[("ROBLE_NET_TUNNEL_KIND", "vxlan")], &["n1", "n1", "n2"])?;
    let said = output(inside(&instances[0].netns, "ip").args(["-j", "link", "show", "eth0"]))?;
    let links: serde_json::Value = serde_json::from_str(&said)?;
    let bare = Bare::new(&links[0]["mtu"].to_string())?;
    let mut servers = Vec::new();
    for netns in instances[1..]
        .iter()
        .map(|one| one.netns.clone())
        .chain([Bare::netns(1)])
    {
        servers.push(Owned::start(inside(&netns, "iperf3").arg("-s"))?);
    }
    let (caller, stranger) = (&instances[0].netns, Bare::netns(0));
    let mut rows = Vec::new();
    for (what, ours, peer, theirs) in [
        ("same node", &instances[1].endpoint, "a bare link", LINK[1]),
        ("two nodes, VXLAN", &instances[2].endpoint, "a bare VXLAN", INNER[1]),
    ] {
        wait_for_iperf(caller, ours)?;
        wait_for_iperf(&stranger, theirs)?;
        let mut pairs = Vec::new();
        for round in 0..=rounds {
            let pair = (
                ms_per_gigabit(caller, ours, seconds)?,
                ms_per_gigabit(&stranger, theirs, seconds)?,
            );
            println!(
                "{what} {round}: ours {:.2} Gbit/s, {peer} {:.2} Gbit/s",
                1e3 / pair.0,
                1e3 / pair.1
            );
            if round > 0 {
                pairs.push(pair);
            }
        }
        // 0.95 of the throughput.
        rows.extend(Row::of_pairs(
            &format!("TCP, {what}: ms per Gbit"),
            peer,
            &pairs,
            Some(1.05),
        ));
    }
    drop(bare);
    Ok(rows)
}
