//! What a tree on this machine consists of: names, addresses, shares. Stored, so that `down` removes what `up` made.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the only cluster.
pub const CLUSTER: &str = "dev";
/// The bridge between the nodes.
pub const BRIDGE: &str = "roble-dev0";
/// Network of the underlay: the first three numbers. From the range for documentation-like private use, rarely taken.
const UNDERLAY: &str = "10.99.77";

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Address in the underlay.
    pub address: String,
    /// Cores it may give away.
    pub cpu: String,
    /// Memory it may give away, MiB.
    pub memory_mib: u64,
}

impl Node {
    /// Name of its network namespace.
    pub fn netns_name(&self) -> String {
        format!("roble-dev-{}", self.name)
    }
    /// Path of its network namespace.
    pub fn netns(&self) -> String {
        format!("/run/netns/{}", self.netns_name())
    }
    /// Its end of the pair of links on the machine's side.
    pub fn link(&self) -> String {
        format!("roble-{}", self.name)
    }
    /// Its containerd namespace.
    pub fn containerd_namespace(&self) -> String {
        format!("roble-dev-{}", self.name)
    }
    /// Parent of its containers' control groups.
    pub fn cgroup(&self) -> String {
        format!("/roble-dev/{}", self.name)
    }
}

/// The tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Folder of everything.
    pub folder: PathBuf,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Who carries the nodes' messages.
    pub broker: String,
}

impl Plan {
    /// Divides the machine among `nodes` nodes.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn make(folder: &Path, nodes: u32, broker: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let kib: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .context("find MemTotal in /proc/meminfo")?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // A quarter of the memory stays with the machine; cores are shared out whole, as on a machine of its own.
        let memory_mib = (kib / 1024 * 3 / 4 / u64::from(nodes)).min(4096);
        let node = |n: u32| Node {
            name: format!("n{n}"),
            address: format!("{UNDERLAY}.{}", n + 1),
            cpu: format!("{:.2}", cores as f64 / f64::from(nodes)),
            memory_mib,
        };
        Ok(Self {
            folder: folder.to_owned(),
            nodes: (1..=nodes).map(node).collect(),
            broker: broker.to_owned(),
        })
    }

    /// Reads the plan of a tree.
    ///
    /// # Errors
    /// There is none in this folder.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("plan.json");
        let text = std::fs::read(&file).with_context(|| format!("read {}; is the tree up?", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
    }

    /// Stores the plan.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.folder.join("logs")).with_context(|| format!("make {}", self.folder.display()))?;
        for node in &self.nodes {
            std::fs::create_dir_all(self.folder.join(&node.name))?;
        }
        std::fs::write(self.folder.join("plan.json"), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    /// A path below the folder.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// A daemon's binary: beside this one, else on the path.
    ///
    /// # Errors
    /// It is in neither place.
    pub fn binary(&self, name: &str) -> anyhow::Result<String> {
        let beside = std::env::current_exe()?.with_file_name(name);
        if beside.is_file() {
            return Ok(beside.to_string_lossy().into_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        match std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
        {
            Some(file) => Ok(file.to_string_lossy().into_owned()),
            None => bail!("{name} is neither beside `roble` nor on the path; `cargo build --workspace` makes it"),
        }
    }

    /// The machine's own address in the underlay.
    pub fn gateway(&self) -> &'static str {
        "10.99.77.1"
    }
    /// `host:port` of the root's API.
    pub fn root_api(&self) -> String {
        format!("{}:{}", self.gateway(), roble_proto::limits::ROOT_API_PORT)
    }
    /// `host:port` of the root's link.
    pub fn root_link(&self) -> String {
        format!("{}:{}", self.gateway(), roble_proto::limits::ROOT_LINK_PORT)
    }
    /// `host:port` of the cluster's API.
    pub fn cluster_api(&self) -> String {
        format!("{}:{}", self.gateway(), roble_proto::limits::CLUSTER_API_PORT)
    }
    /// `host:port` of the cluster's MQTT.
    pub fn cluster_mqtt(&self) -> String {
        format!("{}:{}", self.gateway(), roble_proto::limits::CLUSTER_MQTT_PORT)
    }
    /// containerd's socket.
    pub fn containerd_socket(&self) -> String {
        self.file("containerd/containerd.sock")
    }
}
