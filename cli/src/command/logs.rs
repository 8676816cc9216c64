//! `roble logs`.

use super::Session;
use crate::api::{self, Api, Request};
use crate::failure::Failure;
use crate::reference::{Reference, path};
use clap::Args;
use futures_util::StreamExt as _;
use http::Method;
use std::io::Write as _;

/// Flags of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Instance (`shop/web.0`), or a service with one instance.
    #[arg(value_name = "REF")]
    pub reference: Reference,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many of the last lines.
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
}

pub(crate) async fn run(logs: Logs, session: Session<'_>) -> Result<(), Failure> {
    let instance = one_instance(&logs.reference, session.api).await?;
    let mut query = format!("?follow={}", logs.follow);
    if let Some(tail) = logs.tail {
        query.push_str(&format!("&tail={tail}"));
    }
    let mut request = Request::new(Method::GET, path(&["instances", &instance, "logs"]) + &query);
    request.is_stream = true;
    let mut answer = api::open(session.api, request).await?;
    while let Some(piece) = answer.body.next().await {
        session.console.out.write_all(&piece?)?;
        session.console.out.flush()?;
    }
    Ok(())
}

async fn one_instance(reference: &Reference, api: &dyn Api) -> Result<String, Failure> {
    if let Reference::Instance(name) = reference {
        return Ok(name.clone());
    }
    let names: Vec<String> = super::instances_of(api, reference)
        .await?
        .into_iter()
        .map(|i| i.path)
        .collect();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Failure::NotFound(format!(
            "{reference} has no instances; `roble ps` lists all"
        ))),
        [first, ..] => Err(Failure::Usage(format!(
            "{reference} has {} instances; name one of them, e.g. {first}",
            names.len()
        ))),
    }
}
