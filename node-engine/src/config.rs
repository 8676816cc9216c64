//! The daemon's settings: one table, one typed view.

use roble_core::labels::{ARCH, Labels};
use roble_core::registry::TokenKind;
use roble_core::resources::Resources;
use roble_daemon::config::{COMMON, Config, Kind, STORE, Setting, Spec, state_dir};
use roble_daemon::join::{self, TokenError, TokenSource};
use roble_proto::limits::CLUSTER_API_PORT;
use std::path::PathBuf;

/// What only this daemon has.
pub static SETTINGS: &[Setting] = &[
    state_dir("/var/lib/roble/node"),
    Setting::new(
        "cluster",
        Kind::String,
        "HOST or HOST:PORT of the cluster's API (port 10100); asked for at the first start",
    ),
    Setting::new("name", Kind::String, "name of this node; the host's name if not given"),
    Setting::new(
        "advertise",
        Kind::String,
        "address at which published ports of this node are reached; found out if not given",
    ),
    Setting::new("labels", Kind::List, "KEY=VALUE pairs to place by").default(""),
    Setting::new(
        "allocatable.cpu",
        Kind::String,
        "cores that may be reserved, e.g. 1.5; all if not given",
    ),
    Setting::new(
        "allocatable.memory",
        Kind::Size,
        "memory that may be reserved; what the machine has less 256 MiB if not given",
    ),
    STORE,
    Setting::new("containerd.socket", Kind::Path, "containerd's socket").default("/run/containerd/containerd.sock"),
    Setting::new(
        "containerd.namespace",
        Kind::String,
        "containerd's namespace; nobody else may use it",
    )
    .default("roble"),
    Setting::new(
        "cgroup.parent",
        Kind::String,
        "parent of the containers' control groups",
    )
    .default("/roble/node"),
    Setting::new("net.socket", Kind::Path, "socket of roble-net").default("/run/roble/net.sock"),
    Setting::new("netns.dir", Kind::Path, "folder for the containers' network namespaces").default("/run/roble/netns"),
    Setting::new(
        "registry.insecure",
        Kind::List,
        "HOST:PORT of registries spoken to without TLS",
    )
    .default(""),
    Setting::new(
        "registry.credentials",
        Kind::Path,
        "registry credentials, in the format of Docker's config.json",
    ),
];

/// All settings of `roble-node`.
pub static SPEC: Spec = Spec {
    daemon: "roble-node",
    about: "The node engine: runs the instances that its cluster assigns to this machine, and goes on without it.",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "ROBLE_NODE_",
    default_file: Some("/etc/roble/node.toml"),
    settings: &[COMMON, join::SETTINGS, SETTINGS],
    flags: &[],
};

/// Why a setting cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The join token cannot be used.
    #[error("join")]
    Token(#[from] TokenError),
    /// A label is not a pair.
    #[error("labels: `{0}` is not KEY=VALUE")]
    Label(String),
    /// Not a number of cores.
    #[error("allocatable.cpu: `{0}` is not a number of cores such as 2 or 0.5")]
    Cpu(String),
}

/// The settings as the daemon uses them.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
    /// `host:port` of the cluster's API, if given.
    pub cluster: Option<String>,
    /// For the first start.
    pub join: TokenSource,
    /// Name of this node.
    pub name: String,
    /// Address of published ports, if given.
    pub advertise: Option<String>,
    /// Labels, the architecture among them.
    pub labels: Labels,
    /// May be reserved, where given.
    pub cpu_millis: Option<u64>,
    /// May be reserved, where given.
    pub memory_bytes: Option<u64>,
    /// Name of the store's backend.
    pub backend: String,
    /// containerd's socket.
    pub containerd_socket: PathBuf,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Parent of the containers' control groups.
    pub cgroup_parent: String,
    /// Socket of `roble-net`.
    pub net_socket: PathBuf,
    /// Folder of network namespaces.
    pub netns_dir: PathBuf,
    /// Registries without TLS.
    pub insecure_registries: Vec<String>,
    /// Registry credentials.
    pub registry_credentials: Option<PathBuf>,
}

impl NodeSettings {
    /// The typed view of `config`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn build(config: &Config) -> Result<Self, ConfigError> {
        let mut labels = Labels::new();
        for pair in config.list("labels") {
            let (key, value) = pair.split_once('=').ok_or_else(|| ConfigError::Label(pair.clone()))?;
            labels.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        labels.insert(
            ARCH.to_owned(),
            crate::runtime::reference::machine_architecture().to_owned(),
        );
        let with_port = |host: &str| match host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            _ => format!("{host}:{CLUSTER_API_PORT}"),
        };
        Ok(Self {
            state_dir: config.path("state_dir").into(),
            cluster: config.try_string("cluster").map(with_port),
            join: TokenSource::of(config, TokenKind::Node)?,
            name: config.try_string("name").map_or_else(host_name, str::to_owned),
            advertise: config.try_string("advertise").map(str::to_owned),
            labels,
            cpu_millis: config.try_string("allocatable.cpu").map(cores).transpose()?,
            memory_bytes: config.try_size("allocatable.memory"),
            backend: config.string("store.backend").to_owned(),
            containerd_socket: config.path("containerd.socket").into(),
            containerd_namespace: config.string("containerd.namespace").to_owned(),
            cgroup_parent: config.string("cgroup.parent").to_owned(),
            net_socket: config.path("net.socket").into(),
            netns_dir: config.path("netns.dir").into(),
            insecure_registries: config.list("registry.insecure").to_vec(),
            registry_credentials: config.try_path("registry.credentials").map(Into::into),
        })
    }

    /// What this node may give away: as set, else what the machine has less what the system needs.
    pub fn allocatable(&self) -> Resources {
        const SYSTEM_BYTES: u64 = 256 << 20;
        let memory = sysinfo::System::new().map(|mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        Resources {
            cpu_millis: self.cpu_millis.unwrap_or(cores * 1000),
            memory_bytes: self
                .memory_bytes
                .unwrap_or_else(|| memory.unwrap_or(0).saturating_sub(SYSTEM_BYTES)),
        }
    }
}

fn cores(text: &str) -> Result<u64, ConfigError> {
    let cores = text
        .parse::<f64>()
        .ok()
        .filter(|cores| cores.is_finite() && *cores >= 0.0 && *cores <= 4096.0);
    cores
        .map(|cores| (cores * 1000.0).round() as u64)
        .ok_or_else(|| ConfigError::Cpu(text.to_owned()))
}

fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_sound_and_no_setting_is_needed() {
        super::SPEC.check().unwrap();
        let inputs = roble_daemon::config::Inputs::default();
        let parsed = roble_daemon::config::parse(&super::SPEC, &inputs).unwrap();
        let roble_daemon::config::Outcome::Run(config) = parsed else {
            panic!("it runs")
        };
        let settings = super::NodeSettings::build(&config).unwrap();
        assert!(settings.labels.contains_key(super::ARCH));
        assert!(settings.allocatable().cpu_millis > 0);
    }
}
