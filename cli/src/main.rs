//! The `roble` command; everything is in the library.

use clap::Parser as _;
use roble_cli::console::Console;
use roble_cli::context::Environment;
use roble_cli::flags::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    roble_daemon::install_crypto_provider();
    // Mistakes in flags end the process here with exit code 2.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(roble_cli::run(
        cli,
        &Environment::of_process(),
        &mut Console::of_process(),
    ));
    // A blocked read of standard input must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(exit as u8)
}
