//! Benchmarks against peers, run by `bench/run NAME` as root. Each prints what it measures as it goes, and at the end the
//! machine and a table: ours, the peer, the ratio, the goal, and `met` or `missed`. docs/benchmarks.md holds the results.
//!
//! Nothing here passes or fails: figures are for people. Only one tree may be up on a machine.

mod deploy;
mod first_packet;
mod idle;
mod overlay;
mod peer;
mod placed;
mod probe;
mod process;
mod report;
mod start;
mod stats;
mod traffic;
mod tree;
mod tunnel;
mod video;
mod vxlan;

use clap::{Parser, ValueEnum};

/// Which benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Submit to running through three tiers, against `ctr run -d`.
    Deploy,
    /// Memory and processor time of an idle tree, beside mosquitto and containerd.
    Idle,
    /// Bytes of an idle node per day.
    Traffic,
    /// Exec to first right answer, against mosquitto.
    Start,
    /// A service address against the endpoint's own.
    ServiceIp,
    /// Ping-pong through a service address against the endpoint's own.
    Latency,
    /// A container's interface, from the request to the answer.
    Attach,
    /// Memory of the net manager with and without flows.
    NetIdle,
    /// TCP through the encrypted tunnel in user space, against gotatun, boringtun and wireguard-go.
    Tunnel,
    /// TCP to a container of the same node, and of another one over VXLAN, against a bare link and a bare VXLAN.
    Vxlan,
    /// The first connection to a service that nobody on the node has asked for.
    FirstPacket,
    /// Frames of video through the tunnel, alone and beside a bulk TCP stream.
    Video,
}

/// Benchmarks against peers.
#[derive(Debug, Parser)]
#[command(name = "bench/run")]
struct Arguments {
    /// Which benchmark.
    name: Name,
    /// Pairs, or looks, that count.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one look (idle), of the whole time (traffic).
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("benchmarks make network namespaces and run containers: they need root");
    }
    let machine = report::machine();
    let rounds = |default| arguments.rounds.unwrap_or(default);
    let seconds = |default| arguments.seconds.unwrap_or(default);
    let rows = match arguments.name {
        Name::Deploy => deploy::run(rounds(15))?,
        Name::Idle => idle::run(rounds(3), seconds(40))?,
        // Two acknowledged beats of the profile `metered` take 40 s.
        Name::Traffic => traffic::run(seconds(90), seconds(90).max(120))?,
        Name::Start => start::run(rounds(9))?,
        Name::ServiceIp => overlay::service_ip(rounds(7), seconds(3))?,
        Name::Latency => overlay::latency(rounds(9))?,
        Name::Attach => overlay::attach(rounds(50))?,
        Name::NetIdle => overlay::net_idle(rounds(3))?,
        Name::Tunnel => tunnel::run(rounds(7), seconds(5))?,
        Name::Vxlan => vxlan::run(rounds(7), seconds(3))?,
        Name::FirstPacket => first_packet::run(rounds(40))?,
        Name::Video => video::run(rounds(5), seconds(20))?,
    };
    println!("\n{machine}\n{}", report::table(&rows));
    Ok(())
}
