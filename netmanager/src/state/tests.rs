use super::*;
use proptest::prelude::*;

fn at(boot_ms: u64) -> Instant {
    Instant {
        boot_id: "b".into(),
        boot_ms,
    }
}

fn range() -> Block {
    "10.18.0.0/29".parse().unwrap()
}

fn wish(netns: &str, ports: &str) -> Attach {
    Attach {
        netns: format!("/run/netns/{netns}").into(),
        ports: PortMapping::parse_list(ports).unwrap(),
        instance: None,
    }
}

#[test]
fn repeating_keeps_the_address_and_changes_ports() {
    let mut state = State::default();
    let first = state
        .attach(&Plan::default(), &range(), "a", &wish("a", "80"), &at(0))
        .unwrap();
    let before = state.clone();
    assert_eq!(
        state
            .attach(&Plan::default(), &range(), "a", &wish("a", "80"), &at(5))
            .unwrap(),
        first
    );
    assert_eq!(state, before);
    let changed = state
        .attach(&Plan::default(), &range(), "a", &wish("a2", "81"), &at(9))
        .unwrap();
    assert_eq!((changed.address, changed.ports[0].host), (first.address, 81));
}

#[test]
fn a_taken_port_names_its_owner_and_changes_nothing() {
    let mut state = State::default();
    state
        .attach(&Plan::default(), &range(), "a", &wish("a", "80;53/udp"), &at(0))
        .unwrap();
    let before = state.clone();
    let refused = state
        .attach(&Plan::default(), &range(), "b", &wish("b", "53;80:8080"), &at(0))
        .unwrap_err();
    assert_eq!(refused.to_string(), "port 80/tcp is published by container a");
    assert_eq!(state, before);
    state
        .attach(&Plan::default(), &range(), "b", &wish("b", "53/tcp"), &at(0))
        .unwrap();
}

#[test]
fn exhaustion_quarantine_and_return() {
    let mut state = State::default();
    for name in ["a", "b", "c", "d", "e"] {
        state
            .attach(&Plan::default(), &range(), name, &wish(name, ""), &at(0))
            .unwrap();
    }
    let address = state.attachments["c"].address;
    let full = state
        .attach(&Plan::default(), &range(), "f", &wish("f", ""), &at(0))
        .unwrap_err();
    assert_eq!(
        full.to_string(),
        "no free address in 10.18.0.0/29: 5 held, 0 resting after release"
    );
    assert!(state.detach("c", &at(1_000)) && !state.detach("c", &at(1_000)));
    assert!(matches!(
        state.attach(&Plan::default(), &range(), "f", &wish("f", ""), &at(60_999)),
        Err(RefusedAttach::NoAddress { .. })
    ));
    let mut other = state.clone();
    assert_eq!(
        other
            .attach(&Plan::default(), &range(), "f", &wish("f", ""), &at(61_000))
            .unwrap()
            .address,
        address
    );
    let after_reboot = Instant {
        boot_id: "c".into(),
        boot_ms: 1,
    };
    assert_eq!(
        state
            .clone()
            .attach(&Plan::default(), &range(), "f", &wish("f", ""), &after_reboot)
            .unwrap()
            .address,
        address
    );
    assert_eq!(
        state
            .attach(&Plan::default(), &range(), "c", &wish("c", ""), &at(1_001))
            .unwrap()
            .address,
        address
    );
}

#[test]
fn nonsense_is_refused() {
    let mut state = State::default();
    let long = "x".repeat(MAX_CONTAINER_LEN + 1);
    for container in ["", "a/b", "a b", "..%", long.as_str()] {
        assert!(matches!(
            state.attach(&Plan::default(), &range(), container, &wish("a", ""), &at(0)),
            Err(RefusedAttach::Invalid(_))
        ));
    }
    let twice = Attach {
        ports: wish("a", "80:1;80:2").ports,
        ..wish("a", "")
    };
    assert!(matches!(
        state.attach(&Plan::default(), &range(), "a", &twice, &at(0)),
        Err(RefusedAttach::Invalid(_))
    ));
    let relative = Attach {
        netns: "netns/a".into(),
        ports: vec![],
        instance: None,
    };
    assert!(matches!(
        state.attach(&Plan::default(), &range(), "a", &relative, &at(0)),
        Err(RefusedAttach::Invalid(_))
    ));
    state
        .attach(&Plan::default(), &range(), "a", &wish("a", ""), &at(0))
        .unwrap();
    assert!(matches!(
        state.attach(&Plan::default(), &range(), "b", &wish("a", ""), &at(0)),
        Err(RefusedAttach::Invalid(_))
    ));
}

#[test]
fn what_the_first_release_wrote_is_read() {
    let text =
        r#"{"schema":1,"attachments":{"a":{"netns":"/run/netns/a","address":"10.18.0.2","ports":["80"]}},"former":{}}"#;
    let state: State = serde_json::from_str(text).unwrap();
    assert_eq!(state.attachments["a"].instance, None);
    let listed = state.list(&Plan::default());
    assert_eq!(listed[0].address_v6, Some("fc00::a12:2".parse().unwrap()));
}

#[derive(Debug, Clone)]
enum Step {
    Attach(u8, Vec<u8>),
    Detach(u8),
    Pass(u32),
    Restart,
    Reboot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..9_u8, prop::collection::vec(1..6_u8, 0..3)).prop_map(|(c, p)| Step::Attach(c, p)),
        3 => (0..9_u8).prop_map(Step::Detach),
        2 => (0..40_000_u32).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Model: who holds which address, and when each was given back by whom.
    #[test]
    fn addresses_and_ports_never_collide(steps in steps()) {
        let mut state = State::default();
        let mut now = at(0);
        let mut holders: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
        let mut released: BTreeMap<Ipv4Addr, (String, u64, String)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Attach(n, ports) => {
                    let container = format!("c{n}");
                    let text = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(";");
                    let before = state.clone();
                    match state.attach(&Plan::default(), &range(), &container, &wish(&container, &text), &now) {
                        Ok(attached) => {
                            let std::net::IpAddr::V4(address) = attached.address else { unreachable!() };
                            prop_assert!(range().contains(address));
                            if let Some(held) = holders.get(&container) { prop_assert_eq!(*held, address); }
                            prop_assert!(!holders.iter().any(|(other, a)| *other != container && *a == address));
                            if let Some((owner, ms, boot)) = released.remove(&address) {
                                prop_assert!(owner == container || boot != now.boot_id || now.boot_ms - ms >= 60_000);
                            }
                            holders.insert(container, address);
                        }
                        Err(_) => prop_assert_eq!(&state, &before),
                    }
                }
                Step::Detach(n) => {
                    let container = format!("c{n}");
                    let held = holders.remove(&container);
                    prop_assert_eq!(state.detach(&container, &now), held.is_some());
                    if let Some(address) = held {
                        released.insert(address, (container, now.boot_ms, now.boot_id.clone()));
                    }
                }
                Step::Pass(ms) => now.boot_ms += u64::from(ms),
                Step::Restart => state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap(),
                Step::Reboot => now = Instant { boot_id: format!("{}'", now.boot_id), boot_ms: 0 },
            }
            let ports: Vec<_> = state.attachments.values().flat_map(|a| &a.ports).map(PortMapping::host_key).collect();
            prop_assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
            let addresses: BTreeSet<_> = state.attachments.values().map(|a| a.address).collect();
            prop_assert_eq!(addresses.len(), state.attachments.len());
            prop_assert!(addresses.is_disjoint(&state.former.keys().copied().collect()));
        }
    }
}
