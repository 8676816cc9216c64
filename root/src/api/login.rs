//! Logging in, and who one is.

use super::extract::{Body, From, Who};
use super::{Api, Reply};
use crate::tier::{Call, Caller};
use axum::Json;
use axum::extract::State;
use roble_daemon::refusal::Refusal;
use roble_proto::rest::Login;
use std::time::Instant;

pub(super) async fn login(State(api): Api, From(address): From, Body(login): Body<Login>) -> Reply {
    throttle(&api, address)?;
    let session = api.handle.call(Caller::Anonymous, Call::Login(login)).await?;
    // The admin has one credential at a time, and it is used up now.
    if session["user"]["is_admin"] == true {
        api.credential.remove();
    }
    Ok(Json(session))
}

pub(super) async fn who_am_i(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::WhoAmI).await?))
}

/// Bounds attempts with secrets.
pub(super) fn throttle(api: &super::ApiState, address: std::net::IpAddr) -> Result<(), Refusal> {
    if api.rate.admit(address, Instant::now()) {
        return Ok(());
    }
    api.metrics.throttled.inc();
    Err(Refusal::new(
        "too-many-requests",
        "too many attempts from this address; try again in a second",
    ))
}
