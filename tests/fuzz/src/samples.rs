//! Valid messages of every kind, from which the corpus grows.

use anyhow::Context as _;
use bytes::BytesMut;
use prost::Message as _;
use roble_core::ids::{NodeId, RawId};
use roble_core::registry::{JoinToken, TokenKind};
use roble_daemon::pki::{
    Authority, Identity, Lifetimes, PrivateKey, VerifiedRequest, certificate_request_to_pem, certificates_to_pem,
};
use roble_proto::topics::{ALL_UP, Branch, Direction, Topic, client_id};
use roble_proto::wire::{self, SetKind, frame::Body, request::What, response};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, PubAck, Publish, Subscribe, Unsubscribe};

use crate::bodies::INSTANCE;

/// A moment within the validity of the certificates: 2026-11-22.
const NOW: u64 = 1_795_305_600_000;

/// Writes all samples to the corpus. Certificates differ each time; the rest does not.
///
/// # Errors
/// A file cannot be written.
pub fn write() -> anyhow::Result<()> {
    for (folder, samples) in [
        ("frame", frames()),
        ("assignment", vec![("full", assignment()), ("empty", Vec::new())]),
        ("status", vec![("full", status()), ("empty", Vec::new())]),
        (
            "profile",
            vec![("full", profile().encode_to_vec()), ("empty", Vec::new())],
        ),
        ("mqtt", packets()?),
        ("topic", topics()),
        ("token", tokens()?),
        ("name", names()?),
        ("certificate", certificates()?),
        ("dns", queries()),
        ("packet", first_packets()),
    ]
    .into_iter()
    .chain(roble_tunnel::fuzz::samples())
    {
        let folder = crate::root().join("corpus").join(folder);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in samples {
            std::fs::write(folder.join(name), bytes).with_context(|| format!("write {name}"))?;
        }
    }
    Ok(())
}

type Samples = Vec<(&'static str, Vec<u8>)>;

/// First packets to services: IPv4 and IPv6, UDP with nothing in it.
fn first_packets() -> Samples {
    let v4 = [
        &[0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0][..],
        &[10, 18, 0, 2, 10, 30, 0, 7],
        &[0x9c, 0x40, 0x1b, 0x58, 0, 8, 0, 0],
    ];
    let v6 = [
        &[0x60, 0, 0, 0, 0, 8, 17, 64][..],
        &[0xfc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0x12, 0, 2],
        &[0xfd, 0xff, 0x20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        &[0x9c, 0x40, 0x1b, 0x58, 0, 8, 0, 0],
    ];
    vec![("v4", v4.concat()), ("v6", v6.concat())]
}

/// Queries for names: ours, of a policy, reverse, upstream; with and without EDNS.
fn queries() -> Samples {
    let query = |name: &str, qtype: u8, has_edns: bool| {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(has_edns)];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).expect("a short label"));
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, qtype, 0, 1]);
        if has_edns {
            // The root, OPT, 1,232 bytes, no flags, no options.
            bytes.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    };
    vec![
        ("a", query("web.shop.roble", 1, false)),
        ("aaaa-closest", query("closest.WEB.shop.test.roble", 28, true)),
        ("srv", query("web.shop.roble", 33, true)),
        ("ptr", query("3.11.18.10.in-addr.arpa", 12, false)),
        (
            "ptr-v6",
            query(
                "3.0.b.0.2.1.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.c.f.ip6.arpa",
                12,
                true,
            ),
        ),
        ("other", query("example.com", 1, true)),
    ]
}

fn node(number: u8) -> NodeId {
    NodeId(RawId::from_bytes([number; 12]))
}

