use super::*;
use crate::datapath::permits::{Flow, Member};
use crate::datapath::sealed::Sealed;
use crate::datapath::tunnel::{Tunnel, TunnelKind};
use crate::datapath::{Backend, Egress, LinkName, Misses, RemoteNode, Service};
use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{Allowed, Policy};
use roble_core::ports::{PortMapping, Protocol};
use roble_proto::local_net::Tenant;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

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
        addresses.insert(policy, vec![[10, 30, number, 100 + copy as u8].into(), v6(policy)]);
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
        allows: Vec::new(),
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
        services: vec![
            service(1, [true, true, true]),
            Service {
                allows: vec![allowed(1, None, &["5432", "6000-6010/udp"]), allowed(3, Some(3), &[])],
                ..service(2, [false, true, false])
            },
        ],
        members: vec![Member {
            instance: InstanceId {
                service: ServiceId(raw(1, 3)),
                number: 0,
            },
            application: ApplicationId(raw(2, 3)),
            v4: [10, 18, 1, 9].into(),
            v6: "fc00::a12:109".parse().unwrap(),
        }],
        sealed: Some(Sealed {
            port: 50_103,
            address: [192, 0, 2, 1].into(),
            blocks: vec!["10.19.0.0/26".parse().unwrap()],
            narrow: std::collections::BTreeMap::new(),
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
        egress: Egress::default(),
        misses: Some(Misses {
            refused: BTreeSet::from([
                (ApplicationId(raw(2, 1)), [10, 30, 9, 9].into()),
                (ApplicationId(raw(2, 7)), "fdff:2000::9".parse().unwrap()),
                (ApplicationId(raw(2, 2)), "fdff:2000::9".parse().unwrap()),
            ]),
        }),
    }
}

/// Who may call: an application, or one service of it; which ports.
fn allowed(application: u8, service: Option<u8>, ports: &[&str]) -> Allowed {
    Allowed {
        application: ApplicationId(raw(2, application)),
        service: service.map(|number| ServiceId(raw(1, number))),
        ports: ports.iter().map(|range| range.parse().unwrap()).collect(),
    }
}

fn rules(config: &DatapathConfig, opened: [&str; 2]) -> Ruleset {
    let opened = Opened {
        v4: opened.map(Into::into).into(),
        v6: OpenedV6::Interfaces(opened.map(Into::into).into()),
        ..Opened::default()
    };
    let lan = [([192, 168, 1, 0].into(), 24), ("fd12::".parse().unwrap(), 64)];
    let found = Found {
        opened,
        lan: lan.into(),
    };
    let endpoints = config.endpoints.iter().collect::<Vec<_>>();
    render(config, &endpoints, &Permits::of(config, &endpoints), &found)
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
fn who_may_call_is_what_the_rules_say() {
    let mut config = config();
    let permits = |config: &DatapathConfig| Permits::of(config, &config.endpoints.iter().collect::<Vec<_>>());
    let flow = |from: [u8; 4], to: [u8; 4], port: Option<(&str, u16)>| {
        let port = port.map(|(protocol, port)| {
            (
                if protocol == "tcp" {
                    Protocol::Tcp
                } else {
                    Protocol::Udp
                },
                port,
            )
        });
        [
            (IpAddr::from(from), IpAddr::from(to)),
            (
                Plan::default().endpoint_v6(from.into()).into(),
                Plan::default().endpoint_v6(to.into()).into(),
            ),
        ]
        .map(|(from, to)| Flow { from, to, port })
    };
    // The only backend of service 2 that no other service has too.
    config.services[0].backends.truncate(1);
    config.services[1].backends.retain(|backend| backend.number != 0);
    let before = permits(&config);
    let [web, none, other, far, db] = [
        [10, 18, 0, 2],
        [10, 18, 0, 3],
        [10, 18, 0, 4],
        [10, 18, 1, 9],
        [10, 18, 1, 2],
    ];
    for (from, to, port, is_let_through) in [
        (other, db, Some(("tcp", 1)), true),
        (web, db, Some(("tcp", 5_432)), true),
        (web, db, Some(("udp", 5_432)), false),
        (web, db, Some(("udp", 6_005)), true),
        (web, db, Some(("udp", 6_011)), false),
        (web, db, None, false),
        (far, db, None, true),
        (far, db, Some(("udp", 9)), true),
        (none, db, Some(("tcp", 5_432)), false),
        (db, web, Some(("tcp", 5_432)), false),
        (far, web, Some(("tcp", 1)), false),
        (web, other, Some(("tcp", 5_432)), false),
    ] {
        for flow in flow(from, to, port) {
            assert_eq!(before.connects(&flow), is_let_through, "{flow:?}");
        }
    }
    // More is no loss, less is.
    assert!(!before.is_less_than(&before));
    let mut more = config.clone();
    more.services[0].allows.push(allowed(3, None, &[]));
    let more = permits(&more);
    assert!(!more.is_less_than(&before) && before.is_less_than(&more));
    config.members.clear();
    assert!(permits(&config).is_less_than(&before));
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
