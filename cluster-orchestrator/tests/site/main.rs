//! The whole daemon in the process, between a root and nodes made for the test; all connections are real.

mod membership;
mod node;
mod root;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use node::{FakeNode, Joined};
use roble_cluster::config::{DaemonConfig, SPEC};
use roble_cluster::daemon::{Daemon, Seams};
use roble_cluster::local::{NewToken, Status};
use roble_core::backoff::Backoff;
use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::registry::{JoinToken, MemberState};
use roble_core::resources::Resources;
use roble_core::spec::{Assignment, Constraints, InstanceSpec};
use roble_core::status::Phase;
use roble_core::version::{Epochs, Generation, Version};
use roble_daemon::CancellationToken;
use roble_daemon::clock::SystemClock;
use roble_daemon::config::{Inputs, Outcome, parse};
use roble_daemon::join::JoinError;
use roble_daemon::pki::{Lifetimes, PrivateKey};
use roble_daemon::request;
use roble_daemon::rng::OsRandomness;
use roble_daemon::tls::{Dialer, Protocol};
use roble_proto::rest::{CreatedToken, JoinGrant, JoinRequest, NodeView};
use roble_proto::wire::link_client::LinkClient;
use roble_proto::wire::{CreateJoinToken, LogOptions, OpenStream, StreamFrame, request as ask, response};
use root::FakeRoot;
use tokio::task::JoinHandle;

/// Reached only on failure.
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until there is something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn settings(folder: &Path, more: &[&str]) -> DaemonConfig {
    let state = folder.join("state");
    let fixed = [
        "--state-dir",
        state.to_str().unwrap(),
        "--listen-mqtt",
        "127.0.0.1:0",
        "--listen-api",
        "127.0.0.1:0",
        "--name",
        "north",
        "--labels",
        "zone=n",
        "--clocks-beat",
        "200ms",
        "--shutdown-deadline",
        "1s",
    ];
    let inputs = Inputs::default().args(fixed).args(more.iter().copied());
    match parse(&SPEC, &inputs) {
        Ok(Outcome::Run(config)) => DaemonConfig::build(&config, "host").unwrap(),
        other => panic!("{other:?}"),
    }
}

fn seams() -> Seams {
    Seams {
        clock: Arc::new(SystemClock),
        randomness: Arc::new(OsRandomness),
        lifetimes: Lifetimes::default(),
        renew_now: Arc::default(),
        renew_every: Duration::from_millis(200),
        reconnect: Backoff {
            base_ms: 20,
            cap_ms: 300,
        },
    }
}

/// A daemon that runs.
struct Site {
    folder: tempfile::TempDir,
    daemon: Option<JoinHandle<anyhow::Result<()>>>,
    stop: CancellationToken,
    mqtt: std::net::SocketAddr,
    api: std::net::SocketAddr,
}

impl Site {
    async fn join(root: &FakeRoot, more: &[&str]) -> Self {
        Self::join_with(root, more, seams()).await
    }

    async fn join_with(root: &FakeRoot, more: &[&str], seams: Seams) -> Self {
        let _ = tracing_init();
        roble_daemon::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let token = root::reveal_to(folder.path(), &root.token(false));
        let address = root.address.to_string();
        let mut args = vec!["--root", &address, "--join-file", token.to_str().unwrap()];
        args.extend_from_slice(more);
        let config = settings(folder.path(), &args);
        let mut site = Self {
            folder,
            daemon: None,
            stop: CancellationToken::new(),
            mqtt: ([0, 0, 0, 0], 0).into(),
            api: ([0, 0, 0, 0], 0).into(),
        };
        site.run(config, seams).await;
        site
    }

    async fn run(&mut self, config: DaemonConfig, seams: Seams) {
        self.stop = CancellationToken::new();
        let daemon = Daemon::start(config, seams, self.stop.clone()).await.unwrap();
        (self.mqtt, self.api) = (daemon.mqtt, daemon.api);
        self.daemon = Some(tokio::spawn(daemon.run()));
    }

    async fn halt(&mut self) {
        self.stop.cancel();
        if let Some(daemon) = self.daemon.take() {
            daemon.await.unwrap().unwrap();
        }
    }

    /// Starts again at the same ports, without token or root.
    async fn restart(&mut self, more: &[&str]) {
        self.halt().await;
        let (mqtt, api) = (self.mqtt.to_string(), self.api.to_string());
        let mut args = vec!["--listen-mqtt", &mqtt, "--listen-api", &api];
        args.extend_from_slice(more);
        let config = settings_twice(self.folder.path(), &args);
        self.run(config, seams()).await;
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("state/cluster.sock")
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        request::local(&self.socket(), Method::GET, path, None::<&()>)
            .await
            .unwrap()
    }

    async fn change(&self, path: &str) {
        let _: serde_json::Value = request::local(&self.socket(), Method::POST, path, Some(&()))
            .await
            .unwrap();
    }

