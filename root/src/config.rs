//! The one place that knows flags, environment and file of `roble-root`.

use crate::tier::AuditLimits;
use roble_core::liveness::Clocks;
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_daemon::config::{COMMON, Config, ExtraFlag, Kind, STORE, Setting, Spec, state_dir};
use roble_store::BackendKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

static SETTINGS: &[Setting] = &[
    state_dir("/var/lib/roble-root"),
    Setting::new(
        "listen.api",
        Kind::Address,
        "where users and joining clusters are served (HTTPS)",
    )
    .default("0.0.0.0:10000"),
    Setting::new(
        "listen.link",
        Kind::Address,
        "where clusters keep their link (gRPC, mutual TLS)",
    )
    .default("0.0.0.0:50052"),
    Setting::new(
        "advertise",
        Kind::List,
        "host names and addresses under which the root is reached, the first is shown to people; if unset, the address listened on or the machine's name",
    ),
    STORE,
    Setting::new("store.cache", Kind::Size, "memory for the store").default("8MiB"),
    Setting::new(
        "cluster.beat",
        Kind::Duration,
        "how often a cluster tells that it lives",
    )
    .default("2.5s"),
    Setting::new(
        "cluster.unreachable",
        Kind::Duration,
        "silence after which a cluster gets nothing new",
    )
    .default("8s"),
    Setting::new(
        "cluster.lost",
        Kind::Duration,
        "silence after which a cluster's instances run elsewhere; never by itself if unset",
    ),
    Setting::new("audit.records", Kind::Integer, "how many audit records are kept").default("10000"),
    Setting::new("audit.age", Kind::Duration, "how long audit records are kept").default("90d"),
    Setting::new("session.lifetime", Kind::Duration, "how long a login lasts").default("30d"),
    Setting::new(
        "overlay.endpoints",
        Kind::String,
        "first and last IPv4 address of containers in the whole tree",
    )
    .default("10.18.0.0-10.29.255.255"),
    Setting::new(
        "overlay.endpoints_v6",
        Kind::String,
        "upper 96 bits of their IPv6 addresses",
    )
    .default("fc00::"),
    Setting::new("overlay.services", Kind::String, "IPv4 addresses of services").default("10.30.0.0/16"),
    Setting::new(
        "overlay.services_v6",
        Kind::String,
        "upper 16 bits of their IPv6 addresses",
    )
    .default("fdff"),
];

/// Configuration of the daemon: names, settings, flags.
pub static SPEC: Spec = Spec {
    daemon: "roble-root",
    about: "The root orchestrator. `roble-root credential` makes a new admin credential on a running root, \
            `roble-root organization NAME` one for the owner of another organization.",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "ROBLE_ROOT_",
    default_file: Some("/etc/roble/root.toml"),
    settings: &[COMMON, SETTINGS],
    flags: &[ExtraFlag {
        name: "accept-empty-store",
        doc: "start with an empty store although an earlier one was damaged and set aside",
    }],
};

/// What the daemon is built from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the store, the authority and the local socket.
    pub state_dir: PathBuf,
    /// Where users are served.
    pub api: SocketAddr,
    /// Where clusters are served.
    pub link: SocketAddr,
    /// Names and addresses of the root, at least one.
    pub advertise: Vec<String>,
    /// What keeps the state.
    pub backend: BackendKind,
    /// Memory for the store, bytes.
    pub cache_bytes: usize,
    /// Start empty in place of a damaged store.
    pub accept_empty_store: bool,
    /// Timing of clusters.
    pub clocks: Clocks,
    /// How long a login lasts.
    pub session: Duration,
    /// How much of what was done is remembered.
    pub audit: AuditLimits,
    /// Time for requests to end after the wish to stop.
    pub drain: Duration,
    /// The overlay's ranges.
    pub plan: Plan,
}

/// Settings that contradict each other, or that this machine cannot fulfil.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(
    /// What is wrong and what would be right.
    pub String,
);

impl Settings {
    /// The typed view of a parsed configuration.
    ///
    /// # Errors
    /// [`SettingsError`] if values contradict each other.
    pub fn new(config: &Config) -> Result<Self, SettingsError> {
        let clocks = clocks(
            config.duration("cluster.beat"),
            config.duration("cluster.unreachable"),
            config.try_duration("cluster.lost"),
        )?;
        let backend = config.string("store.backend").parse();
        let advertise = config.try_list("advertise").unwrap_or_default().to_vec();
        let api = config.address("listen.api");
        Ok(Self {
            state_dir: config.path("state_dir").to_owned(),
            api,
            link: config.address("listen.link"),
            advertise: if advertise.is_empty() {
                vec![own_name(api)]
            } else {
                advertise
            },
            backend: backend.map_err(|error: roble_store::UnknownBackend| SettingsError(error.to_string()))?,
            cache_bytes: usize::try_from(config.size("store.cache")).unwrap_or(usize::MAX),
            accept_empty_store: config.flag("accept-empty-store"),
            clocks,
            session: config.duration("session.lifetime"),
            audit: AuditLimits {
                records: usize::try_from(config.integer("audit.records")).unwrap_or(usize::MAX),
                age_ms: millis(config.duration("audit.age")),
            },
            drain: config.duration("shutdown.deadline").mul_f64(0.8),
            plan: plan(config)?,
        })
    }
}

