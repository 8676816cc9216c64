//! The door for nodes, HTTPS: join and renew, streams (gRPC on the same port), health.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::StatusCode;
use roble_core::ids::NodeId;
use roble_core::registry::{Forgotten, Member, MemberState};
use roble_daemon::failpoint;
use roble_daemon::health::Health;
use roble_daemon::pki::{Identity, VerifiedRequest, certificate_request_from_pem};
use roble_daemon::rate::RateLimit;
use roble_daemon::refusal::Refusal;
use roble_daemon::serve::{PeerAddress, PeerCertificate};
use roble_proto::rest::{JoinGrant, JoinRequest, MemberAnswer, RenewRequest};
use roble_proto::wire::link_server::LinkServer;
use serde::de::DeserializeOwned;

use crate::broker::Broker;
use crate::certificates::Certificates;
use crate::doors::Doors;
use crate::members::Members;
use crate::streams::{NodeStreams, PIECE_BYTES};
use crate::tier::Event;

/// Largest body of a join or renewal.
const BODY_BYTES: usize = 64 * 1024;
/// Time for it to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// What the door needs.
pub struct Api {
    /// Issues certificates.
    pub certificates: Arc<Certificates>,
    /// Asks the tier.
    pub doors: Arc<Doors>,
    /// Lets new nodes in.
    pub broker: Arc<dyn Broker>,
    /// Knows who was put out.
    pub members: Arc<Members>,
    /// How often one address may ask.
    pub rate: RateLimit,
    /// Where nodes connect, after they joined.
    pub mqtt_port: u16,
}

/// All routes.
pub fn router(api: Arc<Api>, streams: NodeStreams, health: Health) -> Router {
    let streams = LinkServer::new(streams).max_decoding_message_size(PIECE_BYTES);
    Router::new()
        .route("/v1/join", post(join))
        .route("/v1/renew", post(renew))
        .route("/v1/members/{key}", get(member))
        .with_state(api)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(health))
        .route_service("/roble.v1.Link/{*method}", streams)
        .fallback(|| async { Refusal::new("no-such-path", "there is nothing at this path") })
}

/// Whether it is ready; the checks by name are for the local door.
async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.readiness().ready {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn join(
    State(api): State<Arc<Api>>,
    Extension(PeerAddress(address)): Extension<PeerAddress>,
    request: Request,
) -> Result<Json<JoinGrant>, Refusal> {
    api.check_rate(address.ip())?;
    let ask: JoinRequest = read(request.into_body()).await?;
    let csr = signing_request(&ask.csr)?;
    let key_sha256 = csr.pin().to_string();
    let (token, secret, name) = (ask.token, ask.secret, ask.name);
    let joined = api.doors.member(|asker| Event::Join {
        asker,
        token,
        secret,
        key_sha256,
        name,
    });
    let member = joined.await??;
    tracing::info!(node = %member.id, name = member.name, peer = %address, state = ?member.state, "node joins");
    api.grant(&member, &csr).await
}

async fn renew(
    State(api): State<Arc<Api>>,
    Extension(PeerAddress(address)): Extension<PeerAddress>,
    peer: Option<Extension<PeerCertificate>>,
    request: Request,
) -> Result<Json<JoinGrant>, Refusal> {
    api.check_rate(address.ip())?;
    let Some(Extension(PeerCertificate(peer))) = peer else {
        let message = "renewal needs a connection with the old certificate";
        return Err(Refusal::new("certificate-required", message));
    };
    let ask: RenewRequest = read(request.into_body()).await?;
    let csr = signing_request(&ask.csr)?;
    if csr.pin() != peer.key {
        let message = "the request is for another key than the connection's";
        return Err(Refusal::new("other-key", message));
    }
    let Identity::Node { node, .. } = &peer.identity else {
        return Err(Refusal::new("other-key", "the certificate is not a node's"));
    };
    let node: NodeId = node.parse().map_err(Refusal::internal)?;
    // A handshake that was under way when the node was put out.
    if api.members.is_revoked(node) {
        return Err(Refusal::new("revoked", "this identity was revoked"));
    }
    let forgotten = ask.name.map(|name| Forgotten {
        id: node.into(),
        name,
        needs_approval: !api.members.is_whole(),
    });
    let key_sha256 = peer.key.to_string();
    let renewed = api.doors.member(|asker| Event::Renew {
        asker,
        key_sha256,
        forgotten,
    });
    let member = renewed.await??;
    if NodeId(member.id.0) != node {
        return Err(Refusal::new("other-key", "the certificate is another node's"));
    }
    tracing::info!(node = %member.id, "node renews");
    api.grant(&member, &csr).await
}

/// What the holder of a key is here: for one who is refused and does not know why. Says nothing that he has to prove.
async fn member(
    State(api): State<Arc<Api>>,
    Extension(PeerAddress(address)): Extension<PeerAddress>,
    Path(key_sha256): Path<String>,
) -> Result<Json<MemberAnswer>, Refusal> {
    api.check_rate(address.ip())?;
    let state = api.members.state_of(&key_sha256);
    let state = state.ok_or_else(|| Refusal::new("unknown-member", "no member has this key"))?;
    Ok(Json(MemberAnswer { state }))
}

fn signing_request(pem: &str) -> Result<VerifiedRequest, Refusal> {
    certificate_request_from_pem(pem.as_bytes())
        .and_then(|der| VerifiedRequest::parse(&der))
        .map_err(|error| Refusal::new("request-invalid", format!("`csr`: {error}")))
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes = tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, BODY_BYTES))
        .await
        .map_err(|_| Refusal::new("body-too-slow", "the body did not arrive in time"))?
        .map_err(|_| Refusal::new("body-too-large", "the body is too large or broke off"))?;
    // The text of the error may quote the body, and with it the secret.
    serde_json::from_slice(&bytes).map_err(|error| {
        Refusal::new(
            "body-invalid",
            format!(
                "not a valid request, at line {} column {}",
                error.line(),
                error.column()
            ),
        )
    })
}

impl Api {
    fn check_rate(&self, address: std::net::IpAddr) -> Result<(), Refusal> {
        if self.rate.admit(address, Instant::now()) {
            Ok(())
        } else {
            let message = "too many requests from this address; try again in a minute";
            Err(Refusal::new("too-many-requests", message))
        }
    }

    async fn grant(&self, member: &Member, csr: &VerifiedRequest) -> Result<Json<JoinGrant>, Refusal> {
        let node = NodeId(member.id.0);
        let mut grant = JoinGrant {
            id: node.to_string(),
            cluster: self.certificates.cluster(),
            state: member.state,
            certificates: String::new(),
            authority: self.certificates.root_pem(),
            link_port: self.mqtt_port,
        };
        failpoint!("cluster.grant.decided");
        if member.state == MemberState::Active {
            if !self.members.is_revoked(node) {
                self.broker.admit(node).await.map_err(Refusal::internal)?;
            }
            // Put out while it was let in: admitting took that back.
            if self.members.is_revoked(node) {
                let _ = self.broker.revoke(node).await;
                return Err(Refusal::new("revoked", "this identity was revoked"));
            }
            failpoint!("cluster.grant.admitted");
            let (certificates, authority) = self.certificates.certify(node, csr).map_err(Refusal::internal)?;
            failpoint!("cluster.grant.certified");
            (grant.certificates, grant.authority) = (certificates, authority);
        }
        Ok(Json(grant))
    }
}
