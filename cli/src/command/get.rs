//! `roble get`, `roble describe` and `roble ps`.

use super::Session;
use crate::api::{self, Api};
use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Format;
use crate::output::{self, View};
use crate::reference::{Reference, escape, path};
use clap::{Args, ValueEnum};
use roble_proto::rest::{
    ApplicationView, AuditView, ClusterView, ErrorBody, InstanceView, Listed, NodeView, ServiceView, TokenView,
};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Noun {
    /// Applications.
    #[value(alias = "app", alias = "application", alias = "applications")]
    Apps,
    /// Services.
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Instances.
    #[value(alias = "instance", alias = "inst")]
    Instances,
    /// Clusters.
    #[value(alias = "cluster")]
    Clusters,
    /// Nodes.
    #[value(alias = "node")]
    Nodes,
    /// Join tokens.
    #[value(alias = "token")]
    Tokens,
    /// What users did, the newest last.
    Audit,
}

/// Flags of `get`.
#[derive(Debug, Args)]
pub struct Get {
    /// What kind of thing.
    #[arg(value_enum)]
    pub noun: Noun,
    /// Only these, by name or id; all if left out.
    #[arg(value_name = "REF")]
    pub references: Vec<String>,
    /// Only nodes of this cluster.
    #[arg(long, value_name = "REF")]
    pub cluster: Option<String>,
    /// Only so many of the newest audit records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: Option<u32>,
}

/// Flags of `describe`.
#[derive(Debug, Args)]
pub struct Describe {
    /// What kind of thing.
    #[arg(value_enum)]
    pub noun: Noun,
    /// Which, by name or id; all if left out.
    #[arg(value_name = "REF")]
    pub references: Vec<String>,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Only those of this application, service or instance.
    #[arg(value_name = "REF")]
    pub reference: Option<Reference>,
    /// Only those on this cluster.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Only those on this node.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Go on, and print what changes.
    #[arg(short, long)]
    pub watch: bool,
    /// Time between two looks with --watch.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = crate::text::duration)]
    pub interval: Duration,
}

pub(crate) async fn get(get: Get, session: Session<'_>) -> Result<(), Failure> {
    if get.cluster.is_some() && get.noun != Noun::Nodes {
        return Err(Failure::Usage(
            "--cluster goes with nodes only; `roble ps --cluster C` lists instances".into(),
        ));
    }
    if get.limit.is_some() && get.noun != Noun::Audit {
        return Err(Failure::Usage("--limit goes with audit only".into()));
    }
    let only = Only {
        cluster: get.cluster.as_deref(),
        limit: get.limit,
    };
    Box::pin(by_noun(get.noun, &get.references, only, false, session)).await
}

/// What narrows a list.
#[derive(Default)]
struct Only<'a> {
    cluster: Option<&'a str>,
    limit: Option<u32>,
}

pub(crate) async fn describe(describe: Describe, session: Session<'_>) -> Result<(), Failure> {
    Box::pin(by_noun(
        describe.noun,
        &describe.references,
        Only::default(),
        true,
        session,
    ))
    .await
}

async fn by_noun(
    noun: Noun,
    references: &[String],
    only: Only<'_>,
    details: bool,
    session: Session<'_>,
) -> Result<(), Failure> {
    match noun {
        Noun::Apps => show::<ApplicationView>("applications", references, details, session).await,
        Noun::Services => show::<ServiceView>("services", references, details, session).await,
        Noun::Instances => show::<InstanceView>("instances", references, details, session).await,
        Noun::Clusters => show::<ClusterView>("clusters", references, details, session).await,
        Noun::Tokens => tokens(references, details, session).await,
        Noun::Nodes if references.is_empty() => {
            let query = only
                .cluster
                .map_or(String::new(), |name| format!("?cluster={}", escape(name)));
            let nodes: Listed<NodeView> = api::get(session.api, format!("/v1/nodes{query}")).await?;
            // Of one cluster nothing can be said if it does not answer.
            if let ([], [silent, ..], Some(_)) = (nodes.items.as_slice(), nodes.unanswered.as_slice(), only.cluster) {
                let body = ErrorBody {
                    code: silent.code.clone(),
                    message: silent.message.clone(),
                    mistakes: Vec::new(),
                };
                return Err(Failure::Answer { status: 503, body });
            }
            let nodes = super::listed(nodes, session.console);
            print_all(&nodes, details, session)
        }
        Noun::Audit if !references.is_empty() => Err(Failure::Usage(
            "audit records have no names; `--limit N` shows the newest".into(),
        )),
        Noun::Audit => {
            let query = only.limit.map_or(String::new(), |limit| format!("?limit={limit}"));
            let records: Vec<AuditView> = api::get(session.api, format!("/v1/audit{query}")).await?;
            print_all(&records, details, session)
        }
        Noun::Nodes => show::<NodeView>("nodes", references, details, session).await,
    }
}

