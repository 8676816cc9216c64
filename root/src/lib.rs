//! The root: users' API, cluster registry, placement on clusters.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`tier`] | the state machine; no I/O |
//! | [`config`] | the table of settings and the typed view of it |
//! | [`daemon`] | builds everything, binds, runs, drains |
//! | [`hands`] | carries calls into the tier and its acts out of it |
//! | [`api`] | users' API: thin handlers, one file per resource |
//! | [`link`] | the clusters' sessions (gRPC) |
//! | [`streams`] | log streams that clusters dial because a user asked |
//! | [`local`] | the Unix socket, and `roble-root credential` |
//! | [`certs`] | the authority, and the server's certificate while it runs |
//! | [`first`] | the first credential, printed once |
//! | [`rate`], [`metrics`] | attempts per address; what is counted |
//!
//! Invariants:
//! - Nothing is answered or sent before what it depends on is on disk; [`roble_daemon::shell`] sees to that.
//! - An id of a cluster comes from its verified certificate, never from what it says.
//! - Every queue is bounded: calls, frames to a cluster, pieces of a log, events to who follows.
//! - The daemon never serves an empty store in place of a damaged one unless it was told to.

pub mod api;
pub mod certs;
pub mod config;
pub mod daemon;
pub mod first;
pub mod hands;
pub mod link;
pub mod local;
pub mod metrics;
pub mod streams;
pub mod tier;
pub mod trace;
