use super::*;
use roble_core::ids::{ClusterId, NodeId, RawId};
use roble_proto::local_net::{Finding, Turned};

const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 30, 0, 7));
const RELAY: &str = "198.51.100.1:50104";

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 18, number, 2)
}

fn stop(instance: &str, number: u8, phase: Phase) -> Stop {
    Stop {
        instance: instance.to_owned(),
        phase,
        cluster: Some("north".to_owned()),
        node: Some(format!("node-{number}")),
        addresses: vec![address(number).into()],
    }
}

/// shop/web.0 on node 1; shop/api.0 on node 2, shop/api.1 on node 3.
fn ends() -> Ends {
    Ends {
        from: stop("shop/web.0", 1, Phase::Running),
        to: "shop/api".to_owned(),
        service: "shop/api".to_owned(),
        name: "api.shop.roble".to_owned(),
        policy: Policy::RoundRobin,
        addresses: vec![SERVICE],
        is_same_application: true,
        rules: Vec::new(),
        port: None,
        backends: vec![
            stop("shop/api.0", 2, Phase::Running),
            stop("shop/api.1", 3, Phase::Running),
        ],
        relays: vec![Relay {
            address: RELAY.parse().unwrap(),
            cluster: Some("public".to_owned()),
        }],
        is_operator: true,
    }
}

/// Called from another application.
fn foreign() -> Ends {
    Ends {
        from: stop("mail/out.0", 1, Phase::Running),
        is_same_application: false,
        ..ends()
    }
}

fn rule(ports: &[&str]) -> Rule {
    Rule {
        path: "services.api.allow[0]".to_owned(),
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
    }
}

fn peer(way: Way) -> Path {
    let peer = Peer {
        node: NodeId(RawId::MAX),
        cluster: ClusterId(RawId::MIN),
        block: "10.18.2.0/26".parse().unwrap(),
        way,
        endpoint: Some(RELAY.parse().unwrap()),
        rtt_ms: Some(1.5),
        sealed_by: Some(roble_proto::local_net::SealedBy::UserSpace),
        handshake_age_s: (way == Way::None).then_some(400),
        mtu: Some(1420),
        rx_bytes: 0,
        tx_bytes: 0,
        rx_packets: 0,
        tx_packets: 0,
        probes: 0,
        probes_lost: 0,
    };
    Path::Tunnel {
        device: "rbl-wg".to_owned(),
        by_kernel: false,
        peer: Some(peer),
    }
}

/// What node 1 says: the kernel turns the address into those of the nodes `taken`.
fn departure(taken: &[u8], permit: &Permit, path: &Path) -> Departure {
    let way = |number| Leaving {
        to: address(number),
        permit: permit.clone(),
        path: path.clone(),
    };
    Departure {
        address: Some(address(1)),
        turned: vec![Turned {
            address: SERVICE,
            to: taken.iter().map(|number| address(*number).into()).collect(),
        }],
        knowledge: Knowledge::Known,
        ways: vec![way(2), way(3)],
        findings: Vec::new(),
    }
}

fn arrivals(permit: &Permit) -> BTreeMap<String, Told<Arrival>> {
    let arrival = || {
        Ok(Arrival {
            attached: true,
            permit: permit.clone(),
            findings: Vec::new(),
        })
    };
    ["shop/api.0", "shop/api.1"]
        .map(|instance| (instance.to_owned(), arrival()))
        .into()
}

fn open(path: &Path) -> Trace {
    let same = Permit::SameApplication;
    judge(ends(), &Ok(departure(&[2, 3], &same, path)), &arrivals(&same))
}

#[test]
fn what_reaches_is_told_by_its_way() {
    for (path, verdict) in [
        (Path::SameNode { mtu: Some(1500) }, Verdict::SameNode),
        (peer(Way::Vxlan), Verdict::Vxlan),
        (peer(Way::Direct), Verdict::Direct),
        (peer(Way::Relayed), Verdict::Relayed),
    ] {
        let trace = open(&path);
        assert_eq!(trace.verdict, verdict);
        assert_eq!(trace.summary, format!("shop/web.0 reaches shop/api: {verdict}"));
        assert!(
            trace
                .ways
                .iter()
                .all(|way| way.taken && way.verdict == verdict && way.reason.is_empty())
        );
        let by = trace.ways[0].relay.as_ref().and_then(|relay| relay.cluster.as_deref());
        assert_eq!(by, (verdict == Verdict::Relayed).then_some("public"));
    }
}

