//! Keeps the child running and reads its log.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use roble_proto::topics::parse_client_id;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::log::{Line, parse};
use super::{MosquittoConfig, Shared, files, link};

/// Longest line of the log that is looked at.
const LINE_BYTES: u64 = 4096;
/// A child that lived this long was a success.
const STEADY: Duration = Duration::from_secs(60);

/// Starts the child so that it dies with us, also if we are killed: `setpriv` (util-linux) asks the kernel for it, which
/// from here would take an unsafe call. Without `setpriv` the child is killed only if we end in order.
pub(super) fn spawn(config: &MosquittoConfig) -> io::Result<Child> {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"]).arg(&config.program);
    match start(tied, config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!("no setpriv: mosquitto would outlive a kill of this process");
            start(Command::new(&config.program), config)
        }
        result => result,
    }
}

fn start(mut command: Command, config: &MosquittoConfig) -> io::Result<Child> {
    // The log comes by the stream that C does not buffer.
    let configuration = config.folder.join(files::CONFIGURATION);
    command
        .arg("-c")
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.kill_on_drop(true).spawn()
}

/// Runs until dropped. `first`: already started, so that a missing program is an error of the start.
pub(super) async fn run(shared: Arc<Shared>, first: Child, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut next, mut failures) = (Ok(first), 0);
    loop {
        let started = Instant::now();
        match next {
            Ok(mut child) => {
                shared.state().child = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
                read_log(&shared, &mut child).await;
                shared.state().child = None;
                let status = child.wait().await;
                tracing::error!(?status, "mosquitto ended");
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "mosquitto did not start"),
        }
        {
            let mut state = shared.state();
            state.clients.clear();
            state.stats.restarts += 1;
        }
        shared.all_disconnected().await;
        failures = if started.elapsed() >= STEADY { 0 } else { failures + 1 };
        let wait = shared.config.backoff.delay_ms(failures, &mut rng);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        next = spawn(&shared.config);
    }
}

/// Follows the log until the child closes it, which it does when it ends.
async fn read_log(shared: &Arc<Shared>, child: &mut Child) {
    let Some(output) = child.stderr.take() else { return };
    let (mut output, mut bytes) = (BufReader::new(output), Vec::new());
    loop {
        bytes.clear();
        match (&mut output).take(LINE_BYTES).read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes);
        handle(shared, line.trim_end()).await;
    }
}

async fn handle(shared: &Arc<Shared>, line: &str) {
    match parse(line) {
        Line::Connected { client, user } => {
            let revoked = {
                let mut state = shared.state();
                state.stats.connects += 1;
                state.clients.insert(client.to_owned(), user.to_owned());
                files::user_node(shared.config.cluster, user).is_some_and(|node| state.revoked.contains(&node))
            };
            if revoked {
                shared.state().stats.refused += 1;
                // Not here: it waits for the child, whose log is read here.
                let (config, client) = (shared.config.clone(), client.to_owned());
                tokio::spawn(async move { link::put_out(&config, client).await });
            }
        }
        Line::Replaced { client } => {
            let Some((node, branch)) = parse_client_id(client) else {
                return;
            };
            let ours = shared.state().revoked.contains(&node);
            if !ours {
                shared.duplicate(node).await;
            }
            shared.disconnected(node, branch).await;
        }
        Line::Disconnected { client } => {
            shared.state().clients.remove(client);
            if let Some((node, branch)) = parse_client_id(client) {
                shared.disconnected(node, branch).await;
            }
        }
        Line::Reloaded => shared.reloads.send_modify(|count| *count += 1),
        Line::Trouble => tracing::warn!(line, "mosquitto"),
        Line::Other => {}
    }
}
