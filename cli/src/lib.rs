//! The `roble` command: parse flags, resolve them into a request, send it, print the answer.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`flags`] | verbs and global flags; each verb's own flags stand beside its code in [`command`] |
//! | [`context`] | the file of known roots, and the environment that overrides it |
//! | [`trust`] | which authority is trusted: probing it, pinning it, TLS made from it |
//! | [`api`] | trait `Api` (send a request, get an answer), its HTTPS implementation, reading of event streams |
//! | [`command`] | a file per verb or group of verbs |
//! | [`view`] | a file per noun: table row, details |
//! | [`output`], [`console`], [`text`] | formats, where text goes, how quantities and ages look |
//! | [`reference`] | `shop`, `shop/web`, `shop/web.0`, `cluster/north`, and what path they become |
//! | [`failure`] | everything that can go wrong, what to do about it, and its exit code |
//! | [`dev`] | `roble dev`: a whole tree on one machine |
//!
//! Invariants: no secret is sent before the authority is verified; the server must be `root.roble.internal` whatever
//! address was dialed; results go to standard output, everything else to standard error; exit codes are those of
//! [`failure::Exit`].

pub mod api;
pub mod command;
pub mod console;
pub mod context;
pub mod dev;
pub mod failure;
pub mod flags;
pub mod output;
pub mod reference;
pub mod text;
pub mod trust;
pub mod view;

use crate::console::Console;
use crate::context::Environment;
use crate::failure::{Exit, Failure};
use crate::flags::Cli;

/// Runs one command line to its end; says on the console what went wrong.
pub async fn run(cli: Cli, environment: &Environment, console: &mut Console) -> Exit {
    match command::dispatch(cli, environment, console).await {
        Ok(()) => Exit::Ok,
        // The reader of our output has seen enough (`roble ps | head -1`).
        Err(Failure::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(failure) => {
            let _ = failure.print(&mut console.err);
            failure.exit()
        }
    }
}
