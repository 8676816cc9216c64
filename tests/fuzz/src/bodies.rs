//! The bodies.

use prost::Message as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use roble_core::ids::ChildId;
use roble_core::liveness::Clocks;
use roble_core::placement::{Level, Profile};
use roble_core::registry::JoinToken;
use roble_core::time::{Boottime, Now, Timestamp};
use roble_daemon::pki::{
    Identity, Peer, Pin, VerifiedRequest, certificate_request_from_pem, certificates_from_pem, certificates_to_pem,
};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_link::children::{Children, ChildrenOutput};
use roble_proto::convert::{decode_assignment, decode_status, encode_assignment, encode_status};
use roble_proto::topics::{Direction, Topic, client_id, may_use, parse_client_id};
use roble_proto::wire::{self, SetKind, frame};
use rustls_pki_types::CertificateDer;

/// One body.
pub struct Body {
    /// Its name.
    pub name: &'static str,
    /// Folders with its inputs, below this crate's.
    pub corpus: &'static [&'static str],
    /// Reads the bytes.
    pub run: fn(&[u8]),
}

/// All bodies.
pub const BODIES: &[Body] = &[
    Body {
        name: "descriptor",
        corpus: &[
            "../../core/tests/descriptors/corpus",
            "../../core/tests/descriptors/good",
            "../../core/tests/descriptors/bad",
        ],
        run: roble_core::descriptor::fuzz_descriptor,
    },
    Body {
        name: "mqtt",
        corpus: &["corpus/mqtt"],
        run: roble_cluster::broker::embedded::fuzz_packets,
    },
    Body {
        name: "topic",
        corpus: &["corpus/topic"],
        run: topic,
    },
    Body {
        name: "frame-up",
        corpus: &["corpus/frame"],
        run: frame_up,
    },
    Body {
        name: "frame-down",
        corpus: &["corpus/frame"],
        run: frame_down,
    },
    Body {
        name: "assignment",
        corpus: &["corpus/assignment"],
        run: assignment,
    },
    Body {
        name: "status",
        corpus: &["corpus/status"],
        run: status,
    },
    Body {
        name: "profile",
        corpus: &["corpus/profile"],
        run: profile,
    },
    Body {
        name: "token",
        corpus: &["corpus/token"],
        run: token,
    },
    Body {
        name: "name",
        corpus: &["corpus/name"],
        run: name,
    },
    Body {
        name: "certificate",
        corpus: &["corpus/certificate"],
        run: certificate,
    },
    Body {
        name: "dns",
        corpus: &["corpus/dns"],
        run: roble_net::dns::fuzz_query,
    },
    Body {
        name: "tunnel-datagram",
        corpus: &["corpus/tunnel-datagram"],
        run: roble_tunnel::fuzz::fuzz_datagram,
    },
    Body {
        name: "tunnel-inner",
        corpus: &["corpus/tunnel-inner"],
        run: roble_tunnel::fuzz::fuzz_inner,
    },
    Body {
        name: "tunnel-frame",
        corpus: &["corpus/tunnel-frame"],
        run: roble_tunnel::fuzz::fuzz_frame,
    },
    Body {
        name: "tunnel-uapi",
        corpus: &["corpus/tunnel-uapi"],
        run: roble_tunnel::fuzz::fuzz_uapi,
    },
    Body {
        name: "held-packet",
        corpus: &["corpus/packet"],
        run: roble_net::misses::fuzz_packet,
    },
];

/// Key of the items that are read on their own.
pub(crate) const INSTANCE: &str = "0123456789abcdef01234567.3";

fn now(boot: u64) -> Now {
    Now {
        boot: Boottime::from_millis(boot),
        wall: Timestamp::from_millis(1_700_000_000_000 + boot),
    }
}

fn child() -> ChildId {
    "89abcdef0123456789abcdef".parse().expect("an id")
}

/// An item of every key, so that answers with items are made too.
struct Everything;

impl Source for Everything {
    fn value(&self, _: SetKind, key: &str) -> Option<Vec<u8>> {
        Some(key.as_bytes().to_vec())
    }
}

/// What is read must be written so that it reads back.
fn read_frame(data: &[u8]) -> Option<wire::Frame> {
    let frame = wire::Frame::decode(data).ok()?;
    assert_eq!(
        wire::Frame::decode(frame.encode_to_vec().as_slice()).as_ref(),
        Ok(&frame)
    );
    Some(frame)
}

