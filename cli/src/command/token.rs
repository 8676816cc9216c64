//! `roble token`.

use super::Session;
use crate::api::{self, Request};
use crate::command::member::Kind;
use crate::failure::Failure;
use crate::flags::Format;
use crate::output;
use crate::reference::path;
use clap::{Args, Subcommand};
use http::Method;
use roble_core::registry::TokenKind;
use roble_proto::rest::{CreateToken, CreatedToken, Deleted, Listed, TokenView};
use std::io::Write as _;
use std::time::Duration;

/// Verbs of `token`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a token, and print what to run on the machine that shall join.
    Create(Create),
    /// List tokens, without their secrets.
    Ls,
    /// Make a token worthless; who has joined with it stays.
    Delete {
        /// Its id, as `token ls` shows it.
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub struct Create {
    /// What may join with it.
    #[arg(value_enum)]
    pub kind: Kind,
    /// For nodes: the cluster; may be left out if there is only one.
    #[arg(long, value_name = "REF")]
    pub cluster: Option<String>,
    /// How long it may be used.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::text::duration)]
    pub ttl: Duration,
    /// Who joins waits until somebody says `roble approve`.
    #[arg(long)]
    pub needs_approval: bool,
    /// The only name that may join with it.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

pub(crate) async fn run(verb: Verb, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    match verb {
        Verb::Create(flags) => Box::pin(create(flags, Session { api, console, format })).await,
        Verb::Ls => {
            let tokens: Listed<TokenView> = api::get(api, path(&["tokens"])).await?;
            let tokens = super::listed(tokens, console);
            output::list(console, format, &tokens)
        }
        Verb::Delete { id } => {
            let answer: Deleted = api::send(api, Request::new(Method::DELETE, path(&["tokens", &id]))).await?;
            match format {
                Format::Table => writeln!(console.out, "token {id} deleted")?,
                Format::Name => writeln!(console.out, "{id}")?,
                _ => output::document(console, format, &answer)?,
            }
            Ok(())
        }
    }
}

async fn create(flags: Create, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    if flags.kind == Kind::Cluster && flags.cluster.is_some() {
        return Err(Failure::Usage("--cluster goes with tokens for nodes only".into()));
    }
    let body = CreateToken {
        kind: match flags.kind {
            Kind::Cluster => TokenKind::Cluster,
            Kind::Node => TokenKind::Node,
        },
        cluster: flags.cluster,
        ttl_ms: Some(u64::try_from(flags.ttl.as_millis()).unwrap_or(u64::MAX)),
        needs_approval: flags.needs_approval,
        name: flags.name,
    };
    let request = Request::new(Method::POST, "/v1/tokens").json(&body)?;
    let created: CreatedToken = api::send(api, request).await?;
    match format {
        Format::Json | Format::Yaml => return output::document(console, format, &created),
        _ => writeln!(console.out, "{}", created.token)?,
    }
    if format == Format::Table {
        let until = crate::text::age(console.now(), created.expires_at);
        console.hint(format_args!(
            "\nGood once, for {until}. It is not shown again. On the machine that shall join, run:\n"
        ));
        console.hint(format_args!("  {}", join_command(&body, &created.token, api.url())));
        if body.needs_approval {
            let kind = created.kind;
            console.hint(format_args!(
                "\nThen let it in: roble approve {kind} {}",
                body.name.as_deref().unwrap_or("NAME")
            ));
        }
    }
    Ok(console.out.flush()?)
}

/// What to run on the other machine. Flags of the daemons: docs/config.md.
fn join_command(asked: &CreateToken, token: &str, root: &str) -> String {
    let name = asked
        .name
        .as_deref()
        .map_or(String::new(), |name| format!(" --name {name}"));
    match asked.kind {
        TokenKind::Cluster => {
            let root = root.strip_prefix("https://").unwrap_or(root);
            format!("roble-cluster --root {root} --join {token}{name}")
        }
        // Nodes dial their cluster; only its operator knows at which address.
        TokenKind::Node => {
            let port = roble_proto::limits::CLUSTER_API_PORT;
            let cluster = asked.cluster.as_deref().unwrap_or("the cluster");
            format!(
                "roble-node --cluster HOST:{port} --join {token}{name}\n  (HOST: the address of {cluster} as this machine reaches it)"
            )
        }
    }
}