fn pair(key: &str, value: &str) -> wire::Pair {
    wire::Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn version() -> wire::Version {
    wire::Version {
        generation: 3,
        epochs: vec![7, 2],
    }
}

fn resources() -> wire::Resources {
    wire::Resources {
        cpu_millis: 250,
        memory_bytes: 64 << 20,
    }
}

fn assignment() -> Vec<u8> {
    wire::Assignment {
        version: Some(version()),
        spec: Some(wire::InstanceSpec {
            organization: "0123456789abcdef01234567".to_owned(),
            application: "89abcdef0123456789abcdef".to_owned(),
            path: "shop/web.3".to_owned(),
            virtualization: "container".to_owned(),
            image: "docker.io/library/nginx:1.27".to_owned(),
            image_digest: format!("sha256:{}", "ab".repeat(32)),
            command: vec!["/bin/sh".to_owned()],
            args: vec!["-c".to_owned(), "sleep 1".to_owned()],
            environment: vec![pair("A", "1")],
            working_dir: Some("/srv".to_owned()),
            user: Some("1000:1000".to_owned()),
            resources: Some(resources()),
            ports: vec!["18080:80".to_owned(), "53:53/udp".to_owned()],
            restart: "on-failure".to_owned(),
            one_shot: false,
            stop_grace_ms: 10_000,
            when_cut_off: "keep-running".to_owned(),
            security: "baseline".to_owned(),
            constraints: Some(wire::Constraints {
                cluster: Some("north".to_owned()),
                node: Some("pi-1".to_owned()),
                cluster_selector: vec![pair("zone", "a")],
                node_selector: vec![pair("disk", "ssd")],
                architectures: vec!["arm64".to_owned()],
            }),
        }),
    }
    .encode_to_vec()
}

fn status() -> Vec<u8> {
    wire::InstanceStatus {
        version: Some(version()),
        phase: "running".to_owned(),
        reason: Some(wire::Reason {
            code: "exited".to_owned(),
            message: "its process ended".to_owned(),
        }),
        restarts: 2,
        exit_code: Some(-9),
        started_at_ms: Some(NOW),
        node: Some(node(1).to_string()),
        node_name: Some("pi-1".to_owned()),
        node_address: Some("192.0.2.1".to_owned()),
        ports: vec!["18080:80".to_owned()],
        image_digest: Some(format!("sha256:{}", "ab".repeat(32))),
        addresses: vec!["10.18.0.2".to_owned(), "fc00::a12:2".to_owned()],
    }
    .encode_to_vec()
}

fn profile() -> wire::Profile {
    wire::Profile {
        name: "pi-1".to_owned(),
        labels: vec![pair("arch", "arm64")],
        address: "192.0.2.1".to_owned(),
        virtualizations: vec!["container".to_owned()],
        offers: vec![wire::Offer {
            labels: vec![pair("arch", "arm64")],
            count: 1,
            allocatable: Some(resources()),
            largest_free: vec![resources(), resources()],
        }],
        software: "0.1.0".to_owned(),
        revision: 2,
    }
}

fn frames() -> Samples {
    let item = |value: Vec<u8>| wire::SetItem {
        key: INSTANCE.to_owned(),
        value,
    };
    let update = |set: SetKind, value| {
        Body::Update(wire::SetUpdate {
            set: set.into(),
            items: vec![item(value)],
            removed: vec!["0123456789abcdef01234567.4".to_owned()],
        })
    };
    let fetch = |set: SetKind| {
        Body::Fetch(wire::SetFetch {
            set: set.into(),
            bits: 2,
            digests: vec![1, 2, 3, 4],
        })
    };
    let buckets = |set: SetKind| {
        Body::Buckets(wire::SetBuckets {
            set: set.into(),
            bits: 2,
            buckets: vec![wire::SetBucket {
                index: 1,
                keys: vec![INSTANCE.to_owned()],
            }],
        })
    };
    let request = |what| {
        Body::Request(wire::Request {
            id: 5,
            what: Some(what),
        })
    };
    let response = |what| {
        Body::Response(wire::Response {
            id: 5,
            what: Some(what),
        })
    };
    let child = node(1).to_string();
    let bodies = [
        (
            "hello",
            Body::Hello(wire::Hello {
                min_version: 1,
                max_version: 1,
                features: vec!["fresh".to_owned()],
                software: "0.1.0".to_owned(),
                process: 9,
            }),
        ),
        (
            "welcome",
            Body::Welcome(wire::Welcome {
                version: 1,
                features: Vec::new(),
                beat_ms: 2_500,
                fence_ms: 30_000,
                wall_ms: NOW,
            }),
        ),
        (
            "reset",
            Body::Reset(wire::Reset {
                code: "unknown-session".to_owned(),
                message: "say hello again".to_owned(),
            }),
        ),
        (
            "beat",
            Body::Beat(wire::Beat {
                orders: 1,
                status: 2,
                answer: true,
                heard: 3,
            }),
        ),
        (
            "beat-ack",
            Body::BeatAck(wire::BeatAck {
                beat: 1,
                orders: 1,
                complete: true,
                profile: 2,
            }),
        ),
        ("update-orders", update(SetKind::Orders, assignment())),
        ("update-status", update(SetKind::Status, status())),
        ("fetch-orders", fetch(SetKind::Orders)),
        ("fetch-status", fetch(SetKind::Status)),
        ("buckets-orders", buckets(SetKind::Orders)),
        ("buckets-status", buckets(SetKind::Status)),
        ("profile", Body::Profile(profile())),
        (
            "create-token",
            request(What::CreateJoinToken(wire::CreateJoinToken {
                ttl_ms: 60_000,
                needs_approval: true,
                name: "pi-1".to_owned(),
            })),
        ),
        (
            "delete-token",
            request(What::DeleteToken(wire::DeleteToken {
                token: "0123456789abcdef01234567".to_owned(),
            })),
        ),
        ("list-children", request(What::ListChildren(wire::ListChildren {}))),
        (
            "cordon",
            request(What::SetCordon(wire::SetCordon {
                child: child.clone(),
                cordoned: true,
            })),
        ),
        ("revoke", request(What::RevokeChild(wire::RevokeChild { child }))),
        (
            "open-stream",
            request(What::OpenStream(wire::OpenStream {
                stream: "00".repeat(16),
                instance: INSTANCE.to_owned(),
                logs: Some(wire::LogOptions {
                    follow: true,
                    tail: Some(10),
                }),
            })),
        ),
        (
            "ask-net",
            request(What::AskNet(wire::AskNet {
                instance: INSTANCE.to_owned(),
                question: b"{}".to_vec(),
            })),
        ),
        ("json", response(response::What::Json(b"[]".to_vec()))),
        (
            "failure",
            response(response::What::Failure(wire::Failure {
                code: "not-placed".to_owned(),
                message: "nowhere".to_owned(),
            })),
        ),
    ];
    let frame = |body| wire::Frame {
        session: 77,
        seq: 2,
        body: Some(body),
        ..Default::default()
    };
    let mut samples: Samples = bodies
        .map(|(name, body)| (name, frame(body).encode_to_vec()))
        .into_iter()
        .collect();
    samples.push(("empty", Vec::new()));
    samples
}

fn packets() -> anyhow::Result<Samples> {
    let topic = |direction| {
        let branch = Branch::Engine;
        let topic = Topic {
            node: node(1),
            branch,
            direction,
        };
        topic.to_string()
    };
    let mut acknowledged = Publish::new(topic(Direction::Up), QoS::AtLeastOnce, "payload");
    acknowledged.pkid = 7;
    let mut all = Vec::new();
    let mut samples = Samples::new();
    for (name, packet) in [
        (
            "connect",
            Packet::Connect(Connect::new(client_id(node(1), Branch::Engine))),
        ),
        (
            "subscribe",
            Packet::Subscribe(Subscribe::new(topic(Direction::Down), QoS::AtLeastOnce)),
        ),
        (
            "publish",
            Packet::Publish(Publish::new(topic(Direction::Up), QoS::AtMostOnce, vec![1; 200])),
        ),
        ("publish-acknowledged", Packet::Publish(acknowledged)),
        ("acknowledge", Packet::PubAck(PubAck::new(3))),
        ("ping", Packet::PingReq),
        (
            "unsubscribe",
            Packet::Unsubscribe(Unsubscribe::new(topic(Direction::Down))),
        ),
        ("disconnect", Packet::Disconnect),
    ] {
        let mut buffer = BytesMut::new();
        packet.write(&mut buffer, usize::MAX).context("write a packet")?;
        all.extend_from_slice(&buffer);
        samples.push((name, buffer.to_vec()));
    }
    samples.push(("session", all));
    // Announces more than follows; announces the most that can be; a length without end.
    samples.push(("cut-off", vec![0x30, 0x7f, 0]));
    samples.push(("announces-the-most", vec![0x30, 0xff, 0xff, 0xff, 0x7f]));
    samples.push(("endless-length", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0xff]));
    // In front stands where they are cut in two.
    for (_, bytes) in &mut samples {
        bytes.insert(0, 0x80);
    }
    Ok(samples)
}