    async fn token(&self, new: &NewToken) -> JoinToken {
        let created: CreatedToken = request::local(&self.socket(), Method::POST, "/v1/tokens", Some(new))
            .await
            .unwrap();
        created.token.parse().unwrap()
    }

    async fn node(&self, name: &str) -> (Joined, FakeNode) {
        let token = self.token(&NewToken::default()).await;
        let joined = node::join(self.api, &token, name, &PrivateKey::generate().unwrap())
            .await
            .unwrap();
        let node = FakeNode::start(&joined, name);
        connected(&node).await;
        (joined, node)
    }
}

/// As [`settings`], but the addresses given last count.
fn settings_twice(folder: &Path, more: &[&str]) -> DaemonConfig {
    let mut config = settings(folder, &[]);
    let state = folder.join("state");
    let fixed = [
        "--state-dir",
        state.to_str().unwrap(),
        "--name",
        "north",
        "--clocks-beat",
        "200ms",
        "--shutdown-deadline",
        "1s",
    ];
    let inputs = Inputs::default().args(fixed).args(more.iter().copied());
    if let Ok(Outcome::Run(parsed)) = parse(&SPEC, &inputs) {
        config = DaemonConfig::build(&parsed, "host").unwrap();
    }
    config
}

fn tracing_init() -> Result<(), roble_daemon::logs::LogError> {
    match std::env::var("TEST_LOG") {
        Ok(filter) => roble_daemon::logs::init(roble_daemon::logs::LogFormat::Text, &filter),
        Err(_) => Ok(()),
    }
}

async fn connected(node: &FakeNode) {
    eventually("node connected", || node.seen.lock().unwrap().connected.then_some(())).await;
}

fn id(number: u8) -> RawId {
    RawId::from_bytes([number; 12])
}

fn order(number: u32, generation: u64) -> Assignment {
    Assignment {
        instance: InstanceId {
            service: ServiceId(id(7)),
            number,
        },
        version: Version {
            generation: Generation(generation),
            epochs: Epochs(vec![1]),
        },
        spec: Arc::new(InstanceSpec {
            organization: OrganizationId(id(1)),
            application: ApplicationId(id(2)),
            path: "shop/web".to_owned(),
            virtualization: "container".to_owned(),
            image: "example.org/web:1".to_owned(),
            image_digest: None,
            command: Vec::new(),
            args: Vec::new(),
            environment: Vec::new(),
            working_dir: None,
            user: None,
            resources: Resources {
                cpu_millis: 100,
                memory_bytes: 1 << 20,
            },
            ports: Vec::new(),
            restart: Default::default(),
            one_shot: false,
            stop_grace_ms: 1_000,
            when_cut_off: Default::default(),
            security: Default::default(),
            constraints: Constraints::default(),
        }),
    }
}

async fn runs(root: &FakeRoot, order: &Assignment, on: NodeId) {
    eventually("the root hears that it runs", || {
        let state = root.state.lock().unwrap();
        let status = state.statuses.get(&order.instance)?;
        (status.phase == Phase::Running && status.node == Some(on)).then_some(())
    })
    .await;
}

