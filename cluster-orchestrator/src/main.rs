//! `roble-cluster`: see the library's documentation. Only wiring here.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use roble_cluster::commands::{CommandLine, WORDS};
use roble_cluster::config::{DaemonConfig, SPEC};
use roble_cluster::daemon::{Daemon, Seams};
use roble_cluster::membership::JoinError;
use roble_daemon::logs::{self, LogFormat};
use roble_daemon::shutdown::{Shutdown, hangups};
use roble_daemon::{config as settings, notify};

fn main() -> ExitCode {
    roble_daemon::install_crypto_provider();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line, also where logging has not begun.
            let _ = writeln!(std::io::stderr(), "roble-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    if std::env::args()
        .nth(1)
        .is_some_and(|word| WORDS.contains(&word.as_str()))
    {
        return command();
    }
    let settings = settings::from_process(&SPEC);
    logs::init(
        LogFormat::from_name(settings.string("log.format")),
        settings.string("log.level"),
    )?;
    let host = nix::unistd::gethostname().context("name of this machine")?;
    let config = DaemonConfig::build(&settings, &host.to_string_lossy())?;
    let shutdown = Shutdown::new(config.shutdown_deadline);
    roble_daemon::runtime(roble_daemon::runtime::DEFAULT_WORKERS)?.block_on(run(config, shutdown))
}

async fn run(config: DaemonConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    shutdown.listen_for_signals()?;
    let socket = config.socket();
    let seams = Seams {
        renew_now: hangups()?,
        ..Seams::default()
    };
    let daemon = match Daemon::start(config, seams, shutdown.token()).await {
        Ok(daemon) => daemon,
        // Asked to stop while it waited for the root or for approval.
        Err(error) if matches!(error.downcast_ref(), Some(JoinError::Stopped)) => return Ok(()),
        Err(error) => return Err(error),
    };
    notify::ready();
    let result = daemon.run().await;
    notify::stopping();
    // The next start replaces what may be left.
    let _ = std::fs::remove_file(&socket);
    tracing::info!("stopped, nodes go on by themselves");
    result
}

fn command() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(CommandLine::parse().run())?;
    // A closed pipe is the reader's wish.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
