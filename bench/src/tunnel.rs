//! `tunnel`: one TCP stream between two network namespaces through the encrypted tunnel in user space, in turns with gotatun,
//! boringtun and wireguard-go: time on the clock and processor time of both workers per gigabit; the same with 1 % of the
//! outer datagrams lost each way. Everything runs on this machine: the two workers, and iperf3 at both ends.
//!
//! The first round of each is not counted. Peers come from `scripts/install-tunnel-peers.sh`; who is missing is left out.

use crate::process::{Owned, cpu_time, output, pss, wait_for};
use crate::report::Row;
use crate::tree::binaries;
use anyhow::Context as _;
use roble_tunnel::{AllowedIp, Client, Device as _, DeviceConfig, PeerConfig, PrivateKey};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 51_820;
const UNDERLAY: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const OVERLAY: [&str; 2] = ["10.78.0.1", "10.78.0.2"];
/// Where all of them have their control sockets.
const SOCKETS: &str = "/run/wireguard";
/// So many datagrams of a thousand are lost on each way.
const LOSS: u32 = 10;

/// Who carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Ours,
    Gotatun,
    Boringtun,
    WireguardGo,
}

impl Worker {
    const PEERS: [Self; 3] = [Self::Gotatun, Self::Boringtun, Self::WireguardGo];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "roble-tunnel",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::WireguardGo => "wireguard-go",
        }
    }

    fn program(self) -> anyhow::Result<PathBuf> {
        let folder = binaries()?;
        let peers =
            || std::env::var_os("ROBLE_TUNNEL_PEERS").map_or_else(|| folder.join("../tunnel-peers"), PathBuf::from);
        Ok(match self {
            Self::Ours => folder.join("roble-tunnel"),
            Self::Gotatun => peers().join("bin/gotatun"),
            Self::Boringtun => peers().join("bin/boringtun-cli"),
            Self::WireguardGo => peers().join("bin/wireguard"),
        })
    }

    fn command(self, netns: &str, device: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(self.program()?);
        match self {
            Self::Ours => command.args(["--device", device, "--socket", &socket(device)]),
            Self::Gotatun | Self::Boringtun => command.args(["--foreground", "--disable-drop-privileges", device]),
            Self::WireguardGo => command.args(["-f", device]),
        };
        Ok(command)
    }
}

fn socket(device: &str) -> String {
    format!("{SOCKETS}/{device}.sock")
}

/// Of one stream, per gigabit that arrived.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Milliseconds on the clock.
    wall_ms: f64,
    /// Milliseconds of both workers' processor time.
    cpu_ms: f64,
}

/// Two namespaces with a link.
struct Lab([String; 2]);

impl Lab {
    fn new() -> anyhow::Result<Self> {
        let lab = Self(["rblbench-ta".to_owned(), "rblbench-tb".to_owned()]);
        lab.remove();
        for netns in &lab.0 {
            ip(&["netns", "add", netns])?;
        }
        let [a, b] = &lab.0;
        ip(&[
            "link", "add", "v0", "netns", a, "type", "veth", "peer", "name", "v0", "netns", b,
        ])?;
        for (netns, address) in lab.0.iter().zip(UNDERLAY) {
            ip(&["-n", netns, "addr", "add", &format!("{address}/24"), "dev", "v0"])?;
            ip(&["-n", netns, "link", "set", "v0", "up"])?;
        }
        Ok(lab)
    }

    fn remove(&self) {
        for netns in &self.0 {
            let _ = Command::new("ip")
                .args(["netns", "del", netns])
                .stderr(std::process::Stdio::null())
                .status();
        }
    }

