//! The way from an instance to a service: both ends are asked, then judged.

use super::extract::{Params, Ref, Who};
use super::{Api, Reply};
use crate::hands::ApiHandle;
use crate::tier::{Call, Caller, Traced};
use crate::trace::{self, Ends, Told};
use axum::Json;
use axum::extract::State;
use roble_core::overlay::row::Policy;
use roble_core::ports::PortRange;
use roble_daemon::refusal::Refusal;
use roble_proto::local_net::{About, Arrival, Departure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

#[derive(Deserialize)]
pub(super) struct TraceParams {
    to: String,
    policy: Option<String>,
    port: Option<String>,
}

pub(super) async fn trace(
    State(api): Api,
    Who(who): Who,
    Ref(from): Ref,
    Params(params): Params<TraceParams>,
) -> Reply {
    let port = parsed::<PortRange>(params.port.as_deref())?;
    if port.is_some_and(|port| port.first != port.last) {
        return Err(Refusal::new("query-invalid", "one port is traced, not a range"));
    }
    let call = Call::Ends(Traced {
        from: from.clone(),
        to: params.to,
        policy: parsed(params.policy.as_deref())?.unwrap_or(Policy::RoundRobin),
        port,
    });
    let ends: Ends = serde_json::from_value(api.handle.call(who.clone(), call).await?).map_err(|_| unread())?;
    let leaving = About::Leaving {
        addresses: ends.addresses.clone(),
        endpoints: ends.backends.iter().filter_map(trace::endpoint).collect(),
        port,
    };
    let departure: Told<Departure> = ask(&api.handle, &who, ends.from.instance.clone(), leaving).await;
    let asked = match &departure {
        Ok(departure) => trace::to_ask(&ends, departure),
        Err(_) => Vec::new(),
    };
    let Some(from) = trace::endpoint(&ends.from) else {
        return judged(ends, &departure, &BTreeMap::new());
    };
    let answers = asked.into_iter().map(async |instance| {
        let arriving = About::Arriving { from, port };
        (instance.clone(), ask(&api.handle, &who, instance, arriving).await)
    });
    let arrivals = futures_util::future::join_all(answers).await;
    judged(ends, &departure, &arrivals.into_iter().collect())
}

fn judged(ends: Ends, departure: &Told<Departure>, arrivals: &BTreeMap<String, Told<Arrival>>) -> Reply {
    let trace = serde_json::to_value(trace::judge(ends, departure, arrivals));
    trace.map(Json).map_err(|_| unread())
}

/// What the net manager of the node of an instance says; else why it does not.
async fn ask<T: DeserializeOwned>(handle: &ApiHandle, who: &Caller, instance: String, about: About) -> Told<T> {
    let answer = handle.call(who.clone(), Call::AskNet { instance, about }).await;
    let answer = answer.map_err(|refusal| refusal.body.message)?;
    serde_json::from_value(answer).map_err(|_| "its answer is not understood: is it of another version?".to_owned())
}

fn parsed<T: FromStr<Err: Display>>(text: Option<&str>) -> Result<Option<T>, Refusal> {
    let bad = |error: T::Err| Refusal::new("query-invalid", error.to_string());
    text.map(str::parse).transpose().map_err(bad)
}

fn unread() -> Refusal {
    Refusal::new("internal", "both ends could not be put together")
}
