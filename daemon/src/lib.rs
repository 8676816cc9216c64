//! What every daemon shares.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | default, file, environment, flag: one table of settings per daemon, one typed view |
//! | [`clock`] | wall and boot clock as a seam; the clock that certificates are checked against |
//! | [`rng`] | randomness as a seam |
//! | [`files`] | writing so that a crash leaves the old or the new, and one process per state folder |
//! | [`pki`] | authorities, keys, certificates, and the identity that a certificate proves |
//! | [`tls`] | TLS 1.3 for both sides: swappable certificates, revocation that closes live connections |
//! | [`serve`] | the one accept loop: bounded, and indifferent to peers that stall |
//! | [`join`] | how a machine gets its identity from the tier above, and keeps it |
//! | [`rate`], [`refusal`] | attempts per address; what is not granted, and its status in HTTP |
//! | [`health`], [`metrics`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`home`] | where a node belongs, for all that speaks for it
//! | [`incomplete`] | whether the store lacks what was known before |
//! | [`shell`] | the loop around a tier: events in, writes to disk, then acts |
//! | [`mod@failpoint`] | debug builds only: places at which a test lets the process die |
//! | [`logs`], [`shutdown`], [`notify`], [`mod@runtime`] | start-up and end of a process |
//!
//! Invariants:
//! - An [`pki::Identity`] comes only from a certificate whose chain was verified.
//! - There is no listener and no dialer without TLS, except Unix sockets that check the peer's user id.
//! - A secret never appears in `Debug`, in a log or in `--print-config`.
//! - Loading the crate starts nothing; no module reads the process environment except the functions that say so.

pub mod clock;
pub mod config;
pub mod failpoint;
pub mod files;
pub mod health;
pub mod home;
pub mod incomplete;
pub mod join;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod pki;
pub mod rate;
pub mod refusal;
pub mod request;
pub mod rng;
pub mod runtime;
pub mod serve;
pub mod shell;
pub mod shutdown;
#[cfg(test)]
mod testing;
pub mod tls;

pub use runtime::runtime;
pub use tls::install_crypto_provider;
pub use tokio_util::sync::CancellationToken;
