//! The rules as text for `nft`, and loading them in one transaction.
//!
//! Everything is in one table of ours, [`TABLE`], and is replaced as a whole. What it does:
//! - published ports: traffic to any address of the node, from outside, from containers and from the node itself
//!   (`127.0.0.1` included), goes to the container; traffic to other machines is never touched
//! - a container sends from its own address only, and reaches neither `127.0.0.0/8` of the node nor the metadata service
//! - from outside only published ports and answers reach a container; leaving traffic gets the node's address
//! - interfaces on which we had to turn on forwarding forward to and from containers only

use super::sysctl::{Opened, OpenedV6};
use super::{DatapathError, Endpoint, LINK_PREFIX};
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use std::fmt::Write as _;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

/// Family and name of our table.
pub const TABLE: &str = "inet roble";

/// Text that replaces our table by the rules for `endpoints` in one transaction.
pub fn render(plan: &Plan, range: &Block, endpoints: &[&Endpoint], opened: &Opened) -> String {
    let (mut published, mut published6) = (Vec::new(), Vec::new());
    let (mut sources, mut sources6, mut hairpins, mut hairpins6) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for endpoint in endpoints {
        let (v4, v6) = (endpoint.address, plan.endpoint_v6(endpoint.address));
        for port in &endpoint.ports {
            published.push(format!("{} . {} : {v4} . {}", port.protocol, port.host, port.container));
            published6.push(format!("{} . {} : {v6} . {}", port.protocol, port.host, port.container));
        }
        sources.push(format!("\"{}\" . {v4}", endpoint.link));
        sources6.push(format!("\"{}\" . {v6}", endpoint.link));
        hairpins.push(format!("{v4} . {v4}"));
        hairpins6.push(format!("{v6} . {v6}"));
    }
    let quoted = |names: &[String]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
    let (opened4, opened6) = match &opened.v6 {
        OpenedV6::Interfaces(names) => (quoted(&opened.v4), quoted(names)),
        OpenedV6::Nothing | OpenedV6::Everything => (quoted(&opened.v4), Vec::new()),
    };
    let port_key = "inet_proto . inet_service";

    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    for (head, kind, mut elements) in [
        (
            "map published4",
            format!("{port_key} : ipv4_addr . inet_service"),
            published,
        ),
        (
            "map published6",
            format!("{port_key} : ipv6_addr . inet_service"),
            published6,
        ),
        ("set sources4", "ifname . ipv4_addr".into(), sources),
        ("set sources6", "ifname . ipv6_addr".into(), sources6),
        ("set hairpins4", "ipv4_addr . ipv4_addr".into(), hairpins),
        ("set hairpins6", "ipv6_addr . ipv6_addr".into(), hairpins6),
        ("set opened4", "ifname".into(), opened4),
        ("set opened6", "ifname".into(), opened6),
    ] {
        elements.sort();
        collection(&mut text, head, &kind, &elements);
    }
    let ours = format!("\"{LINK_PREFIX}*\"");
    let range6 = format!("{}/{}", plan.endpoint_v6(range.network()), 96 + range.prefix());
    let publish4 = "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @published4";
    let publish6 =
        "meta nfproto ipv6 fib daddr type local ip6 daddr != ::1 dnat ip6 to meta l4proto . th dport map @published6";
    chain(
        &mut text,
        "guard",
        "filter hook prerouting priority raw",
        &[
            format!("iifname != {ours} accept"),
            "ip6 saddr { ::, fe80::/10 } drop comment \"link-local, not used here\"".into(),
            "meta nfproto ipv4 iifname . ip saddr != @sources4 counter drop comment \"foreign source\"".into(),
            "meta nfproto ipv6 iifname . ip6 saddr != @sources6 counter drop comment \"foreign source\"".into(),
            "ip daddr { 127.0.0.0/8, 169.254.169.254 } counter drop comment \"loopback, metadata\"".into(),
            "ip6 daddr fd00:ec2::254 counter drop comment \"metadata\"".into(),
        ],
    );
    chain(
        &mut text,
        "prerouting",
        "nat hook prerouting priority dstnat",
        &[publish4.into(), publish6.into()],
    );
    // nft 1.0 knows the name `dstnat` in the prerouting hook only.
    chain(
        &mut text,
        "output",
        "nat hook output priority -100",
        &[publish4.into(), publish6.into()],
    );
    let no_router = match opened.v6 {
        OpenedV6::Everything => "meta nfproto ipv6 counter drop comment \"not a router\"",
        _ => "meta nfproto ipv6 iifname @opened6 counter drop comment \"not a router\"",
    };
    chain(
        &mut text,
        "forward",
        "filter hook forward priority filter",
        &[
            format!("iifname {ours} accept"),
            format!("oifname {ours} ct state established,related accept"),
            format!("oifname {ours} ct status dnat accept"),
            format!("oifname {ours} counter drop comment \"not published\""),
            "meta nfproto ipv4 iifname @opened4 counter drop comment \"not a router\"".into(),
            no_router.into(),
        ],
    );
    chain(
        &mut text,
        "postrouting",
        "nat hook postrouting priority srcnat",
        &[
            format!("ip saddr 127.0.0.0/8 oifname {ours} masquerade"),
            "ip saddr . ip daddr @hairpins4 masquerade".into(),
            "ip6 saddr . ip6 daddr @hairpins6 masquerade".into(),
            format!("ip saddr {range} ip daddr != {range} oifname != {ours} masquerade"),
            format!("ip6 saddr {range6} ip6 daddr != {range6} oifname != {ours} masquerade"),
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
            tenant: None,
        };
        let opened = |names: [&str; 2]| Opened {
            v4: names.map(Into::into).into(),
            v6: OpenedV6::Interfaces(names.map(Into::into).into()),
            ..Opened::default()
        };
        let (web, dns) = (endpoint("web", 2, "8080:80;8443:443"), endpoint("dns", 3, "53/udp;53"));
        let text = render(
            &Plan::default(),
            &"10.18.0.0/26".parse().unwrap(),
            &[&web, &dns],
            &opened(["wlan0", "eth0"]),
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
            &Plan::default(),
            &"10.18.0.0/26".parse().unwrap(),
            &[&dns, &web],
            &opened(["eth0", "wlan0"]),
        );
        assert_eq!(text, reordered, "the order of endpoints does not matter");
    }
}
