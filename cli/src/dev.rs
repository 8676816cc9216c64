//! `roble dev`: a whole tree on one machine. Root, cluster and nodes are the real daemons, separate processes; each node has
//! a network namespace, a state folder, a containerd namespace and a declared share of the machine. Everything lies below
//! one folder and one prefix of names, so that `dev down` can remove all of it.

mod machine;
mod plan;
mod process;

use crate::command::login::log_in;
use crate::console::Console;
use crate::context::Environment;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use plan::Plan;
use process::{Processes, run, wait_for};
use roble_daemon::files::{SECRET_MODE, write_atomic};
use std::path::PathBuf;
use std::time::Duration;

/// Name of the context that `dev up` logs in to.
pub const CONTEXT: &str = "dev";
/// Where everything lies, unless told otherwise.
const FOLDER: &str = "/var/lib/roble-dev";
/// Time for one daemon to be there.
const START: Duration = Duration::from_secs(60);

/// Verbs of `roble dev`. All need root: they make network namespaces and run containers.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start root, cluster and nodes, and log in. Repeatable: what runs is left alone, what does not is started.
    Up(Up),
    /// Stop them, and remove everything they made.
    Down(Down),
    /// Show what runs.
    Status(Status),
    /// Import an image archive (OCI or docker) into every node.
    Import(Import),
}

/// Flags of `dev up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Folder of state and logs.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    pub folder: PathBuf,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub nodes: u32,
    /// Who carries the nodes' messages: `embedded`, or `mosquitto` (installed beside). As at the first `dev up`, if it is up.
    #[arg(long, default_value = "embedded", value_parser = ["embedded", "mosquitto"])]
    pub broker: String,
}

/// Flags of `dev down`.
#[derive(Debug, Args)]
pub struct Down {
    /// As given to `dev up`.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    pub folder: PathBuf,
    /// Keep state and logs.
    #[arg(long)]
    pub keep: bool,
}

/// Flags of `dev status`.
#[derive(Debug, Args)]
pub struct Status {
    /// As given to `dev up`.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    pub folder: PathBuf,
}

/// Flags of `dev import`.
#[derive(Debug, Args)]
pub struct Import {
    /// As given to `dev up`.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    pub folder: PathBuf,
    /// The archive.
    pub archive: PathBuf,
}

/// Runs a verb.
///
/// # Errors
/// What could not be started, made or removed; the log of the daemon is named.
pub async fn run_verb(verb: Verb, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::other(
            "`roble dev` makes network namespaces and runs containers: it needs root",
        ));
    }
    match verb {
        Verb::Up(up) => up_all(&up, environment, console).await?,
        Verb::Down(down) => down_all(&down, environment, console).await?,
        Verb::Status(status) => {
            let plan = Plan::load(&status.folder)?;
            for (name, state) in Processes::of(&plan).states() {
                console.hint(format_args!("{name:<14} {state}"));
            }
        }
        Verb::Import(import) => {
            let plan = Plan::load(&import.folder)?;
            for node in &plan.nodes {
                let archive = import.archive.to_string_lossy();
                run(
                    "ctr",
                    &[
                        "--address",
                        &plan.containerd_socket(),
                        "-n",
                        &node.containerd_namespace(),
                        "images",
                        "import",
                        &archive,
                    ],
                )?;
            }
            console.hint(format_args!("imported into {} nodes", plan.nodes.len()));
        }
    }
    Ok(())
}

