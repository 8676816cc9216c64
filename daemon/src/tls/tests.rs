use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::clock::{ManualClock, VerifierClock};
use crate::pki::{Identity, Pin, PrivateKey};
use crate::testing::{DAY, Tree, id};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers each connection with who it is, or `nobody`; returns its address.
async fn greeter(tls: ServerTls) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok((mut stream, peer)) = tls.handshake(stream, TIMEOUT).await else {
                    return;
                };
                let text = peer.map_or("nobody".into(), |peer| peer.identity.to_string());
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

/// What the greeter says, or why there is no answer.
async fn ask(tls: &ClientTls, address: &str) -> Result<String, String> {
    let chain = |error: &dyn std::error::Error| {
        let source = error.source().map_or(String::new(), ToString::to_string);
        format!("{error}: {source}")
    };
    let mut stream = Dialer::new(tls.clone())
        .connect(address)
        .await
        .map_err(|error| chain(&error))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map_err(|error| chain(&error))?;
    Ok(text)
}

fn server_pin(stream: &TlsStream<TcpStream>) -> Pin {
    Pin::of_certificate(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap()
}

fn cluster_only(cluster: &str) -> impl Fn(&Identity) -> bool + use<> {
    let cluster = cluster.to_owned();
    move |identity| matches!(identity, Identity::Node { cluster: of, .. } if *of == cluster)
}

#[tokio::test]
async fn tiers_know_each_other() {
    let tree = Tree::new();
    let address = greeter(tree.server(&tree.root_credential()).build().unwrap()).await;
    let cluster = tree.cluster("c");
    let tls = tree
        .client(Identity::Root)
        .credential(&cluster.credential())
        .build()
        .unwrap();
    assert_eq!(ask(&tls, &address).await.unwrap(), format!("cluster {}", id("c")));

    let address = greeter(
        tree.server(&cluster.credential())
            .accept(cluster_only(&id("c")))
            .build()
            .unwrap(),
    )
    .await;
    let tls = tree
        .client(cluster.identity())
        .credential(&cluster.node("1"))
        .build()
        .unwrap();
    assert_eq!(
        ask(&tls, &address).await.unwrap(),
        format!("node {} of cluster {}", id("1"), id("c"))
    );
}

#[tokio::test]
async fn certificate_is_required_optional_or_not_asked_for() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let nobody = tree.client(Identity::Root).build().unwrap();
    let somebody = tree
        .client(Identity::Root)
        .credential(&cluster.credential())
        .build()
        .unwrap();
    let server = |mode| tree.server(&tree.root_credential()).clients(mode).build().unwrap();
    let required = greeter(server(ClientAuth::Required)).await;
    assert!(ask(&nobody, &required).await.is_err());
    let optional = greeter(server(ClientAuth::Optional)).await;
    assert_eq!(ask(&nobody, &optional).await.unwrap(), "nobody");
    assert!(ask(&somebody, &optional).await.unwrap().starts_with("cluster"));
    let none = greeter(server(ClientAuth::None)).await;
    assert_eq!(ask(&somebody, &none).await.unwrap(), "nobody");
}

#[tokio::test]
async fn server_must_have_the_expected_name_and_authority() {
    let tree = Tree::new();
    let (c, d) = (tree.cluster("c"), tree.cluster("d"));
    let address = greeter(tree.server(&d.credential()).clients(ClientAuth::None).build().unwrap()).await;
    assert!(ask(&tree.client(d.identity()).build().unwrap(), &address).await.is_ok());
    for wrong in [c.identity(), Identity::Root] {
        let error = ask(&tree.client(wrong).build().unwrap(), &address).await.unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }
    let other = Tree::new();
    let error = ask(&other.client(d.identity()).build().unwrap(), &address)
        .await
        .unwrap_err();
    assert!(
        error.contains("UnknownIssuer") || error.contains("BadSignature"),
        "{error}"
    );
}

