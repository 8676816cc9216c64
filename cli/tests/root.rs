//! The whole command against a root in this process, over real TLS.

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser as _;
use roble_cli::console::Console;
use roble_cli::context::Environment;
use roble_cli::flags::Cli;
use roble_core::time::Timestamp;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::{Authority, Credential, Lifetimes, PrivateKey, VerifiedRequest};
use roble_daemon::serve::{Limits, Server, bind};
use roble_daemon::tls::{ClientAuth, Protocol, ServerTls};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const ID: &str = "0123456789abcdef01234567";

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);
impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

struct Root {
    url: String,
    pin: String,
    logins: Arc<AtomicU32>,
    folder: tempfile::TempDir,
}

fn user() -> Value {
    json!({"id": ID, "name": "admin", "organization": ID, "organization_name": "default", "is_admin": true})
}

fn instance() -> Value {
    json!({"path": "shop/web.0", "id": format!("{ID}.0"), "phase": "running", "reason": null, "generation": 1,
        "epochs": [1, 1], "restarts": 2, "exit_code": null, "started_at": 10_000, "cluster": "north", "cluster_id": ID,
        "node": ID, "node_name": "pi-3", "node_address": "10.0.0.5", "ports": ["18080:8080/tcp"], "image_digest": null, "addresses": [], "service_addresses": [],
        "age_ms": 100})
}

fn error(status: u16, code: &str, mistakes: Value) -> (StatusCode, Json<Value>) {
    let body = json!({"code": code, "message": "no", "mistakes": mistakes});
    (StatusCode::from_u16(status).unwrap(), Json(body))
}