async fn flow(more: &[&str]) {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, more).await;
    let (_, node) = site.node("pi-1").await;
    eventually("profile", || {
        root.state
            .lock()
            .unwrap()
            .profile
            .clone()
            .filter(|p| !p.offers.is_empty())
    })
    .await;
    let first = order(0, 1);
    root.order(first.instance, Some(&first));
    runs(&root, &first, node.id).await;
    root.order(first.instance, None);
    eventually("gone from the node", || {
        node.seen.lock().unwrap().running.is_empty().then_some(())
    })
    .await;
    eventually("gone at the root", || {
        root.state.lock().unwrap().statuses.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_reaches_the_node_and_its_status_the_root() {
    flow(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_with_mosquitto() {
    if !Path::new("/usr/sbin/mosquitto").exists() {
        eprintln!("SKIPPED: mosquitto is not installed");
        return;
    }
    // It cannot tell which port it was given.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let root = FakeRoot::start().await;
    let _ = tracing_init();
    roble_daemon::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let token = root::reveal_to(folder.path(), &root.token(false));
    let (address, token) = (root.address.to_string(), token.to_str().unwrap().to_owned());
    let more = [
        "--listen-mqtt",
        &free,
        "--listen-api",
        "127.0.0.1:0",
        "--broker",
        "mosquitto",
        "--root",
        &address,
        "--join-file",
        &token,
    ];
    let config = settings_twice(folder.path(), &more);
    let mut site = Site {
        folder,
        daemon: None,
        stop: CancellationToken::new(),
        mqtt: ([0, 0, 0, 0], 0).into(),
        api: ([0, 0, 0, 0], 0).into(),
    };
    site.run(config, seams()).await;
    let (_, node) = site.node("pi-1").await;
    let first = order(0, 1);
    root.order(first.instance, Some(&first));
    runs(&root, &first, node.id).await;
    site.change(&format!("/v1/nodes/{}/revoke", node.id)).await;
    eventually("put out", || (!node.seen.lock().unwrap().connected).then_some(())).await;
    site.halt().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_site_goes_on_without_the_root_and_over_restarts() {
    let root = FakeRoot::start().await;
    let mut site = Site::join(&root, &[]).await;
    let (_, one) = site.node("pi-1").await;
    let first = order(0, 1);
    root.order(first.instance, Some(&first));
    runs(&root, &first, one.id).await;
    root.go().await;
    while site.get::<Status>("/v1/status").await.connected {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A new node joins, with a token made at the site.
    let (_, two) = site.node("pi-2").await;
    let status: Status = site.get("/v1/status").await;
    assert!(!status.connected, "{status:?}");
    let sessions = one.seen.lock().unwrap().sessions;
    site.restart(&[]).await;
    eventually("a new session", || {
        (one.seen.lock().unwrap().sessions > sessions).then_some(())
    })
    .await;
    connected(&two).await;
    let nodes: Vec<NodeView> = site.get("/v1/nodes").await;
    assert_eq!(nodes.len(), 2);
    // The order was kept, and nothing was restarted.
    assert_eq!(
        one.seen.lock().unwrap().running.len() + two.seen.lock().unwrap().running.len(),
        1
    );
    root.state.lock().unwrap().statuses.clear();
    root.come_back().await;
    let second = order(1, 1);
    root.order(second.instance, Some(&second));
    eventually("both run", || {
        let state = root.state.lock().unwrap();
        state.statuses.contains_key(&second.instance).then_some(())
    })
    .await;
    site.halt().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_makes_tokens_and_a_stream_passes_through() {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, &[]).await;
    let (joined, node) = site.node("pi-1").await;
    let first = order(0, 1);
    root.order(first.instance, Some(&first));
    runs(&root, &first, node.id).await;
    let answer = root.ask(ask::What::CreateJoinToken(CreateJoinToken::default())).await;
    assert!(matches!(answer, response::What::Json(_)), "{answer:?}");

    let asking = tokio::spawn({
        let root = root.clone();
        let open = OpenStream {
            stream: "s1".to_owned(),
            instance: first.instance.to_string(),
            logs: Some(LogOptions::default()),
        };
        // The fake node does not answer; the stream is expected all the same.
        async move { root.ask(ask::What::OpenStream(open)).await }
    });
    eventually("asked", || node.seen.lock().unwrap().requests.first().cloned()).await;
    let dialer = Dialer::new(joined.tls(Protocol::Http2));
    let endpoint = roble_link::grpc::endpoint(&site.api.to_string()).unwrap();
    let channel = endpoint.connect_with_connector(dialer.connector()).await.unwrap();
    let piece = |stream: &str, data: &[u8]| StreamFrame {
        stream: stream.to_owned(),
        data: data.to_vec(),
        failure: None,
    };
    let mut client = LinkClient::new(channel);
    let unknown = client.stream(tokio_stream::iter([piece("other", b"")])).await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::NotFound);
    let pieces = [piece("s1", b"one "), piece("", b"two "), piece("", b"three")];
    client.stream(tokio_stream::iter(pieces)).await.unwrap();
    let text: Vec<u8> = root
        .state
        .lock()
        .unwrap()
        .stream
        .iter()
        .flat_map(|piece| piece.data.clone())
        .collect();
    assert_eq!(text, b"one two three");
    asking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_door_shows_health_and_refuses_politely() {
    let root = FakeRoot::start().await;
    let site = Site::join(&root, &[]).await;
    let readiness: serde_json::Value = site.get("/readyz").await;
    assert_eq!(readiness["ready"], true, "{readiness}");
    let missing: Result<serde_json::Value, _> =
        request::local(&site.socket(), Method::POST, "/v1/nodes/nobody/revoke", Some(&())).await;
    assert!(missing.unwrap_err().to_string().contains("unknown-member"));
    let status: Status = site.get("/v1/status").await;
    assert_eq!(status.name, "north");
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_deletes_nothing_before_the_root_was_heard() {
    let root = FakeRoot::start().await;
    let mut site = Site::join(&root, &[]).await;
    let mark = site.folder.path().join("state/incomplete");
    let (_, node) = site.node("pi-1").await;
    let first = order(0, 1);
    root.order(first.instance, Some(&first));
    runs(&root, &first, node.id).await;
    eventually("orders whole", || (!mark.exists()).then_some(())).await;
    root.go().await;
    site.halt().await;
    let store = site.folder.path().join("state/store/store.redb");
    let length = std::fs::metadata(&store).unwrap().len();
    std::fs::write(&store, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    site.restart(&[]).await;
    assert!(mark.exists());
    // A write, and another start: what was lost is still known to be lost.
    site.token(&NewToken::default()).await;
    // Nodes that are not back yet are waited for no longer than this.
    site.restart(&["--clocks-fence", "8500ms", "--clocks-replace", "9s"])
        .await;
    assert!(mark.exists());
    assert_eq!(node.seen.lock().unwrap().running.len(), 1);
    root.come_back().await;
    eventually("orders whole again", || (!mark.exists()).then_some(())).await;
}
