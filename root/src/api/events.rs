//! What happened: as a list, or followed as server-sent events.

use super::extract::{Params, Who, switch};
use super::{Api, ApiState};
use crate::hands::Happened;
use crate::tier::{Call, Caller, is_about};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::StreamExt as _;
use roble_core::ids::EventId;
use roble_daemon::refusal::Refusal;
use roble_daemon::serve::Draining;
use roble_proto::rest::{EventView, WhoAmI};
use serde::Deserialize;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;

/// How long a stream may go on before the session is looked at again.
const CHECK: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
pub(super) struct EventParams {
    after: Option<String>,
    #[serde(rename = "ref")]
    about: Option<String>,
    follow: Option<String>,
}

pub(super) async fn events(
    State(api): Api,
    Who(who): Who,
    Params(params): Params<EventParams>,
    headers: HeaderMap,
    Extension(Draining(draining)): Extension<Draining>,
) -> Result<Response, Refusal> {
    let follow = switch("follow", params.follow.as_deref())?;
    // A client that lost its connection says where it was.
    let resumed = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let after = resumed.or(params.after).filter(|after| !after.is_empty());
    let after: Option<EventId> = after
        .map(|after| after.parse())
        .transpose()
        .map_err(|_| Refusal::new("query-invalid", "`after` is not the id of an event"))?;
    let about = params.about.filter(|about| !about.is_empty());
    let list = Call::Events {
        after,
        about: about.clone(),
    };
    if !follow {
        return Ok(Json(api.handle.call(who, list).await?).into_response());
    }
    // Followed first and listed then: nothing falls between, and what comes twice is dropped.
    let receiver = api.happened.subscribe();
    let user: WhoAmI = parse(api.handle.call(who.clone(), Call::WhoAmI).await?)?;
    let past: VecDeque<EventView> = parse(api.handle.call(who.clone(), list).await?)?;
    let following = Following {
        api,
        who,
        checked: Instant::now(),
        seen: past.iter().map(|event| event.id).collect(),
        past,
        receiver,
        about,
        user,
    };
    let stream = futures_util::stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok::<_, Infallible>(event), following))
    });
    let stream = stream.take_until(draining.cancelled_owned());
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(|error| Refusal::new("internal", error.to_string()))
}

struct Following {
    api: Arc<ApiState>,
    who: Caller,
    /// When the session was last known to stand.
    checked: Instant,
    past: VecDeque<EventView>,
    seen: BTreeSet<EventId>,
    receiver: broadcast::Receiver<Arc<Happened>>,
    about: Option<String>,
    user: WhoAmI,
}

impl Following {
    async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.past.pop_front() {
            return Some(sent(&event));
        }
        loop {
            // A session that has ended sees nothing more, whether something happens or not.
            if self.checked.elapsed() >= CHECK {
                self.api.handle.call(self.who.clone(), Call::WhoAmI).await.ok()?;
                self.checked = Instant::now();
            }
            let Ok(received) = tokio::time::timeout_at(self.checked + CHECK, self.receiver.recv()).await else {
                continue;
            };
            match received {
                Ok(happened) if self.concerns(&happened) => return Some(sent(&happened.view)),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    let text = format!("{{\"missed\":{missed}}}");
                    return Some(Event::default().event("lagged").data(text));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn concerns(&mut self, happened: &Happened) -> bool {
        let user = &self.user.user;
        let visible = match happened.scope {
            Some(organization) => organization == user.organization,
            None => user.is_admin,
        };
        let about = self.about.as_deref();
        visible
            && about.is_none_or(|about| is_about(&happened.view.about, about))
            && !self.seen.remove(&happened.view.id)
    }
}

fn sent(event: &EventView) -> Event {
    // Texts and numbers always serialise.
    let data = serde_json::to_string(event).unwrap_or_default();
    Event::default().id(event.id.to_string()).data(data)
}
