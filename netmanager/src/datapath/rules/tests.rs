use super::*;
use crate::datapath::sealed::Sealed;
use crate::datapath::tunnel::{Tunnel, TunnelKind};
use crate::datapath::{Backend, LinkName, RemoteNode, Service};
use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::Policy;
use roble_core::ports::PortMapping;
use roble_proto::local_net::Tenant;
use std::collections::{BTreeMap, BTreeSet};

const fn raw(kind: u8, number: u8) -> RawId {
    RawId::from_bytes([kind, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn endpoint(container: &str, last: u8, ports: &str, service: Option<u8>) -> Endpoint {
    Endpoint {
        link: LinkName::of(container),
        netns: format!("/run/netns/{container}").into(),
        address: [10, 18, 0, last].into(),
        ports: PortMapping::parse_list(ports).unwrap(),
        tenant: service.map(|number| Tenant {
            instance: InstanceId {
                service: ServiceId(raw(1, number)),
                number: 0,
            },
            application: ApplicationId(raw(2, number)),
            organization: OrganizationId(raw(3, number)),
            path: format!("app{number}/web"),
        }),
    }
}

fn service(number: u8, ready: [bool; 3]) -> Service {
    let plan = Plan::default();
    let id = ServiceId(raw(1, number));
    let v6 = |policy| plan.service_v6(policy, id).unwrap().into();
    let mut addresses = BTreeMap::from([
        (
            Policy::RoundRobin,
            vec![[10, 30, 0, number].into(), v6(Policy::RoundRobin)],
        ),
        (Policy::Closest, vec![v6(Policy::Closest)]),
        (Policy::LeastUsed, vec![v6(Policy::LeastUsed)]),
    ]);
    let backends = ready
        .into_iter()
        .zip([[10, 18, 0, 2], [10, 18, 1, 2], [10, 18, 1, 3]])
        .enumerate();
    let backends = backends.map(|(copy, (ready, v4))| {
        let policy = Policy::Instance(copy as u32);
        addresses.insert(policy, vec![[10, 30, 1, copy as u8].into(), v6(policy)]);
        Backend {
            number: copy as u32,
            v4: v4.into(),
            v6: plan.endpoint_v6(v4.into()),
            ready,
            near: v4[2] == 0,
            idle: v4[2] == 0,
        }
    });
    Service {
        service: id,
        application: ApplicationId(raw(2, number)),
        backends: backends.collect(),
        addresses,
    }
}

fn config() -> DatapathConfig {
    DatapathConfig {
        plan: Plan::default(),
        range: "10.18.0.0/26".parse().unwrap(),
        endpoints: vec![
            endpoint("web", 2, "8080:80;8443:443", Some(1)),
            endpoint("dns", 3, "53/udp;53", None),
            endpoint("other", 4, "", Some(2)),
        ],
        resting: BTreeSet::new(),
        services: vec![service(1, [true, true, true]), service(2, [false, true, false])],
        sealed: Some(Sealed {
            address: [192, 0, 2, 1].into(),
            blocks: vec!["10.19.0.0/26".parse().unwrap()],
        }),
        nodes: vec![RemoteNode {
            node: NodeId(raw(4, 1)),
            address: [192, 0, 2, 2].into(),
            block: "10.18.1.0/26".parse().unwrap(),
        }],
        tunnel: Some(Tunnel {
            address: [192, 0, 2, 1].into(),
            kind: TunnelKind::Vxlan { port: 50_103, vni: 7 },
        }),
    }
}

fn rules(config: &DatapathConfig, opened: [&str; 2]) -> Ruleset {
    let opened = Opened {
        v4: opened.map(Into::into).into(),
        v6: OpenedV6::Interfaces(opened.map(Into::into).into()),
        ..Opened::default()
    };
    render(config, &config.endpoints.iter().collect::<Vec<_>>(), &opened)
}

/// Compares with a file of tests/golden.
fn is_golden(name: &str, text: &str) {
    let golden = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    assert_eq!(text, expected, "{name}: UPDATE_GOLDEN=1 writes it anew");
}

#[test]
fn rules_are_those_of_the_golden_file() {
    let mut config = config();
    let text = rules(&config, ["wlan0", "eth0"]).text();
    is_golden("rules.nft", &text);
    config.endpoints.reverse();
    config.services.reverse();
    for service in &mut config.services {
        service.backends.reverse();
    }
    let reordered = rules(&config, ["eth0", "wlan0"]).text();
    assert_eq!(text, reordered, "the order of what is given does not matter");
}

/// What the kernel shows must be what was meant, also when it was reached by way of something else.
#[test]
fn the_kernel_shows_the_rules_whatever_was_there_before() {
    let config = config();
    let mut before = config.clone();
    before.endpoints.remove(0);
    before.services = vec![service(1, [true, false, true])];
    before.tunnel = None;
    let (rules, before) = (rules(&config, ["wlan0", "eth0"]), rules(&before, ["eth0", "eth0"]));
    let netns = format!("rblt{}r", std::process::id());
    let nft = |args: &[&str], input: &str| {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &netns, "nft"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("this test needs root, ip and nft; see scripts/install-deps.sh");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "nft refused:\n{input}");
        String::from_utf8(output.stdout).unwrap()
    };
    let namespace = |verb| {
        std::process::Command::new("ip")
            .args(["netns", verb, &netns])
            .status()
            .unwrap()
    };
    assert!(namespace("add").success());
    let list = ["--stateless", "list", "table", "inet", "roble"];
    nft(&["-f", "-"], &rules.text());
    let whole = nft(&list, "");
    nft(&["-f", "-"], &before.text());
    nft(&["-f", "-"], &rules.text_from(&before).unwrap());
    let changed = nft(&list, "");
    nft(&["-f", "-"], &before.text_from(&rules).unwrap());
    let back = nft(&list, "");
    nft(&["-f", "-"], &before.text());
    let meant = nft(&list, "");
    namespace("del");
    is_golden("rules.listed.nft", &whole);
    // The kernel keeps chains and sets in the order of their making.
    let sorted = |text: &str| {
        let mut blocks: Vec<_> = text
            .split("\n\n")
            .map(|block| block.replace("table inet roble {\n", ""))
            .collect();
        blocks
            .iter_mut()
            .for_each(|block| *block = block.trim_end_matches(['}', '\n']).trim().to_owned());
        blocks.sort();
        blocks
    };
    assert_eq!(sorted(&whole), sorted(&changed));
    assert_eq!(sorted(&meant), sorted(&back));
}

#[test]
fn a_change_of_one_service_leaves_the_turns_of_others() {
    let mut config = config();
    let before = rules(&config, ["eth0", "eth0"]);
    config.services[0].backends[2].ready = false;
    config.endpoints.push(endpoint("new", 5, "", None));
    let changes = rules(&config, ["eth0", "eth0"]).text_from(&before).unwrap();
    let (changed, kept) = (
        config.services[0].service.to_string(),
        config.services[1].service.to_string(),
    );
    assert!(changes.contains(&changed) && !changes.contains(&kept), "{changes}");
}

/// The kernel takes a time that grows with the square of their number.
#[test]
fn the_number_of_sets_does_not_grow_with_callers() {
    let count = |callers: u8| {
        let mut config = config();
        config.endpoints = (0..callers)
            .map(|number| endpoint(&format!("c{number}"), number + 2, "", Some(1)))
            .collect();
        let text = rules(&config, ["eth0", "eth0"]).text();
        assert!(
            !text.contains("map {") && text.matches("set {").count() <= 1,
            "anonymous sets"
        );
        text.matches("\tmap ").count() + text.matches("\tset ").count()
    };
    assert_eq!(count(2), count(50));
}
