//! Nodes, for operators: their clusters know them, and are asked.

use super::extract::{Params, Ref, RefAnd, Who};
use super::{Api, Reply};
use crate::tier::Call;
use axum::Json;
use axum::extract::State;
use roble_daemon::refusal::Refusal;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct NodesParams {
    cluster: Option<String>,
}

pub(super) async fn nodes(State(api): Api, Who(who): Who, Params(params): Params<NodesParams>) -> Reply {
    let cluster = params.cluster.filter(|cluster| !cluster.is_empty());
    Ok(Json(api.handle.call(who, Call::Nodes { cluster }).await?))
}

pub(super) async fn node(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    let all = api.handle.call(who, Call::Nodes { cluster: None }).await?;
    let is_it = |node: &&serde_json::Value| node["id"] == reference.as_str() || node["name"] == reference.as_str();
    let found = all["items"].as_array().and_then(|all| all.iter().find(is_it)).cloned();
    let silent: Vec<&str> = all["unanswered"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["cluster"].as_str())
        .collect();
    let message = match silent.as_slice() {
        [] => format!("there is no node `{reference}`; `roble get nodes` lists them"),
        _ => format!(
            "no cluster that answered has a node `{reference}`; silent: {}",
            silent.join(", ")
        ),
    };
    found.map(Json).ok_or_else(|| Refusal::new("not-found", message))
}

pub(super) async fn change(State(api): Api, Who(who): Who, RefAnd(reference, what): RefAnd) -> Reply {
    let call = Call::ChangeNode(reference, super::change(&what)?);
    Ok(Json(api.handle.call(who, call).await?))
}
