use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::*;
use crate::testing::{Tree, id};
use crate::tls::{ClientAuth, ClientTls, Connector, Dialer, Protocol};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a condition, with a deadline.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the condition holds in time");
}

/// A running server.
struct Running {
    address: SocketAddr,
    tls: ServerTls,
    metrics: ServeMetrics,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

async fn start(tls: ServerTls, limits: Limits, router: Router) -> Running {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, metrics) = (CancellationToken::new(), ServeMetrics::default());
    let server = Server::new(tls.clone(), limits, shutdown.clone()).metrics(metrics.clone());
    let task = tokio::spawn(server.http(listener, router));
    Running {
        address,
        tls,
        metrics,
        shutdown,
        task,
    }
}

fn who() -> Router {
    Router::new()
        .route(
            "/who",
            get(
                |Extension(peer): Extension<PeerIdentity>, Extension(address): Extension<PeerAddress>| async move {
                    assert!(address.0.ip().is_loopback());
                    peer.0.map_or("nobody".into(), |identity| identity.to_string())
                },
            ),
        )
        .route("/echo", post(|body: Bytes| async move { body }))
}

fn http_client(tls: &ClientTls) -> Client<Connector, Full<Bytes>> {
    let http2 = tls.config().alpn_protocols.iter().all(|protocol| protocol == b"h2");
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build(Dialer::new(tls.clone()).connector())
}

async fn fetch(client: &Client<Connector, Full<Bytes>>, address: SocketAddr, path: &str) -> Result<String, String> {
    let uri = format!("http://{address}{path}").parse().unwrap();
    let response = client.get(uri).await.map_err(|error| error.to_string())?;
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn http1_and_http2_know_the_peer() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let running = start(
        tree.server(&root).clients(ClientAuth::Optional).build().unwrap(),
        Limits::default(),
        who(),
    )
    .await;
    let cluster = tree.cluster("c").credential();
    let known = tree
        .client(crate::pki::Identity::Root)
        .credential(&cluster)
        .build()
        .unwrap();
    assert_eq!(
        fetch(&http_client(&known), running.address, "/who").await.unwrap(),
        format!("cluster {}", id("c"))
    );
    let nobody = tree
        .client(crate::pki::Identity::Root)
        .protocol(Protocol::Raw)
        .build()
        .unwrap();
    assert_eq!(
        fetch(&http_client(&nobody), running.address, "/who").await.unwrap(),
        "nobody"
    );
    running.stop().await;
}

#[tokio::test]
async fn tonic_endpoints_use_the_connector() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let running = start(tree.server(&root).build().unwrap(), Limits::streams(), who()).await;
    let cluster = tree.cluster("c").credential();
    let tls = tree
        .client(crate::pki::Identity::Root)
        .credential(&cluster)
        .build()
        .unwrap();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    let _channel = endpoint
        .connect_with_connector(Dialer::new(tls).connector())
        .await
        .unwrap();
    until(|| running.metrics.open.get() == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn stalled_handshakes_harm_nobody_and_end() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let tls = tree.server(&root).clients(ClientAuth::Optional).build().unwrap();
    let limits = Limits {
        handshake_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let running = start(tls, limits, who()).await;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(TcpStream::connect(running.address).await.unwrap());
    }
    let client = http_client(&tree.client(crate::pki::Identity::Root).build().unwrap());
    assert_eq!(fetch(&client, running.address, "/who").await.unwrap(), "nobody");
    for mut stream in stalled {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1]))
            .await
            .expect("the server closes it");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    until(|| running.metrics.handshake_timeouts.get() == 50).await;
    assert_eq!(fetch(&client, running.address, "/who").await.unwrap(), "nobody");
    running.stop().await;
}

