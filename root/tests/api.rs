//! The users' API over real TLS, against a root in this process.
#![allow(missing_docs)]

mod common;

use common::{HELLO, settings, start, try_start};
use http::Method;
use http_body_util::BodyExt as _;
use roble_root::daemon::StartError;
use roble_root::local;
use std::os::unix::fs::PermissionsExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_credential_to_a_deleted_service() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let invitation = root.invitation.clone().unwrap();
    let text = invitation.to_string();
    assert!(
        text.contains(&format!("roble login https://127.0.0.1:{}", root.api.port())),
        "{text}"
    );
    let file = folder.path().join("credential");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let user = root.admin().await;
    assert!(!file.exists(), "a used credential is not kept");
    let again = serde_json::json!({ "credential": invitation.credential });
    let (status, error) = root.stranger().post("/v1/login", &again).await;
    assert_eq!((status, &error["code"]), (401, &"credential-invalid".into()));
    let (_, me) = user.get("/v1/whoami").await;
    assert_eq!(
        (&me["user"]["name"], &me["user"]["is_admin"]),
        (&"admin".into(), &true.into())
    );

    let (status, applied) = user.call(Method::POST, "/v1/apply?dry_run=true", HELLO).await;
    assert_eq!((status, &applied["dry_run"]), (200, &true.into()));
    assert_eq!(user.get("/v1/services").await.1, serde_json::json!([]));
    let (status, applied) = user.call(Method::POST, "/v1/apply", HELLO).await;
    assert_eq!((status, &applied["services"][0]["change"]), (200, &"created".into()));
    let (_, service) = user.get("/v1/services/hello%2Fweb").await;
    assert_eq!((&service["replicas"], &service["running"]), (&2.into(), &0.into()));
    let (_, instance) = user.get("/v1/instances/hello%2Fweb.1").await;
    assert_eq!(instance["phase"], "pending");
    assert_eq!(instance["reason"]["code"], "no-candidates");
    let (status, scaled) = user
        .call(Method::PUT, "/v1/services/hello%2Fweb/replicas", r#"{"replicas":1}"#)
        .await;
    assert_eq!((status, &scaled["replicas"]), (200, &1.into()));
    let (status, explained) = user.get("/v1/explain/hello%2Fweb.0").await;
    assert!(
        status == 200 && explained["summary"].as_str().unwrap().contains("pending"),
        "{explained}"
    );
    let (status, error) = user.get("/v1/instances/hello%2Fweb.0/logs").await;
    assert_eq!((status, &error["code"]), (409, &"not-placed".into()));

    let (status, deleted) = user.call(Method::DELETE, "/v1/applications/hello", "").await;
    assert_eq!(status, 200, "{deleted}");
    user.until("/v1/services", |services| {
        services.as_array().is_some_and(Vec::is_empty)
    })
    .await;
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_a_code_and_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let (user, stranger) = (root.admin().await, root.stranger());
    let large = "#".repeat(300 * 1024);
    let mut forged = stranger.clone();
    forged.token = Some("roble_0000".to_owned());
    let cases = [
        (&user, Method::GET, "/nothing/here", "", 404, "no-such-path"),
        (&user, Method::DELETE, "/v1/whoami", "", 405, "method-not-allowed"),
        (&stranger, Method::GET, "/v1/services", "", 401, "not-logged-in"),
        (
            &stranger,
            Method::GET,
            "/v1/events?follow=true",
            "",
            401,
            "not-logged-in",
        ),
        (&forged, Method::GET, "/v1/services", "", 401, "not-logged-in"),
        (&user, Method::POST, "/v1/apply", large.as_str(), 413, "body-too-large"),
        (
            &user,
            Method::POST,
            "/v1/apply",
            "services: 7",
            422,
            "descriptor-invalid",
        ),
        (
            &user,
            Method::POST,
            "/v1/apply?dry_run=perhaps",
            HELLO,
            400,
            "query-invalid",
        ),
        (&user, Method::POST, "/v1/tokens", "{\"kind\":", 400, "body-invalid"),
        (
            &user,
            Method::POST,
            "/v1/tokens",
            "{\"kind\":\"cluster\",\"x\":1}",
            400,
            "body-invalid",
        ),
        (&user, Method::GET, "/v1/services/a%2Fb", "", 404, "not-found"),
        (&user, Method::GET, "/v1/services/%ff", "", 400, "path-invalid"),
        (&user, Method::GET, "/v1/nodes/nobody", "", 404, "not-found"),
        (&user, Method::POST, "/v1/clusters/x/paint", "", 404, "no-such-path"),
        (
            &user,
            Method::GET,
            "/v1/events?after=yesterday",
            "",
            400,
            "query-invalid",
        ),
        (
            &stranger,
            Method::POST,
            "/v1/renew",
            "{\"csr\":\"\"}",
            401,
            "certificate-required",
        ),
    ];
    for (who, method, path, body, status, code) in cases {
        let (got, answer) = who.call(method.clone(), path, body.to_owned()).await;
        assert_eq!(
            (got, &answer["code"]),
            (status, &code.into()),
            "{method} {path}: {answer}"
        );
        assert!(
            answer["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{answer}"
        );
    }
    let login = serde_json::json!({ "credential": "guess" });
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(stranger.post("/v1/login", &login).await.0);
    }
    assert!(codes.contains(&429), "guessing is slowed down: {codes:?}");
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_and_what_happened_before_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let user = root.admin().await;
    user.call(Method::POST, "/v1/apply", HELLO).await;
    let response = user.send(Method::GET, "/v1/events?follow=true&ref=hello", "").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    user.call(Method::DELETE, "/v1/applications/hello", "").await;
    let (mut body, mut text) = (response.into_body(), String::new());
    let read = async {
        while !text.contains("\"created\"") || !text.contains("delet") {
            let frame = body.frame().await.expect("goes on").unwrap();
            text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap()));
        }
    };
    tokio::time::timeout(common::PATIENCE, read).await.expect("both events");
    let (_, listed) = user.get("/v1/events").await;
    let ids: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["id"].as_str())
        .collect();
    assert!(ids.is_sorted() && ids.len() >= 4, "{ids:?}");
    let (_, later) = user.get(&format!("/v1/events?after={}", ids[1])).await;
    assert_eq!(later.as_array().unwrap().len(), ids.len() - 2);
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_socket_makes_credentials_and_a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let (pin, state) = (root.pin.clone(), folder.path().to_owned());
    let newer = local::new_credential(&state, None).await.unwrap();
    let old = serde_json::json!({ "credential": root.invitation.as_ref().unwrap().credential });
    assert_eq!(
        root.stranger().post("/v1/login", &old).await.0,
        401,
        "only the newest works"
    );
    root.stop().await;

    let mut root = start(folder.path()).await;
    assert!(root.invitation.is_none(), "printed once");
    root.invitation = Some(newer);
    let user = root.admin().await;
    user.call(Method::POST, "/v1/apply", HELLO).await;
    root.stop().await;

    let root = start(folder.path()).await;
    assert_eq!((root.invitation.as_ref(), &root.pin), (None, &pin));
    let mut again = root.stranger();
    again.token.clone_from(&user.token);
    let (status, services) = again.get("/v1/services").await;
    assert_eq!((status, &services[0]["path"]), (200, &"hello/web".into()));
    let second = try_start(settings(folder.path())).await.err().unwrap().to_string();
    assert!(second.contains("in use by process"), "{second}");
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_has_an_owner_who_is_no_admin() {
    let folder = tempfile::tempdir().unwrap();
    let mut root = start(folder.path()).await;
    let first = root.invitation.clone().unwrap();
    let invited = async |name: &str| {
        let state = folder.path().to_owned();
        local::new_credential(&state, Some(name)).await
    };
    assert!(invited("not a name").await.is_err());
    let owner = invited("acme").await.unwrap();
    assert_ne!(owner.credential, first.credential);
    root.invitation = Some(owner);
    let owner = root.admin().await;
    // The admin's credential and its file are what they were.
    assert!(
        std::fs::read_to_string(folder.path().join("credential"))
            .unwrap()
            .contains(&first.credential)
    );
    root.invitation = Some(first);
    let admin = root.admin().await;
    let (_, me) = owner.get("/v1/whoami").await;
    assert_eq!(
        (&me["user"]["organization_name"], &me["user"]["is_admin"]),
        (&"acme".into(), &false.into()),
        "{me}"
    );

    // Both have the same names, and see their own.
    for user in [&admin, &owner] {
        assert_eq!(user.call(Method::POST, "/v1/apply", HELLO).await.0, 200);
    }
    let (of_admin, of_owner) = (admin.get("/v1/services").await.1, owner.get("/v1/services").await.1);
    assert_eq!(
        (of_admin.as_array().unwrap().len(), of_owner.as_array().unwrap().len()),
        (1, 1)
    );
    assert_eq!(of_admin[0]["path"], of_owner[0]["path"]);
    assert_ne!(
        (&of_admin[0]["id"], &of_admin[0]["addresses"]),
        (&of_owner[0]["id"], &of_owner[0]["addresses"])
    );
    let foreign = format!("/v1/services/{}", of_admin[0]["id"].as_str().unwrap());
    assert_eq!(owner.get(&foreign).await.0, 404);
    for path in ["/v1/clusters", "/v1/nodes", "/v1/tokens", "/v1/audit"] {
        assert_eq!((admin.get(path).await.0, owner.get(path).await.0), (200, 403), "{path}");
    }

    // The same name is the same organization.
    root.invitation = Some(invited("acme").await.unwrap());
    let again = root.admin().await;
    assert_eq!(again.get("/v1/services").await.1, of_owner);
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_leave_audit_records_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut few = settings(folder.path());
    few.audit.records = 4;
    let root = try_start(few.clone()).await.unwrap();
    let user = root.admin().await;
    assert_eq!(root.stranger().get("/v1/audit").await.0, 401);
    let actions = async |user: &common::User, path: &str| {
        let (status, records) = user.get(path).await;
        assert_eq!(status, 200, "{records}");
        let records = records.as_array().unwrap().clone();
        let word = |record: &serde_json::Value| format!("{} {}", record["action"], record["object"]).replace('"', "");
        (records.iter().map(word).collect::<Vec<_>>(), records)
    };
    let (first, _) = actions(&user, "/v1/audit").await;
    assert_eq!(first, ["new-credential admin", "login "]);
    user.call(Method::POST, "/v1/apply?dry_run=true", HELLO).await;
    user.call(Method::POST, "/v1/apply", HELLO).await;
    user.get("/v1/services").await;
    let (all, records) = actions(&user, "/v1/audit").await;
    assert_eq!(
        all,
        ["new-credential admin", "login ", "apply hello/web"],
        "who only looks leaves none"
    );
    assert_eq!(records[2]["user"], "admin");
    user.call(Method::PUT, "/v1/services/hello%2Fweb/replicas", r#"{"replicas":1}"#)
        .await;
    user.call(Method::DELETE, "/v1/applications/hello", "").await;
    let kept = [
        "login ",
        "apply hello/web",
        "scale hello/web to 1",
        "delete-application hello",
    ];
    let (all, records) = actions(&user, "/v1/audit").await;
    assert_eq!(all, kept, "four are kept");
    assert_eq!(actions(&user, "/v1/audit?limit=1").await.0, kept[3..]);
    let before = format!("/v1/audit?limit=2&before={}", records[3]["id"].as_str().unwrap());
    assert_eq!(actions(&user, &before).await.0, kept[1..3]);
    root.stop().await;

    // They are still there after a restart, and go with time.
    let root = try_start(few.clone()).await.unwrap();
    let mut again = root.stranger();
    again.token.clone_from(&user.token);
    assert_eq!(actions(&again, "/v1/audit").await.0, kept);
    root.stop().await;
    few.audit.age_ms = 1;
    let root = try_start(few).await.unwrap();
    let mut again = root.stranger();
    again.token.clone_from(&user.token);
    again
        .until("/v1/audit", |records| records.as_array().is_some_and(Vec::is_empty))
        .await;
    root.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_only_as_long_as_the_session_stands() {
    let folder = tempfile::tempdir().unwrap();
    let mut short = settings(folder.path());
    short.session = std::time::Duration::from_secs(5);
    let root = try_start(short).await.unwrap();
    let user = root.admin().await;
    let following = user.send(Method::GET, "/v1/events?follow=true", "").await;
    assert_eq!(following.status(), 200);
    let ended = tokio::time::timeout(common::PATIENCE, following.into_body().collect()).await;
    assert!(ended.is_ok(), "it goes on without a session");
    assert_eq!(user.get("/v1/whoami").await.0, 401);
    root.stop().await;
}

/// Credentials, sessions and join tokens lie there as digests only.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_lies_in_the_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    let credential = root.invitation.as_ref().unwrap().credential.clone();
    let user = root.admin().await;
    let token = user.cluster_token().await;
    root.stop().await;
    let session = user.token.unwrap();
    let session_secret = session.strip_prefix("roble_").unwrap().to_owned();
    let join_secret = token.split('.').nth(3).unwrap().to_owned();
    let digest = roble_core::registry::sha256_hex(session.as_bytes());
    let (mut folders, mut digests) = (vec![folder.path().to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            for secret in [&credential, &session_secret, &join_secret] {
                assert!(!has(secret), "{} holds a secret", path.display());
            }
            digests += u32::from(has(&digest));
        }
    }
    assert!(digests > 0, "this test would see what lies there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_not_served_empty() {
    let folder = tempfile::tempdir().unwrap();
    let root = start(folder.path()).await;
    root.admin().await;
    root.stop().await;
    let store = folder.path().join("store/store.redb");
    std::fs::write(&store, vec![7; 4_096]).unwrap();
    for _ in 0..2 {
        let error = try_start(settings(folder.path())).await.err().unwrap();
        assert!(matches!(error, StartError::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("--accept-empty-store") && text.contains("store.redb.damaged-"),
            "{text}"
        );
    }
    // A credential of the lost store is of no use.
    std::fs::write(folder.path().join("credential"), "old").unwrap();
    let mut accepting = settings(folder.path());
    accepting.accept_empty_store = true;
    let root = try_start(accepting).await.unwrap();
    assert!(root.invitation.is_some());
    root.stop().await;
    std::fs::remove_file(folder.path().join("authority.pem")).unwrap();
    let error = try_start(settings(folder.path())).await.err().unwrap();
    assert!(matches!(error, StartError::AuthorityMissing(_)), "{error}");
}