/// A payload from below, at an orchestrator: before there is a session, and in one.
fn frame_up(data: &[u8]) {
    let Some(frame) = read_frame(data) else { return };
    let mut children = Children::new(Level::Nodes, Clocks::NODES, true, now(0).boot);
    let profile = Profile {
        name: "pi".to_owned(),
        ..Profile::default()
    };
    children.add_child(child(), profile, false);
    children.receive(child(), frame.clone(), now(1));
    let hello = wire::Hello {
        min_version: 1,
        max_version: 1,
        process: 9,
        ..wire::Hello::default()
    };
    let session = 77;
    for (seq, body) in [(1, Some(frame::Body::Hello(hello))), (2, frame.body)] {
        children.receive(
            child(),
            wire::Frame {
                session,
                seq,
                body,
                ..Default::default()
            },
            now(2),
        );
        for output in children.settle(now(3)) {
            if let ChildrenOutput::Send(_, frame) = output {
                read_frame(&frame.encode_to_vec()).expect("what is sent can be read");
            }
        }
    }
    children.tick(now(60_000));
    children.settle(now(60_001));
}

/// A payload from above, at a node engine's or cluster's end: before there is a session, and in one.
fn frame_down(data: &[u8]) {
    let Some(given) = read_frame(data) else { return };
    let clocks = ChildClocks {
        beat_ms: 2_500,
        silence_ms: 8_000,
    };
    let mut rng = SmallRng::seed_from_u64(1);
    let mut end = ChildEnd::new(clocks, 9, "0");
    end.set_status(INSTANCE, Some(b"x"));
    end.receive(given.clone(), &Everything, now(0));
    end.transport_up(now(1));
    let session = end.tick(now(2), &mut rng).into_iter().find_map(|output| match output {
        ChildOutput::Send(frame) => Some(frame.session),
        _ => None,
    });
    let session = session.expect("a session is opened");
    let welcome = wire::Welcome {
        version: 1,
        ..wire::Welcome::default()
    };
    for (seq, body) in [(1, Some(frame::Body::Welcome(welcome))), (2, given.body)] {
        let mut outputs = end.receive(
            wire::Frame {
                session,
                seq,
                body,
                ..Default::default()
            },
            &Everything,
            now(3),
        );
        outputs.extend(end.flush(&Everything));
        outputs.extend(end.tick(now(10), &mut rng));
        for output in outputs {
            match output {
                ChildOutput::Send(frame) => {
                    read_frame(&frame.encode_to_vec()).expect("what is sent can be read");
                }
                ChildOutput::Order { key, value } => drop(decode_assignment(&key, &value)),
                _ => {}
            }
        }
    }
}

fn assignment(data: &[u8]) {
    if let Ok(read) = decode_assignment(INSTANCE, data) {
        let again = decode_assignment(INSTANCE, &encode_assignment(&read)).expect("it reads back");
        assert_eq!(again, read);
    }
    // The key comes from the wire as well.
    drop(decode_assignment(&String::from_utf8_lossy(data), data));
}

fn status(data: &[u8]) {
    if let Ok(read) = decode_status(INSTANCE, data) {
        let again = decode_status(INSTANCE, &encode_status(&read)).expect("it reads back");
        assert_eq!(again, read);
    }
    drop(decode_status(&String::from_utf8_lossy(data), data));
}

fn profile(data: &[u8]) {
    if let Ok(read) = wire::Profile::decode(data) {
        let core = Profile::from(read);
        let wire = wire::Profile::from(&core).encode_to_vec();
        let again = wire::Profile::decode(wire.as_slice()).expect("it reads back");
        assert_eq!(Profile::from(again), core);
    }
}

fn topic(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(topic) = Topic::parse(&text) {
        assert_eq!(topic.to_string(), text, "one topic, one text");
        let may = |direction| may_use(topic.node, topic.branch, direction, &text);
        assert_ne!(may(Direction::Up), may(Direction::Down));
    }
    if let Some((node, branch)) = parse_client_id(&text) {
        assert_eq!(client_id(node, branch), text);
    }
}

fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.reveal(), text.trim(), "one token, one text");
        assert!(!format!("{token:?}").contains(&token.secret));
    }
    if let Ok(pin) = text.parse::<Pin>() {
        assert_eq!(pin.to_string().parse::<Pin>().ok(), Some(pin));
    }
}

/// The name in a certificate.
fn name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(identity) = Identity::from_dns_name(&text) {
        assert_eq!(identity.dns_name(), text, "one identity, one name");
    }
}

/// A certificate, a signing request, and either as PEM.
fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data.to_vec());
    if let Ok(peer) = Peer::from_verified(&der) {
        let name = peer.identity.dns_name();
        assert_eq!(Identity::from_dns_name(&name), Some(peer.identity));
    }
    drop(VerifiedRequest::parse(data));
    if let Ok(chain) = certificates_from_pem(data) {
        let again = certificates_from_pem(certificates_to_pem(&chain).as_bytes());
        assert_eq!(again.ok(), Some(chain));
    }
    drop(certificate_request_from_pem(data).map(|der| VerifiedRequest::parse(&der)));
}