#[tokio::test]
async fn silence_after_the_handshake_and_endless_headers_end() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let tls = tree.server(&root).clients(ClientAuth::Optional).build().unwrap();
    let limits = Limits {
        header_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let running = start(tls, limits, who()).await;
    let dialer = Dialer::new(
        tree.client(crate::pki::Identity::Root)
            .protocol(Protocol::Raw)
            .build()
            .unwrap(),
    );
    for opening in ["", "G", "GET /who HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = dialer.connect(&running.address.to_string()).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "closed after {opening:?}");
    }
    until(|| running.metrics.open.get() == 0).await;
    let mut stream = dialer.connect(&running.address.to_string()).await.unwrap();
    stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let header = format!("x: {}\r\n", "y".repeat(100_000));
    let _ = stream.write_all(header.as_bytes()).await;
    let mut text = String::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .unwrap();
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    running.stop().await;
}

#[tokio::test]
async fn large_and_slow_bodies_end() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let tls = tree.server(&root).clients(ClientAuth::Optional).build().unwrap();
    let limits = Limits {
        body_bytes: Some(1000),
        body_timeout: Some(Duration::from_millis(100)),
        ..Limits::default()
    };
    let running = start(tls, limits, who()).await;
    let client = http_client(&tree.client(crate::pki::Identity::Root).build().unwrap());
    for (bytes, success) in [(1000, true), (1001, false)] {
        let request = http::Request::post(format!("http://{}/echo", running.address));
        let response = client
            .request(request.body(Full::new(Bytes::from(vec![0; bytes]))).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status().is_success(), success, "{bytes}");
    }
    let dialer = Dialer::new(
        tree.client(crate::pki::Identity::Root)
            .protocol(Protocol::Raw)
            .build()
            .unwrap(),
    );
    let mut stream = dialer.connect(&running.address.to_string()).await.unwrap();
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    let mut head = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head))
        .await
        .unwrap()
        .unwrap();
    assert!(head.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&head));
    running.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let tls = tree.server(&root).clients(ClientAuth::Optional).build().unwrap();
    let running = start(
        tls,
        Limits {
            connections_per_peer: 2,
            ..Limits::default()
        },
        who(),
    )
    .await;
    let dialer = Dialer::new(tree.client(crate::pki::Identity::Root).build().unwrap());
    let address = running.address.to_string();
    let (first, _second) = (
        dialer.connect(&address).await.unwrap(),
        dialer.connect(&address).await.unwrap(),
    );
    assert!(dialer.connect(&address).await.is_err());
    assert_eq!(running.metrics.over_limit.get(), 1);
    drop(first);
    until(|| running.metrics.open.get() == 1).await;
    dialer.connect(&address).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn revocation_closes_live_connections_at_once() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let credential = cluster.credential();
    let waiting = Arc::new(Notify::new());
    let router = {
        let waiting = waiting.clone();
        Router::new().route(
            "/watch",
            get(move || {
                let waiting = waiting.clone();
                async move {
                    waiting.notify_one();
                    std::future::pending::<()>().await;
                }
            }),
        )
    };
    let running = start(
        tree.server(&credential).build().unwrap(),
        Limits::default(),
        router.merge(who()),
    )
    .await;
    let (one, two) = (cluster.node("1"), cluster.node("2"));
    let client = |node| http_client(&tree.client(cluster.identity()).credential(node).build().unwrap());
    let (first, second) = (client(&one), client(&two));
    assert!(fetch(&second, running.address, "/who").await.is_ok());
    let (watcher, address) = (first.clone(), running.address);
    let watch = tokio::spawn(async move { fetch(&watcher, address, "/watch").await });
    waiting.notified().await;
    assert_eq!(running.tls.revocations().deny(one.peer().identity.clone()), 1);
    let answer = tokio::time::timeout(PATIENCE, watch)
        .await
        .expect("the connection is closed")
        .unwrap();
    assert!(answer.is_err());
    assert!(
        fetch(&first, running.address, "/who").await.is_err(),
        "no new handshake"
    );
    assert!(
        fetch(&second, running.address, "/who").await.is_ok(),
        "others are not touched"
    );
    running.stop().await;
}

