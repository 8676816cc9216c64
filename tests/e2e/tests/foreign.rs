//! Certificates of another tree, another cluster and another kind of member, at every listener that asks for one: refused,
//! and named in the daemon's log.

use roble_core::ids::{ClusterId, NodeId, RawId};
use roble_core::registry::JoinToken;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::{
    Authority, Credential, Identity, Lifetimes, Pin, PrivateKey, VerifiedRequest, certificate_request_to_pem,
    certificates_from_pem,
};
use roble_daemon::tls::{ClientTls, Dialer, Protocol};
use roble_e2e::{Tree, wait_for};
use roble_proto::rest::{JoinGrant, JoinRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ROOT_API: &str = "10.99.77.1:10000";
const ROOT_LINK: &str = "10.99.77.1:50052";
const CLUSTER_API: &str = "10.99.77.1:10100";
const CLUSTER_MQTT: &str = "10.99.77.1:10003";

fn clock() -> Arc<VerifierClock> {
    Arc::new(VerifierClock::volatile(Arc::new(SystemClock)))
}

fn id(number: u8) -> RawId {
    RawId::from_bytes([number; 12])
}

/// A cluster's authority, and certificates from it.
struct Cluster(Authority);

impl Cluster {
    /// Of another tree, under the same id.
    fn of_another_tree(id: &str) -> Self {
        let now = clock().now();
        let root = Authority::create_root(now, Lifetimes::default()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
        let issued = root.issue_cluster_authority(id, &request, now).unwrap();
        Self(Authority::new(key, issued.chain, Lifetimes::default()).unwrap())
    }

    /// One that joined the same root.
    async fn joined(token: &str) -> Self {
        let token: JoinToken = token.parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let tls = ClientTls::pinned(Identity::Root, token.pin.parse().unwrap(), clock());
        let dialer = Dialer::new(tls.protocol(Protocol::Http).build().unwrap());
        let request = JoinRequest {
            token: token.id,
            secret: token.secret,
            name: "south".to_owned(),
            csr: certificate_request_to_pem(&key.request().unwrap()),
        };
        let grant: JoinGrant = roble_daemon::join::post(&dialer, ROOT_API, "/v1/join", &request)
            .await
            .unwrap();
        let chain = certificates_from_pem(format!("{}{}", grant.certificates, grant.authority).as_bytes()).unwrap();
        Self(Authority::new(key, chain, Lifetimes::default()).unwrap())
    }

    fn cluster(&self) -> Credential {
        let (key, request) = pair();
        let owner = self.0.owner().cluster_id().unwrap().to_owned();
        let issued = self.0.issue_cluster(&owner, &request, clock().now()).unwrap();
        Credential::new(key, issued.chain).unwrap()
    }

    fn node(&self, node: NodeId) -> Credential {
        let (key, request) = pair();
        let issued = self.0.issue_node(&node.to_string(), &request, clock().now()).unwrap();
        Credential::new(key, issued.chain).unwrap()
    }
}

fn pair() -> (PrivateKey, VerifiedRequest) {
    let key = PrivateKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
    (key, request)
}

/// Whether the listener answers anything at all to who shows this certificate, or none.
async fn answers(address: &str, server: &Identity, pin: Pin, shown: Option<&Credential>) -> bool {
    let tls = ClientTls::pinned(server.clone(), pin, clock()).protocol(Protocol::Raw);
    let tls = match shown {
        Some(credential) => tls.credential(credential),
        None => tls,
    };
    let Ok(mut stream) = Dialer::new(tls.build().unwrap()).connect(address).await else {
        return false;
    };
    // With TLS 1.3 a refusal arrives after the handshake, in place of an answer. MQTT and HTTP both answer to their own.
    let hello: &[u8] = if address == CLUSTER_MQTT {
        &[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 0]
    } else {
        b"GET /healthz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
    };
    let mut answer = [0; 4];
    let asking = async { stream.write_all(hello).await.is_ok() && matches!(stream.read(&mut answer).await, Ok(1..)) };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .unwrap_or(false)
}

#[tokio::test]
async fn certificates_of_strangers_are_refused_everywhere_and_named() {
    let tree = Tree::up("foreign");
    let clusters = tree.json(&["get", "clusters"]);
    let dev: ClusterId = clusters[0]["id"].as_str().unwrap().parse().unwrap();
    let nodes = tree.json(&["get", "nodes"]);
    let own_node: NodeId = nodes[0]["id"].as_str().unwrap().parse().unwrap();
    let token = tree.json(&["token", "create", "cluster"])["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let pin: Pin = token.parse::<JoinToken>().unwrap().pin.parse().unwrap();
    let (root, cluster) = (Identity::Root, Identity::cluster(&dev.to_string()).unwrap());

    let elsewhere = Cluster::of_another_tree(&dev.to_string());
    let south = Cluster::joined(&token).await;
    let own = Credential::load(std::path::Path::new(&tree.path("n1/engine/credential.pem")))
        .unwrap()
        .unwrap();

    // First that this test would notice an answer: the right ones get one, and nobody is asked for one where it is optional.
    let south_cluster = south.cluster();
    assert!(answers(ROOT_API, &root, pin, None).await);
    assert!(answers(ROOT_API, &root, pin, Some(&south_cluster)).await);
    assert!(answers(ROOT_LINK, &root, pin, Some(&south_cluster)).await);
    assert!(answers(CLUSTER_API, &cluster, pin, None).await);
    assert!(answers(CLUSTER_API, &cluster, pin, Some(&own)).await);
    assert!(answers(CLUSTER_MQTT, &cluster, pin, Some(&own)).await);
    assert!(
        !answers(ROOT_LINK, &root, pin, None).await,
        "the link needs a certificate"
    );
    assert!(
        !answers(CLUSTER_MQTT, &cluster, pin, None).await,
        "the broker needs a certificate"
    );

    let strangers = [
        ("a cluster of another tree, with our cluster's id", elsewhere.cluster()),
        ("a node of another tree, with our node's id", elsewhere.node(own_node)),
        ("another cluster's node, with our node's id", south.node(own_node)),
        ("another cluster's node", south.node(NodeId(id(7)))),
    ];
    for (who, shown) in &strangers {
        for (address, server) in [
            (ROOT_API, &root),
            (ROOT_LINK, &root),
            (CLUSTER_API, &cluster),
            (CLUSTER_MQTT, &cluster),
        ] {
            assert!(!answers(address, server, pin, Some(shown)).await, "{who} at {address}");
        }
    }
    assert!(
        !answers(ROOT_LINK, &root, pin, Some(&own)).await,
        "a node is no cluster"
    );
    assert!(
        !answers(CLUSTER_MQTT, &cluster, pin, Some(&south_cluster)).await,
        "another cluster at the broker"
    );
    assert!(
        !answers(CLUSTER_API, &cluster, pin, Some(&south_cluster)).await,
        "another cluster at the door for nodes"
    );

    for daemon in ["root", "cluster"] {
        wait_for("the log to name them", 10, || {
            let log = tree.log(daemon);
            let named = log
                .lines()
                .filter(|line| line.contains("certificate refused") && line.contains("10.99.77.1"));
            // The authority is not ours; the name is not one that may come.
            let named: Vec<&str> = named.collect();
            named.iter().any(|line| line.contains("UnknownIssuer"))
                && named.iter().any(|line| !line.contains("UnknownIssuer"))
        });
    }
    drop(tree.down());
}