fn topics() -> Samples {
    let topic = |branch, direction| {
        let topic = Topic {
            node: node(1),
            branch,
            direction,
        };
        topic.to_string().into_bytes()
    };
    vec![
        ("engine-up", topic(Branch::Engine, Direction::Up)),
        ("net-down", topic(Branch::Net, Direction::Down)),
        ("client", client_id(node(1), Branch::Net).into_bytes()),
        ("all-up", ALL_UP.as_bytes().to_vec()),
        ("everything", b"#".to_vec()),
        ("system", b"$SYS/broker/clients".to_vec()),
        ("shared", b"$share/g/+/+/u".to_vec()),
        ("empty-levels", b"//e/u".to_vec()),
    ]
}

fn tokens() -> anyhow::Result<Samples> {
    let token = |kind, cluster: Option<&str>| -> anyhow::Result<Vec<u8>> {
        let token = JoinToken {
            kind,
            cluster: cluster.map(str::parse).transpose()?,
            id: "0123456789abcdef01234567".parse()?,
            secret: "ab".repeat(32),
            pin: "cd".repeat(32),
        };
        Ok(token.reveal().into_bytes())
    };
    Ok(vec![
        ("cluster", token(TokenKind::Cluster, None)?),
        ("node", token(TokenKind::Node, Some("89abcdef0123456789abcdef"))?),
        ("pin", "ef".repeat(32).into_bytes()),
        ("newer", b"roble2.cluster.a.b.c".to_vec()),
    ])
}