#[tokio::test]
async fn nodes_of_another_tree_or_another_cluster_are_refused() {
    let tree = Tree::new();
    let (c, d) = (tree.cluster("c"), tree.cluster("d"));
    let address = greeter(
        tree.server(&c.credential())
            .accept(cluster_only(&id("c")))
            .build()
            .unwrap(),
    )
    .await;
    let dial = |credential: Credential| {
        let tls = tree.client(c.identity()).credential(&credential).build().unwrap();
        let address = address.clone();
        async move { ask(&tls, &address).await }
    };
    assert!(dial(c.node("1")).await.is_ok());
    assert!(dial(d.node("1")).await.is_err(), "right root, wrong cluster");
    assert!(dial(d.credential()).await.is_err(), "a cluster is no node");
    assert!(
        dial(Tree::new().cluster("c").node("1")).await.is_err(),
        "another root with the same ids"
    );
}

#[tokio::test]
async fn a_cluster_authority_cannot_speak_for_another_cluster() {
    let tree = Tree::new();
    let (c, d) = (tree.cluster("c"), tree.cluster("d"));
    // `forge` signs whatever it is told, with the key of cluster c.
    let forged = c.forge(&format!("n-{}.c-{}.roble.internal", id("1"), id("d")));
    let address = greeter(
        tree.server(&d.credential())
            .accept(cluster_only(&id("d")))
            .build()
            .unwrap(),
    )
    .await;
    let tls = tree.client(d.identity()).credential(&forged).build().unwrap();
    assert!(ask(&tls, &address).await.is_err());

    for name in [d.identity().dns_name(), Identity::Root.dns_name()] {
        let forged = c.forge(&name);
        let address = greeter(tree.server(&forged).clients(ClientAuth::None).build().unwrap()).await;
        let expected = forged.peer().identity.clone();
        let error = ask(&tree.client(expected).build().unwrap(), &address)
            .await
            .unwrap_err();
        assert!(error.contains("NameConstraintViolation"), "{error}");
    }
}

#[tokio::test]
async fn certificates_are_swapped_while_running() {
    let tree = Tree::new();
    let (first, second) = (tree.root_credential(), tree.root_credential());
    let server = tree.server(&first).clients(ClientAuth::Optional).build().unwrap();
    let address = greeter(server.clone()).await;
    let cluster = tree.cluster("c");
    let client = tree.client(Identity::Root).build().unwrap();
    let dialer = Dialer::new(client.clone());
    let mut old = dialer.connect(&address).await.unwrap();
    assert_eq!(server_pin(&old), first.key().pin());
    server.swap(&second).unwrap();
    client.swap(&cluster.credential()).unwrap();
    assert_eq!(server_pin(&dialer.connect(&address).await.unwrap()), second.key().pin());
    assert!(ask(&client, &address).await.unwrap().starts_with("cluster"));
    let mut text = String::new();
    old.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "nobody", "what is connected stays");
}

#[tokio::test]
async fn trust_is_swapped_while_running() {
    let (old, new) = (Tree::new(), Tree::new());
    let server = old.server(&old.root_credential()).build().unwrap();
    let address = greeter(server.clone()).await;
    let client = old
        .client(Identity::Root)
        .credential(&new.cluster("c").credential())
        .build()
        .unwrap();
    assert!(ask(&client, &address).await.is_err());
    server
        .set_trust(&[old.root.root().clone(), new.root.root().clone()])
        .unwrap();
    assert!(ask(&client, &address).await.is_ok());
    server.swap(&new.root_credential()).unwrap();
    assert!(ask(&client, &address).await.is_err());
    client
        .set_trust(&[old.root.root().clone(), new.root.root().clone()])
        .unwrap();
    assert!(ask(&client, &address).await.is_ok());
}

