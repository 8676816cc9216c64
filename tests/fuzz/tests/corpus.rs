//! Every body over its corpus and seeded changes of it.

use roble_fuzz::{BODIES, Body, campaign, corpus, run};

/// Changes of the corpus for each body.
const CASES: u64 = 4_000;

fn check(names: &[&str]) {
    for name in names {
        let body = BODIES
            .iter()
            .find(|body| body.name == *name)
            .expect("a body of this name");
        let corpus = corpus(body).expect("its corpus");
        assert!(!corpus.is_empty(), "{name} has no corpus");
        if let Err(failure) = campaign(body, &corpus, CASES) {
            panic!("{name}: {}; input: {:02x?}", failure.what, failure.input);
        }
    }
}

const DESCRIPTORS: &[&str] = &["descriptor"];
const PACKETS: &[&str] = &["mqtt", "topic", "held-packet"];
const MESSAGES: &[&str] = &["frame-up", "frame-down", "assignment", "status", "profile"];
const IDENTITIES: &[&str] = &["token", "name", "certificate"];
const QUERIES: &[&str] = &["dns"];
const TUNNEL: &[&str] = &["tunnel-datagram", "tunnel-inner", "tunnel-frame", "tunnel-uapi"];

#[test]
fn descriptors() {
    check(DESCRIPTORS);
}

#[test]
fn packets_and_topics() {
    check(PACKETS);
}

#[test]
fn messages_of_the_link() {
    check(MESSAGES);
}

#[test]
fn tokens_names_and_certificates() {
    check(IDENTITIES);
}

#[test]
fn queries_for_names() {
    check(QUERIES);
}

#[test]
fn what_a_tunnel_gets() {
    check(TUNNEL);
}

#[test]
fn no_body_is_left_out() {
    let checked: Vec<&str> = [DESCRIPTORS, PACKETS, MESSAGES, IDENTITIES, QUERIES, TUNNEL].concat();
    assert_eq!(checked.len(), BODIES.len());
    assert!(BODIES.iter().all(|body| checked.contains(&body.name)));
}

/// The samples are what they are called, so that changes of them get further than the first check.
#[test]
fn samples_are_read() {
    use prost::Message as _;
    let of = |name: &str| corpus(BODIES.iter().find(|body| body.name == name).unwrap()).unwrap();
    for (name, bytes) in of("frame-up") {
        assert!(roble_proto::wire::Frame::decode(bytes.as_slice()).is_ok(), "{name}");
    }
    let read = |name: &str, is: &dyn Fn(&str) -> bool| {
        let inputs = of(name);
        assert!(
            inputs.iter().any(|(_, bytes)| is(&String::from_utf8_lossy(bytes))),
            "{name}"
        );
    };
    read("token", &|text| text.parse::<roble_core::registry::JoinToken>().is_ok());
    read("topic", &|text| roble_proto::topics::Topic::parse(text).is_some());
    read("name", &|text| {
        roble_daemon::pki::Identity::from_dns_name(text).is_some()
    });
    let certificates = of("certificate");
    let is_peer = |bytes: &Vec<u8>| roble_daemon::pki::Peer::from_verified(&bytes.clone().into()).is_ok();
    assert!(certificates.iter().any(|(_, bytes)| is_peer(bytes)));
}

#[test]
fn a_panic_and_too_much_memory_are_noticed() {
    let panics = Body {
        name: "panics",
        corpus: &[],
        run: |data| assert!(data.is_empty(), "not empty"),
    };
    assert!(run(&panics, b"").is_ok());
    assert!(run(&panics, b"x").unwrap_err().what.contains("not empty"));
    let greedy = Body {
        name: "greedy",
        corpus: &[],
        run: |data| drop(std::hint::black_box(vec![1_u8; usize::from(data[0]) << 20])),
    };
    assert!(run(&greedy, &[0]).is_ok());
    assert!(run(&greedy, &[4]).unwrap_err().what.contains("memory"));
}
