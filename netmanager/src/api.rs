//! The local API (see `roble_proto::local_net`): decode, call the service, encode.

use crate::diagnosis;
use crate::metrics::NetMetrics;
use crate::peers::{self, Known};
use crate::sealing::device::Current;
use crate::service::{NetError, NetService};
use crate::tier::Told;
use crate::trace;
use crate::wants::Wants;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use roble_proto::local_net::{Attach, Attached, Finding, LocalError, Peer, Question};
use std::error::Error;
use std::sync::Arc;
use tokio::sync::watch;

/// What is known of the ways to other nodes.
#[derive(Clone)]
pub struct Ways {
    /// Those that this node talks to.
    pub known: watch::Receiver<Vec<Known>>,
    /// The tunnel's device.
    pub device: Current,
    /// What is asked of the cluster at first use.
    pub wants: watch::Receiver<Option<Arc<Wants>>>,
    /// What the cluster tells.
    pub told: watch::Receiver<Arc<Told>>,
}

/// What the handlers need.
#[derive(Clone)]
struct Api {
    ways: Ways,
    service: Arc<NetService>,
    metrics: NetMetrics,
}

/// The routes below `/v1`. Requests wait until `is_open`: what was stored must be known before anything is attached.
pub fn router(service: Arc<NetService>, metrics: NetMetrics, ways: Ways, is_open: watch::Receiver<bool>) -> Router {
    let wait = async |State(mut is_open): State<watch::Receiver<bool>>, request: Request, next: Next| {
        // Its sender goes away only with the daemon.
        let _ = is_open.wait_for(|open| *open).await;
        next.run(request).await
    };
    Router::new()
        .route("/v1/attachments", get(list))
        .route("/v1/peers", get(list_peers))
        .route("/v1/findings", get(list_findings))
        .route("/v1/trace", post(trace_way))
        .route("/v1/attachments/{container}", put(attach).delete(detach))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "invalid", "no such path".into()) })
        .method_not_allowed_fallback(|| async {
            failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid",
                "no such method on this path".into(),
            )
        })
        .with_state(Api { ways, service, metrics })
        .layer(from_fn_with_state(is_open, wait))
}

async fn list(State(api): State<Api>) -> Json<Vec<Attached>> {
    Json(api.service.list().await)
}

async fn list_peers(State(api): State<Api>) -> Json<Vec<Peer>> {
    Json(api.peers().await)
}

async fn list_findings(State(api): State<Api>) -> Json<Vec<Finding>> {
    let mut findings = api.findings().await;
    findings.extend(peers::findings(&api.peers().await));
    Json(findings)
}

async fn trace_way(State(api): State<Api>, question: Result<Json<Question>, JsonRejection>) -> Response {
    let question = match question {
        Ok(Json(question)) => question,
        Err(rejection) => return failure(StatusCode::BAD_REQUEST, "invalid", rejection.body_text()),
    };
    let wants = api.ways.wants.borrow().clone();
    let peers = api.peers().await;
    let findings = api.findings().await;
    match trace::answer(&api.service, wants.as_deref(), peers, findings, question).await {
        Some(answer) => Json(answer).into_response(),
        None => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-block",
            "this node has nothing in its kernel yet: its cluster has not given it a block of addresses".into(),
        ),
    }
}

async fn attach(
    State(api): State<Api>,
    Path(container): Path<String>,
    wish: Result<Json<Attach>, JsonRejection>,
) -> Response {
    let wish = match wish {
        Ok(Json(wish)) => wish,
        Err(rejection) => return failure(StatusCode::BAD_REQUEST, "invalid", rejection.body_text()),
    };
    // In a task of its own: a caller that goes away must not leave an attachment half made.
    let service = api.service.clone();
    let done = tokio::spawn(async move {
        let result = service.attach(&container, &wish).await;
        if let Ok(attached) = &result {
            tracing::info!(container, address = %attached.address, ports = attached.ports.len(), "attached");
        }
        result
    });
    match done.await {
        Ok(Ok(attached)) => Json(attached).into_response(),
        Ok(Err(error)) => api.refuse(&error),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request was interrupted".into(),
        ),
    }
}

async fn detach(State(api): State<Api>, Path(container): Path<String>) -> Response {
    let service = api.service.clone();
    let done = tokio::spawn(async move {
        let result = service.detach(&container).await;
        if result.is_ok() {
            tracing::info!(container, "detached");
        }
        result
    });
    match done.await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => api.refuse(&error),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request was interrupted".into(),
        ),
    }
}

impl Api {
    async fn peers(&self) -> Vec<Peer> {
        let known = self.ways.known.borrow().clone();
        let status = peers::status(&self.ways.device).await;
        peers::look(known, status.as_ref())
    }

    /// What is wrong on this node.
    async fn findings(&self) -> Vec<Finding> {
        let mut findings = diagnosis::look(&self.service.overlay()).await;
        findings.extend(self.ways.device.failure().map(diagnosis::no_tunnel));
        findings
    }

    fn refuse(&self, error: &NetError) -> Response {
        let code = error.code();
        let status = match code {
            "invalid" => StatusCode::BAD_REQUEST,
            "netns-missing" => StatusCode::UNPROCESSABLE_ENTITY,
            "port-taken" => StatusCode::CONFLICT,
            "no-address" | "no-block" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        match code {
            "port-taken" => drop(self.metrics.ports_taken.inc()),
            "no-address" => drop(self.metrics.addresses_exhausted.inc()),
            "internal" => tracing::error!(error = error as &dyn Error, "request failed"),
            _ => {}
        }
        failure(status, code, chain(error))
    }
}

/// The error and its causes in one sentence.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn failure(status: StatusCode, code: &str, message: String) -> Response {
    (
        status,
        Json(LocalError {
            code: code.into(),
            message,
        }),
    )
        .into_response()
}
