//! The Unix socket for whoever is at the root's own machine, and the subcommand that uses it.

use crate::first::{CredentialFile, Invitation};
use crate::hands::ApiHandle;
use crate::tier::{Call, Caller};
use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use roble_daemon::health::{self, Health};
use roble_daemon::metrics::Metrics;
use roble_daemon::request;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the socket is.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("root.sock")
}

/// Makes new credentials and says how to use them.
#[derive(Debug, Clone)]
pub struct Inviter {
    /// Calls the tier.
    pub handle: ApiHandle,
    /// Where users reach the root.
    pub url: String,
    /// The authority's pin.
    pub pin: String,
    /// Keeps the newest credential.
    pub file: CredentialFile,
}

/// Health, metrics, and `POST /v1/credential`.
pub fn router(inviter: Inviter, health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/v1/credential", post(credential))
        .with_state(Arc::new(inviter))
        .merge(health::router(health, metrics))
}

/// For whom a credential is asked.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct For {
    /// Its organization, which is made if there is none of the name; the admin's if not given.
    organization: Option<String>,
}

async fn credential(State(inviter): State<Arc<Inviter>>, whose: Option<axum::Json<For>>) -> Response {
    let organization = whose.and_then(|whose| whose.0.organization);
    let is_of_admin = organization.is_none();
    let call = Call::NewCredential { organization };
    let answer = match inviter.handle.call(Caller::Local, call).await {
        Ok(answer) => answer,
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return (status, axum::Json(refusal.body)).into_response();
        }
    };
    let invitation = Invitation {
        url: inviter.url.clone(),
        credential: answer["credential"].as_str().unwrap_or_default().to_owned(),
        pin: inviter.pin.clone(),
    };
    if is_of_admin && let Err(error) = inviter.file.write(&invitation.credential) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "credential not kept in its file"
        );
    }
    axum::Json(invitation).into_response()
}

/// Asks the running root for a new credential: of the admin, or of the owner of an organization, which is made if there is
/// none of this name.
///
/// # Errors
/// If no root runs with this state folder, or it refuses.
pub async fn new_credential(state_dir: &Path, organization: Option<&str>) -> anyhow::Result<Invitation> {
    let whose = For {
        organization: organization.map(str::to_owned),
    };
    let answer = request::local(&socket(state_dir), Method::POST, "/v1/credential", Some(&whose)).await;
    answer.context("ask the root: is roble-root running with this --state-dir?")
}