    fn lose(&self, of_thousand: u32) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("loss.nft");
        let rule = format!("udp dport {PORT} numgen random mod 1000 < {of_thousand} drop");
        std::fs::write(
            &file,
            format!("table inet loss {{\n chain in {{\n type filter hook input priority 0;\n {rule}\n }}\n}}\n"),
        )?;
        for netns in &self.0 {
            // A run of datagrams would be lost as one.
            ip(&["-n", netns, "link", "set", "v0", "gso_max_segs", "1"])?;
            output(
                Command::new("ip")
                    .args(["netns", "exec", netns, "nft", "-f"])
                    .arg(&file),
            )?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    output(Command::new("ip").args(args))
}

/// Measures so many rounds of so many seconds.
///
/// # Errors
/// Our worker does not start, or iperf3 is missing.
pub fn run(rounds: usize, seconds: u64) -> anyhow::Result<Vec<Row>> {
    std::fs::create_dir_all(SOCKETS)?;
    let mut peers = Worker::PEERS.to_vec();
    peers.retain(|peer| {
        let is_there = peer.program().is_ok_and(|program| program.exists());
        if !is_there {
            eprintln!(
                "SKIPPED: {} is not there; scripts/install-tunnel-peers.sh builds it",
                peer.name()
            );
        }
        is_there
    });
    let mut rows = idle()?;
    for loss in [0, LOSS] {
        let mut pairs: Vec<Vec<(Figures, Figures)>> = vec![Vec::new(); peers.len()];
        for round in 0..=rounds {
            for (peer, pairs) in peers.iter().zip(&mut pairs) {
                // Each peer has a turn of ours beside its own.
                let ours = stream(Worker::Ours, seconds, loss)?;
                let theirs = stream(*peer, seconds, loss).with_context(|| format!("measure {}", peer.name()))?;
                if round > 0 {
                    pairs.push((ours, theirs));
                }
            }
        }
        for (peer, pairs) in peers.iter().zip(&pairs) {
            rows.extend(compare(*peer, pairs, loss));
        }
    }
    Ok(rows)
}

fn compare(peer: Worker, pairs: &[(Figures, Figures)], loss: u32) -> Vec<Row> {
    let with = if loss == 0 { "" } else { ", 1 % lost" };
    let is_go = peer == Worker::WireguardGo;
    // Three times the throughput at a third of the processor time per gigabit; of wireguard-go the same; with loss no slower.
    let third = if is_go || loss > 0 { 1.0 } else { 1.0 / 3.0 };
    let of = |pick: fn(&Figures) -> f64| {
        pairs
            .iter()
            .map(|(one, other)| (pick(one), pick(other)))
            .collect::<Vec<_>>()
    };
    let wall = Row::of_pairs(
        &format!("TCP{with}: ms per Gbit"),
        peer.name(),
        &of(|one| one.wall_ms),
        Some(third),
    );
    let cpu = Row::of_pairs(
        &format!("TCP{with}: CPU-ms per Gbit"),
        peer.name(),
        &of(|one| one.cpu_ms),
        Some(third),
    );
    wall.into_iter().chain(cpu).collect()
}

/// Memory of a worker that has nothing to do.
fn idle() -> anyhow::Result<Vec<Row>> {
    let lab = Lab::new()?;
    let workers = start(&lab, Worker::Ours)?;
    std::thread::sleep(Duration::from_secs(3));
    let pss = pss(workers[0].pid())?.0 as f64 / 1e6;
    Ok(Row::of_figures("idle: PSS in MB", &[pss], Some(4.0), 2)
        .into_iter()
        .collect())
}

/// Both workers, told of each other.
fn start(lab: &Lab, worker: Worker) -> anyhow::Result<Vec<Owned>> {
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let mut workers = Vec::new();
    for (at, netns) in lab.0.iter().enumerate() {
        let device = format!("rblbench{at}");
        let _ = std::fs::remove_file(socket(&device));
        workers.push(Owned::start(&mut worker.command(netns, &device)?)?);
        let mut peer = PeerConfig::new(keys[1 - at].public());
        peer.endpoint = Some(SocketAddr::new(UNDERLAY[1 - at].parse()?, PORT));
        peer.allowed_ips = vec![AllowedIp::from(OVERLAY[1 - at].parse::<IpAddr>()?)];
        let config = DeviceConfig {
            private_key: Some(keys[at].clone()),
            listen_port: Some(PORT),
            peers: vec![peer],
            ..DeviceConfig::default()
        };
        let client = Client::new(socket(&device));
        wait_for(worker.name(), DEADLINE, || client.set(&config).ok())?;
        ip(&[
            "-n",
            netns,
            "addr",
            "add",
            &format!("{}/24", OVERLAY[at]),
            "dev",
            &device,
        ])?;
        ip(&["-n", netns, "link", "set", &device, "mtu", "1420", "up"])?;
    }
    Ok(workers)
}

/// One stream through a pair of fresh workers.
fn stream(worker: Worker, seconds: u64, loss: u32) -> anyhow::Result<Figures> {
    let lab = Lab::new()?;
    let workers = start(&lab, worker)?;
    if loss > 0 {
        lab.lose(loss)?;
    }
    let inside = |netns: &str, args: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns, "iperf3"]).args(args);
        command
    };
    let _server = Owned::start(&mut inside(&lab.0[1], &["-s", "-1"]))?;
    let used = || -> anyhow::Result<f64> {
        let times: anyhow::Result<Vec<Duration>> = workers.iter().map(|worker| cpu_time(worker.pid())).collect();
        Ok(times?.iter().sum::<Duration>().as_secs_f64())
    };
    let before = used()?;
    let time = seconds.to_string();
    let client = || output(&mut inside(&lab.0[0], &["-J", "-c", OVERLAY[1], "-t", &time]));
    let text = wait_for("iperf3", DEADLINE + Duration::from_secs(2 * seconds), || client().ok())?;
    let cpu = used()? - before;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let received = &report["end"]["sum_received"];
    let gigabits = received["bytes"].as_f64().context("read iperf3's answer")? * 8.0 / 1e9;
    let wall = received["seconds"].as_f64().context("read iperf3's answer")?;
    println!(
        "{:13} {:6.2} Gbit/s {:6.3} CPU-s per Gbit{}",
        worker.name(),
        gigabits / wall,
        cpu / gigabits,
        if loss > 0 { ", 1 % lost" } else { "" }
    );
    Ok(Figures {
        wall_ms: wall / gigabits * 1e3,
        cpu_ms: cpu / gigabits * 1e3,
    })
}
