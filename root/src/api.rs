//! Users' API over HTTPS: one thin handler per path, in a file per resource. The paths and types are
//! [`roble_proto::rest`]'s; every answer that is not a success has an `ErrorBody`.

mod audit;
mod clusters;
mod events;
mod extract;
mod join;
mod login;
mod logs;
mod nodes;
mod services;
mod tokens;
mod trace;

use crate::first::CredentialFile;
use crate::hands::{ApiHandle, Happened};
use crate::metrics::RootMetrics;
use crate::streams::LogStreams;
use crate::tier::Change;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use roble_daemon::clock::VerifierClock;
use roble_daemon::health::Health;
use roble_daemon::pki::Authority;
use roble_daemon::rate::RateLimit;
use roble_daemon::refusal::Refusal;
use roble_proto::limits::{DESCRIPTOR_BYTES, HTTP_BODY_BYTES};
use roble_store::Store;
use std::sync::Arc;
use tokio::sync::broadcast;
use tower_http::catch_panic::CatchPanicLayer;

/// Room for a descriptor's transport: it is measured as it arrives.
const APPLY_BYTES: usize = DESCRIPTOR_BYTES;

/// What the handlers work with.
pub struct ApiState {
    /// Calls the tier.
    pub handle: ApiHandle,
    /// Issues the certificates of clusters.
    pub authority: Arc<Authority>,
    /// The clock that certificates are dated with.
    pub clock: Arc<VerifierClock>,
    /// Where clusters find their link.
    pub link_port: u16,
    /// Log streams that were asked for.
    pub logs: LogStreams,
    /// What happens, for those who follow.
    pub happened: broadcast::Sender<Arc<Happened>>,
    /// Attempts to log in or join, per address.
    pub rate: RateLimit,
    /// Where the text of audit records is.
    pub store: Arc<dyn Store>,
    /// What is counted.
    pub metrics: RootMetrics,
    /// What `/readyz` tells.
    pub health: Health,
    /// Removed at login.
    pub credential: CredentialFile,
}

/// The state as handlers take it.
type Api = State<Arc<ApiState>>;
/// What a handler of a single answer returns.
type Reply = Result<Json<serde_json::Value>, Refusal>;

/// All paths.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/v1/login", post(login::login))
        .route("/v1/whoami", get(login::who_am_i))
        .route(
            "/v1/apply",
            post(services::apply).layer(DefaultBodyLimit::max(APPLY_BYTES)),
        )
        .route("/v1/applications", get(services::applications))
        .route(
            "/v1/applications/{reference}",
            get(services::application).delete(services::delete_application),
        )
        .route("/v1/services", get(services::services))
        .route(
            "/v1/services/{reference}",
            get(services::service).delete(services::delete_service),
        )
        .route("/v1/services/{reference}/replicas", put(services::scale))
        .route("/v1/instances", get(services::instances))
        .route("/v1/instances/{reference}", get(services::instance))
        .route("/v1/instances/{reference}/logs", get(logs::logs))
        .route("/v1/explain/{reference}", get(services::explain))
        .route("/v1/trace/{reference}", get(trace::trace))
        .route("/v1/clusters", get(clusters::clusters))
        .route("/v1/clusters/{reference}", get(clusters::cluster))
        .route("/v1/clusters/{reference}/{change}", post(clusters::change))
        .route("/v1/nodes", get(nodes::nodes))
        .route("/v1/nodes/{reference}", get(nodes::node))
        .route("/v1/nodes/{reference}/{change}", post(nodes::change))
        .route("/v1/tokens", post(tokens::create).get(tokens::tokens))
        .route("/v1/tokens/{reference}", delete(tokens::delete))
        .route("/v1/audit", get(audit::audit))
        .route("/v1/events", get(events::events))
        .route("/v1/join", post(join::join))
        .route("/v1/renew", post(join::renew))
        .route("/v1/members/{key}", get(join::member))
        .fallback(|| async { Refusal::new("no-such-path", "there is no such path in this API") })
        .method_not_allowed_fallback(|| async {
            Refusal::new("method-not-allowed", "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES))
        .layer(CatchPanicLayer::custom(|_| {
            tracing::error!("a request's handler panicked");
            Refusal::new("internal", "the root failed at this request; its log tells more").into_response()
        }))
        .with_state(Arc::new(state))
}

async fn readyz(State(api): Api) -> Response {
    let readiness = api.health.readiness();
    let status = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(readiness)).into_response()
}

fn change(word: &str) -> Result<Change, Refusal> {
    match word {
        "approve" => Ok(Change::Approve),
        "revoke" => Ok(Change::Revoke),
        "cordon" => Ok(Change::Cordon),
        "uncordon" => Ok(Change::Uncordon),
        _ => Err(Refusal::new(
            "no-such-path",
            "approve, revoke, cordon or uncordon expected",
        )),
    }
}
