//! What a tree needs of the machine beside processes: namespaces, links, containerd's configuration; and its removal.

use super::plan::{BRIDGE, Plan};
use super::process::{run, wait_for};
use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;

/// Makes the bridge, and a namespace with a link to it for every node. Repeatable.
///
/// # Errors
/// What `ip` says.
pub fn make_network(plan: &Plan) -> anyhow::Result<()> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    }
    run(
        "ip",
        &["addr", "replace", &format!("{}/24", plan.gateway()), "dev", BRIDGE],
    )?;
    run("ip", &["link", "set", BRIDGE, "up"])?;
    for node in &plan.nodes {
        let (name, link) = (node.netns_name(), node.link());
        if !Path::new(&node.netns()).exists() {
            run("ip", &["netns", "add", &name])?;
        }
        if !Path::new("/sys/class/net").join(&link).exists() {
            run(
                "ip",
                &[
                    "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name,
                ],
            )?;
        }
        run("ip", &["link", "set", &link, "master", BRIDGE, "up"])?;
        let inside = |args: &[&str]| {
            let mut all = vec!["-n", &name];
            all.extend(args);
            run("ip", &all)
        };
        inside(&["link", "set", "lo", "up"])?;
        inside(&["addr", "replace", &format!("{}/24", node.address), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "replace", "default", "via", plan.gateway()])?;
    }
    Ok(())
}

/// Writes the configuration of the tree's own containerd.
///
/// # Errors
/// The folder cannot be written.
pub fn write_containerd_config(plan: &Plan) -> anyhow::Result<()> {
    let folder = plan.folder.join("containerd");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.to_string_lossy();
    let text = format!(
        "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{folder}/containerd.sock\"\n"
    );
    std::fs::write(plan.folder.join("containerd.toml"), text).context("write containerd.toml")
}

/// Kills what the tree's shims run; containerd then cleans up after them.
pub fn remove_containers(plan: &Plan) {
    let socket = plan.containerd_socket();
    for node in &plan.nodes {
        let namespace = node.containerd_namespace();
        let ctr = |args: &[&str]| {
            let mut all = vec!["--address", socket.as_str(), "-n", namespace.as_str()];
            all.extend(args);
            run("ctr", &all).unwrap_or_default()
        };
        for id in ctr(&["tasks", "ls", "-q"]).split_whitespace() {
            ctr(&["tasks", "rm", "--force", id]);
        }
        for id in ctr(&["containers", "ls", "-q"]).split_whitespace() {
            ctr(&["containers", "rm", id]);
        }
    }
}

/// Ends the shims that are left.
///
/// # Errors
/// One does not end.
pub async fn kill_shims(plan: &Plan) -> anyhow::Result<()> {
    let socket = plan.containerd_socket();
    let shims = move || -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
        let ours = pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("containerd-shim") && line.contains(&socket)
        });
        ours.map(Pid::from_raw).collect()
    };
    for pid in shims() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    wait_for("shims to end", Duration::from_secs(10), || shims().is_empty()).await
}

/// Removes mounts, namespaces, links and control groups.
///
/// # Errors
/// What `ip` or `umount` says.
pub fn remove(plan: &Plan) -> anyhow::Result<()> {
    let folder = format!("{}/", plan.folder.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read mounts")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&folder));
    for path in below.collect::<Vec<_>>().into_iter().rev() {
        run("umount", &["-l", path])?;
    }
    for node in &plan.nodes {
        if Path::new("/sys/class/net").join(node.link()).exists() {
            run("ip", &["link", "del", &node.link()])?;
        }
        if Path::new(&node.netns()).exists() {
            run("ip", &["netns", "del", &node.netns_name()])?;
        }
    }
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        run("ip", &["link", "del", BRIDGE])?;
    }
    remove_cgroups();
    Ok(())
}

/// Removes the empty control groups of the tree, in every hierarchy.
fn remove_cgroups() {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for root in hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        remove_tree(&root.join("roble-dev"));
    }
}

fn remove_tree(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    let _ = std::fs::remove_dir(folder);
}
