//! Commands for people at the site; they talk to the running daemon and need no root.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use http::Method;
use roble_core::ids::TokenId;
use roble_core::registry::MemberState;
use roble_daemon::config::{Inputs, Outcome, parse};
use roble_daemon::request;
use roble_proto::rest::{CreatedToken, Deleted, NodeView, TokenView};
use serde::de::DeserializeOwned;

use crate::config::{SOCKET, SPEC};
use crate::local::{NewToken, Status};

/// Words that make the process a command instead of the daemon.
pub const WORDS: &[&str] = &["token", "nodes", "status"];

/// The command line of the commands.
#[derive(Debug, Parser)]
#[command(
    name = "roble-cluster",
    about = "Commands at the site, for the cluster orchestrator that runs here."
)]
pub struct CommandLine {
    /// Folder of the daemon's state, if it is not the one in the daemon's configuration
    #[arg(long, global = true)]
    pub state_dir: Option<PathBuf>,
    /// The daemon's configuration file, if it is not in its usual place
    #[arg(long, global = true)]
    pub config: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join tokens for nodes
    Token {
        /// What to do
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The nodes of this cluster
    Nodes {
        /// What to do; lists them if left out
        #[command(subcommand)]
        command: Option<NodesCommand>,
    },
    /// How the cluster is
    Status,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it lets one node join, and is shown once
    Create {
        /// Minutes it lives
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// A person must approve who joins with it
        #[arg(long)]
        needs_approval: bool,
        /// The only name that may join with it
        #[arg(long)]
        name: Option<String>,
    },
    /// Show all tokens, without their secrets
    List,
    /// Make a token worthless; who has joined with it stays
    Delete {
        /// Its id, as `token list` shows it
        id: TokenId,
    },
}

/// What to do with nodes; each takes an id or a name.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Show all nodes
    List,
    /// Let a pending node take part
    Approve {
        /// Id or name
        node: String,
    },
    /// Put a node out for good
    Revoke {
        /// Id or name
        node: String,
    },
    /// Give a node nothing new
    Cordon {
        /// Id or name
        node: String,
    },
    /// Give it new things again
    Uncordon {
        /// Id or name
        node: String,
    },
}

impl CommandLine {
    /// Where the daemon keeps its state: as said, else as its configuration says.
    fn state_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(folder) = &self.state_dir {
            return Ok(folder.clone());
        }
        let mut inputs = Inputs::of_process().without_args();
        if let Some(file) = &self.config {
            inputs = inputs.args(["--config", file]);
        }
        match parse(&SPEC, &inputs)? {
            Outcome::Run(config) => Ok(config.path("state_dir").to_owned()),
            Outcome::Print(_) => anyhow::bail!("say --state-dir"),
        }
    }

    /// Does it; returns what to print.
    ///
    /// # Errors
    /// What the daemon said, or that it does not run.
    pub async fn run(self) -> anyhow::Result<String> {
        let socket = self.state_dir()?.join(SOCKET);
        let ask = Ask(&socket);
        let change = match self.command {
            Command::Token {
                command:
                    TokenCommand::Create {
                        minutes,
                        needs_approval,
                        name,
                    },
            } => {
                let new = NewToken {
                    ttl_ms: Some(u64::try_from(Duration::from_secs(minutes * 60).as_millis())?),
                    needs_approval,
                    name,
                };
                let created: CreatedToken = ask.send(Method::POST, "/v1/tokens", Some(&new)).await?;
                return Ok(format!("{}\n", created.token));
            }
            Command::Token {
                command: TokenCommand::List,
            } => {
                let tokens: Vec<TokenView> = ask.get("/v1/tokens").await?;
                let mut text = table(&["ID", "EXPIRES", "STATE", "NAME"]);
                for token in tokens {
                    let state = if token.used { "used" } else { "unused" };
                    text += &row(&[
                        &token.id.to_string(),
                        &token.expires_at.to_string(),
                        state,
                        token.name.as_deref().unwrap_or("-"),
                    ]);
                }
                return Ok(text);
            }
            Command::Token {
                command: TokenCommand::Delete { id },
            } => {
                let _: Deleted = ask
                    .send(Method::DELETE, &format!("/v1/tokens/{id}"), None::<&()>)
                    .await?;
                return Ok(format!("token {id} deleted\n"));
            }
            Command::Status => {
                let status: Status = ask.get("/v1/status").await?;
                return Ok(format!("{}\n", serde_json::to_string_pretty(&status)?));
            }
            Command::Nodes {
                command: None | Some(NodesCommand::List),
            } => {
                let nodes: Vec<NodeView> = ask.get("/v1/nodes").await?;
                let mut text = table(&["ID", "NAME", "STATE", "STANDING", "INSTANCES"]);
                for node in nodes {
                    let state = match node.state {
                        MemberState::Pending => "pending",
                        MemberState::Active if node.cordoned => "cordoned",
                        MemberState::Active => "active",
                        MemberState::Revoked => "revoked",
                    };
                    let count = node.instances.to_string();
                    text += &row(&[&node.id.to_string(), &node.name, state, &node.standing, &count]);
                }
                return Ok(text);
            }
            Command::Nodes { command: Some(change) } => change,
        };
        let (node, word) = match change {
            NodesCommand::Approve { node } => (node, "approve"),
            NodesCommand::Revoke { node } => (node, "revoke"),
            NodesCommand::Cordon { node } => (node, "cordon"),
            NodesCommand::Uncordon { node } => (node, "uncordon"),
            NodesCommand::List => return Ok(String::new()),
        };
        let good = !node.is_empty()
            && node
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        anyhow::ensure!(good, "`{node}` is neither an id nor a name");
        let _: serde_json::Value = ask
            .send(Method::POST, &format!("/v1/nodes/{node}/{word}"), None::<&()>)
            .await?;
        Ok(format!("{node}: {word} done\n"))
    }
}

struct Ask<'a>(&'a std::path::Path);

impl Ask<'_> {
    async fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<B: serde::Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<A> {
        let answer = request::local(self.0, method, path, body).await;
        answer.with_context(|| format!("ask the cluster orchestrator at {}", self.0.display()))
    }
}

fn table(titles: &[&str]) -> String {
    row(titles)
}

fn row(cells: &[&str]) -> String {
    let mut line: String = cells.iter().map(|cell| format!("{cell:<26}")).collect();
    line.truncate(line.trim_end().len());
    line + "\n"
}
