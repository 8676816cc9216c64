//! The daemon's settings: one table, one typed view.

use crate::datapath::Egress;
use crate::datapath::tunnel::TunnelKind;
use crate::sealing::SealingConfig;
use crate::sealing::device::Wanted;
use roble_core::overlay::block::{Block, ParseBlockError};
use roble_daemon::config::{COMMON, Config, ExtraFlag, Kind, Setting, Spec, state_dir};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The worker's control socket, beside the local API's.
const WORKER_SOCKET: &str = "tunnel.sock";

/// What only this daemon has.
pub static SETTINGS: &[Setting] = &[
    state_dir("/var/lib/roble/net"),
    Setting::new("socket", Kind::Path, "Unix socket of the local API").default("/run/roble/net.sock"),
    Setting::new(
        "endpoint.range",
        Kind::String,
        "IPv4 block of this node's containers; if unset, the cluster gives one",
    ),
    Setting::new(
        "identity",
        Kind::Path,
        "state folder of the node engine, in which the node's identity is",
    )
    .default("/var/lib/roble/node"),
    Setting::new(
        "tunnel.kind",
        Kind::Choice(&["wireguard", "vxlan", "off"]),
        "how containers of other nodes are reached; vxlan: in the clear within the cluster, for a trusted segment only, and by \
         wireguard elsewhere",
    )
    .default("wireguard"),
    Setting::new(
        "tunnel.address",
        Kind::String,
        "this node's address in its site; if unset, the one from which the cluster is reached",
    ),
    Setting::new(
        "tunnel.port",
        Kind::Integer,
        "UDP port of the encrypted tunnel",
    )
    .default("50103"),
    Setting::new(
        "tunnel.rotate",
        Kind::Duration,
        "age at which the key of the encrypted tunnel is replaced",
    )
    .default("168h"),
    Setting::new(
        "tunnel.device",
        Kind::Choice(Wanted::NAMES),
        "what seals packets: the kernel's WireGuard, a worker in user space, or auto: the kernel's if it has one",
    )
    .default("auto"),
    Setting::new(
        "tunnel.worker",
        Kind::Path,
        "the program that seals and opens packets; if unset, the one beside this program",
    ),
    Setting::new(
        "vxlan.port",
        Kind::Integer,
        "UDP port of VXLAN, the same on all nodes",
    )
    .default("50102"),
    Setting::new(
        "vxlan.vni",
        Kind::Integer,
        "number of the VXLAN segment, the same on all nodes",
    )
    .default("50103"),
    Setting::new(
        "egress.lan",
        Kind::Choice(&["deny", "allow"]),
        "whether containers reach the private networks that the node is directly connected to",
    )
    .default("deny"),
    Setting::new(
        "egress.metadata",
        Kind::Choice(&["deny", "allow"]),
        "whether containers reach 169.254.0.0/16, where clouds give away what a machine is",
    )
    .default("deny"),
    Setting::new(
        "services.idle",
        Kind::Duration,
        "how long services of other applications stay known here when nobody uses them",
    )
    .default("60m"),
    Setting::new("node.name", Kind::String, "name of this node in logs").default("local"),
    Setting::new(
        "reconcile.interval",
        Kind::Duration,
        "how often everything is looked at again",
    )
    .default("30s"),
];

/// All settings of `roble-net`.
pub static SPEC: Spec = Spec {
    daemon: "roble-net",
    about: "The net manager: endpoint addresses and published ports for the containers of this node. Runs in the node's \
            network namespace.",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "ROBLE_NET_",
    default_file: Some("/etc/roble/net.toml"),
    settings: &[COMMON, SETTINGS],
    flags: &[ExtraFlag {
        name: "clean-up",
        doc: "remove every link, route, rule and kernel parameter it made, and exit",
    }],
};

/// The settings as `main` uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
    /// Socket of the local API.
    pub socket: PathBuf,
    /// This node's block of addresses, if it is not leased.
    pub endpoint_range: Option<Block>,
    /// Folder with the node's identity.
    pub identity: PathBuf,
    /// How other nodes of the cluster are reached in the clear, if so.
    pub tunnel: Option<TunnelKind>,
    /// How other nodes are reached encrypted.
    pub sealing: Option<SealingConfig>,
    /// Control socket of the tunnel's worker.
    pub worker_socket: PathBuf,
    /// This node's address in its site, if it is told.
    pub tunnel_address: Option<IpAddr>,
    /// What containers reach beside the overlay and the internet.
    pub egress: Egress,
    /// How long services of other applications stay known when nobody uses them.
    pub services_idle: Duration,
    /// Name of this node in logs.
    pub node_name: String,
    /// How often everything is looked at again.
    pub reconcile_interval: Duration,
    /// Only remove everything.
    pub clean_up: bool,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(
    /// Which one, and what would be right.
    pub String,
);