async fn up_all(up: &Up, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    let plan = match Plan::load(&up.folder) {
        Ok(plan) => plan,
        Err(_) => Plan::make(&up.folder, up.nodes, &up.broker)?,
    };
    plan.save()?;
    let mut processes = Processes::of(&plan);
    machine::make_network(&plan)?;
    machine::write_containerd_config(&plan)?;

    processes.ensure("containerd", "containerd", &["--config", &plan.file("containerd.toml")])?;
    wait_for("containerd", START, || {
        run("ctr", &["--address", &plan.containerd_socket(), "version"]).is_ok()
    })
    .await?;
    console.hint(format_args!("containerd runs"));

    let (root, root_state) = (plan.binary("roble-root")?, plan.file("root"));
    processes.ensure(
        "root",
        &root,
        &[
            "--state-dir",
            &root_state,
            "--listen-api",
            &plan.root_api(),
            "--listen-link",
            &plan.root_link(),
            "--advertise",
            plan.gateway(),
        ],
    )?;
    let credential = || run(&root, &["credential", "--state-dir", &root_state]);
    wait_for("roble-root", START, || {
        std::path::Path::new(&root_state).join("root.sock").exists() && credential().is_ok()
    })
    .await?;
    let url = format!("https://{}", plan.root_api());
    log_in_with(&credential()?, &url, environment, console).await?;
    console.hint(format_args!("roble-root serves {url}"));

    start_cluster(&plan, &mut processes).await?;
    console.hint(format_args!("roble-cluster `{}` has joined", plan::CLUSTER));
    for node in &plan.nodes {
        start_node(&plan, node, &mut processes).await?;
        console.hint(format_args!(
            "roble-node `{}` has joined, at {}",
            node.name, node.address
        ));
    }
    wait_for("nodes to be ready", START, || {
        let list = roble(&["get", "nodes", "-o", "json"]);
        let nodes = list
            .and_then(|text| Ok(serde_json::from_str::<serde_json::Value>(&text)?))
            .unwrap_or_default();
        let ready = nodes.as_array().map_or(0, |nodes| {
            nodes.iter().filter(|node| node["standing"] == "ready").count()
        });
        ready >= plan.nodes.len()
    })
    .await?;
    console.hint(format_args!(
        "\nThe tree stands. Try:\n  roble get nodes\n  roble apply -f examples/hello.yaml\n  roble ps\n  roble dev down"
    ));
    Ok(())
}

async fn log_in_with(text: &str, url: &str, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    let word_after = |flag: &str| {
        let mut words = text.split_whitespace().skip_while(|word| *word != flag);
        words
            .nth(1)
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("`roble-root credential` printed no {flag}"))
    };
    let pin = word_after("--pin")?.parse().context("read the pin")?;
    log_in(
        url,
        &word_after("--credential")?,
        Some(pin),
        CONTEXT,
        Duration::from_secs(30),
        environment,
        console,
    )
    .await
}

async fn start_cluster(plan: &Plan, processes: &mut Processes<'_>) -> anyhow::Result<()> {
    let (binary, state) = (plan.binary("roble-cluster")?, plan.file("cluster"));
    let (mqtt, api, root) = (plan.cluster_mqtt(), plan.cluster_api(), plan.root_api());
    let mut args = vec![
        "--state-dir",
        &state,
        "--root",
        &root,
        "--name",
        plan::CLUSTER,
        "--listen-mqtt",
        &mqtt,
        "--listen-api",
        &api,
        "--advertise",
        plan.gateway(),
        "--broker",
        &plan.broker,
    ];
    let token = plan.file("cluster.token");
    if !joined(&["get", "clusters"], plan::CLUSTER) {
        keep_token(&token, &["create", "cluster", "--name", plan::CLUSTER])?;
        args.extend(["--join-file", &token]);
    }
    processes.ensure("cluster", &binary, &args)?;
    wait_for("roble-cluster to be ready", START, || {
        let list = roble(&["get", "clusters", "-o", "json"]).unwrap_or_default();
        let clusters = serde_json::from_str::<serde_json::Value>(&list).unwrap_or_default();
        let is_ready = clusters
            .as_array()
            .is_some_and(|clusters| clusters.iter().any(|cluster| cluster["standing"] == "ready"));
        // One that was killed a moment ago stands as ready until its silence is noticed.
        is_ready && roble(&["get", "nodes", "--cluster", plan::CLUSTER]).is_ok()
    })
    .await
}

