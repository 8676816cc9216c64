//! The rules as text for `nft`, and loading them in one transaction.
//!
//! Everything is in one table of ours, [`TABLE`], and is replaced as a whole. What it does:
//! - published ports: traffic to any address of the node, from outside, from containers and from the node itself
//!   (`127.0.0.1` included), goes to the container; traffic to other machines is never touched
//! - a container sends from its own address only, and reaches neither `127.0.0.0/8` of the node nor the metadata service
//! - from outside only published ports and answers reach a container; leaving traffic gets the node's address
//! - interfaces on which we had to turn on forwarding forward to and from containers only

use super::{DatapathError, Endpoint, LINK_PREFIX};
use roble_core::overlay::block::Block;
use std::fmt::Write as _;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

/// Family and name of our table.
pub const TABLE: &str = "inet roble";

/// Text that replaces our table by the rules for `endpoints` in one transaction.
///
/// `opened`: interfaces that forward only because we said so.
pub fn render(range: &Block, endpoints: &[&Endpoint], opened: &[String]) -> String {
    let mut published = Vec::new();
    for endpoint in endpoints {
        for port in &endpoint.ports {
            let target = format!("{} . {}", endpoint.address, port.container);
            published.push(format!("{} . {} : {target}", port.protocol, port.host));
        }
    }
    published.sort();
    let mut sources: Vec<_> = endpoints
        .iter()
        .map(|e| format!("\"{}\" . {}", e.link, e.address))
        .collect();
    sources.sort();
    let mut hairpins: Vec<_> = endpoints.iter().map(|e| format!("{0} . {0}", e.address)).collect();
    hairpins.sort();
    let mut opened: Vec<_> = opened.iter().map(|name| format!("\"{name}\"")).collect();
    opened.sort();

    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    collection(
        &mut text,
        "map published",
        "inet_proto . inet_service : ipv4_addr . inet_service",
        &published,
    );
    collection(&mut text, "set sources", "ifname . ipv4_addr", &sources);
    collection(&mut text, "set hairpins", "ipv4_addr . ipv4_addr", &hairpins);
    collection(&mut text, "set opened", "ifname", &opened);
    let ours = format!("\"{LINK_PREFIX}*\"");
    let publish = "fib daddr type local dnat ip to meta l4proto . th dport map @published";
    chain(
        &mut text,
        "guard",
        "filter hook prerouting priority raw",
        &[
            format!("iifname != {ours} accept"),
            "meta nfproto ipv6 counter drop comment \"endpoints are IPv4\"".into(),
            "meta nfproto ipv4 iifname . ip saddr != @sources counter drop comment \"foreign source\"".into(),
            "ip daddr { 127.0.0.0/8, 169.254.169.254 } counter drop comment \"loopback, metadata\"".into(),
        ],
    );
    chain(
        &mut text,
        "prerouting",
        "nat hook prerouting priority dstnat",
        &[publish.into()],
    );
    // nft 1.0 knows the name `dstnat` in the prerouting hook only.
    chain(&mut text, "output", "nat hook output priority -100", &[publish.into()]);
    chain(
        &mut text,
        "forward",
        "filter hook forward priority filter",
        &[
            format!("iifname {ours} accept"),
            format!("oifname {ours} ct state established,related accept"),
            format!("oifname {ours} ct status dnat accept"),
            format!("oifname {ours} counter drop comment \"not published\""),
            "iifname @opened counter drop comment \"not a router\"".into(),
        ],
    );
    chain(
        &mut text,
        "postrouting",
        "nat hook postrouting priority srcnat",
        &[
            format!("ip saddr 127.0.0.0/8 oifname {ours} masquerade"),
            "ip saddr . ip daddr @hairpins masquerade".into(),
            format!("ip saddr {range} ip daddr != {range} oifname != {ours} masquerade"),
        ],
    );
    text.push_str("}\n");
    text
}

/// Text that removes our table, whether it is there or not.
pub fn render_removal() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

fn collection(text: &mut String, head: &str, kind: &str, elements: &[String]) {
    let _ = writeln!(text, "\t{head} {{\n\t\ttype {kind}");
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{\n\t\t\t{}\n\t\t}}", elements.join(",\n\t\t\t"));
    }
    text.push_str("\t}\n");
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{\n\t\ttype {hook}; policy accept;");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

/// Hands `text` to `nft`, which applies all of it or nothing, in the namespace of this process.
///
/// # Errors
/// [`DatapathError::RunNft`], [`DatapathError::NftRefused`].
pub async fn load(text: &str) -> Result<(), DatapathError> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(DatapathError::RunNft)?;
    let mut input = child.stdin.take().expect("standard input was asked for");
    // If nft ends early, its own message says more than the broken pipe.
    let _ = input.write_all(text.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.map_err(DatapathError::RunNft)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr)
        .lines()
        .take(3)
        .collect::<Vec<_>>()
        .join("; ");
    Err(DatapathError::NftRefused { message })
}

/// Our table as it is in the kernel, without counters; empty if there is none.
///
/// # Errors
/// [`DatapathError::RunNft`].
pub async fn list() -> Result<String, DatapathError> {
    let output = tokio::process::Command::new("nft")
        .args(["--stateless", "list", "table"])
        .args(TABLE.split(' '))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(DatapathError::RunNft)?;
    Ok(if output.status.success() {
        String::from_utf8_lossy(&output.stdout).into_owned()
    } else {
        String::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::LinkName;
    use roble_core::ports::PortMapping;

    #[test]
    fn rules_are_those_of_the_golden_file() {
        let endpoint = |container: &str, last: u8, ports: &str| Endpoint {
            link: LinkName::of(container),
            netns: format!("/run/netns/{container}").into(),
            address: [10, 18, 0, last].into(),
            ports: PortMapping::parse_list(ports).unwrap(),
        };
        let (web, dns) = (endpoint("web", 2, "8080:80;8443:443"), endpoint("dns", 3, "53/udp;53"));
        let text = render(
            &"10.18.0.0/26".parse().unwrap(),
            &[&web, &dns],
            &["wlan0".into(), "eth0".into()],
        );
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rules.nft");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        assert_eq!(
            text,
            std::fs::read_to_string(golden).unwrap(),
            "UPDATE_GOLDEN=1 writes it anew"
        );
        let reordered = render(
            &"10.18.0.0/26".parse().unwrap(),
            &[&dns, &web],
            &["eth0".into(), "wlan0".into()],
        );
        assert_eq!(text, reordered, "the order of endpoints does not matter");
    }
}
