//! The root orchestrator.

use anyhow::Context as _;
use roble_daemon::clock::SystemClock;
use roble_daemon::config::{self, Config, Inputs, Outcome};
use roble_daemon::logs::{self, LogFormat};
use roble_daemon::notify;
use roble_daemon::shutdown::Shutdown;
use roble_root::config::{SPEC, Settings};
use roble_root::{daemon, local};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    roble_daemon::install_crypto_provider();
    let done = match std::env::args().nth(1).as_deref() {
        Some("credential") => credential(None),
        Some("organization") => match std::env::args().nth(2).filter(|name| !name.starts_with('-')) {
            Some(name) => credential(Some(&name)),
            None => Err(anyhow::anyhow!("usage: roble-root organization NAME [--state-dir DIR]")),
        },
        _ => run(&config::from_process(&SPEC)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}: {error:#}", SPEC.daemon);
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    logs::init(
        LogFormat::from_name(config.string("log.format")),
        config.string("log.level"),
    )?;
    let settings = Settings::new(config)?;
    let shutdown = Shutdown::new(config.duration("shutdown.deadline"));
    let runtime = roble_daemon::runtime(roble_daemon::runtime::DEFAULT_WORKERS).context("start the runtime")?;
    let result = runtime.block_on(serve(settings, &shutdown));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

async fn serve(settings: Settings, shutdown: &Shutdown) -> anyhow::Result<()> {
    shutdown.listen_for_signals().context("listen for signals")?;
    let root = Box::pin(daemon::start(settings, Arc::new(SystemClock), shutdown.token())).await?;
    tracing::info!(
        version = SPEC.version,
        api = %root.api,
        link = %root.link,
        socket = %root.socket.display(),
        url = %root.url,
        pin = %root.pin,
        "root serves"
    );
    if let Some(invitation) = &root.invitation {
        print(&invitation.to_string())?;
    }
    notify::ready();
    Box::pin(shutdown.run(root.finished())).await??;
    notify::stopping();
    tracing::info!("root stopped");
    Ok(())
}

/// `roble-root credential` and `roble-root organization NAME`, with the settings of the daemon: asks the running root, prints
/// what it answers.
fn credential(organization: Option<&str>) -> anyhow::Result<()> {
    let words = 1 + usize::from(organization.is_some());
    match config::parse(&SPEC, &Inputs::of_command(words))? {
        Outcome::Print(text) => print(&text),
        Outcome::Run(config) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let asked = local::new_credential(config.path("state_dir"), organization);
            print(&runtime.block_on(asked)?.to_string())
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}
