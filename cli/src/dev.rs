//! `roble dev`: a whole tree on one machine. **Only the flags are here; the work is still to be written.**
//!
//! The seam: [`run`] gets the parsed verb, the environment and the console, and nothing else of the command line. It
//! should start the daemons' binaries (found beside the running `roble`, then on `PATH`), wait until they are ready, and
//! log in by the same code as a person does:
//! [`crate::command::login::log_in`] takes URL, credential and pin and stores the context under [`CONTEXT`]. Flags may be
//! added to [`Up`]; no other file needs to change.

use crate::console::Console;
use crate::context::Environment;
use crate::failure::Failure;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Name of the context that `dev up` logs in to.
pub const CONTEXT: &str = "dev";

/// Verbs of `roble dev`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start root, cluster and nodes, and log in.
    Up(Up),
    /// Stop them, and remove what they made.
    Down(Down),
    /// Show what runs.
    Status(Status),
}

/// Flags of `dev up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Folder of state and logs; a folder below the user's state folder if left out.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// How many nodes.
    #[arg(long, default_value_t = 1)]
    pub nodes: u32,
}

/// Flags of `dev down`.
#[derive(Debug, Args)]
pub struct Down {
    /// As given to `dev up`.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Keep state and logs.
    #[arg(long)]
    pub keep: bool,
}

/// Flags of `dev status`.
#[derive(Debug, Args)]
pub struct Status {
    /// As given to `dev up`.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Runs a verb.
///
/// # Errors
/// Always, for now: see the head of this file.
pub async fn run(verb: Verb, _environment: &Environment, _console: &mut Console) -> Result<(), Failure> {
    let name = match verb {
        Verb::Up(_) => "up",
        Verb::Down(_) => "down",
        Verb::Status(_) => "status",
    };
    Err(Failure::other(format!(
        "`roble dev {name}` is not there yet; start roble-root, roble-cluster and roble-node by hand (docs/cli.md)"
    )))
}
