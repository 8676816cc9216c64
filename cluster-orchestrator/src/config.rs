//! The daemon's settings: one table, one typed view.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use roble_core::labels::{CLUSTER_TYPE, Labels};
use roble_core::liveness::Clocks;
use roble_core::registry::TokenKind;
use roble_daemon::config::{COMMON, Config, Kind, STORE, Setting, Spec, state_dir};
use roble_daemon::join::{self, TokenSource};
use roble_link::child::ChildClocks;
use roble_proto::limits::ROOT_API_PORT;
use roble_store::BackendKind;

/// Folder of the state, unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/roble-cluster";
/// The local API's socket, in the state folder.
pub const SOCKET: &str = "cluster.sock";

/// What only this daemon has.
pub static SETTINGS: &[Setting] = &[
    state_dir(STATE_DIR),
    Setting::new(
        "root",
        Kind::String,
        "the root's API, as HOST or HOST:PORT (10000); kept after the join",
    ),
    Setting::new(
        "name",
        Kind::String,
        "name of the cluster at the root, instead of the host name",
    ),
    Setting::new("labels", Kind::List, "labels of the cluster, as zone=north,tier=edge").default(""),
    Setting::new(
        "advertise",
        Kind::String,
        "name or address at which people reach the cluster",
    )
    .default(""),
    Setting::new("listen.mqtt", Kind::Address, "where nodes connect").default("0.0.0.0:10003"),
    Setting::new("listen.api", Kind::Address, "where nodes join, renew and bring streams").default("0.0.0.0:10100"),
    STORE,
    Setting::new(
        "broker.kind",
        Kind::Choice(&["embedded", "mosquitto"]),
        "who carries the nodes' messages",
    )
    .default("embedded")
    .flag("broker"),
    Setting::new("broker.mosquitto", Kind::Path, "the program, if it is chosen").default("/usr/sbin/mosquitto"),
    Setting::new("broker.clients", Kind::Integer, "most connections of nodes").default("4096"),
    Setting::new(
        "relay.address",
        Kind::String,
        "address and UDP port at which nodes of all sites reach this cluster's relay; if unset, it has none",
    ),
    Setting::new("relay.listen", Kind::Address, "where the relay listens").default("0.0.0.0:50104"),
    Setting::new("profile", Kind::Choice(&["normal", "metered"]), "clocks to start from").default("normal"),
    Setting::new(
        "clocks.beat",
        Kind::Duration,
        "between a node's beats, instead of the profile's",
    ),
    Setting::new(
        "clocks.unreachable",
        Kind::Duration,
        "silence after which a node gets nothing new",
    ),
    Setting::new(
        "clocks.lost",
        Kind::Duration,
        "silence after which a node's work runs elsewhere",
    ),
    Setting::new(
        "clocks.fence",
        Kind::Duration,
        "silence after which a node has stopped its at-most-one copies",
    ),
    Setting::new(
        "clocks.replace",
        Kind::Duration,
        "silence after which an at-most-one copy is replaced",
    ),
];

/// All settings of `roble-cluster`.
pub static SPEC: Spec = Spec {
    daemon: "roble-cluster",
    about: "The cluster orchestrator: places the root's orders on the nodes of one site, and goes on without the root.\n\
            At the site: `roble-cluster token create`, `roble-cluster nodes`, each with --help.",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "ROBLE_CLUSTER_",
    default_file: Some("/etc/roble/cluster.toml"),
    settings: &[COMMON, join::SETTINGS, SETTINGS],
    flags: &[],
};

/// Which broker carries the nodes' messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerChoice {
    /// The one inside the process.
    Embedded,
    /// Mosquitto as a child process.
    Mosquitto {
        /// The program.
        program: PathBuf,
    },
}

/// The relay for nodes that cannot reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayConfig {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Where it listens.
    pub listen: SocketAddr,
}

