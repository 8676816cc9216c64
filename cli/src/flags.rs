//! The command line: global flags and verbs. Each verb's own flags stand beside its code.

use crate::command::{
    apply, completion, contexts, delete, events, explain, get, login, logs, member, network, node, scale, token, wait,
};
use clap::{Parser, Subcommand, ValueEnum};
use std::time::Duration;

const AFTER: &str = "\
References: application `shop`, service `shop/web`, instance `shop/web.0`; clusters and nodes by name or id.
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 a wait timed out, 5 refused (not logged in, not allowed, not trusted).
Environment: ROBLE_CONFIG, ROBLE_CONTEXT, ROBLE_URL, ROBLE_TOKEN, ROBLE_CA.";

/// Runs services across clusters of edge machines.
#[derive(Debug, Parser)]
#[command(name = "roble", version, about, after_help = AFTER, propagate_version = false, max_term_width = 100)]
pub struct Cli {
    /// Format of the output.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// Login to use, as `roble context ls` shows them.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Time for one request to the root.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = crate::text::duration)]
    pub request_timeout: Duration,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// The API's own JSON.
    Json,
    /// The same as YAML.
    Yaml,
    /// References only, one a line.
    Name,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pin a root's authority, exchange the one-time credential for a session, remember both.
    Login(login::Login),
    /// Show who you are, and to whom you talk.
    Whoami,
    /// List, choose or forget logins.
    #[command(subcommand)]
    Context(contexts::Verb),
    /// Create or change what a descriptor says.
    Apply(apply::Apply),
    /// Check a descriptor on this machine, without a root.
    Validate(apply::Validate),
    /// Delete an application or a service.
    Delete(delete::Delete),
    /// List instances: where they are, how they are.
    Ps(get::Ps),
    /// List objects, or show some.
    Get(get::Get),
    /// Show everything about objects.
    Describe(get::Describe),
    /// Print what an instance writes.
    Logs(logs::Logs),
    /// Print what happened.
    Events(events::Events),
    /// Set the number of a service's instances.
    Scale(scale::Scale),
    /// Make, list or delete join tokens.
    #[command(subcommand)]
    Token(token::Verb),
    /// Let a cluster or node in that waits for approval.
    Approve(member::Member),
    /// Put a cluster or node out, for good.
    Revoke(member::Revoke),
    /// Give a cluster or node nothing new.
    Cordon(member::Member),
    /// Give a cluster or node work again.
    Uncordon(member::Member),
    /// Wait until something is so.
    Wait(wait::Wait),
    /// Say why an instance is where it is, or nowhere.
    Explain(explain::Explain),
    /// Show names and addresses, and what they lead to.
    #[command(subcommand)]
    Network(network::Verb),
    /// Look for what is wrong on this machine.
    #[command(subcommand)]
    Doctor(node::Doctor),
    /// Run a whole tree on this machine.
    #[command(subcommand)]
    Dev(crate::dev::Verb),
    /// Show the version of this command and, if logged in, of the root.
    Version,
    /// Print a script that completes this command in a shell.
    Completion(completion::Completion),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }
}
