//! The Unix socket for whoever is at the root's own machine, and the subcommand that uses it.

use crate::first::{CredentialFile, Invitation};
use crate::hands::ApiHandle;
use crate::tier::{Call, Caller};
use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use roble_daemon::health::{self, Health};
use roble_daemon::metrics::Metrics;
use roble_proto::rest::ErrorBody;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest answer that is read from the socket.
const MAX_ANSWER: u64 = 64 * 1024;

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
pub fn new_credential(state_dir: &Path, organization: Option<&str>) -> anyhow::Result<Invitation> {
    let path = socket(state_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "connect to {}: is roble-root running with this --state-dir?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = serde_json::to_string(&For {
        organization: organization.map(str::to_owned),
    })?;
    write!(
        stream,
        "POST /v1/credential HTTP/1.1\r\nhost: local\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream
        .take(MAX_ANSWER)
        .read_to_string(&mut answer)
        .context("read the root's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the root's answer is cut off")?;
    if !head.starts_with("HTTP/1.1 200") {
        match serde_json::from_str::<ErrorBody>(body) {
            Ok(error) => bail!("{}", error.message),
            Err(_) => bail!("the root answered {}", head.lines().next().unwrap_or_default()),
        }
    }
    serde_json::from_str(body).context("understand the root's answer")
}
