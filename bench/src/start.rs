//! `start`: from exec to the first right answer, in turns with mosquitto.
//!
//! | daemon | answer | peer |
//! | --- | --- | --- |
//! | root | `/readyz` over TLS | mosquitto's CONNACK over TLS with a client's certificate |
//! | cluster | its broker's CONNACK over TLS with a node's certificate | the same |
//! | node, net | `/healthz` on the Unix socket | mosquitto's CONNACK without TLS |
//!
//! The daemons have what a running tree has stored. The root is also started with 10,000 services stored.

use crate::peer::Mosquitto;
use crate::probe;
use crate::process::{Owned, output, wait_for};
use crate::report::Row;
use crate::tree::{ENVIRONMENT, GATEWAY, IMAGE, Tree, binaries};
use anyhow::Context as _;
use roble_core::ids::NodeId;
use roble_proto::limits::{CLUSTER_MQTT_PORT, ROOT_API_PORT};
use roble_proto::topics::{Branch, client_id};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Services stored for the large start.
const SERVICES: usize = 10_000;
/// Services of one application there.
const TOGETHER: usize = 100;
const ROOT_PORTS: (u16, u16) = (18_500, 18_501);

/// Measures so many pairs per daemon.
///
/// # Errors
/// A daemon does not start.
pub fn run(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let peer = Mosquitto::new()?;
    let mut rows = of_tree(rounds, &peer)?;
    rows.extend(of_full_root(rounds, &peer)?);
    Ok(rows)
}

type Attempt<'a> = Box<dyn Fn() -> io::Result<()> + 'a>;

fn of_tree(rounds: usize, peer: &Mosquitto) -> anyhow::Result<Vec<Row>> {
    let tree = Tree::up(&[])?;
    let (anybody, (node, as_node)) = (probe::client(None)?, node_identity(&tree)?);
    let gateway: Ipv4Addr = GATEWAY.parse()?;
    let (api, broker) = (
        SocketAddr::from((gateway, ROOT_API_PORT)),
        SocketAddr::from((gateway, CLUSTER_MQTT_PORT)),
    );
    // The net manager's branch, which nobody uses yet: the node's own session is not disturbed.
    let id = client_id(node, Branch::Net);
    let socket = |name: &str| PathBuf::from(tree.path(name));
    let (node_socket, net_socket) = (socket("n1/engine/node.sock"), socket("n1/net.sock"));
    let daemons: [(&str, &str, bool, Attempt<'_>); 4] = [
        (
            "root",
            "roble-root",
            true,
            Box::new(|| probe::https(&anybody, api, "/readyz")),
        ),
        (
            "cluster",
            "roble-cluster",
            true,
            Box::new(|| probe::mqtt(Some(&as_node), broker, &id)),
        ),
        (
            "n1",
            "roble-node",
            false,
            Box::new(|| probe::unix(&node_socket, "/healthz")),
        ),
        (
            "n1-net",
            "roble-net",
            false,
            Box::new(|| probe::unix(&net_socket, "/healthz")),
        ),
    ];
    let mut rows = Vec::new();
    // Those that had their turn go on as children of this process.
    let mut running = Vec::new();
    for (daemon, name, tls, attempt) in &daemons {
        tree.stop(daemon)?;
        let mut pairs = Vec::new();
        for round in 0..=rounds {
            let (process, started) = tree.start(daemon)?;
            let ours = probe::first(started, attempt).with_context(|| format!("start {name}"))?;
            // Its parent and children come back and have their say before the peer's turn.
            std::thread::sleep(Duration::from_millis(500));
            drop(process);
            let (process, theirs) = start_peer(peer, *tls)?;
            drop(process);
            if round > 0 {
                println!("start {round}: {name} {ours:.1} ms, mosquitto {theirs:.1} ms");
                pairs.push((ours, theirs));
            }
        }
        running.push(tree.start(daemon)?);
        rows.extend(Row::of_pairs(
            &format!("{name}: exec to first answer, ms"),
            peer_name(*tls),
            &pairs,
            Some(1.0),
        ));
    }
    Ok(rows)
}

fn start_peer(peer: &Mosquitto, tls: bool) -> anyhow::Result<(Owned, f64)> {
    if tls { peer.start_tls() } else { peer.start_plain() }
}

const fn peer_name(tls: bool) -> &'static str {
    if tls { "mosquitto with TLS" } else { "mosquitto" }
}

