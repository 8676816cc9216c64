//! `roble approve`, `revoke`, `cordon`, `uncordon`.

use super::Session;
use crate::api::{self, Request};
use crate::failure::Failure;
use crate::flags::Format;
use crate::output;
use crate::reference::path;
use clap::{Args, ValueEnum};
use http::Method;
use roble_proto::rest::{ClusterView, NodeView};
use std::io::Write as _;

/// What has members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A cluster of the root.
    Cluster,
    /// A node of a cluster.
    Node,
}

/// Flags of these verbs.
#[derive(Debug, Args)]
pub struct Member {
    /// What kind of member.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Name or id.
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// Flags of `revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// Whom.
    #[command(flatten)]
    pub member: Member,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

pub(crate) async fn revoke(revoke: &Revoke, session: Session<'_>) -> Result<(), Failure> {
    let console = &mut *session.console;
    // It cannot be undone: the machine has to be joined anew. Scripts are trusted to mean it.
    if console.interactive && !revoke.yes {
        write!(
            console.err,
            "Put {} out for good? It can only come back with a new token. [yes/no] ",
            revoke.member.reference
        )?;
        console.err.flush()?;
        if console.read_line()? != "yes" {
            return Err(Failure::other("nothing was done"));
        }
    }
    run("revoke", &revoke.member, session).await
}

pub(crate) async fn run(verb: &str, member: &Member, session: Session<'_>) -> Result<(), Failure> {
    let collection = match member.kind {
        Kind::Cluster => "clusters",
        Kind::Node => "nodes",
    };
    let request = Request::new(Method::POST, path(&[collection, &member.reference, verb]));
    let done = match verb {
        "approve" => "approved",
        "revoke" => "revoked",
        "cordon" => "cordoned: it gets nothing new, what runs there stays",
        _ => "uncordoned",
    };
    let Session { api, console, format } = session;
    match member.kind {
        Kind::Cluster => {
            let view: ClusterView = api::send(api, request).await?;
            match format {
                Format::Table => writeln!(console.out, "cluster/{} {done}", view.name)?,
                _ => output::one(console, format, &view)?,
            }
        }
        Kind::Node => {
            let view: NodeView = api::send(api, request).await?;
            match format {
                Format::Table => writeln!(console.out, "node/{} {done}", view.name)?,
                _ => output::one(console, format, &view)?,
            }
        }
    }
    Ok(())
}