#[test]
fn without_a_way_it_says_which_node_is_silent() {
    for (path, says) in [
        (
            peer(Way::None),
            "node node-2 does not answer, its last handshake was 400 s ago",
        ),
        (Path::NoRoute, "node node-1 has no route to node node-2"),
        (
            Path::Tunnel {
                device: "rbl-wg".to_owned(),
                by_kernel: true,
                peer: None,
            },
            "leads into rbl-wg, behind which node node-1 knows nobody",
        ),
    ] {
        let trace = open(&path);
        assert_eq!(trace.verdict, Verdict::NoPath);
        assert!(trace.ways[0].reason.contains(says), "{}", trace.ways[0].reason);
        assert!(
            trace
                .summary
                .starts_with("2 of 2 instances that are taken are not reached"),
            "{}",
            trace.summary
        );
    }
}

#[test]
fn what_is_not_taken_does_not_count() {
    let same = Permit::SameApplication;
    let mut left = departure(&[3], &same, &peer(Way::Direct));
    left.ways[0].path = Path::NoRoute;
    let trace = judge(ends(), &Ok(left), &arrivals(&same));
    let shown: Vec<_> = trace
        .ways
        .iter()
        .map(|way| (way.to.instance.as_str(), way.taken, way.verdict))
        .collect();
    assert_eq!(
        shown,
        [
            ("shop/api.1", true, Verdict::Direct),
            ("shop/api.0", false, Verdict::NoPath)
        ]
    );
    assert_eq!(trace.verdict, Verdict::Direct);
}

#[test]
fn a_missing_rule_is_named_with_the_descriptor_to_change() {
    let left = Departure {
        turned: Vec::new(),
        knowledge: Knowledge::Nothing,
        ..departure(&[], &Permit::Refused, &peer(Way::Direct))
    };
    let trace = judge(foreign(), &Ok(left), &arrivals(&Permit::Refused));
    assert_eq!(trace.verdict, Verdict::DeniedAtCaller);
    let says = "no rule of shop/api lets mail/out in: put `allow: [{from: mail/out}]` under `services.api` in the descriptor of shop";
    assert_eq!(trace.summary, says);
    assert_eq!(trace.ways[0].reason, says);
}

#[test]
fn a_rule_for_other_ports_or_not_told_yet_is_named() {
    let called = Ends {
        rules: vec![rule(&["80/tcp"])],
        port: Some("53/udp".parse().unwrap()),
        ..foreign()
    };
    let ports = Permit::OtherPorts(vec!["80/tcp".parse().unwrap()]);
    let refused = judge(
        called.clone(),
        &Ok(departure(&[2, 3], &ports, &peer(Way::Direct))),
        &arrivals(&ports),
    );
    assert_eq!(refused.verdict, Verdict::DeniedAtCaller);
    assert!(
        refused
            .summary
            .contains("`services.api.allow[0]` of shop/api opens 80/tcp to the caller, not 53/udp"),
        "{}",
        refused.summary
    );
    let let_out = Permit::Rule(Vec::new());
    let left = departure(&[2, 3], &let_out, &peer(Way::Direct));
    let refused = judge(called, &Ok(left.clone()), &arrivals(&Permit::Refused));
    assert_eq!(refused.verdict, Verdict::DeniedAtDestination);
    assert!(
        refused.summary.contains("node node-3 drops it") && refused.summary.contains("was not told yet"),
        "{}",
        refused.summary
    );
    // The kernels have not heard yet that the rule is gone: what they do is what is said.
    let gone = judge(foreign(), &Ok(left), &arrivals(&let_out));
    assert_eq!(gone.verdict, Verdict::Direct);
}

#[test]
fn within_an_application_a_node_that_was_not_told_denies() {
    let same = Permit::SameApplication;
    let direct = peer(Way::Direct);
    let caller = judge(
        ends(),
        &Ok(departure(&[2, 3], &Permit::Refused, &direct)),
        &arrivals(&same),
    );
    assert_eq!(caller.verdict, Verdict::DeniedAtCaller);
    assert!(caller.summary.contains("node node-1 drops it"), "{}", caller.summary);
    let destination = judge(
        ends(),
        &Ok(departure(&[2], &same, &direct)),
        &arrivals(&Permit::Refused),
    );
    assert_eq!(destination.verdict, Verdict::DeniedAtDestination);
    assert!(
        destination.summary.contains("shop/api.0: node node-2 drops it"),
        "{}",
        destination.summary
    );
}

