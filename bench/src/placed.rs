//! Instances on nodes of a tree, each told where, for measuring between their networks.

use crate::process::{output, wait_for};
use crate::tree::{IMAGE, Tree};
use anyhow::Context as _;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
/// The application of all of them.
pub const APPLICATION: &str = "bench";

/// An instance that runs.
pub struct Instance {
    /// Path of its network namespace.
    pub netns: String,
    /// IPv4 address of its own.
    pub endpoint: String,
}

/// Starts a tree of two nodes, `n1` and `n2`, and in it an instance of one application on each of `nodes`.
///
/// # Errors
/// The tree does not start, or one of them does not run.
pub fn up(environment: &[(&str, &str)], nodes: &[&str]) -> anyhow::Result<(Tree, Vec<Instance>)> {
    let tree = Tree::of_nodes(2, environment)?;
    tree.import()?;
    let service = |(number, node): (usize, &&str)| {
        format!("  s{number}:\n    image: {IMAGE}\n    cpu: 50m\n    memory: 32MiB\n    placement: {{node: {node}}}\n")
    };
    let services: String = nodes.iter().enumerate().map(service).collect();
    let file = tree.path("bench.yaml");
    std::fs::write(&file, format!("application: {APPLICATION}\nservices:\n{services}"))?;
    tree.roble(&["apply", "-f", &file])?;
    let mut instances = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let path = format!("{APPLICATION}/s{number}");
        tree.roble(&["wait", &path, "--for", "running", "--timeout", "60s"])?;
        let view: Value =
            serde_json::from_str(&tree.roble(&["get", "instance", &format!("{path}.0"), "-o", "json"])?)?;
        let id = view["id"].as_str().context("an id")?;
        instances.push(Instance {
            netns: tree.path(&format!("{node}/netns/{id}")),
            endpoint: view["addresses"][0].as_str().context("an address")?.to_owned(),
        });
    }
    Ok((tree, instances))
}

/// A program in a network namespace, not started.
pub fn inside(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}")).arg(program);
    command
}

/// Milliseconds for a gigabit by one TCP stream from a namespace to an iperf3 at `address`.
///
/// # Errors
/// It does not answer.
pub fn ms_per_gigabit(netns: &str, address: &str, seconds: u64) -> anyhow::Result<f64> {
    let mut client = inside(netns, "iperf3");
    client.args(["-c", address, "-t", &seconds.to_string(), "-J"]);
    let said: Value = serde_json::from_str(&output(&mut client)?)?;
    let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(1e12 / bits.context("iperf3 told no rate")?)
}

/// Waits until an iperf3 answers.
///
/// # Errors
/// It does not.
pub fn wait_for_iperf(netns: &str, address: &str) -> anyhow::Result<()> {
    wait_for("iperf3", DEADLINE, || ms_per_gigabit(netns, address, 1).ok())?;
    Ok(())
}