/// The settings as the daemon uses them.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
    /// The root's API as `host:port`, if given.
    pub root: Option<String>,
    /// Where the join token is.
    pub join: TokenSource,
    /// Name at the root.
    pub name: String,
    /// Labels of the cluster.
    pub labels: Labels,
    /// For people.
    pub advertise: String,
    /// Where nodes connect.
    pub listen_mqtt: SocketAddr,
    /// Where nodes join.
    pub listen_api: SocketAddr,
    /// How state is kept.
    pub backend: BackendKind,
    /// Who carries the nodes' messages.
    pub broker: BrokerChoice,
    /// Most connections of nodes.
    pub broker_clients: usize,
    /// The relay, if there is one.
    pub relay: Option<RelayConfig>,
    /// Timing of the nodes.
    pub clocks: Clocks,
    /// Timing of the link to the root.
    pub uplink: ChildClocks,
    /// Time to end after the wish to stop.
    pub shutdown_deadline: Duration,
}

/// A setting that parses but does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct ConfigError {
    /// The setting.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub what: String,
}

fn wrong(key: &'static str, what: impl Into<String>) -> ConfigError {
    ConfigError { key, what: what.into() }
}

impl DaemonConfig {
    /// The typed view of `config`. Reads the token's file, if the join token is in one. `host`: name of this machine.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn build(config: &Config, host: &str) -> Result<Self, ConfigError> {
        let metered = config.string("profile") == "metered";
        let advertise = config.string("advertise");
        let name = config.try_string("name").map_or_else(|| host_name(host), str::to_owned);
        Ok(Self {
            state_dir: config.path("state_dir").into(),
            root: config.try_string("root").map(root_address).transpose()?,
            join: TokenSource::of(config, TokenKind::Cluster).map_err(|error| wrong("join", error.to_string()))?,
            advertise: if advertise.is_empty() {
                name.clone()
            } else {
                advertise.to_owned()
            },
            name,
            labels: labels(config.list("labels"))?,
            listen_mqtt: config.address("listen.mqtt"),
            listen_api: config.address("listen.api"),
            backend: config
                .string("store.backend")
                .parse()
                .map_err(|error| wrong("store.backend", format!("{error}")))?,
            broker: match config.string("broker.kind") {
                "mosquitto" => BrokerChoice::Mosquitto {
                    program: config.path("broker.mosquitto").into(),
                },
                _ => BrokerChoice::Embedded,
            },
            broker_clients: usize::try_from(config.integer("broker.clients"))
                .unwrap_or(usize::MAX)
                .clamp(1, 65_536),
            relay: relay(config)?,
            clocks: clocks(config, metered)?,
            uplink: if metered {
                ChildClocks {
                    beat_ms: 20_000,
                    silence_ms: 60_000,
                }
            } else {
                ChildClocks {
                    beat_ms: 2_500,
                    silence_ms: 8_000,
                }
            },
            shutdown_deadline: config.duration("shutdown.deadline"),
        })
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join(SOCKET)
    }
}

/// A host name as a name of ours: its first label, in lower case, other characters as `-`.
fn host_name(host: &str) -> String {
    let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let clean: String = label
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    match clean.trim_matches('-') {
        "" => "cluster".to_owned(),
        name => name.to_owned(),
    }
}

fn relay(config: &Config) -> Result<Option<RelayConfig>, ConfigError> {
    let Some(address) = config.try_string("relay.address") else {
        return Ok(None);
    };
    let expected = |_| wrong("relay.address", "expected address and port, as 192.0.2.1:50104");
    Ok(Some(RelayConfig {
        address: address.parse().map_err(expected)?,
        listen: config.address("relay.listen"),
    }))
}

/// `host`, `host:port` or `[v6]:port`, with or without `https://`, as `host:port`.
fn root_address(text: &str) -> Result<String, ConfigError> {
    let text = text.trim();
    let place = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let bare_v6 = place.parse::<std::net::Ipv6Addr>().is_ok();
    let full = if bare_v6 {
        format!("[{place}]:{ROOT_API_PORT}")
    } else if place.ends_with(']') || !place.contains(':') {
        format!("{place}:{ROOT_API_PORT}")
    } else {
        place.to_owned()
    };
    let good = full.parse::<http::uri::Authority>().is_ok_and(|authority| {
        !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port > 0) && !full.contains('@')
    });
    if good {
        Ok(full)
    } else {
        Err(wrong("root", "expected host and port, as root.example.org:10000"))
    }
}