#[tokio::test]
async fn expired_is_refused_on_both_sides_unless_the_key_is_known() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let node = cluster.node("1");
    let (known, asked) = (node.key().pin(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    let grace = move |key: &Pin| {
        counter.fetch_add(1, Ordering::SeqCst);
        *key == known
    };
    let strict = greeter(tree.server(&cluster.credential()).build().unwrap()).await;
    let server = tree
        .server(&cluster.credential())
        .grace(Arc::new(grace))
        .build()
        .unwrap();
    let graceful = greeter(server.clone()).await;
    let client = |credential: &Credential| tree.client(cluster.identity()).credential(credential).build().unwrap();
    assert!(ask(&client(&node), &graceful).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody is asked while it is valid");

    let stranger = cluster.node("2");
    let forged = tree.cluster("e").node("1");
    tree.clock.advance(Duration::from_millis(8 * DAY));
    assert!(ask(&client(&node), &strict).await.is_err());
    assert!(ask(&client(&node), &graceful).await.unwrap().starts_with("node"));
    assert!(ask(&client(&stranger), &graceful).await.is_err());
    assert!(ask(&client(&forged), &graceful).await.is_err());
    server.revocations().deny(node.peer().identity.clone());
    assert!(
        ask(&client(&node), &graceful).await.is_err(),
        "grace is not for the revoked"
    );

    tree.clock.advance(Duration::from_millis(30 * DAY));
    let error = ask(&client(&node), &strict).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
    let known = cluster.credential().key().pin();
    let patient = tree
        .client(cluster.identity())
        .grace(Arc::new(move |_: &Pin| true))
        .build()
        .unwrap();
    let open = greeter(
        tree.server(&cluster.credential())
            .clients(ClientAuth::None)
            .build()
            .unwrap(),
    )
    .await;
    assert_eq!(ask(&patient, &open).await.unwrap(), "nobody");
    let picky = tree
        .client(cluster.identity())
        .grace(Arc::new(move |key: &Pin| *key != known))
        .build()
        .unwrap();
    assert!(ask(&picky, &open).await.is_err());
}

#[tokio::test]
async fn grace_forgives_nothing_but_time() {
    let tree = Tree::new();
    let (c, d) = (tree.cluster("c"), tree.cluster("d"));
    let forged = c.forge(&format!("n-{}.c-{}.roble.internal", id("1"), id("d")));
    let foreign = Tree::new().cluster("d").node("1");
    let address = greeter(
        tree.server(&d.credential())
            .grace(Arc::new(|_: &Pin| true))
            .build()
            .unwrap(),
    )
    .await;
    tree.clock.advance(Duration::from_millis(40 * 365 * DAY));
    let grace = Arc::new(|_: &Pin| true);
    for credential in [forged, foreign] {
        let tls = tree
            .client(d.identity())
            .grace(grace.clone())
            .credential(&credential)
            .build()
            .unwrap();
        assert!(ask(&tls, &address).await.is_err());
    }
    let tls = tree
        .client(d.identity())
        .grace(grace)
        .credential(&d.node("1"))
        .build()
        .unwrap();
    assert!(ask(&tls, &address).await.is_ok());
}

#[tokio::test]
async fn the_revoked_get_no_handshake_on_either_side() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let server = tree.server(&cluster.credential()).build().unwrap();
    let address = greeter(server.clone()).await;
    let revocations = Revocations::new();
    let (one, two) = (cluster.node("1"), cluster.node("2"));
    let client = |node: &Credential| {
        tree.client(cluster.identity())
            .revocations(revocations.clone())
            .credential(node)
            .build()
            .unwrap()
    };
    server.revocations().deny(one.peer().identity.clone());
    assert!(ask(&client(&one), &address).await.is_err());
    assert!(ask(&client(&two), &address).await.is_ok());
    server.revocations().deny(cluster.identity());
    assert!(ask(&client(&two), &address).await.is_err(), "its cluster is revoked");
    server.revocations().replace([]);
    assert!(ask(&client(&one), &address).await.is_ok());
    revocations.deny(cluster.identity());
    assert!(ask(&client(&one), &address).await.unwrap_err().contains("Revoked"));
}

#[tokio::test]
async fn a_clock_at_1970_relies_on_what_was_persisted() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let address = greeter(
        tree.server(&cluster.credential())
            .clients(ClientAuth::None)
            .build()
            .unwrap(),
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("time");
    let clock = |file| Arc::new(VerifierClock::with_floor(Arc::new(ManualClock::new(0)), Some(file), 0));
    let client = |clock| {
        ClientTls::trusting(cluster.identity(), &[tree.root.root().clone()], clock)
            .build()
            .unwrap()
    };
    let error = ask(&client(clock(file.clone())), &address).await.unwrap_err();
    assert!(error.contains("not valid yet"), "{error}");
    VerifierClock::with_floor(tree.clock.clone(), Some(file.clone()), 0)
        .persist()
        .unwrap();
    assert_eq!(ask(&client(clock(file)), &address).await.unwrap(), "nobody");
}

#[tokio::test]
async fn joining_by_pin() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let address = greeter(
        tree.server(&cluster.credential())
            .clients(ClientAuth::Optional)
            .build()
            .unwrap(),
    )
    .await;
    let client = |server, pin| ClientTls::pinned(server, pin, tree.verifier.clone()).build().unwrap();
    // The server shows [leaf, cluster authority, root authority]; either authority may be pinned.
    for pin in [tree.root.pin(), cluster.authority.pin()] {
        assert_eq!(ask(&client(cluster.identity(), pin), &address).await.unwrap(), "nobody");
    }
    for wrong in [Tree::new().root.pin(), cluster.credential().key().pin()] {
        let error = ask(&client(cluster.identity(), wrong), &address).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
    }
    let error = ask(&client(Identity::Root, tree.root.pin()), &address)
        .await
        .unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let root = greeter(
        tree.server(&tree.root_credential())
            .clients(ClientAuth::Optional)
            .build()
            .unwrap(),
    )
    .await;
    assert_eq!(
        ask(&client(Identity::Root, tree.root.pin()), &root).await.unwrap(),
        "nobody"
    );
}

