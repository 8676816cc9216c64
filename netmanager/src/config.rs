//! The daemon's settings: one table, one typed view.

use roble_core::overlay::block::{Block, ParseBlockError};
use roble_daemon::config::{COMMON, Config, ExtraFlag, Kind, Setting, Spec, state_dir};
use std::path::PathBuf;
use std::time::Duration;

/// What only this daemon has.
pub static SETTINGS: &[Setting] = &[
    state_dir("/var/lib/roble/net"),
    Setting::new("socket", Kind::Path, "Unix socket of the local API").default("/run/roble/net.sock"),
    Setting::new("endpoint.range", Kind::String, "IPv4 block of this node's containers").default("10.18.0.0/26"),
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
    /// This node's block of addresses.
    pub endpoint_range: Block,
    /// Name of this node in logs.
    pub node_name: String,
    /// How often everything is looked at again.
    pub reconcile_interval: Duration,
    /// Only remove everything.
    pub clean_up: bool,
}

impl NetConfig {
    /// The typed view of `config`.
    ///
    /// # Errors
    /// [`ParseBlockError`].
    pub fn build(config: &Config) -> Result<Self, ParseBlockError> {
        Ok(Self {
            state_dir: config.path("state_dir").into(),
            socket: config.path("socket").into(),
            endpoint_range: config.string("endpoint.range").parse()?,
            node_name: config.string("node.name").into(),
            // Zero would never let a request through.
            reconcile_interval: config.duration("reconcile.interval").max(Duration::from_millis(100)),
            clean_up: config.flag("clean-up"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_daemon::config::{Inputs, Outcome, parse};

    fn build(args: &[&str]) -> Result<NetConfig, ParseBlockError> {
        match parse(&SPEC, &Inputs::default().args(args.iter().copied())) {
            Ok(Outcome::Run(config)) => NetConfig::build(&config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_flags() {
        SPEC.check().unwrap();
        let config = build(&[]).unwrap();
        assert_eq!(config.endpoint_range.to_string(), "10.18.0.0/26");
        assert!(!config.clean_up);
        let config = build(&["--endpoint-range", "10.19.0.0/24", "--state-dir=/tmp/x", "--clean-up"]).unwrap();
        assert_eq!((config.endpoint_range.capacity(), config.clean_up), (253, true));
        assert!(build(&["--endpoint-range", "10.19.0.0"]).is_err());
    }
}