impl NetConfig {
    /// The typed view of `config`.
    ///
    /// # Errors
    /// [`SettingsError`] naming the setting.
    pub fn build(config: &Config) -> Result<Self, SettingsError> {
        let number = |name: &str, most: u32| match u32::try_from(config.integer(name)) {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(SettingsError(format!("{name} must be 1 to {most}"))),
        };
        let range = config.try_string("endpoint.range").map(str::parse).transpose();
        let address = config.try_string("tunnel.address").map(str::parse).transpose();
        let kind = config.string("tunnel.kind");
        let port = |name| number(name, u32::from(u16::MAX)).map(|port| port as u16);
        let vxlan = TunnelKind::Vxlan {
            port: port("vxlan.port")?,
            vni: number("vxlan.vni", (1 << 24) - 1)?,
        };
        let worker_socket = config.path("socket").with_file_name(WORKER_SOCKET);
        let sealing = SealingConfig {
            device: Wanted::from_name(config.string("tunnel.device")),
            worker: config.try_path("tunnel.worker").map_or_else(worker, Into::into),
            socket: worker_socket.clone(),
            port: port("tunnel.port")?,
            key_life: config.duration("tunnel.rotate").max(Duration::from_secs(1)),
        };
        Ok(Self {
            state_dir: config.path("state_dir").into(),
            socket: config.path("socket").into(),
            endpoint_range: range.map_err(|error: ParseBlockError| SettingsError(error.to_string()))?,
            identity: config.path("identity").into(),
            tunnel: (kind == "vxlan").then_some(vxlan),
            sealing: (kind != "off").then_some(sealing),
            worker_socket,
            tunnel_address: address.map_err(|_| SettingsError("tunnel.address is not an IP address".to_owned()))?,
            egress: Egress {
                lan: config.string("egress.lan") == "allow",
                metadata: config.string("egress.metadata") == "allow",
            },
            services_idle: config.duration("services.idle").max(Duration::from_secs(1)),
            node_name: config.string("node.name").into(),
            // Zero would never let a request through.
            reconcile_interval: config.duration("reconcile.interval").max(Duration::from_millis(100)),
            clean_up: config.flag("clean-up"),
        })
    }
}

/// The worker that was installed together with this program.
fn worker() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("roble-tunnel")
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_daemon::config::{Inputs, Outcome, parse};

    fn build(args: &[&str]) -> Result<NetConfig, SettingsError> {
        match parse(&SPEC, &Inputs::default().args(args.iter().copied())) {
            Ok(Outcome::Run(config)) => NetConfig::build(&config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_flags() {
        SPEC.check().unwrap();
        let config = build(&[]).unwrap();
        assert_eq!((config.endpoint_range, config.tunnel), (None, None));
        assert_eq!(config.sealing.unwrap().port, 50_103);
        assert_eq!(build(&["--tunnel-kind", "off"]).unwrap().sealing, None);
        let devices =
            ["auto", "kernel", "user"].map(|name| build(&["--tunnel-device", name]).unwrap().sealing.unwrap().device);
        assert_eq!(devices, [Wanted::Auto, Wanted::Kernel, Wanted::User]);
        assert!(!config.clean_up);
        assert_eq!(config.egress, Egress::default());
        let open = build(&["--egress-lan", "allow", "--egress-metadata", "allow"]).unwrap();
        assert!(open.egress.lan && open.egress.metadata);
        let config = build(&["--endpoint-range", "10.19.0.0/24", "--state-dir=/tmp/x", "--clean-up"]).unwrap();
        assert_eq!(
            (config.endpoint_range.unwrap().capacity(), config.clean_up),
            (253, true)
        );
        let config = build(&["--tunnel-kind", "vxlan", "--vxlan-vni", "7"]).unwrap();
        assert_eq!(config.tunnel, Some(TunnelKind::Vxlan { port: 50_102, vni: 7 }));
        assert!(build(&["--tunnel-kind", "vxlan", "--vxlan-vni", "16777216"]).is_err());
        assert!(build(&["--tunnel-address", "here"]).is_err());
        assert!(build(&["--endpoint-range", "10.19.0.0"]).is_err());
    }
}