async fn start_node(plan: &Plan, node: &plan::Node, processes: &mut Processes<'_>) -> anyhow::Result<()> {
    let (net, engine) = (plan.binary("roble-net")?, plan.binary("roble-node")?);
    // What seals packets to other nodes: `roble-net` starts it.
    plan.binary("roble-tunnel")?;
    let inside = format!("--net={}", node.netns());
    let socket = plan.file(&format!("{}/net.sock", node.name));
    let net_state = plan.file(&format!("{}/net", node.name));
    let state = plan.file(&format!("{}/engine", node.name));
    let name = format!("{}-net", node.name);
    processes.ensure(
        &name,
        "nsenter",
        &[
            &inside,
            &net,
            "--state-dir",
            &net_state,
            "--socket",
            &socket,
            "--identity",
            &state,
            "--node-name",
            &node.name,
        ],
    )?;
    wait_for(&name, START, || std::path::Path::new(&socket).exists()).await?;

    let (cluster, containerd, namespace) = (
        plan.cluster_api(),
        plan.containerd_socket(),
        node.containerd_namespace(),
    );
    let (cgroup, netns, memory) = (
        node.cgroup(),
        plan.file(&format!("{}/netns", node.name)),
        format!("{}MiB", node.memory_mib),
    );
    let mut args = vec![
        inside.as_str(),
        &engine,
        "--state-dir",
        &state,
        "--cluster",
        &cluster,
        "--name",
        &node.name,
        "--advertise",
        &node.address,
        "--containerd-socket",
        &containerd,
        "--containerd-namespace",
        &namespace,
        "--cgroup-parent",
        &cgroup,
        "--net-socket",
        &socket,
        "--netns-dir",
        &netns,
        "--allocatable-cpu",
        &node.cpu,
        "--allocatable-memory",
        &memory,
    ];
    let token = plan.file(&format!("{}.token", node.name));
    // One that has an identity needs no token, also if its cluster has forgotten it.
    if !std::path::Path::new(&state).join("home.json").exists() {
        keep_token(
            &token,
            &["create", "node", "--cluster", plan::CLUSTER, "--name", &node.name],
        )?;
        args.extend(["--join-file", &token]);
    }
    processes.ensure(&node.name, "nsenter", &args)?;
    wait_for(&format!("{} to join", node.name), START, || {
        joined(&["get", "nodes"], &node.name)
    })
    .await
}

/// Runs this very command under the context of the tree.
fn roble(args: &[&str]) -> anyhow::Result<String> {
    let own = std::env::current_exe()?;
    let mut all = vec!["--context", CONTEXT];
    all.extend(args);
    run(&own.to_string_lossy(), &all)
}

fn joined(list: &[&str], name: &str) -> bool {
    let mut args = list.to_vec();
    args.extend(["-o", "json"]);
    let text = roble(&args).unwrap_or_default();
    let members = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    members.as_array().is_some_and(|members| {
        members
            .iter()
            .any(|member| member["name"] == name && member["state"] == "active")
    })
}

/// Makes a join token and puts it into `file`, where only the daemon that joins may read it.
fn keep_token(file: &str, create: &[&str]) -> anyhow::Result<()> {
    let args = [&["token"], create, &["-o", "json"]].concat();
    let created: serde_json::Value = serde_json::from_str(&roble(&args)?)?;
    let token = created["token"].as_str().context("the root gave no token")?;
    Ok(write_atomic(std::path::Path::new(file), token.as_bytes(), SECRET_MODE)?)
}

/// Ends what a net manager leaves running on purpose. What cannot be removed goes with its namespace.
fn clean_up_network(plan: &Plan, node: &plan::Node) {
    let inside = format!("--net={}", node.netns());
    let (state, socket) = (
        plan.file(&format!("{}/net", node.name)),
        plan.file(&format!("{}/net.sock", node.name)),
    );
    if let Ok(net) = plan.binary("roble-net") {
        let args = [&inside, &net, "--state-dir", &state, "--socket", &socket, "--clean-up"];
        if let Err(error) = run("nsenter", &args) {
            tracing::debug!(node = node.name, error = format!("{error:#}"), "network not cleaned up");
        }
    }
}

async fn down_all(down: &Down, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    let plan = match Plan::load(&down.folder) {
        Ok(plan) => plan,
        Err(_) => {
            console.hint(format_args!("nothing runs below {}", down.folder.display()));
            return Ok(());
        }
    };
    let mut processes = Processes::of(&plan);
    for name in plan
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .chain(["cluster", "root"])
    {
        processes.stop(name).await?;
    }
    machine::remove_containers(&plan);
    for node in &plan.nodes {
        processes.stop(&format!("{}-net", node.name)).await?;
        clean_up_network(&plan, node);
    }
    machine::kill_shims(&plan).await?;
    processes.stop("containerd").await?;
    machine::remove(&plan)?;
    if !down.keep {
        std::fs::remove_dir_all(&plan.folder).with_context(|| format!("remove {}", plan.folder.display()))?;
        let mut contexts = crate::context::Contexts::load(environment)?;
        contexts.contexts.remove(CONTEXT);
        contexts.save(environment)?;
    }
    console.hint(format_args!("everything is stopped and removed"));
    Ok(())
}