/// The certificate of the tree's node.
fn node_identity(tree: &Tree) -> anyhow::Result<(NodeId, Arc<ClientConfig>)> {
    let home: serde_json::Value = serde_json::from_slice(&std::fs::read(tree.path("n1/engine/home.json"))?)?;
    let node = home["node"]
        .as_str()
        .context("find the node's id")?
        .parse()
        .map_err(|_| anyhow::anyhow!("read the node's id"))?;
    let file = tree.path("n1/engine/credential.pem");
    let chain = CertificateDer::pem_file_iter(&file)?.collect::<Result<Vec<_>, _>>()?;
    Ok((
        node,
        probe::client(Some((chain, PrivateKeyDer::from_pem_file(&file)?)))?,
    ))
}

fn of_full_root(rounds: usize, peer: &Mosquitto) -> anyhow::Result<Vec<Row>> {
    let (bin, folder) = (
        binaries()?,
        tempfile::Builder::new().prefix("roble-bench-root-").tempdir()?,
    );
    let state = folder.path().join("root");
    let api = SocketAddr::from((Ipv4Addr::LOCALHOST, ROOT_PORTS.0));
    let start = || -> anyhow::Result<(Owned, Instant)> {
        let mut command = Command::new(bin.join("roble-root"));
        command
            .arg("--state-dir")
            .arg(&state)
            .args(["--listen-api", &api.to_string()]);
        command.args([
            "--listen-link",
            &format!("127.0.0.1:{}", ROOT_PORTS.1),
            "--advertise",
            "127.0.0.1",
        ]);
        let started = Instant::now();
        Ok((Owned::start(command.envs(ENVIRONMENT))?, started))
    };
    let anybody = probe::client(None)?;
    let attempt = || probe::https(&anybody, api, "/readyz");
    let (root, started) = start()?;
    let new = probe::first(started, attempt)?;
    println!("start of a root on an empty folder, with keys and certificates made: {new:.1} ms");
    fill(&bin, folder.path(), &state)?;
    drop(root);
    let mut pairs = Vec::new();
    for round in 0..=rounds {
        let (process, started) = start()?;
        let ours = probe::first(started, attempt)?;
        drop(process);
        let (process, theirs) = peer.start_tls()?;
        drop(process);
        if round > 0 {
            println!("start {round}: roble-root with {SERVICES} services {ours:.1} ms, mosquitto {theirs:.1} ms");
            pairs.push((ours, theirs));
        }
    }
    Ok([
        Row::of_pairs(
            "roble-root with 10,000 services stored, ms",
            peer_name(true),
            &pairs,
            Some(1.0),
        ),
        Row::of_figures("roble-root on an empty folder, keys made, ms", &[new], None, 1),
    ]
    .into_iter()
    .flatten()
    .collect())
}

/// Puts the services there as a user does: by descriptors, through the API.
fn fill(bin: &Path, folder: &Path, state: &Path) -> anyhow::Result<()> {
    let roble = |args: &[&str]| {
        output(
            Command::new(bin.join("roble"))
                .args(args)
                .env("ROBLE_CONFIG", folder.join("config.json")),
        )
    };
    let credential = || {
        output(
            Command::new(bin.join("roble-root"))
                .arg("credential")
                .arg("--state-dir")
                .arg(state),
        )
    };
    let text = wait_for("a credential", Duration::from_secs(10), || credential().ok())?;
    let after = |flag: &str| {
        let word = text.split_whitespace().skip_while(|word| *word != flag).nth(1);
        word.with_context(|| format!("find {flag}"))
    };
    let url = format!("https://127.0.0.1:{}", ROOT_PORTS.0);
    roble(&[
        "login",
        &url,
        "--pin",
        after("--pin")?,
        "--credential",
        after("--credential")?,
    ])?;
    let file = folder.join("services.yaml");
    let started = Instant::now();
    for application in 0..SERVICES / TOGETHER {
        std::fs::write(&file, descriptor(application))?;
        roble(&["apply", "-f", &file.to_string_lossy()])?;
    }
    println!(
        "{SERVICES} services submitted in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn descriptor(application: usize) -> String {
    let mut text = format!("application: bench{application}\nservices:\n");
    for service in 0..TOGETHER {
        text.push_str(&format!(
            "  s{service}:\n    image: {IMAGE}\n    environment:\n      GREETING: hello from the bench\n    cpu: 50m\n    memory: 32MiB\n"
        ));
    }
    text
}