/// The host of `host:port`, with the brackets of IPv6.
pub fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn labels(list: &[String]) -> Result<Labels, ConfigError> {
    let mut labels = Labels::from([(CLUSTER_TYPE.to_owned(), "native".to_owned())]);
    for item in list {
        match item.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                labels.insert(key.trim().to_owned(), value.trim().to_owned());
            }
            _ => return Err(wrong("labels", format!("`{item}` is not a label, expected key=value"))),
        }
    }
    Ok(labels)
}

fn clocks(config: &Config, metered: bool) -> Result<Clocks, ConfigError> {
    let base = if metered { Clocks::METERED_NODES } else { Clocks::NODES };
    let read = |key: &str, base: u64| {
        let given = config.try_duration(key);
        given.map_or(base, |given| u64::try_from(given.as_millis()).unwrap_or(u64::MAX))
    };
    let clocks = Clocks {
        beat_ms: read("clocks.beat", base.beat_ms),
        unreachable_ms: read("clocks.unreachable", base.unreachable_ms),
        lost_ms: base.lost_ms.map(|lost| read("clocks.lost", lost)),
        fence_ms: read("clocks.fence", base.fence_ms),
        replace_fenced_ms: read("clocks.replace", base.replace_fenced_ms),
        ..base
    };
    if clocks.beat_ms < 50 {
        return Err(wrong("clocks.beat", "less than 50ms"));
    }
    if clocks.unreachable_ms <= clocks.beat_ms {
        return Err(wrong("clocks.unreachable", "must be longer than clocks.beat"));
    }
    if clocks.lost_ms.is_some_and(|lost| lost < clocks.unreachable_ms) {
        return Err(wrong("clocks.lost", "must not be shorter than clocks.unreachable"));
    }
    if clocks.replace_fenced_ms <= clocks.fence_ms {
        let what = "must be longer than clocks.fence, or two copies could run";
        return Err(wrong("clocks.replace", what));
    }
    Ok(clocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_daemon::config::{Inputs, Outcome, parse};

    fn build(args: &[&str]) -> Result<DaemonConfig, ConfigError> {
        match parse(&SPEC, &Inputs::default().args(args.iter().copied())) {
            Ok(Outcome::Run(config)) => DaemonConfig::build(&config, "Edge_One.example.org"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_flags_and_mistakes() {
        SPEC.check().unwrap();
        let config = build(&[]).unwrap();
        assert_eq!((config.name.as_str(), config.root), ("edge-one", None));
        assert_eq!(config.clocks, Clocks::NODES);
        let config = build(&["--root", "192.0.2.1", "--labels", "zone=north", "--profile=metered"]).unwrap();
        assert_eq!(config.root.as_deref(), Some("192.0.2.1:10000"));
        assert_eq!(config.labels["zone"], "north");
        assert_eq!(config.clocks, Clocks::METERED_NODES);
        let config = build(&["--broker", "mosquitto", "--root=https://r.example.org:1"]).unwrap();
        assert!(matches!(config.broker, BrokerChoice::Mosquitto { .. }));
        assert_eq!(host_of(config.root.as_deref().unwrap()), "r.example.org");
        assert_eq!(build(&["--root", "::1"]).unwrap().root.as_deref(), Some("[::1]:10000"));
        assert_eq!(build(&["--join", "abc"]).unwrap_err().key, "join");
        assert_eq!(build(&["--labels", "x"]).unwrap_err().key, "labels");
        assert_eq!(build(&["--clocks-fence", "60s"]).unwrap_err().key, "clocks.replace");
        assert_eq!(build(&["--relay-address", "here"]).unwrap_err().key, "relay.address");
        let relay = build(&["--relay-address", "192.0.2.1:9"]).unwrap().relay.unwrap();
        assert_eq!((relay.address.port(), relay.listen.port()), (9, 50_104));
        assert_eq!(build(&["--root", "a b"]).unwrap_err().key, "root");
    }
}
