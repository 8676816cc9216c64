//! A root in this process, a user of it, and a cluster below it.
#![allow(dead_code, missing_docs)]

pub mod cluster;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use roble_core::liveness::Clocks;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::Identity;
use roble_daemon::tls::{ClientTls, Connector, Dialer, Protocol};
use roble_root::config::Settings;
use roble_root::daemon::{self, Running, StartError};
use roble_root::first::Invitation;
use roble_root::tier::AuditLimits;
use roble_store::BackendKind;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Root {
    pub api: SocketAddr,
    pub link: SocketAddr,
    pub pin: String,
    pub invitation: Option<Invitation>,
    stop: CancellationToken,
    finished: tokio::task::JoinHandle<()>,
}

pub fn settings(folder: &Path) -> Settings {
    Settings {
        state_dir: folder.to_owned(),
        api: "127.0.0.1:0".parse().unwrap(),
        link: "127.0.0.1:0".parse().unwrap(),
        advertise: vec!["127.0.0.1".to_owned()],
        backend: BackendKind::Redb,
        cache_bytes: 1 << 20,
        accept_empty_store: false,
        clocks: Clocks {
            beat_ms: 200,
            ..Clocks::CLUSTERS
        },
        session: Duration::from_secs(3_600),
        audit: AuditLimits::default(),
        drain: Duration::from_millis(500),
        plan: Default::default(),
    }
}

pub async fn try_start(settings: Settings) -> Result<Root, StartError> {
    roble_daemon::install_crypto_provider();
    let stop = CancellationToken::new();
    let running: Running = Box::pin(daemon::start(settings, Arc::new(SystemClock), stop.clone())).await?;
    Ok(Root {
        api: running.api,
        link: running.link,
        pin: running.pin.clone(),
        invitation: running.invitation.clone(),
        stop,
        finished: tokio::spawn(async move { Box::pin(running.finished()).await.unwrap() }),
    })
}

pub async fn start(folder: &Path) -> Root {
    try_start(settings(folder)).await.unwrap()
}

impl Root {
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.finished)
            .await
            .expect("it drains")
            .unwrap();
    }

    /// Somebody without a login.
    pub fn stranger(&self) -> User {
        let tls = ClientTls::pinned(Identity::Root, self.pin.parse().unwrap(), clock());
        let dialer = Dialer::new(tls.protocol(Protocol::Http).build().unwrap());
        User {
            client: Client::builder(TokioExecutor::new()).build(dialer.connector()),
            address: self.api,
            token: None,
        }
    }

    /// The admin, by the first credential.
    pub async fn admin(&self) -> User {
        let mut user = self.stranger();
        let credential = &self.invitation.as_ref().expect("the first start").credential;
        let (status, session) = user
            .post("/v1/login", &serde_json::json!({ "credential": credential }))
            .await;
        assert_eq!(status, 200, "{session}");
        user.token = session["token"].as_str().map(str::to_owned);
        user
    }
}

pub fn clock() -> Arc<VerifierClock> {
    Arc::new(VerifierClock::volatile(Arc::new(SystemClock)))
}

#[derive(Clone)]
pub struct User {
    client: Client<Connector, Full<Bytes>>,
    address: SocketAddr,
    pub token: Option<String>,
}

impl User {
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> http::Response<hyper_body::Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let sent = self.client.request(request.body(Full::new(body.into())).unwrap());
        tokio::time::timeout(PATIENCE, sent).await.expect("an answer").unwrap()
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let response = self.send(method, path, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::POST, path, body.to_string()).await
    }

    /// Asks again and again until `good`.
    pub async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let started = std::time::Instant::now();
        loop {
            let (_, value) = self.get(path).await;
            if good(&value) {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{path} stays {value}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// A token for a cluster.
    pub async fn cluster_token(&self) -> String {
        let (status, token) = self.post("/v1/tokens", &serde_json::json!({ "kind": "cluster" })).await;
        assert_eq!(status, 200, "{token}");
        token["token"].as_str().unwrap().to_owned()
    }
}

pub mod hyper_body {
    pub use hyper::body::Incoming;
}

pub const HELLO: &str = include_str!("../../../examples/hello.yaml");
