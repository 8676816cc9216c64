//! `roble completion`.

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Cli;
use clap::{Args, CommandFactory as _};
use std::io::Write as _;

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// For which shell, e.g. `roble completion bash > /etc/bash_completion.d/roble`.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

pub(crate) fn run(completion: &Completion, console: &mut Console) -> Result<(), Failure> {
    // The generator panics when writing fails, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(completion.shell, &mut Cli::command(), "roble", &mut script);
    Ok(console.out.write_all(&script)?)
}