async fn show<T: View + DeserializeOwned>(
    collection: &str,
    references: &[String],
    details: bool,
    session: Session<'_>,
) -> Result<(), Failure> {
    let items: Vec<T> = match references {
        [] => api::get(session.api, path(&[collection])).await?,
        _ => each(session.api, collection, references).await?,
    };
    match (items.as_slice(), references.len()) {
        ([item], 1) if !details => output::one(session.console, session.format, item),
        _ => print_all(&items, details, session),
    }
}

async fn each<T: DeserializeOwned>(api: &dyn Api, collection: &str, references: &[String]) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    for reference in references {
        items.push(api::get(api, path(&[collection, reference])).await?);
    }
    Ok(items)
}

/// The API has no path for one token.
async fn tokens(references: &[String], details: bool, session: Session<'_>) -> Result<(), Failure> {
    let all: Listed<TokenView> = api::get(session.api, path(&["tokens"])).await?;
    let mut all = super::listed(all, session.console);
    let is_there = |id: &String| all.iter().any(|token| token.id.to_string() == *id);
    if let Some(missing) = references.iter().find(|id| !is_there(id)) {
        return Err(Failure::NotFound(format!(
            "there is no token {missing}; `roble token ls` lists them"
        )));
    }
    all.retain(|token| references.is_empty() || references.contains(&token.id.to_string()));
    print_all(&all, details, session)
}

fn print_all<T: View>(items: &[T], details: bool, session: Session<'_>) -> Result<(), Failure> {
    match details {
        true => output::details(session.console, session.format, items),
        false => output::list(session.console, session.format, items),
    }
}

pub(crate) async fn ps(ps: Ps, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    if !ps.watch {
        return output::list(console, format, &look(&ps, api).await?);
    }
    let mut before = BTreeMap::new();
    loop {
        // A root that is away for a moment does not end a watch; anything else does.
        match look(&ps, api).await {
            Ok(found) => changes(&found, &mut before, format, console)?,
            Err(failure) if failure.is_transient() => console.hint(format_args!("{failure}; trying again")),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(ps.interval.max(Duration::from_millis(100))).await;
    }
}

async fn look(ps: &Ps, api: &dyn Api) -> Result<Vec<InstanceView>, Failure> {
    let mut found = match &ps.reference {
        Some(reference) => super::instances_of(api, reference).await?,
        None => api::get(api, path(&["instances"])).await?,
    };
    let is = |asked: &Option<String>, name: Option<&String>, id: Option<String>| {
        asked
            .as_ref()
            .is_none_or(|asked| name == Some(asked) || id.as_ref() == Some(asked))
    };
    found.retain(|instance| {
        is(
            &ps.cluster,
            instance.cluster.as_ref(),
            instance.cluster_id.map(|id| id.to_string()),
        ) && is(
            &ps.node,
            instance.node_name.as_ref(),
            instance.node.map(|id| id.to_string()),
        )
    });
    Ok(found)
}

/// On a terminal the whole table anew; else only what is new, different or gone, so that it can be read by a program.
fn changes(
    found: &[InstanceView],
    before: &mut BTreeMap<String, InstanceView>,
    format: Format,
    console: &mut Console,
) -> Result<(), Failure> {
    if console.interactive && format == Format::Table {
        write!(console.out, "\x1b[H\x1b[2J")?;
        return output::list(console, format, found);
    }
    let is_first = before.is_empty();
    // How long ago the cluster was heard changes with every look.
    let still = |instance: &InstanceView| InstanceView {
        age_ms: None,
        ..instance.clone()
    };
    let now: BTreeMap<String, InstanceView> = found.iter().map(|i| (i.id.clone(), still(i))).collect();
    let changed: Vec<&InstanceView> = found.iter().filter(|i| before.get(&i.id) != now.get(&i.id)).collect();
    match format {
        Format::Table if !changed.is_empty() => {
            let at = console.now();
            let text = output::table(InstanceView::HEADERS, changed.iter().map(|i| i.row(at)));
            let skipped = if is_first {
                0
            } else {
                text.find('\n').map_or(0, |end| end + 1)
            };
            console.out.write_all(&text.as_bytes()[skipped..])?;
        }
        Format::Table => {}
        Format::Name => {
            for instance in &changed {
                writeln!(console.out, "{}", instance.path)?;
            }
        }
        _ => {
            for instance in &changed {
                output::document_of_stream(console, format, instance)?;
            }
        }
    }
    if format == Format::Table {
        for gone in before.iter().filter(|(id, _)| !now.contains_key(*id)) {
            writeln!(console.out, "{}  gone", gone.1.path)?;
        }
    }
    *before = now;
    Ok(console.out.flush()?)
}
