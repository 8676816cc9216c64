//! `roble events`.

use super::Session;
use crate::api::{self, Api, Request, sse};
use crate::failure::Failure;
use crate::flags::Format;
use crate::output::{self, View as _};
use crate::reference::escape;
use crate::text::clean;
use clap::Args;
use futures_util::StreamExt as _;
use http::Method;
use roble_proto::rest::EventView;
use std::io::Write as _;
use std::time::Duration;

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Only about this: `shop/web.0`, `cluster/north`.
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Go on with what happens from now on.
    #[arg(short, long)]
    pub follow: bool,
}

/// Between two tries after the stream broke.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) async fn run(events: Events, session: Session<'_>) -> Result<(), Failure> {
    let about = events.reference.as_deref();
    if !events.follow {
        let list: Vec<EventView> = api::get(session.api, query(about, None, false)).await?;
        return output::list(session.console, session.format, &list);
    }
    let Session { api, console, format } = session;
    let mut last = None;
    loop {
        let printed = follow(api, about, &mut last, |event| {
            match format {
                Format::Table => {
                    let [at, about, code, message] = [
                        event.at.to_string(),
                        clean(&event.about),
                        clean(&event.code),
                        clean(&event.message),
                    ];
                    writeln!(console.out, "{at}  {about}  {code}  {message}")?;
                }
                Format::Name => writeln!(console.out, "{}", event.name())?,
                _ => output::document_of_stream(console, format, event)?,
            }
            Ok(console.out.flush()?)
        });
        match printed.await {
            Ok(()) => {}
            Err(failure) if failure.is_transient() => console.hint(format_args!("{failure}; trying again")),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Hands every event after `last` to `each`, until the stream ends. `last` moves along, so that calling again loses nothing
/// and repeats nothing.
async fn follow(
    api: &dyn Api,
    about: Option<&str>,
    last: &mut Option<String>,
    mut each: impl FnMut(&EventView) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut request = Request::new(Method::GET, query(about, last.as_deref(), true));
    request.is_stream = true;
    let mut answer = api::open(api, request).await?;
    let mut reader = sse::Reader::default();
    while let Some(piece) = answer.body.next().await {
        for data in reader.push(&piece?) {
            // What is not an event of ours is of a newer root; skipping it is all that can be done.
            if let Ok(event) = serde_json::from_str::<EventView>(&data) {
                each(&event)?;
                *last = Some(event.id.to_string());
            }
        }
    }
    Ok(())
}

fn query(about: Option<&str>, after: Option<&str>, follow: bool) -> String {
    let mut path = format!("/v1/events?follow={follow}");
    for (key, value) in [("ref", about), ("after", after)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", escape(value)));
        }
    }
    path
}
