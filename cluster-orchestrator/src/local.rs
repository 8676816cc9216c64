//! The door for people at the site, a Unix socket: the same requests that the root can make, also with the uplink cut.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | POST `/v1/tokens` | [`NewToken`] | `CreatedToken` |
//! | GET `/v1/tokens` | | `TokenView` list |
//! | DELETE `/v1/tokens/{id}` | | `Deleted` |
//! | GET `/v1/nodes` | | `NodeView` list |
//! | POST `/v1/nodes/{id or name}/{approve,revoke,cordon,uncordon}` | | the member |
//! | GET `/v1/explain/{instance id}` | | `Explanation` |
//! | GET `/v1/status` | | [`Status`] |
//! | GET `/healthz` `/readyz` `/metrics` | | |

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::header;
use roble_core::ids::{ClusterId, NodeId};
use roble_core::registry::MemberState;
use roble_daemon::health::{self, Health};
use roble_daemon::metrics::Metrics;
use roble_daemon::refusal::Refusal;
use roble_proto::rest::NodeView;
use roble_proto::wire::request::What;
use roble_proto::wire::{
    ApproveChild, CreateJoinToken, DeleteToken, Explain, ListChildren, ListTokens, RevokeChild, SetCordon,
};
use serde::{Deserialize, Serialize};

use crate::doors::Doors;
use crate::uplink::UplinkState;

/// Asks for a join token for a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewToken {
    /// Milliseconds it lives; one hour if left out.
    pub ttl_ms: Option<u64>,
    /// A person must approve who joins.
    pub needs_approval: bool,
    /// The only name that may join with it.
    pub name: Option<String>,
}

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub id: ClusterId,
    /// Its name at the root.
    pub name: String,
    /// Software version.
    pub software: String,
    /// The session with the root stands.
    pub connected: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What the door needs.
#[derive(Debug)]
pub struct Local {
    /// Asks the tier.
    pub doors: Arc<Doors>,
    /// Which cluster this is.
    pub id: ClusterId,
    /// Its name at the root.
    pub name: String,
    /// How the uplink is.
    pub uplink: UplinkState,
}

/// All routes.
pub fn router(local: Arc<Local>, health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/v1/tokens", post(create_token).get(list_tokens))
        .route("/v1/tokens/{token}", delete(delete_token))
        .route("/v1/nodes", get(list_nodes))
        .route("/v1/nodes/{node}/{change}", post(change))
        .route("/v1/explain/{instance}", get(explain))
        .route("/v1/status", get(status))
        .with_state(local)
        .merge(health::router(health, metrics))
        .fallback(|| async { Refusal::new("no-such-path", "there is nothing at this path") })
}

async fn create_token(State(local): State<Arc<Local>>, Json(new): Json<NewToken>) -> Result<Response, Refusal> {
    let create = CreateJoinToken {
        ttl_ms: new.ttl_ms.unwrap_or(0),
        needs_approval: new.needs_approval,
        name: new.name.unwrap_or_default(),
    };
    local.ask(What::CreateJoinToken(create)).await.map(json)
}

async fn list_tokens(State(local): State<Arc<Local>>) -> Result<Response, Refusal> {
    local.ask(What::ListTokens(ListTokens {})).await.map(json)
}

async fn delete_token(State(local): State<Arc<Local>>, Path(token): Path<String>) -> Result<Response, Refusal> {
    local.ask(What::DeleteToken(DeleteToken { token })).await.map(json)
}

async fn list_nodes(State(local): State<Arc<Local>>) -> Result<Response, Refusal> {
    local.ask(What::ListChildren(ListChildren {})).await.map(json)
}

async fn explain(State(local): State<Arc<Local>>, Path(instance): Path<String>) -> Result<Response, Refusal> {
    local.ask(What::Explain(Explain { instance })).await.map(json)
}

async fn status(State(local): State<Arc<Local>>) -> Json<Status> {
    let (connected, reason) = local.uplink.get();
    Json(Status {
        id: local.id,
        name: local.name.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        connected,
        reason,
    })
}

async fn change(
    State(local): State<Arc<Local>>,
    Path((node, change)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let child = local.node(&node).await?;
    let what = match change.as_str() {
        "approve" => What::ApproveChild(ApproveChild { child }),
        "revoke" => What::RevokeChild(RevokeChild { child }),
        "cordon" => What::SetCordon(SetCordon { child, cordoned: true }),
        "uncordon" => What::SetCordon(SetCordon { child, cordoned: false }),
        _ => {
            return Err(Refusal::new("no-such-path", "approve, revoke, cordon or uncordon"));
        }
    };
    local.ask(what).await.map(json)
}

fn json(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

impl Local {
    async fn ask(&self, what: What) -> Result<Vec<u8>, Refusal> {
        Ok(self.doors.local(what).await??)
    }

    /// The id of a node given by id or name.
    async fn node(&self, text: &str) -> Result<String, Refusal> {
        if text.parse::<NodeId>().is_ok() {
            return Ok(text.to_owned());
        }
        let nodes = self.ask(What::ListChildren(ListChildren {})).await?;
        let nodes: Vec<NodeView> = serde_json::from_slice(&nodes).map_err(Refusal::internal)?;
        nodes
            .iter()
            .find(|node| node.name == text && node.state != MemberState::Revoked)
            .map(|node| node.id.to_string())
            .ok_or_else(|| {
                let message = format!("no node of the name or id `{text}`; see `roble-cluster nodes`");
                Refusal::new("unknown-member", message)
            })
    }
}
