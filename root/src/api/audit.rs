//! What users did, for operators: the tier says which records there are and whose, the store has what they say.

use super::Api;
use super::extract::{Params, Who};
use crate::tier::{AuditIds, Call};
use axum::Json;
use axum::extract::State;
use roble_daemon::refusal::Refusal;
use roble_daemon::shell;
use roble_proto::rest::AuditView;
use serde::Deserialize;

/// Records in an answer, unless said otherwise, and at most.
const LIMIT: (usize, usize) = (100, 1_000);

#[derive(Deserialize)]
pub(super) struct AuditParams {
    before: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn audit(
    State(api): Api,
    Who(who): Who,
    Params(params): Params<AuditParams>,
) -> Result<Json<Vec<AuditView>>, Refusal> {
    let before = params.before.filter(|before| !before.is_empty());
    let before = before.map(|before| before.parse()).transpose();
    let call = Call::Audit {
        before: before.map_err(|_| Refusal::new("query-invalid", "`before` is not the id of an audit record"))?,
        limit: params.limit.unwrap_or(LIMIT.0).min(LIMIT.1),
    };
    let AuditIds { organization, ids } =
        serde_json::from_value(api.handle.call(who, call).await?).map_err(Refusal::internal)?;
    let mut records = Vec::with_capacity(ids.len());
    for id in ids {
        let value = shell::read(&*api.store, organization, "audit", &id.to_string()).await;
        // One that was forgotten meanwhile is not there any more.
        if let Some(value) = value.map_err(Refusal::internal)? {
            records.push(serde_json::from_slice(&value).map_err(Refusal::internal)?);
        }
    }
    Ok(Json(records))
}
