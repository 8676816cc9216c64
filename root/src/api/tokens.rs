//! Join tokens, for operators.

use super::extract::{Body, Ref, Who};
use super::{Api, Reply};
use crate::tier::Call;
use axum::Json;
use axum::extract::State;
use roble_proto::rest::CreateToken;

pub(super) async fn create(State(api): Api, Who(who): Who, Body(create): Body<CreateToken>) -> Reply {
    Ok(Json(api.handle.call(who, Call::CreateToken(create)).await?))
}

pub(super) async fn tokens(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::Tokens).await?))
}

pub(super) async fn delete(State(api): Api, Who(who): Who, Ref(id): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::DeleteToken(id)).await?))
}
