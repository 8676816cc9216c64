//! Clusters: joining, the link, logs, revocation; over real TLS and gRPC, against a root in this process.
#![allow(missing_docs)]

mod common;

use common::cluster::{self, channel, credential, dialer, join, serve, serve_as};
use common::{HELLO, PATIENCE, start};
use http::Method;
use http_body_util::BodyExt as _;
use roble_core::registry::MemberState;
use roble_daemon::join::{JoinError, renew};
use roble_daemon::pki::PrivateKey;
use roble_daemon::tls::Protocol;
use roble_proto::wire::link_client::LinkClient;

fn refusal(result: Result<roble_proto::rest::JoinGrant, JoinError>) -> (u16, String) {
    match result {
        Err(JoinError::Refused { status, body, .. }) => (status, body.code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_one_key_and_the_key_renews() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    let token = user.cluster_token().await;
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let secret = token.split('.').nth(3).unwrap();
    let wrong = token.replace(secret, &"0".repeat(64));
    assert_eq!(
        refusal(join(&root, &wrong, "north", &key).await),
        (403, "token-invalid".into())
    );
    let grant = join(&root, &token, "north", &key).await.unwrap();
    assert_eq!((grant.state, grant.link_port), (MemberState::Active, root.link.port()));
    assert_eq!(
        join(&root, &token, "north", &key).await.unwrap().id,
        grant.id,
        "repeating gives the same"
    );
    assert_eq!(
        refusal(join(&root, &token, "south", &other).await),
        (403, "token-used".into())
    );

    let own = credential(&grant, &key);
    let renewing = dialer(&own, Protocol::Http);
    let renewed = renew(&renewing, &root.api.to_string(), &key, None).await.unwrap();
    assert!(renewed.id == grant.id && renewed.certificates != grant.certificates);
    assert_eq!(
        refusal(renew(&renewing, &root.api.to_string(), &other, None).await).0,
        404,
        "the joined key only"
    );

    let approval = serde_json::json!({ "kind": "cluster", "needs_approval": true });
    let (_, token) = user.post("/v1/tokens", &approval).await;
    let token = token["token"].as_str().unwrap();
    let pending = join(&root, token, "south", &other).await.unwrap();
    assert_eq!(
        (pending.state, pending.certificates.as_str()),
        (MemberState::Pending, "")
    );
    assert_eq!(
        user.post("/v1/clusters/south/approve", &serde_json::Value::Null)
            .await
            .0,
        200
    );
    let granted = join(&root, token, "south", &other).await.unwrap();
    assert!(granted.id == pending.id && granted.certificates.contains("BEGIN CERTIFICATE"));
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_runs_what_it_is_told_through_restart_and_revocation() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    let key = PrivateKey::generate().unwrap();
    let token = user.cluster_token().await;
    let grant = join(&root, &token, "north", &key).await.unwrap();
    let own = credential(&grant, &key);
    let link = serve(&root, &own, "north").await;
    user.until("/v1/clusters/north", |cluster| cluster["standing"] == "ready")
        .await;
    user.call(Method::POST, "/v1/apply", HELLO).await;
    let up = |service: &serde_json::Value| service["running"] == 2;
    user.until("/v1/services/hello%2Fweb", up).await;
    let (_, instance) = user.get("/v1/instances/hello%2Fweb.0").await;
    assert_eq!(
        (&instance["phase"], &instance["cluster"]),
        (&"running".into(), &"north".into())
    );

    // A log as it is, and one that breaks off.
    let (status, log) = user.get("/v1/instances/hello%2Fweb.0/logs?tail=2").await;
    assert_eq!((status, log), (200, "line 0\nline 1\n".into()));
    let broken = user
        .send(Method::GET, "/v1/instances/hello%2Fweb.0/logs?tail=99&follow=true", "")
        .await;
    assert!(
        broken.into_body().collect().await.is_err(),
        "a log that is not whole does not look whole"
    );

    // A way is asked of the node that holds the caller.
    let (status, trace) = user.get("/v1/trace/hello%2Fweb.0?to=hello%2Fweb.1&port=80").await;
    assert_eq!((status, &trace["verdict"]), (200, &"not-attached".into()), "{trace}");
    assert_eq!(
        (&trace["name"], &trace["policy"]),
        (&"1.web.hello.roble".into(), &"1".into())
    );
    assert_eq!(trace["ways"][0]["to"]["instance"], "hello/web.1");
    let (_, closest) = user.get("/v1/trace/hello%2Fweb.0?to=hello%2Fweb&policy=closest").await;
    assert_eq!(closest["name"], "closest.web.hello.roble");
    for (wrong, expected) in [
        ("hello%2Fweb.0?to=hello%2Fnobody", (404, "not-found")),
        ("hello%2Fweb.9?to=hello%2Fweb", (404, "not-found")),
        ("hello%2Fweb.0?to=hello%2Fweb&port=1-2", (400, "query-invalid")),
        ("hello%2Fweb.0?to=hello%2Fweb&policy=nearest", (400, "query-invalid")),
        ("hello%2Fweb.0", (400, "query-invalid")),
    ] {
        let (status, error) = user.get(&format!("/v1/trace/{wrong}")).await;
        assert_eq!((status, error["code"].as_str().unwrap()), expected, "{wrong}: {error}");
    }

    // A newer stream takes the place of the older one.
    let newer = serve(&root, &own, "north").await;
    tokio::time::timeout(PATIENCE, link)
        .await
        .expect("the older ends")
        .unwrap();
    user.until("/v1/clusters/north", |cluster| cluster["standing"] == "ready")
        .await;
    root.stop().await;
    tokio::time::timeout(PATIENCE, newer)
        .await
        .expect("a stopping root ends links")
        .unwrap();

    // Another process, the same root.
    let root = start(folder.path()).await;
    let mut again = root.stranger();
    again.token.clone_from(&user.token);
    let user = again;
    let link = serve(&root, &own, "north").await;
    user.until("/v1/clusters/north", |cluster| cluster["standing"] == "ready")
        .await;
    user.until("/v1/services/hello%2Fweb", up).await;
    user.call(Method::DELETE, "/v1/applications/hello", "").await;
    user.until("/v1/instances", |instances| {
        instances.as_array().is_some_and(Vec::is_empty)
    })
    .await;

    // Put out: the link ends, and nothing of it comes back, not after a restart either.
    assert_eq!(
        user.post("/v1/clusters/north/revoke", &serde_json::Value::Null).await.0,
        200
    );
    tokio::time::timeout(PATIENCE, link)
        .await
        .expect("the link ends")
        .unwrap();
    assert!(!opens(&root, &own).await);
    assert!(
        renew(&dialer(&own, Protocol::Http), &root.api.to_string(), &key, None)
            .await
            .is_err()
    );
    root.stop().await;
    let root = start(folder.path()).await;
    assert!(!opens(&root, &own).await, "revoked for good");
    root.stop().await;
}

/// Whether a session can be opened with this certificate.
async fn opens(root: &common::Root, own: &roble_daemon::pki::Credential) -> bool {
    match channel(root, own).await {
        Ok(channel) => LinkClient::new(channel).session(tokio_stream::pending()).await.is_ok(),
        Err(_) => false,
    }
}

/// Two machines with one key put each other out in turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_identity_is_noticed_and_cordoned() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    let key = PrivateKey::generate().unwrap();
    let grant = join(&root, &user.cluster_token().await, "north", &key).await.unwrap();
    let own = credential(&grant, &key);
    let mut link = serve_as(0, &root, &own, "north").await;
    let mut turns = 0;
    let is_cloned = async || user.get("/v1/clusters/north").await.1["cloned"] == true;
    while !is_cloned().await {
        let newer = serve_as(turns % 2, &root, &own, "north").await;
        let older = std::mem::replace(&mut link, newer);
        tokio::time::timeout(PATIENCE, older)
            .await
            .expect("it is put out")
            .unwrap();
        let ended = std::time::Instant::now();
        loop {
            let (ago, (_, cluster)) = (ended.elapsed(), user.get("/v1/clusters/north").await);
            let silent = cluster["silent_ms"].as_u64().map(u128::from);
            if cluster["cloned"] == true || silent.is_some_and(|silent| silent < ago.as_millis()) {
                break;
            }
            assert!(ago < PATIENCE, "the newer one says nothing: {cluster}");
        }
        turns += 1;
    }
    assert!(turns >= 4, "a process that was replaced once is no clone");
    let cloned = user
        .until("/v1/clusters/north", |cluster| cluster["cloned"] == true)
        .await;
    assert_eq!(cloned["cordoned"], true);
    let (_, events) = user.get("/v1/events?ref=cluster%2Fnorth").await;
    assert!(
        events.as_array().unwrap().iter().any(|event| event["code"] == "cloned"),
        "{events}"
    );
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_say_who_did_not_answer_and_tokens_are_deleted_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    let key = PrivateKey::generate().unwrap();
    let grant = join(&root, &user.cluster_token().await, "north", &key).await.unwrap();
    let (_, nodes) = user.get("/v1/nodes").await;
    assert_eq!(nodes["items"], serde_json::json!([]));
    assert_eq!(nodes["unanswered"][0]["cluster"], "north");
    assert_eq!(nodes["unanswered"][0]["code"], "cluster-unreachable");

    let own = token_ids(&user.get("/v1/tokens").await.1);
    let path = format!("/v1/tokens/{}", cluster::TOKEN);
    let (status, unknown) = user.call(Method::DELETE, &path, "").await;
    assert_eq!(
        (status, &unknown["code"]),
        (404, &"not-found".into()),
        "no cluster is there to ask"
    );

    let _link = serve(&root, &credential(&grant, &key), "north").await;
    user.until("/v1/clusters/north", |cluster| cluster["standing"] == "ready")
        .await;
    // This cluster does not know how to list nodes.
    let (_, nodes) = user.get("/v1/nodes").await;
    assert_eq!(nodes["unanswered"][0]["code"], "cluster-answer");
    let (_, tokens) = user.get("/v1/tokens").await;
    assert_eq!(tokens["unanswered"], serde_json::json!([]));
    assert_eq!(
        token_ids(&tokens),
        [own.clone(), vec![cluster::TOKEN.to_owned()]].concat()
    );
    let (status, deleted) = user.call(Method::DELETE, &path, "").await;
    assert_eq!((status, &deleted["deleted"][0]), (200, &cluster::TOKEN.into()));
    let (status, _) = user.call(Method::DELETE, &format!("/v1/tokens/{}", own[0]), "").await;
    assert_eq!(status, 200, "the root's own");
    let (status, unknown) = user.call(Method::DELETE, &format!("/v1/tokens/{}", own[0]), "").await;
    assert_eq!((status, &unknown["code"]), (404, &"not-found".into()));
    root.stop().await;
}

fn token_ids(tokens: &serde_json::Value) -> Vec<String> {
    let items = tokens["items"].as_array().unwrap();
    items
        .iter()
        .map(|token| token["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_opens_a_stream_that_was_not_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    let key = PrivateKey::generate().unwrap();
    let grant = join(&root, &user.cluster_token().await, "north", &key).await.unwrap();
    let channel = cluster::channel(&root, &credential(&grant, &key)).await.unwrap();
    let frame = roble_proto::wire::StreamFrame {
        stream: "guess".to_owned(),
        ..Default::default()
    };
    let refused = LinkClient::new(channel)
        .stream(tokio_stream::once(frame))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    root.stop().await;
}
