//! Clusters, for operators.

use super::extract::{Ref, RefAnd, Who};
use super::{Api, Reply};
use crate::tier::Call;
use axum::Json;
use axum::extract::State;

pub(super) async fn clusters(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::Clusters(None)).await?))
}

pub(super) async fn cluster(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::Clusters(Some(reference))).await?))
}

pub(super) async fn change(State(api): Api, Who(who): Who, RefAnd(reference, what): RefAnd) -> Reply {
    let call = Call::ChangeCluster(reference, super::change(&what)?);
    Ok(Json(api.handle.call(who, call).await?))
}
