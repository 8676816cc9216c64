//! `/healthz`, `/readyz` and `/metrics`.
//!
//! `/healthz` answers as long as the process serves. `/readyz` names every check and, for those that fail, the reason;
//! 200 if all pass, else 503.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::metrics::Metrics;

/// The readiness of a daemon: named checks, each passing or failing for a reason. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One check; belongs to the component that knows.
#[derive(Debug, Clone)]
pub struct Check {
    health: Health,
    name: &'static str,
}

/// What `/readyz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether every check passes.
    pub ready: bool,
    /// All checks, by name.
    pub checks: Vec<CheckResult>,
}

/// One line of [`Readiness`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// Name of the check.
    pub name: String,
    /// Whether it passes.
    pub ready: bool,
    /// Why it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Health {
    /// Without checks, which counts as ready.
    pub fn new() -> Self {
        Self::default()
    }

    fn checks(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a check, failing with `starting` until told otherwise.
    pub fn check(&self, name: &'static str) -> Check {
        self.checks().insert(name, Some("starting".into()));
        Check {
            health: self.clone(),
            name,
        }
    }

    /// All checks at this moment.
    pub fn readiness(&self) -> Readiness {
        let checks: Vec<_> = self
            .checks()
            .iter()
            .map(|(name, reason)| CheckResult {
                name: (*name).to_owned(),
                ready: reason.is_none(),
                reason: reason.clone(),
            })
            .collect();
        Readiness {
            ready: checks.iter().all(|check| check.ready),
            checks,
        }
    }
}

impl Check {
    /// It passes.
    pub fn pass(&self) {
        self.health.checks().insert(self.name, None);
    }

    /// It fails, for a reason that helps an operator.
    pub fn fail(&self, reason: impl Into<String>) {
        self.health.checks().insert(self.name, Some(reason.into()));
    }
}

/// The three routes.
pub fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(render).with_state(metrics))
}

async fn readyz(State(health): State<Health>) -> Response {
    let readiness = health.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

async fn render(State(metrics): State<Metrics>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String) {
        let response = router
            .clone()
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_checks_and_reasons() {
        let health = Health::new();
        let router = router(health.clone(), Metrics::new());
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);
        let (store, uplink) = (health.check("store"), health.check("uplink"));
        store.pass();
        uplink.fail("root does not answer");
        let (status, body) = fetch(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            body,
            r#"{"ready":false,"checks":[{"name":"store","ready":true},{"name":"uplink","ready":false,"reason":"root does not answer"}]}"#
        );
        uplink.pass();
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);
        assert_eq!(fetch(&router, "/healthz").await, (StatusCode::OK, "ok\n".into()));
    }

    #[tokio::test]
    async fn metrics_are_served() {
        let (status, body) = fetch(&router(Health::new(), Metrics::new()), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            body.contains("process_resident_memory_bytes") && body.ends_with("# EOF\n"),
            "{body}"
        );
    }
}
