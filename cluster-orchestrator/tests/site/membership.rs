//! Who gets in, who stays out, and certificates.

use super::*;
use roble_proto::wire::DeleteToken;
use roble_proto::wire::request::What;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_waits_for_approval_and_keeps_what_it_was_given() {
    let root = FakeRoot::start().await;
    roble_daemon::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let (address, token) = (root.address.to_string(), root.token(true).reveal());
    let config = settings(folder.path(), &["--root", &address, "--join", &token]);
    let stop = CancellationToken::new();
    let starting = tokio::spawn(Daemon::start(config, seams(), stop.clone()));
    eventually("pending", || (root.pending() == 1).then_some(())).await;
    assert!(!starting.is_finished());
    root.approve_all();
    let daemon = starting.await.unwrap().unwrap();
    let id = daemon.membership.id;
    stop.cancel();
    daemon.run().await.unwrap();
    // Without root and token.
    let stop = CancellationToken::new();
    root.go().await;
    let again = Daemon::start(settings(folder.path(), &[]), seams(), stop.clone())
        .await
        .unwrap();
    assert_eq!(again.membership.id, id);
    stop.cancel();
    again.run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_says_no_secret_to_a_stranger_and_is_told_what_is_wrong() {
    let root = FakeRoot::start().await;
    roble_daemon::install_crypto_provider();
    let address = root.address.to_string();
    let start = async |token: &str| {
        let folder = tempfile::tempdir().unwrap();
        let config = settings(folder.path(), &["--root", &address, "--join", token]);
        let result = Daemon::start(config, seams(), CancellationToken::new()).await;
        (format!("{:#}", result.err().expect("refused")), folder)
    };
    let good = root.token(false);
    let wrong_pin = JoinToken {
        pin: "0".repeat(64),
        ..good.clone()
    };
    let (error, _) = start(&wrong_pin.reveal()).await;
    assert!(error.contains("TLS handshake"), "{error}");
    let wrong_secret = JoinToken {
        secret: "0".repeat(64),
        ..good.clone()
    };
    let (error, _) = start(&wrong_secret.reveal()).await;
    assert!(error.contains("token-invalid"), "{error}");
    // The good token is still unused; then another key tries it.
    let folder = tempfile::tempdir().unwrap();
    let config = settings(folder.path(), &["--root", &address, "--join", &good.reveal()]);
    drop(Daemon::start(config, seams(), CancellationToken::new()).await.unwrap());
    let (error, _) = start(&good.reveal()).await;
    assert!(error.contains("token-used"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = Daemon::start(settings(folder.path(), &[]), seams(), CancellationToken::new()).await;
    assert!(error.err().unwrap().to_string().contains("--join"));
}

/// Asked for by the root; the site's own door leads to the same code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_token_admits_nobody() {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, &[]).await;
    let token = site.token(&NewToken::default()).await;
    let delete = || {
        let token = token.id.to_string();
        root.ask(What::DeleteToken(DeleteToken { token }))
    };
    let answer = delete().await;
    assert!(matches!(answer, response::What::Json(_)), "{answer:?}");
    let key = PrivateKey::generate().unwrap();
    match node::join(site.api, &token, "a", &key).await.err() {
        Some(JoinError::Refused { body, .. }) => assert_eq!(body.code, "token-invalid"),
        other => panic!("{other:?}"),
    }
    match delete().await {
        response::What::Failure(failure) => assert_eq!(failure.code, "not-found"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_only_with_a_right_token_of_this_cluster() {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, &[]).await;
    let token = site.token(&NewToken::default()).await;
    let key = PrivateKey::generate().unwrap();
    let code = |result: Result<Joined, JoinError>| match result.err().expect("refused") {
        JoinError::Refused { body, .. } => body.code,
        other => other.to_string(),
    };
    let wrong_pin = JoinToken {
        pin: "1".repeat(64),
        ..token.clone()
    };
    assert!(code(node::join(site.api, &wrong_pin, "a", &key).await).contains("connect"));
    let wrong_secret = JoinToken {
        secret: "1".repeat(64),
        ..token.clone()
    };
    assert_eq!(
        code(node::join(site.api, &wrong_secret, "a", &key).await),
        "token-invalid"
    );
    assert_eq!(
        code(node::join(site.api, &token, "Bad Name", &key).await),
        "name-invalid"
    );
    let first = node::join(site.api, &token, "a", &key).await.unwrap();
    let again = node::join(site.api, &token, "a", &key).await.unwrap();
    assert_eq!((first.id, first.grant.link_port), (again.id, site.mqtt.port()));
    let other = PrivateKey::generate().unwrap();
    assert_eq!(code(node::join(site.api, &token, "b", &other).await), "token-used");
    // Renewal needs the certificate, and gives one for the same node.
    let dialer = Dialer::new(first.tls(Protocol::Raw));
    let renewed = roble_daemon::join::renew(&dialer, &site.api.to_string(), &key, None)
        .await
        .unwrap();
    assert_eq!(renewed.id, first.grant.id);
    assert!(
        roble_daemon::join::renew(&dialer, &site.api.to_string(), &other, None)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_node_gets_nothing_before_it_is_approved() {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, &[]).await;
    root.go().await;
    let token = site
        .token(&NewToken {
            needs_approval: true,
            ..NewToken::default()
        })
        .await;
    let (api, key) = (site.api, PrivateKey::generate().unwrap());
    // What the wait inside the common join does not show.
    let cluster = roble_daemon::pki::Identity::cluster(&token.cluster.unwrap().to_string()).unwrap();
    let tls = roble_daemon::tls::ClientTls::pinned(cluster, token.pin.parse().unwrap(), node::clock());
    let dialer = Dialer::new(tls.protocol(Protocol::Raw).build().unwrap());
    let request = JoinRequest {
        token: token.id,
        secret: token.secret.clone(),
        name: "pi-9".to_owned(),
        csr: roble_daemon::pki::certificate_request_to_pem(&key.request().unwrap()),
    };
    let grant: JoinGrant = roble_daemon::join::post(&dialer, &api.to_string(), "/v1/join", &request)
        .await
        .unwrap();
    assert_eq!((grant.state, grant.certificates.as_str()), (MemberState::Pending, ""));
    let joining = tokio::spawn(async move { node::join(api, &token, "pi-9", &key).await });
    site.change("/v1/nodes/pi-9/approve").await;
    let joined = joining.await.unwrap().unwrap();
    connected(&FakeNode::start(&joined, "pi-9")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_out_and_stays_out() {
    let root = FakeRoot::start().await;
    let mut site = Site::join(&root, &[]).await;
    let (joined, node) = site.node("pi-1").await;
    let at = std::time::Instant::now();
    site.change("/v1/nodes/pi-1/revoke").await;
    eventually("put out", || (!node.seen.lock().unwrap().connected).then_some(())).await;
    assert!(at.elapsed() < Duration::from_secs(10));
    site.restart(&[]).await;
    let downs = node.seen.lock().unwrap().downs;
    eventually("refused again", || {
        (node.seen.lock().unwrap().downs > downs + 2).then_some(())
    })
    .await;
    assert!(!node.seen.lock().unwrap().connected);
    let dialer = Dialer::new(joined.tls(Protocol::Raw));
    let key = PrivateKey::from_pem(joined.key.as_bytes()).unwrap();
    assert!(
        roble_daemon::join::renew(&dialer, &site.api.to_string(), &key, None)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_in_time_and_connections_stay() {
    let root = FakeRoot::start().await;
    let short = Seams {
        lifetimes: Lifetimes {
            cluster: Duration::from_secs(6),
            ..Lifetimes::default()
        },
        ..seams()
    };
    let site = Site::join_with(&root, &[], short).await;
    let leaf = site.folder.path().join("state/cluster.pem");
    let before = std::fs::read(&leaf).unwrap();
    let (_, node) = site.node("pi-1").await;
    eventually("a new certificate", || {
        (std::fs::read(&leaf).unwrap() != before).then_some(())
    })
    .await;
    let (_, other) = site.node("pi-2").await;
    assert_eq!(node.seen.lock().unwrap().sessions, 1);
    assert_eq!(other.seen.lock().unwrap().sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_renewed_at_the_root() {
    let root = FakeRoot::start_with(Lifetimes {
        cluster_authority: Duration::from_secs(12),
        ..Lifetimes::default()
    })
    .await;
    let site = Site::join(&root, &[]).await;
    let file = site.folder.path().join("state/membership.json");
    let before = std::fs::read(&file).unwrap();
    let (_, node) = site.node("pi-1").await;
    eventually("a new authority", || {
        (std::fs::read(&file).unwrap() != before).then_some(())
    })
    .await;
    assert!(root.state.lock().unwrap().renewals >= 1);
    let (_, other) = site.node("pi-2").await;
    assert_eq!(node.seen.lock().unwrap().sessions, 1);
    assert_eq!(other.seen.lock().unwrap().sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_node_goes_on_and_renews_past_expiry_until_it_is_revoked() {
    let root = FakeRoot::start().await;
    let short = Seams {
        lifetimes: Lifetimes {
            node: Duration::from_secs(1),
            ..Lifetimes::default()
        },
        ..seams()
    };
    let site = Site::join_with(&root, &[], short).await;
    let token = site.token(&NewToken::default()).await;
    let key = PrivateKey::generate().unwrap();
    let joined = node::join(site.api, &token, "pi-1", &key).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    connected(&FakeNode::start(&joined, "pi-1")).await;
    let dialer = Dialer::new(joined.tls(Protocol::Raw));
    let api = site.api.to_string();
    let renewed = roble_daemon::join::renew(&dialer, &api, &key, None).await.unwrap();
    assert_ne!(renewed.certificates, joined.grant.certificates);
    site.change("/v1/nodes/pi-1/revoke").await;
    assert!(roble_daemon::join::renew(&dialer, &api, &key, None).await.is_err());
}
