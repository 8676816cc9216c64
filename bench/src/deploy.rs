//! `deploy`: from the start of the command that asks for it to the container's own process calling back.
//!
//! Ours: `roble apply -f FILE`, through root, cluster and node, everything durable, the container in a network of its own.
//! Peer: `ctr run -d --net-host` on the same containerd, same image, same program, in turns. Both commands are processes
//! of their own and count from their start. The peer gives the container no network, address or route of its own.

use crate::process::{output, wait_for};
use crate::report::Row;
use crate::tree::{GATEWAY, IMAGE, Tree};
use anyhow::{Context as _, bail};
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Measures so many pairs.
///
/// # Errors
/// A deployment fails, or its process does not call back.
pub fn run(rounds: usize) -> anyhow::Result<Vec<Row>> {
    // The container calls back to the machine, which is its node's LAN.
    let tree = Tree::up(&[("ROBLE_NET_EGRESS_LAN", "allow")])?;
    tree.import()?;
    let listener = TcpListener::bind((GATEWAY, 0)).context("listen for the containers")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let mut pairs = Vec::new();
    let mut answered = Vec::new();
    // The first pair warms caches and is not counted.
    for round in 0..=rounds {
        let ours = ours(&tree, &listener, port, round)?;
        let peer = peer(&tree, &listener, port, round)?;
        if round > 0 {
            println!(
                "deploy {round}: roble {:.1} ms (accepted after {:.1}), ctr {peer:.1} ms",
                ours.0, ours.1
            );
            pairs.push((ours.0, peer));
            answered.push(ours.1);
        }
    }
    let what = "submit to running, three tiers, ms";
    let accepted = "of it until `roble apply` has the root's answer, ms";
    Ok([
        Row::of_pairs(what, "`ctr run -d`", &pairs, Some(1.3)),
        Row::of_figures(accepted, &answered, None, 1),
    ]
    .into_iter()
    .flatten()
    .collect())
}

fn ours(tree: &Tree, listener: &TcpListener, port: u16, round: usize) -> anyhow::Result<(f64, f64)> {
    let file = tree.path("bench.yaml");
    let text = format!(
        "application: bench{round}\nservices:\n  web:\n    image: {IMAGE}\n    args: [\"--callback\", \"{GATEWAY}:{port}\"]\n    \
         environment:\n      GREETING: ours{round}\n    cpu: 50m\n    memory: 32MiB\n"
    );
    std::fs::write(&file, text)?;
    let mut command = tree.command(&["apply", "-f", &file]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let started = Instant::now();
    let child = command.spawn()?;
    // Waited for beside, so that neither end delays the look at the other.
    let command = std::thread::spawn(move || child.wait_with_output().map(|output| (output, started.elapsed())));
    let running = called_back(listener, &format!("ours{round}"), started);
    let (output, accepted) = command.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    if !output.status.success() {
        bail!("roble apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let running = running?;
    tree.roble(&["delete", "app", &format!("bench{round}"), "--wait"])?;
    Ok((running, accepted.as_secs_f64() * 1e3))
}

fn peer(tree: &Tree, listener: &TcpListener, port: u16, round: usize) -> anyhow::Result<f64> {
    let (id, greeting) = (format!("bench-peer-{round}"), format!("GREETING=peer{round}"));
    let address = format!("{GATEWAY}:{port}");
    let started = Instant::now();
    output(&mut tree.ctr(&[
        "run",
        "-d",
        "--net-host",
        "--env",
        &greeting,
        "--env",
        "PORT=0",
        IMAGE,
        &id,
        "/hello",
        "--callback",
        &address,
    ]))?;
    let running = called_back(listener, &format!("peer{round}"), started)?;
    output(&mut tree.ctr(&["tasks", "kill", "-s", "SIGKILL", &id]))?;
    wait_for("end of the peer's container", PATIENCE, || {
        output(&mut tree.ctr(&["tasks", "rm", &id])).ok()
    })?;
    output(&mut tree.ctr(&["containers", "rm", &id]))?;
    Ok(running)
}

/// Milliseconds until the process with this greeting has connected.
fn called_back(listener: &TcpListener, greeting: &str, started: Instant) -> anyhow::Result<f64> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let elapsed = started.elapsed();
                if said(stream)?.starts_with(greeting) {
                    return Ok(elapsed.as_secs_f64() * 1e3);
                }
            }
            Err(_) if started.elapsed() > PATIENCE => bail!("{greeting}: the container's process did not call back"),
            Err(_) => std::thread::sleep(Duration::from_micros(250)),
        }
    }
}

fn said(mut stream: TcpStream) -> anyhow::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