#[test]
fn without_anybody_ready_there_is_no_backend() {
    let same = Permit::SameApplication;
    let of = |phases: &[Phase]| Ends {
        backends: (0..)
            .zip(phases)
            .map(|(number, phase)| stop(&format!("shop/api.{number}"), 2 + number, *phase))
            .collect(),
        ..ends()
    };
    let nothing = departure(&[], &same, &peer(Way::Direct));
    for (phases, says) in [
        (&[][..], "shop/api has no instance"),
        (&[Phase::Stopping][..], "shop/api.0 is stopping"),
        (
            &[Phase::Lost, Phase::Pending][..],
            "none of the 2 instances of shop/api runs",
        ),
        (
            &[Phase::Running][..],
            "node node-1 knows no instance of shop/api that is ready",
        ),
    ] {
        let trace = judge(of(phases), &Ok(nothing.clone()), &BTreeMap::new());
        assert_eq!(trace.verdict, Verdict::NoBackend);
        assert!(trace.summary.contains(says), "{}", trace.summary);
    }
    // One that drains beside one that runs.
    let left = departure(&[2], &same, &peer(Way::Direct));
    let trace = judge(of(&[Phase::Running, Phase::Stopping]), &Ok(left), &arrivals(&same));
    assert_eq!(
        (trace.verdict, trace.ways[1].verdict),
        (Verdict::Direct, Verdict::NotReady)
    );
}

#[test]
fn what_the_callers_node_does_not_know_is_said() {
    let called = Ends {
        rules: vec![rule(&[])],
        ..foreign()
    };
    for (knowledge, says) in [
        (Knowledge::Nothing, "was told that there is no shop/api for mail/out.0"),
        (Knowledge::Unanswered, "its cluster does not answer"),
    ] {
        let left = Departure {
            knowledge,
            ..departure(&[], &Permit::Refused, &peer(Way::Direct))
        };
        let trace = judge(called.clone(), &Ok(left), &BTreeMap::new());
        assert_eq!(trace.verdict, Verdict::UnknownService);
        assert!(trace.summary.contains(says), "{}", trace.summary);
    }
}

#[test]
fn who_does_not_answer_and_who_is_nowhere_is_said() {
    let same = Permit::SameApplication;
    let silent = judge(ends(), &Err("no answer in time".to_owned()), &BTreeMap::new());
    assert_eq!(silent.verdict, Verdict::Unanswered);
    assert_eq!(silent.summary, "node node-1 does not say: no answer in time");
    let left = departure(&[2], &same, &peer(Way::Direct));
    let mut there = arrivals(&same);
    there.insert("shop/api.0".to_owned(), Err("no answer in time".to_owned()));
    assert_eq!(judge(ends(), &Ok(left.clone()), &there).verdict, Verdict::Unanswered);
    let unattached = Departure {
        address: None,
        ..left.clone()
    };
    assert_eq!(judge(ends(), &Ok(unattached), &there).verdict, Verdict::NotAttached);
    let mut ends = ends();
    ends.from.phase = Phase::Pending;
    assert_eq!(judge(ends, &Ok(left), &there).verdict, Verdict::NotPlaced);
}

#[test]
fn only_some_nodes_are_asked_and_what_they_find_is_said_once() {
    let same = Permit::SameApplication;
    let backends = (0..20).map(|number| stop(&format!("shop/api.{number}"), number, Phase::Running));
    let ends = Ends {
        backends: backends.collect(),
        ..ends()
    };
    let finding = Finding {
        code: "forward-drop".to_owned(),
        message: "a chain drops".to_owned(),
        hint: "let it pass".to_owned(),
    };
    let mut left = departure(&[19], &same, &peer(Way::Direct));
    left.findings = vec![finding.clone(), finding];
    let asked = to_ask(&ends, &left);
    assert_eq!((asked.len(), asked[0].as_str()), (MOST, "shop/api.19"));
    let trace = judge(ends, &Ok(left), &BTreeMap::new());
    assert_eq!((trace.ways.len(), trace.more, trace.findings.len()), (MOST, 12, 1));
    assert_eq!(trace.findings[0].node, "node-1");
}

#[test]
fn who_is_no_operator_learns_nothing_of_the_nodes() {
    let same = Permit::SameApplication;
    let mut left = departure(&[2], &same, &peer(Way::Direct));
    left.findings = vec![Finding {
        code: "range-clash".to_owned(),
        message: "the route to a network of the site".to_owned(),
        hint: String::new(),
    }];
    let of = |is_operator| {
        let ends = Ends { is_operator, ..ends() };
        let trace = judge(ends, &Ok(left.clone()), &arrivals(&same));
        assert_eq!(trace.verdict, Verdict::Direct);
        let Some(Path::Tunnel { peer: Some(peer), .. }) = trace.ways[0].path.clone() else {
            panic!("{trace:?}");
        };
        (trace.findings.len(), peer.endpoint.is_some())
    };
    assert_eq!((of(true), of(false)), ((1, true), (0, false)));
}