fn names() -> anyhow::Result<Samples> {
    let cluster = "89abcdef0123456789abcdef";
    Ok(vec![
        ("root", Identity::Root.dns_name().into_bytes()),
        ("cluster", Identity::cluster(cluster)?.dns_name().into_bytes()),
        (
            "node",
            Identity::node(cluster, &node(1).to_string())?.dns_name().into_bytes(),
        ),
        (
            "wildcard",
            Identity::Root.dns_name().replacen("root", "*", 1).into_bytes(),
        ),
    ])
}

fn certificates() -> anyhow::Result<Samples> {
    let cluster = "89abcdef0123456789abcdef";
    let root = Authority::create_root(NOW, Lifetimes::default())?;
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    let of_cluster = root.issue_cluster_authority(cluster, &request, NOW)?;
    let authority = Authority::new(key, of_cluster.chain, Lifetimes::default())?;
    let csr = PrivateKey::generate()?.request()?;
    let node = authority.issue_node(&node(1).to_string(), &VerifiedRequest::parse(&csr)?, NOW)?;
    let [leaf, issuer, ..] = node.chain.as_slice() else {
        anyhow::bail!("a chain without an issuer");
    };
    Ok(vec![
        ("node.der", leaf.to_vec()),
        ("cluster-authority.der", issuer.to_vec()),
        ("root.der", root.root().to_vec()),
        ("request.der", csr.clone()),
        ("request.pem", certificate_request_to_pem(&csr).into_bytes()),
        ("chain.pem", certificates_to_pem(&node.chain).into_bytes()),
    ])
}
