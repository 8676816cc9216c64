//! What each verb asks of the root, prints and ends with, in every format, against golden files in `tests/golden/`.
//!
//! `ROBLE_BLESS=1 cargo test -p roble-cli --test golden` writes them anew; a person reads what changed.

use clap::Parser as _;
use futures_util::StreamExt as _;
use roble_cli::api::{Answer, Api, Request};
use roble_cli::command::{Session, with_root};
use roble_cli::console::Console;
use roble_cli::failure::{Exit, Failure};
use roble_cli::flags::Cli;
use roble_core::time::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

const ID: &str = "0123456789abcdef01234567";
/// When it is on the console's clock.
const NOW: u64 = 3_700_000;

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

/// A root that has one of everything, and remembers what it was asked.
#[derive(Default)]
struct Root(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Api for Root {
    async fn send(&self, request: Request) -> Result<Answer, Failure> {
        let mut line = format!("{} {}", request.method, request.path);
        if let Some((kind, body)) = &request.body {
            // A descriptor is long, and the file of the test says it already.
            let body = if *kind == "application/json" {
                String::from_utf8_lossy(body).into_owned()
            } else {
                "...".into()
            };
            write!(line, " {kind} {body}").unwrap();
        }
        let (status, body) = answer(request.method.as_str(), &request.path);
        let mut asked = self.0.lock().unwrap();
        // Who waits asks again and again.
        if asked.last() != Some(&line) {
            asked.push(line);
        }
        drop(asked);
        let body = match body {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let body = futures_util::stream::once(async move { Ok(body.into()) }).boxed();
        Ok(Answer { status, body })
    }

    fn url(&self) -> &str {
        "https://root.example:10000"
    }
}

fn answer(method: &str, path: &str) -> (u16, Value) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let good = match (method, path) {
        ("GET", "/v1/whoami") => json!({"user": user(), "root_version": "0.1.0"}),
        ("POST", "/v1/apply") => json!({
            "services": [
                {"path": "shop/web", "application": ID, "id": ID, "generation": 2, "change": "updated"},
                {"path": "shop/db", "application": ID, "id": ID, "generation": 1, "change": "unchanged"},
            ],
            "warnings": [{"path": "services.web.cpu", "line": 4, "code": "consequence", "message": "a slip?", "help": "say 50m"}],
            "dry_run": false,
        }),
        ("GET", "/v1/applications") => json!([application()]),
        ("GET", "/v1/applications/shop") => application(),
        ("GET", "/v1/services") => json!([service()]),
        ("GET" | "PUT", "/v1/services/shop%2Fweb" | "/v1/services/shop%2Fweb/replicas") => service(),
        ("DELETE", "/v1/services/shop%2Fweb") => json!({"deleted": ["shop/web"], "remaining_instances": 1}),
        ("DELETE", "/v1/applications/shop") => json!({"deleted": ["shop", "shop/web"], "remaining_instances": 2}),
        ("GET", "/v1/instances") => json!([instance(), pending()]),
        ("GET", "/v1/instances/shop%2Fweb.0") => instance(),
        ("GET", "/v1/instances/shop%2Fweb.1") => pending(),
        ("GET", "/v1/instances/shop%2Fweb.0/logs") => Value::String("first line\nlast line\n".into()),
        ("GET", "/v1/explain/shop%2Fweb.1") => explained(),
        ("GET", "/v1/trace/shop%2Fweb.0") => traced(query),
        ("GET", "/v1/clusters") => json!([cluster()]),
        ("GET", "/v1/clusters/north") => cluster(),
        ("POST", "/v1/clusters/north/cordon" | "/v1/clusters/north/approve") => cluster(),
        ("GET", "/v1/nodes") if query == "cluster=south" => json!({"items": [], "unanswered": [
            {"cluster": "south", "code": "cluster-unreachable", "message": "cluster south is not connected now"}]}),
        ("GET", "/v1/nodes") => json!({"items": [node()], "unanswered": [
            {"cluster": "south", "code": "cluster-unreachable", "message": "cluster south is not connected now"}]}),
        ("GET", "/v1/nodes/pi-3") => node(),
        ("POST", "/v1/nodes/pi-3/revoke" | "/v1/nodes/pi-3/uncordon") => node(),
        ("GET", "/v1/tokens") => json!({"items": [token()], "unanswered": []}),
        ("POST", "/v1/tokens") => {
            json!({"id": ID, "token": "roble1.node@x.y.z", "expires_at": NOW + 3_600_000, "kind": "node"})
        }
        ("DELETE", "/v1/tokens/0123456789abcdef01234567") => json!({"deleted": [ID], "remaining_instances": 0}),
        ("GET", "/v1/events") => json!([event()]),
        ("GET", "/v1/audit") => {
            json!([{"id": ID, "at": 1_000, "user": "admin", "action": "scale", "object": "shop/web to 2"}])
        }
        _ => {
            let (status, code) = match path {
                "/v1/services/shop%2Fforbidden" => (403, "forbidden"),
                "/v1/services/shop%2Fexpired" => (401, "not-logged-in"),
                "/v1/services/shop%2Fbusy" => (503, "stopping"),
                _ => (404, "not-found"),
            };
            return (status, json!({"code": code, "message": "no", "mistakes": []}));
        }
    };
    (200, good)
}

fn user() -> Value {
    json!({"id": ID, "name": "admin", "organization": ID, "organization_name": "default", "is_admin": true})
}

fn application() -> Value {
    json!({"id": ID, "name": "shop", "description": "sells things", "services": [service()], "created_at": 100_000})
}

fn service() -> Value {
    json!({"id": ID, "path": "shop/web", "generation": 2, "replicas": 2, "up_to_date": 1, "running": 1, "deleting": false,
        "image": "docker.io/library/nginx:1.27", "resources": {"cpu_millis": 50, "memory_bytes": 33_554_432},
        "ports": ["18080:80/tcp"], "descriptor": {"image": "docker.io/library/nginx:1.27", "replicas": 2},
        "addresses": {"round-robin": ["10.30.0.1", "fdff:2000:123:4567:89ab:cdef:123:4567"], "closest": []}, "created_at": 100_000, "updated_at": 3_640_000})
}

fn instance() -> Value {
    json!({"path": "shop/web.0", "id": format!("{ID}.0"), "phase": "running", "reason": null, "generation": 2,
        "epochs": [1, 1], "restarts": 2, "exit_code": null, "started_at": 3_640_000, "cluster": "north", "cluster_id": ID,
        "node": ID, "node_name": "pi-3", "node_address": "10.0.0.5", "ports": ["18080:80/tcp"], "image_digest": null,
        "addresses": ["10.18.0.2", "fc00::a12:2"], "service_addresses": ["10.30.0.2"], "age_ms": 100})
}

fn pending() -> Value {
    json!({"path": "shop/web.1", "id": format!("{ID}.1"), "phase": "pending",
        "reason": {"code": "no-memory", "message": "64 MiB asked for, 12 MiB left"}, "generation": 2, "epochs": [],
        "restarts": 0, "exit_code": 137, "started_at": null, "cluster": null, "cluster_id": null, "node": null,
        "node_name": null, "node_address": null, "ports": [], "image_digest": null, "age_ms": null})
}

fn cluster() -> Value {
    json!({"id": ID, "name": "north", "state": "active", "standing": "ready", "silent_ms": 400, "cordoned": true,
        "cloned": false, "labels": {"zone": "a"}, "offers": [{"labels": {"roble.io/arch": "arm64"}, "count": 2,
        "allocatable": {"cpu_millis": 8_000, "memory_bytes": 8_589_934_592_u64},
        "largest_free": [{"cpu_millis": 3_950, "memory_bytes": 4_261_412_864_u64}]}],
        "reserved": {"cpu_millis": 50, "memory_bytes": 33_554_432}, "instances": 1, "software": "0.1.0", "joined_at": 40_000})
}

fn node() -> Value {
    json!({"id": ID, "name": "pi-3", "cluster": "north", "state": "active", "standing": "ready", "silent_ms": 900,
        "cordoned": false, "cloned": false, "labels": {"roble.io/arch": "arm64"},
        "allocatable": {"cpu_millis": 4_000, "memory_bytes": 4_294_967_296_u64},
        "reserved": {"cpu_millis": 50, "memory_bytes": 33_554_432}, "instances": 1, "address": "10.0.0.5",
        "software": "0.1.0", "joined_at": 50_000})
}

fn token() -> Value {
    json!({"id": ID, "kind": "node", "cluster": "north", "expires_at": NOW + 600_000, "needs_approval": true,
        "name": "pi-4", "used": false, "reuse_attempts": 0})
}

fn event() -> Value {
    json!({"id": ID, "at": 3_640_000, "about": "shop/web.0", "code": "running", "message": "running on north"})
}

fn explained() -> Value {
    json!({"instance": pending(), "summary": "shop/web.1 is pending: no room", "root": null, "cluster": null,
        "cluster_missing": "cluster north is not connected now", "events": [event()], "warnings": []})
}

/// To the service, one of two instances is not reached; to `.0` alone all is well.
fn traced(query: &str) -> Value {
    let stop = |instance: &str, node: &str, address: &str| json!({"instance": instance, "phase": "running", "cluster": "north", "node": node, "addresses": [address]});
    let peer = |way: &str, age: u64| {
        json!({"tunnel": {"device": "rbl-wg", "by_kernel": way == "direct", "peer": {"node": ID, "cluster": ID,
            "block": "10.18.1.0/26", "way": way, "endpoint": "198.51.100.1:50104", "rtt_ms": 12.25, "handshake_age_s": age,
            "mtu": 1_420, "rx_bytes": 1, "tx_bytes": 2}}})
    };
    let relay = json!({"address": "198.51.100.1:50104", "cluster": "public"});
    let reached = json!({"to": stop("mail/api.0", "pi-4", "10.18.1.2"), "taken": true, "leaves": {"rule": ["80/tcp"]},
        "path": peer("relayed", 12), "relay": relay, "arrives": {"rule": ["80/tcp"]}, "verdict": "relayed", "reason": ""});
    let silent = json!({"to": stop("mail/api.1", "pi-5", "10.18.2.2"), "taken": true, "leaves": {"rule": ["80/tcp"]},
        "path": peer("none", 400), "relay": null, "arrives": null, "verdict": "no-path",
        "reason": "node pi-5 does not answer, its last handshake was 400 s ago"});
    let beside = json!({"to": stop("mail/api.2", "pi-3", "10.18.0.9"), "taken": false, "leaves": "refused",
        "path": {"same-node": {"mtu": 1_420}}, "relay": null, "arrives": {"other-ports": ["80/tcp"]},
        "verdict": "denied-at-caller", "reason": "node pi-3 drops it"});
    let is_one = query.contains("api.0");
    json!({"from": stop("shop/web.0", "pi-3", "10.18.0.2"), "to": if is_one { "mail/api.0" } else { "mail/api" },
        "name": if is_one { "0.api.mail.roble" } else { "api.mail.roble" }, "policy": if is_one { "0" } else { "round-robin" },
        "addresses": ["10.30.0.7"], "port": null, "turned": [{"address": "10.30.0.7", "to": ["10.18.1.2", "10.18.2.2"]}],
        "rules": [{"path": "services.api.allow[0]", "ports": ["80/tcp"]}],
        "verdict": if is_one { "relayed" } else { "no-path" },
        "summary": if is_one { "shop/web.0 reaches mail/api.0: relayed" }
            else { "1 of 2 instances that are taken are not reached; mail/api.1: node pi-5 does not answer" },
        "ways": if is_one { json!([reached]) } else { json!([reached, silent, beside]) }, "more": if is_one { 0 } else { 3 },
        "findings": [{"node": "pi-4", "code": "forward-drop", "message": "a chain drops", "hint": "let it pass"}]})
}

/// Runs a command line; everything that can be seen of it, as text.
async fn run(line: &str, input: &str) -> String {
    let (out, err) = (Shared::default(), Shared::default());
    let mut console = Console {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        input: Box::new(std::io::Cursor::new(input.as_bytes().to_vec())),
        clock: Box::new(|| Timestamp::from_millis(NOW)),
        interactive: false,
    };
    let root = Root::default();
    let exit = match Cli::try_parse_from(std::iter::once("roble").chain(line.split_whitespace())) {
        Err(usage) => {
            writeln!(console.err, "{}", usage.to_string().lines().next().unwrap_or_default()).unwrap();
            usage.exit_code()
        }
        Ok(cli) => {
            let session = Session {
                api: &root,
                console: &mut console,
                format: cli.output,
            };
            match Box::pin(with_root(cli.command, session)).await {
                Ok(()) => Exit::Ok as i32,
                Err(failure) => {
                    failure.print(&mut console.err).unwrap();
                    failure.exit() as i32
                }
            }
        }
    };
    let mut text = format!("$ roble {line}\n");
    for request in root.0.lock().unwrap().iter() {
        writeln!(text, "> {request}").unwrap();
    }
    for (mark, stream) in [("", out.text()), ("! ", err.text())] {
        for line in stream.lines() {
            writeln!(text, "{mark}{line}").unwrap();
        }
    }
    writeln!(text, "exit {exit}\n").unwrap();
    text
}

/// Compares what these command lines do with `tests/golden/NAME.txt`.
async fn check(name: &str, lines: &[&str]) {
    let mut text = String::new();
    for line in lines {
        text += &run(line, DESCRIPTOR).await;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    if std::env::var_os("ROBLE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} differs, now:\n{text}", path.display());
}

const DESCRIPTOR: &str = "application: shop\nservices:\n  web: {image: a}\n";

/// The verb in all four formats.
async fn formats(name: &str, line: &str) {
    let lines = ["table", "json", "yaml", "name"].map(|format| format!("{line} -o {format}"));
    check(name, &lines.each_ref().map(String::as_str)).await;
}

macro_rules! in_all_formats {
    ($($name:ident: $line:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            formats(stringify!($name), $line).await;
        }
    )*};
}

in_all_formats! {
    whoami: "whoami";
    get_apps: "get apps";
    get_services: "get services";
    get_instances: "get instances";
    get_clusters: "get clusters";
    get_nodes: "get nodes";
    get_tokens: "get tokens";
    get_audit: "get audit --limit 5";
    get_one: "get service shop/web";
    describe_app: "describe app shop";
    describe_service: "describe service shop/web";
    describe_instance: "describe instance shop/web.0";
    describe_cluster: "describe cluster north";
    describe_node: "describe node pi-3";
    describe_tokens: "describe tokens";
    ps: "ps";
    events: "events shop";
    explain: "explain shop/web.1";
    network_ls: "network ls";
    network_resolve: "network resolve web.shop.roble";
    network_trace: "network trace shop/web.0 mail/api.0 --port 80";
    apply: "apply -f -";
    scale: "scale shop/web 2";
    delete_service: "delete service shop/web";
    delete_app: "delete app shop";
    token_create: "token create node --cluster north --name pi-4 --ttl 1h";
    token_list: "token ls";
    token_delete: "token delete 0123456789abcdef01234567";
    cordon: "cordon cluster north";
    revoke: "revoke node pi-3 --yes";
}

#[tokio::test]
async fn other_verbs() {
    check(
        "other_verbs",
        &[
            "logs shop/web.0 --tail 2",
            "approve cluster north",
            "uncordon node pi-3",
            "apply -f - --dry-run",
            "token create cluster --needs-approval",
            "wait shop/web.0 --for running",
            "get nodes --cluster north -o name",
            "delete -f -",
            "network resolve 0.web.shop",
            "network resolve 10.30.0.1",
            "network resolve fc00::a12:2",
            "network resolve nobody.shop",
            "network trace shop/web.0 mail/api",
            "network trace shop/web.0 closest.web.shop.roble",
            "network trace shop/web.0 10.30.0.2 -o name",
            "network trace shop/web.0 10.9.9.9",
            "network trace shop/web mail/api",
            "network trace shop/web.0 mail/api --port 0",
            "network trace shop/web.1 mail/api",
        ],
    )
    .await;
}

#[tokio::test]
async fn exit_codes() {
    check(
        "exit_codes",
        &[
            "get service shop/nothing",
            "get service shop/forbidden",
            "get service shop/expired",
            "get service shop/busy",
            "get services --cluster north",
            "get apps --limit 3",
            "get nodes --cluster south",
            "get audit x",
            "get nothing",
            "scale shop/web 1001",
            "token delete 76543210fedcba9876543210",
            "logs shop",
            "wait shop/web.1 --for running --timeout 50ms",
        ],
    )
    .await;
}

/// Every golden file belongs to a test above, and none is empty.
#[test]
fn no_golden_file_is_left_over() {
    let tests = include_str!("golden.rs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            tests.contains(&format!("\n    {name}: ")) || tests.contains(&format!("\"{name}\"")),
            "{name}"
        );
        assert!(std::fs::metadata(&path).unwrap().len() > 0, "{name}");
    }
}