#[tokio::test]
async fn showing_the_pinned_authority_beside_a_foreign_leaf_does_not_help() {
    let (tree, attacker) = (Tree::new(), Tree::new());
    let leaf = attacker.root_credential();
    let key = PrivateKey::from_pem(leaf.key().to_pem().as_bytes()).unwrap();
    let chain = vec![
        leaf.chain()[0].clone(),
        attacker.root.root().clone(),
        tree.root.root().clone(),
    ];
    let forged = Credential::new(key, chain).unwrap();
    let address = greeter(tree.server(&forged).clients(ClientAuth::None).build().unwrap()).await;
    let client = ClientTls::pinned(Identity::Root, tree.root.pin(), tree.verifier.clone())
        .build()
        .unwrap();
    assert!(ask(&client, &address).await.is_err());
}

#[tokio::test]
async fn dialing_ends_in_time_and_says_why() {
    let tree = Tree::new();
    let dialer = Dialer::new(tree.client(Identity::Root).build().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let short = dialer.clone().with_timeout(Duration::from_millis(20));
    assert!(matches!(short.connect(&address).await, Err(DialError::Timeout { .. })));
    drop(listener);
    assert!(matches!(dialer.connect(&address).await, Err(DialError::Connect { .. })));
    let mut connector = dialer.connector();
    let result = tower::Service::call(&mut connector, http::Uri::from_static("/no/host")).await;
    assert!(matches!(result, Err(DialError::Uri { .. })));
}

#[tokio::test]
async fn libraries_that_dial_themselves_may_use_any_name() {
    let tree = Tree::new();
    let address = greeter(
        tree.server(&tree.root_credential())
            .clients(ClientAuth::None)
            .build()
            .unwrap(),
    )
    .await;
    let tls = tree.client(Identity::Root).protocol(Protocol::Raw).build().unwrap();
    assert!(tls.config().alpn_protocols.is_empty());
    let stream = TcpStream::connect(&address).await.unwrap();
    let dialed = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    tokio_rustls::TlsConnector::from(tls.config())
        .connect(dialed, stream)
        .await
        .unwrap();
    let wrong = tree.client(tree.cluster("c").identity()).build().unwrap();
    let stream = TcpStream::connect(&address).await.unwrap();
    let dialed = rustls_pki_types::ServerName::try_from("root.roble.internal").unwrap();
    assert!(
        tokio_rustls::TlsConnector::from(wrong.config())
            .connect(dialed, stream)
            .await
            .is_err()
    );
}
