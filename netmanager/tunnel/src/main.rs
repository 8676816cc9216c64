//! `roble-tunnel`: the worker. Knows nothing until it is told on its socket; goes on without whoever told it.

use clap::Parser;
use roble_tunnel::control::{listen, serve};
use roble_tunnel::worker::Worker;
use std::path::PathBuf;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// The encrypted tunnel of a node in user space: WireGuard's protocol over a TUN device.
#[derive(Debug, Parser)]
#[command(name = "roble-tunnel", version)]
struct Arguments {
    /// Name of the TUN device; one that an earlier worker left is taken over.
    #[arg(long)]
    device: String,
    /// Control socket, mode 0600. `/run/wireguard/DEVICE.sock` is where `wg` looks.
    #[arg(long)]
    socket: PathBuf,
    /// Largest packet that the kernel puts into the device, in bytes, until `set` says otherwise.
    #[arg(long, default_value_t = 1420)]
    mtu: u16,
    /// What is logged, as of the crate `tracing-subscriber`.
    #[arg(long, env = "ROBLE_TUNNEL_LOG", default_value = "info")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let listener = listen(&arguments.socket)
        .map_err(|error| anyhow::Error::new(error).context(format!("listen on {}", arguments.socket.display())))?;
    let worker = Worker::open(&arguments.device, arguments.mtu)
        .map_err(|error| anyhow::Error::new(error).context(format!("open device {}", arguments.device)))?;
    let threads = worker.start()?;
    info!(version = env!("CARGO_PKG_VERSION"), socket = %arguments.socket.display(), "serving");
    serve(&listener, &worker);
    worker.end();
    let _ = std::fs::remove_file(&arguments.socket);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}
