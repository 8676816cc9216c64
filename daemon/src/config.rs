//! Configuration in layers: built-in default, then file, then environment, then flag; the last one wins.
//!
//! A daemon declares one table of [`Setting`]s, wrapped in a [`Spec`]. From it come the parser, the typed view
//! ([`Config`]), `--help`, `--print-config` and the table in docs/config.md. [`parse`] is a function over maps;
//! [`from_process`] is the only place that looks at the process. All mistakes are reported together.
//!
//! ```
//! use roble_daemon::config::{COMMON, ExtraFlag, Inputs, Kind, Outcome, Setting, Spec, parse};
//!
//! static SETTINGS: &[Setting] = &[
//!     Setting::new("listen.api", Kind::Address, "where users' requests arrive").default("0.0.0.0:10000"),
//!     Setting::new("store.cache", Kind::Size, "memory for the store").default("8MiB"),
//! ];
//! static SPEC: Spec = Spec {
//!     daemon: "roble-root", about: "The root orchestrator.", version: "0.1.0", prefix: "ROBLE_ROOT_",
//!     default_file: Some("/etc/roble/root.toml"), settings: &[COMMON, SETTINGS],
//!     flags: &[ExtraFlag { name: "reset-admin", doc: "print a new admin credential and exit" }],
//! };
//! let inputs = Inputs::default().env("ROBLE_ROOT_STORE_CACHE", "16MiB").args(["--listen-api", "127.0.0.1:0"]);
//! let Ok(Outcome::Run(config)) = parse(&SPEC, &inputs) else { panic!() };
//! assert_eq!(config.size("store.cache"), 16 << 20);
//! assert_eq!(config.address("listen.api").port(), 0);
//! ```

mod arguments;
mod layers;
mod render;
mod setting;
mod suggest;
#[cfg(test)]
mod tests;
mod value;
mod view;

pub use layers::{Inputs, Outcome, parse};
pub use render::{help, markdown};
pub use setting::{ExtraFlag, Kind, Setting, Spec};
pub use view::{Config, Source};

use std::fmt;

/// Settings every daemon has; first entry of [`Spec::settings`].
pub static COMMON: &[Setting] = &[
    Setting::new(
        "log.level",
        Kind::String,
        "least severe log lines to show, as `info` or `info,roble_link=debug`",
    )
    .default("info"),
    Setting::new("log.format", Kind::Choice(&["text", "json"]), "how log lines look").default("text"),
    Setting::new(
        "shutdown.deadline",
        Kind::Duration,
        "time for work under way to end after SIGTERM",
    )
    .default("10s"),
];

/// Where a daemon keeps what must survive a restart; every daemon has it.
pub const fn state_dir(default: &'static str) -> Setting {
    Setting::new("state_dir", Kind::Path, "folder for what must survive a restart").default(default)
}

/// What keeps a daemon's state; every daemon with a store has it.
pub const STORE: Setting = Setting::new(
    "store.backend",
    Kind::Choice(&["redb", "sled", "memory"]),
    "what keeps the state",
)
.default("redb")
.flag("store");

/// One mistake. Values of secrets are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub source: Source,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(
    /// In the order of the layers.
    pub Vec<Mistake>,
);

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(formatter, "1 mistake in the configuration:")?,
            count => writeln!(formatter, "{count} mistakes in the configuration:")?,
        }
        self.0
            .iter()
            .try_for_each(|mistake| writeln!(formatter, "  {}: {}", mistake.source, mistake.message))
    }
}

impl std::error::Error for Mistakes {}

/// Reads file, environment and flags of this process. Prints and exits with 0 for `--help`, `--version`, `--print-config`;
/// prints all mistakes and exits with 2 if there are any.
pub fn from_process(spec: &Spec) -> Config {
    use std::io::Write as _;
    match parse(spec, &Inputs::of_process()) {
        Ok(Outcome::Run(config)) => config,
        Ok(Outcome::Print(text)) => {
            // A closed pipe is the reader's wish.
            let _ = std::io::stdout().write_all(text.as_bytes());
            std::process::exit(0)
        }
        Err(mistakes) => {
            let _ = writeln!(std::io::stderr(), "{}: {mistakes}try {0} --help", spec.daemon);
            std::process::exit(2)
        }
    }
}
