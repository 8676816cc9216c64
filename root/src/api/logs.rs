//! Logs of an instance: its node dials a stream, which is passed on at the reader's pace.

use super::Api;
use super::extract::{Params, Ref, Who, switch};
use crate::streams::LogReceiver;
use crate::tier::Call;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use roble_daemon::refusal::Refusal;
use roble_daemon::serve::Draining;
use roble_proto::wire::StreamFrame;
use serde::Deserialize;
use std::time::Duration;

/// Time for the stream to be dialed, once the cluster has agreed.
const DIAL: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub(super) struct LogParams {
    follow: Option<String>,
    tail: Option<u32>,
}

pub(super) async fn logs(
    State(api): Api,
    Who(who): Who,
    Ref(instance): Ref,
    Params(params): Params<LogParams>,
    Extension(Draining(draining)): Extension<Draining>,
) -> Result<Response, Refusal> {
    let mut receiver = api.logs.expect();
    let call = Call::OpenLogs {
        instance,
        stream: receiver.id().to_owned(),
        follow: switch("follow", params.follow.as_deref())?,
        tail: params.tail,
    };
    api.handle.call(who, call).await?;
    let late = || Refusal::new("log-timeout", "the node agreed, but its log did not arrive");
    let first = tokio::time::timeout(DIAL, receiver.next()).await.map_err(|_| late())?;
    if let Some(failure) = first.as_ref().and_then(|first| first.failure.clone()) {
        return Err(failure.into());
    }
    let pieces = futures_util::stream::unfold((first, receiver), piece).take_until(draining.cancelled_owned());
    let kind = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((kind, Body::from_stream(pieces)).into_response())
}

type Reading = (Option<StreamFrame>, LogReceiver);

/// The next piece of the body. A failure breaks it off, so that the reader knows that it is not whole.
async fn piece((held, mut receiver): Reading) -> Option<(std::io::Result<Bytes>, Reading)> {
    let mut held = held;
    loop {
        let frame = match held.take() {
            Some(frame) => frame,
            None => receiver.next().await?,
        };
        if let Some(failure) = frame.failure {
            tracing::info!(code = %failure.code, text = %failure.message, "log stream failed");
            return Some((Err(std::io::Error::other(failure.message)), (None, receiver)));
        }
        if !frame.data.is_empty() {
            return Some((Ok(frame.data.into()), (None, receiver)));
        }
    }
}
