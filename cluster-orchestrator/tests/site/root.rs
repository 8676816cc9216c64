//! A root as far as a cluster sees it: join, renewal, the session, streams. Real TLS, real gRPC, the real upper end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use futures_util::Stream;
use http::StatusCode;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use roble_core::ids::{ClusterId, InstanceId};
use roble_core::placement::Profile;
use roble_core::registry::{JoinToken, Member, MemberState, Registry, RegistryError, TokenKind, TokenOptions};
use roble_core::spec::Assignment;
use roble_core::status::InstanceStatus;
use roble_core::time::Timestamp;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::{
    Authority, Credential, Identity, Lifetimes, PrivateKey, VerifiedRequest, certificate_request_from_pem,
    certificates_to_pem,
};
use roble_daemon::serve::{Limits, PeerIdentity, Server, bind};
use roble_daemon::shell;
use roble_daemon::tls::{ClientAuth, Protocol, ServerTls};
use roble_link::Source;
use roble_link::parent::{ParentClocks, ParentEnd, ParentOutput};
use roble_proto::convert::{decode_status, encode_assignment};
use roble_proto::rest::{ErrorBody, JoinGrant, JoinRequest, RenewRequest};
use roble_proto::wire::link_server::{Link, LinkServer};
use roble_proto::wire::{Branch, Frame, SetKind, StreamEnd, StreamFrame, request, response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// The orders by key.
#[derive(Default)]
pub struct Orders(BTreeMap<String, Vec<u8>>);

impl Source for Orders {
    fn value(&self, _: SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
}

/// What the root knows.
pub struct Known {
    authority: Authority,
    registry: Registry,
    rng: SmallRng,
    orders: Orders,
    end: ParentEnd,
    net: ParentEnd,
    down: Option<mpsc::Sender<Frame>>,
    pub link_port: u16,
    pub statuses: BTreeMap<InstanceId, InstanceStatus>,
    pub profile: Option<Profile>,
    pub sessions: u32,
    pub responses: BTreeMap<u64, response::What>,
    pub stream: Vec<StreamFrame>,
    pub renewals: u32,
}

impl Known {
    fn answer_net(&mut self, outputs: Vec<ParentOutput>) {
        for output in outputs {
            if let (ParentOutput::Send(mut frame), Some(down)) = (output, &self.down) {
                frame.branch = Branch::Net.into();
                let _ = down.try_send(frame);
            }
        }
    }

    fn handle(&mut self, outputs: Vec<ParentOutput>) {
        for output in outputs {
            match output {
                ParentOutput::Send(frame) => {
                    if let Some(down) = &self.down {
                        let _ = down.try_send(frame);
                    }
                }
                ParentOutput::Opened { .. } => self.sessions += 1,
                ParentOutput::Profile(profile) => self.profile = Some(profile),
                ParentOutput::Status { key, value } => {
                    let status = decode_status(&key, &value).unwrap();
                    self.statuses.insert(status.instance, status);
                }
                ParentOutput::StatusRemoved(key) => {
                    self.statuses.remove(&key.parse().unwrap());
                }
                ParentOutput::Response(response) => {
                    self.responses.extend(response.what.map(|what| (response.id, what)));
                }
                _ => {}
            }
        }
    }
}

/// See the module's text. Clones are the same root.
#[derive(Clone)]
pub struct FakeRoot {
    pub state: Arc<Mutex<Known>>,
    clock: Arc<VerifierClock>,
    pub address: SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

impl FakeRoot {
    /// Listens at a free port.
    pub async fn start() -> Self {
        Self::start_with(Lifetimes::default()).await
    }

    /// With other lifetimes of certificates.
    pub async fn start_with(lifetimes: Lifetimes) -> Self {
        let clock = Arc::new(VerifierClock::volatile(Arc::new(SystemClock)));
        let clocks = ParentClocks {
            beat_ms: 200,
            fence_ms: 30_000,
        };
        let state = Known {
            authority: Authority::create_root(clock.now(), lifetimes).unwrap(),
            registry: Registry::default(),
            rng: SmallRng::seed_from_u64(5),
            orders: Orders::default(),
            end: ParentEnd::new(clocks, true),
            net: ParentEnd::new(clocks, true),
            down: None,
            link_port: 0,
            statuses: BTreeMap::new(),
            profile: None,
            sessions: 0,
            responses: BTreeMap::new(),
            stream: Vec::new(),
            renewals: 0,
        };
        let mut root = Self {
            state: Arc::new(Mutex::new(state)),
            clock,
            address: ([127, 0, 0, 1], 0).into(),
            stop: Arc::default(),
        };
        root.address = root.listen().await;
        root.state.lock().unwrap().link_port = root.address.port();
        root
    }

    async fn listen(&self) -> SocketAddr {
        let credential = {
            let state = self.state.lock().unwrap();
            let key = PrivateKey::generate().unwrap();
            let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
            let issued = state.authority.issue_root(&[], &request, self.clock.now()).unwrap();
            Credential::new(key, issued.chain).unwrap()
        };
        let tls = ServerTls::builder(&credential, self.clock.clone())
            .clients(ClientAuth::Optional)
            .protocol(Protocol::Http)
            .build()
            .unwrap();
        let listener = bind(self.address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        *self.stop.lock().unwrap() = stop.clone();
        let limits = Limits {
            drain: Duration::ZERO,
            ..Limits::streams()
        };
        let router = Router::new()
            .route("/v1/join", post(join))
            .route("/v1/renew", post(renew))
            .with_state(self.clone())
            .route_service("/roble.v1.Link/{*method}", LinkServer::new(self.clone()));
        tokio::spawn(Server::new(tls, limits, stop).http(listener, router));
        address
    }

    /// Goes away.
    pub async fn go(&self) {
        self.stop.lock().unwrap().cancel();
        self.state.lock().unwrap().down = None;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Comes back at the same port.
    pub async fn come_back(&self) {
        self.listen().await;
    }

    /// A token that lets a cluster join.
    pub fn token(&self, needs_approval: bool) -> JoinToken {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let options = TokenOptions {
            ttl_ms: 60_000,
            needs_approval,
            name: None,
        };
        let now = Timestamp::from_millis(self.clock.now());
        let (record, secret) = state.registry.create_token(options, now, &mut state.rng);
        JoinToken {
            kind: TokenKind::Cluster,
            cluster: None,
            id: record.id,
            secret,
            pin: state.authority.pin().to_string(),
        }
    }

    /// A person approves whoever waits.
    pub fn approve_all(&self) {
        let mut state = self.state.lock().unwrap();
        let waiting: Vec<_> = state.registry.members().map(|member| member.id).collect();
        for id in waiting {
            state.registry.approve(id).unwrap();
        }
    }

    /// How many members wait.
    pub fn pending(&self) -> usize {
        let state = self.state.lock().unwrap();
        state
            .registry
            .members()
            .filter(|member| member.state == MemberState::Pending)
            .count()
    }

    /// Orders an instance, or takes the order back.
    pub fn order(&self, instance: InstanceId, order: Option<&Assignment>) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let (key, value) = (instance.to_string(), order.map(encode_assignment));
        match &value {
            Some(value) => state.orders.0.insert(key.clone(), value.clone()),
            None => state.orders.0.remove(&key),
        };
        state.end.set_order(&key, value.as_deref());
        let outputs = state.end.flush(&state.orders);
        state.handle(outputs);
    }

    /// Asks the cluster something; its answer.
    pub async fn ask(&self, what: request::What) -> response::What {
        super::eventually("a session", || self.state.lock().unwrap().end.is_open().then_some(())).await;
        let id = {
            let mut state = self.state.lock().unwrap();
            let (id, output) = state.end.request(what).expect("a session stands");
            state.handle(vec![output]);
            id
        };
        super::eventually("an answer of the cluster", || {
            self.state.lock().unwrap().responses.remove(&id)
        })
        .await
    }

    fn grant(&self, member: &Member, csr: &str) -> Result<JoinGrant, Refused> {
        let state = self.state.lock().unwrap();
        let request = VerifiedRequest::parse(&certificate_request_from_pem(csr.as_bytes()).unwrap()).unwrap();
        let id = member.id.to_string();
        let chain = match member.state {
            MemberState::Active => {
                let issued = state.authority.issue_cluster_authority(&id, &request, self.clock.now());
                certificates_to_pem(&issued.unwrap().chain[..1])
            }
            _ => String::new(),
        };
        Ok(JoinGrant {
            id,
            cluster: ClusterId(member.id.0),
            state: member.state,
            certificates: chain,
            authority: certificates_to_pem(&[state.authority.root().clone()]),
            link_port: state.link_port,
        })
    }
}

struct Refused(String, String);

impl From<RegistryError> for Refused {
    fn from(error: RegistryError) -> Self {
        Self(error.code().to_owned(), error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.0,
            message: self.1,
            mistakes: Vec::new(),
        };
        (StatusCode::FORBIDDEN, Json(body)).into_response()
    }
}

async fn join(State(root): State<FakeRoot>, Json(ask): Json<JoinRequest>) -> Result<Json<JoinGrant>, Refused> {
    let request = VerifiedRequest::parse(&certificate_request_from_pem(ask.csr.as_bytes()).unwrap()).unwrap();
    let member = {
        let mut state = root.state.lock().unwrap();
        let state = &mut *state;
        let (key, now) = (request.pin().to_string(), Timestamp::from_millis(root.clock.now()));
        state
            .registry
            .redeem(ask.token, &ask.secret, &key, &ask.name, now, &mut state.rng)?
    };
    root.grant(&member, &ask.csr).map(Json)
}

async fn renew(
    State(root): State<FakeRoot>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Json(ask): Json<RenewRequest>,
) -> Result<Json<JoinGrant>, Refused> {
    let request = VerifiedRequest::parse(&certificate_request_from_pem(ask.csr.as_bytes()).unwrap()).unwrap();
    let member = {
        let mut state = root.state.lock().unwrap();
        state.renewals += 1;
        state.registry.renew(&request.pin().to_string())?.clone()
    };
    assert_eq!(peer, Identity::cluster(&member.id.to_string()).ok());
    root.grant(&member, &ask.csr).map(Json)
}

#[tonic::async_trait]
impl Link for FakeRoot {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let Some(PeerIdentity(Some(Identity::Cluster(_)))) = request.extensions().get::<PeerIdentity>() else {
            return Err(Status::unauthenticated("a cluster's certificate is needed"));
        };
        let (down, queue) = mpsc::channel(256);
        self.state.lock().unwrap().down = Some(down);
        let (root, mut up) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = up.message().await {
                let mut state = root.state.lock().unwrap();
                let state = &mut *state;
                if frame.branch() == Branch::Net {
                    // Its tables are whole, and empty.
                    let rows = Orders::default();
                    let mut outputs = state.net.receive(frame, &rows, shell::now(&SystemClock));
                    outputs.extend(state.net.flush(&rows));
                    state.answer_net(outputs);
                    continue;
                }
                let outputs = state.end.receive(frame, &state.orders, shell::now(&SystemClock));
                state.handle(outputs);
                let outputs = state.end.flush(&state.orders);
                state.handle(outputs);
            }
        });
        let frames = tokio_stream::StreamExt::map(ReceiverStream::new(queue), Ok);
        Ok(tonic::Response::new(Box::pin(frames)))
    }

    async fn stream(&self, request: Request<Streaming<StreamFrame>>) -> Result<tonic::Response<StreamEnd>, Status> {
        let mut pieces = request.into_inner();
        while let Some(piece) = pieces.message().await? {
            self.state.lock().unwrap().stream.push(piece);
        }
        Ok(tonic::Response::new(StreamEnd {}))
    }
}

/// Writes the token to a file, as an operator would.
pub fn reveal_to(folder: &std::path::Path, token: &JoinToken) -> PathBuf {
    let path = folder.join("token");
    std::fs::write(&path, format!("{}\n", token.reveal())).unwrap();
    path
}