fn plan(config: &Config) -> Result<Plan, SettingsError> {
    let read = |name: &str, is_right: &str| {
        let value = config.string(name);
        SettingsError(format!("{name} is `{value}`: {is_right} expected"))
    };
    let (first, last) = config
        .string("overlay.endpoints")
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)))
        .filter(|(first, last): &(Ipv4Addr, Ipv4Addr)| first < last)
        .ok_or_else(|| {
            read(
                "overlay.endpoints",
                "two IPv4 addresses such as 10.18.0.0-10.29.255.255",
            )
        })?;
    let endpoints_v6: Ipv6Addr = config
        .string("overlay.endpoints_v6")
        .parse()
        .map_err(|_| read("overlay.endpoints_v6", "an IPv6 address such as fc00::"))?;
    let services: Block = config
        .string("overlay.services")
        .parse()
        .map_err(|_| read("overlay.services", "an IPv4 network such as 10.30.0.0/16"))?;
    let services_v6 = u16::from_str_radix(config.string("overlay.services_v6"), 16)
        .map_err(|_| read("overlay.services_v6", "four hexadecimal digits such as fdff"))?;
    let plan = Plan {
        endpoints: (first, last),
        endpoints_v6,
        services,
        services_v6,
    };
    let clash = (first..=last).contains(&services.network())
        || services.spans(first)
        || endpoints_v6.segments()[0] == services_v6;
    if clash {
        return Err(SettingsError(
            "the overlay's ranges of endpoints and services overlap: choose others".to_owned(),
        ));
    }
    Ok(plan)
}

fn clocks(beat: Duration, unreachable: Duration, lost: Option<Duration>) -> Result<Clocks, SettingsError> {
    let wrong = |text: &str| Err(SettingsError(text.to_owned()));
    if beat < Duration::from_millis(50) {
        return wrong("cluster.beat must be 50ms at least");
    }
    if unreachable < beat * 2 {
        return wrong(
            "cluster.unreachable must be at least twice cluster.beat, or a single lost beat makes a cluster unreachable",
        );
    }
    if lost.is_some_and(|lost| lost <= unreachable) {
        return wrong("cluster.lost must be longer than cluster.unreachable");
    }
    Ok(Clocks {
        beat_ms: millis(beat),
        unreachable_ms: millis(unreachable),
        lost_ms: lost.map(millis),
        ..Clocks::CLUSTERS
    })
}

/// Milliseconds, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The address listened on if it is a certain one, else the machine's name.
fn own_name(api: SocketAddr) -> String {
    if api.ip().is_unspecified() {
        host_name()
    } else {
        api.ip().to_string()
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().to_lowercase();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if !name.is_empty() && name.bytes().all(is_name) {
        name
    } else {
        "localhost".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_daemon::config::{Inputs, Outcome, parse};

    fn settings(args: &[&str]) -> Result<Settings, SettingsError> {
        let Ok(Outcome::Run(config)) = parse(&SPEC, &Inputs::default().args(args.iter().copied())) else {
            panic!("{args:?} is not understood");
        };
        Settings::new(&config)
    }

    #[test]
    fn the_table_is_sound_and_defaults_are_the_documented_ones() {
        SPEC.check().unwrap();
        let settings = settings(&[]).unwrap();
        assert_eq!((settings.api.port(), settings.link.port()), (10_000, 50_052));
        assert_eq!(settings.clocks, Clocks::CLUSTERS);
        assert_eq!(settings.backend, BackendKind::Redb);
        assert!(!settings.advertise[0].is_empty());
    }

    #[test]
    fn contradictions_are_refused() {
        let error = settings(&["--cluster-unreachable", "3s"]).unwrap_err();
        assert!(error.0.contains("twice"), "{error}");
        assert!(settings(&["--cluster-lost", "1s"]).is_err());
        let good = settings(&[
            "--cluster-lost",
            "1m",
            "--store",
            "sled",
            "--advertise",
            "a.example,192.0.2.1",
        ])
        .unwrap();
        assert_eq!((good.clocks.lost_ms, good.backend), (Some(60_000), BackendKind::Sled));
        assert_eq!(good.advertise, ["a.example", "192.0.2.1"]);
    }
}