impl Root {
    async fn start() -> Self {
        let clock = Arc::new(VerifierClock::volatile(Arc::new(SystemClock)));
        let authority = Authority::create_root(clock.now(), Lifetimes::default()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
        let issued = authority.issue_root(&[], &request, clock.now()).unwrap();
        let credential = Credential::new(key, issued.chain).unwrap();
        let tls = ServerTls::builder(&credential, clock)
            .clients(ClientAuth::Optional)
            .protocol(Protocol::Http)
            .build()
            .unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let logins = Arc::new(AtomicU32::new(0));
        let count = logins.clone();
        let router = Router::new()
            .route("/v1/login", post(move || async move {
                count.fetch_add(1, Ordering::SeqCst);
                Json(json!({"token": "secret", "user": user(), "expires_at": 0}))
            }))
            .route("/v1/instances", get(|| async { Json(json!([instance()])) }))
            .route("/v1/services/{name}", get(|| async { error(404, "unknown-service", json!([])) }))
            .route("/v1/applications/{name}", get(|| async { Json(json!({"id": ID, "name": "shop", "description": "",
                "created_at": 0, "services": []})) }))
            .route("/v1/clusters", get(|| async { error(403, "forbidden", json!([])) }))
            .route("/v1/apply", post(|| async { error(422, "descriptor", json!([
                {"path": "services.web.memory", "line": 4, "code": "bad-value", "message": "not a size", "help": "64MiB"}])) }));
        tokio::spawn(Server::new(tls, Limits::default(), CancellationToken::new()).http(listener, router));
        let pin = authority.root_pin().unwrap().to_string();
        Self {
            url,
            pin,
            logins,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    async fn run(&self, line: &[&str]) -> (u8, String, String) {
        let config = self.folder.path().join("config.json");
        let environment = [("ROBLE_CONFIG".to_owned(), config.to_str().unwrap().to_owned())];
        let (out, err) = (Shared::default(), Shared::default());
        let mut console = Console {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            input: Box::new(std::io::empty()),
            clock: Box::new(|| Timestamp::from_millis(70_000)),
            interactive: false,
        };
        let cli = Cli::try_parse_from([&["roble"], line].concat()).unwrap();
        let exit = roble_cli::run(cli, &Environment(environment.into()), &mut console).await;
        (exit as u8, out.text(), err.text())
    }

    async fn log_in(&self) {
        let (exit, out, err) = self
            .run(&["login", &self.url, "--credential", "x", "--pin", &self.pin])
            .await;
        assert_eq!((exit, self.logins.load(Ordering::SeqCst)), (0, 1), "{out}{err}");
    }
}

#[tokio::test]
async fn no_credential_is_sent_to_an_authority_that_is_not_the_pinned_one() {
    let root = Root::start().await;
    let other = "ab".repeat(32);
    let (exit, _, err) = root
        .run(&["login", &root.url, "--credential", "x", "--pin", &other])
        .await;
    assert_eq!(exit, 5);
    assert!(
        err.contains("not under the pinned authority") && err.contains(&other),
        "{err}"
    );
    let (exit, _, err) = root.run(&["login", &root.url, "--credential", "x"]).await;
    assert_eq!(exit, 5);
    assert!(err.contains(&format!("--pin {}", root.pin)), "{err}");
    assert_eq!(root.logins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_session_is_kept_for_its_owner_only_and_a_changed_authority_is_refused() {
    let (root, other) = (Root::start().await, Root::start().await);
    root.log_in().await;
    let file = root.folder.path().join("config.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let moved = std::fs::read_to_string(&file).unwrap().replace(&root.url, &other.url);
    std::fs::write(&file, moved).unwrap();
    let (exit, _, err) = root.run(&["ps"]).await;
    assert_eq!(exit, 5, "{err}");
    assert!(err.contains("the authority has changed"), "{err}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (exit, _, err) = root.run(&["ps"]).await;
    assert!(exit == 5 && err.contains("chmod 600"), "{err}");
}

#[tokio::test]
async fn instances_in_all_formats() {
    let root = Root::start().await;
    root.log_in().await;
    let (exit, out, _) = root.run(&["ps"]).await;
    let table = "\
INSTANCE    PHASE    REASON  CLUSTER  NODE  ADDRESS         RESTARTS  AGE
shop/web.0  running  -       north    pi-3  10.0.0.5:18080  2         60s
";
    assert_eq!((exit, out.as_str()), (0, table));
    assert_eq!(root.run(&["ps", "-o", "name"]).await.1, "shop/web.0\n");
    let parsed: Value = serde_json::from_str(&root.run(&["ps", "-o", "json"]).await.1).unwrap();
    assert_eq!(parsed, json!([instance()]));
    let yaml: Value = serde_saphyr::from_str(&root.run(&["ps", "-o", "yaml"]).await.1).unwrap();
    assert_eq!(yaml, json!([instance()]));
    assert_eq!(root.run(&["ps", "other"]).await.1, "");
}

#[tokio::test]
async fn exit_codes_are_as_documented() {
    let root = Root::start().await;
    assert_eq!(root.run(&["ps"]).await.0, 5, "not logged in");
    root.log_in().await;
    assert_eq!(root.run(&["get", "services", "shop/web"]).await.0, 3);
    assert_eq!(root.run(&["get", "clusters"]).await.0, 5);
    assert_eq!(root.run(&["wait", "shop/web", "--for", "gone"]).await.0, 0);
    assert_eq!(
        root.run(&["wait", "shop", "--for", "gone", "--timeout", "300ms"])
            .await
            .0,
        4
    );
    assert_eq!(root.run(&["wait", "cluster/north", "--for", "completed"]).await.0, 2);
    let (exit, _, err) = root
        .run(&["login", "127.0.0.1:1", "--credential", "x", "--pin", &root.pin])
        .await;
    assert_eq!(exit, 1);
    assert!(
        err.contains("https://127.0.0.1:1") && err.contains("nothing listens there"),
        "{err}"
    );
}

#[tokio::test]
async fn every_mistake_of_a_descriptor_has_its_line_and_its_help() {
    let root = Root::start().await;
    root.log_in().await;
    let file = root.folder.path().join("app.yaml");
    std::fs::write(&file, "application: shop\n").unwrap();
    let name = file.to_str().unwrap();
    let (exit, _, err) = root.run(&["apply", "-f", name]).await;
    assert_eq!(exit, 1);
    assert!(
        err.contains(&format!(
            "{name}:4: services.web.memory: not a size [bad-value]\n  help: 64MiB\n"
        )),
        "{err}"
    );
    assert_eq!(root.run(&["validate", "-f", name]).await.0, 1);
}