#[tokio::test]
async fn requests_under_way_are_answered_and_endless_ones_dropped_at_the_deadline() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (started, release) = (started.clone(), release.clone());
        move |path: axum::extract::Path<String>| {
            let (started, release) = (started.clone(), release.clone());
            async move {
                started.notify_one();
                match path.as_str() {
                    "slow" => release.notified().await,
                    _ => std::future::pending().await,
                }
                "done"
            }
        }
    };
    for (path, expected) in [("/slow", true), ("/endless", false)] {
        let router = Router::new().route("/{path}", get(handler.clone()));
        let tls = tree.server(&root).clients(ClientAuth::Optional).build().unwrap();
        let drain = if expected { PATIENCE } else { Duration::from_millis(50) };
        let running = start(
            tls,
            Limits {
                drain,
                ..Limits::default()
            },
            router,
        )
        .await;
        let client = http_client(&tree.client(crate::pki::Identity::Root).build().unwrap());
        let address = running.address;
        let answer = tokio::spawn({
            let client = client.clone();
            async move { fetch(&client, address, path).await }
        });
        started.notified().await;
        running.shutdown.cancel();
        // The listener is closed before the drain ends.
        until(|| std::net::TcpStream::connect(address).is_err()).await;
        release.notify_one();
        assert_eq!(answer.await.unwrap().is_ok(), expected, "{path}");
        let metrics = running.metrics.clone();
        running.stop().await;
        assert_eq!(metrics.dropped_at_deadline.get(), u64::from(!expected));
    }
}

#[tokio::test]
async fn streams_are_handed_over_with_their_identity() {
    let tree = Tree::new();
    let cluster = tree.cluster("c");
    let credential = cluster.credential();
    let tls = tree.server(&credential).protocol(Protocol::Raw).build().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shutdown = CancellationToken::new();
    let server = Server::new(tls, Limits::default(), shutdown.clone()).streams(listener, |mut connection| async move {
        let name = connection.peer.unwrap().identity.dns_name();
        connection.stream.write_all(name.as_bytes()).await.unwrap();
        connection.draining.cancelled().await;
        connection.stream.shutdown().await.unwrap();
    });
    let server = tokio::spawn(server);
    let node = cluster.node("1");
    let tls = tree
        .client(cluster.identity())
        .credential(&node)
        .protocol(Protocol::Raw)
        .build()
        .unwrap();
    let mut stream = Dialer::new(tls).connect(&address).await.unwrap();
    let mut name = vec![0; node.peer().identity.dns_name().len()];
    stream.read_exact(&mut name).await.unwrap();
    assert_eq!(String::from_utf8(name).unwrap(), node.peer().identity.dns_name());
    shutdown.cancel();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn dropping_the_server_drops_its_connections() {
    let tree = Tree::new();
    let root = tree.root_credential();
    let running = start(
        tree.server(&root).clients(ClientAuth::Optional).build().unwrap(),
        Limits::default(),
        who(),
    )
    .await;
    let dialer = Dialer::new(tree.client(crate::pki::Identity::Root).build().unwrap());
    let _stream = dialer.connect(&running.address.to_string()).await.unwrap();
    until(|| running.metrics.accepted.get() == 1).await;
    running.task.abort();
    until(|| running.metrics.open.get() == 0).await;
}

#[tokio::test]
async fn unix_socket_serves_its_own_user_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let own = nix::unistd::geteuid().as_raw();
    let router = Router::new().route(
        "/me",
        get(|Extension(peer): Extension<UnixPeer>| async move { format!("{} {:?}", peer.uid, peer.pid) }),
    );
    for allowed in [true, false] {
        let listener = bind_unix(&path).expect("a socket left behind is replaced");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let shutdown = CancellationToken::new();
        let serve = unix::serve_if(
            listener,
            router.clone(),
            Limits::default(),
            shutdown.clone(),
            move |uid| uid == own && allowed,
        );
        let task = tokio::spawn(serve);
        let stream = UnixStream::connect(&path).await.unwrap();
        let answer = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(drop)?;
            tokio::spawn(connection);
            let request = http::Request::get("/me").body(Full::<Bytes>::default()).unwrap();
            let body = sender.send_request(request).await.map_err(drop)?.into_body();
            Ok::<_, ()>(body.collect().await.map_err(drop)?.to_bytes())
        };
        let expected = format!("{own} Some({})", std::process::id());
        assert_eq!(answer.await, if allowed { Ok(Bytes::from(expected)) } else { Err(()) });
        shutdown.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(bind_unix(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
