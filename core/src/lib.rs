//! The pure core that all tiers share: ids, specs, resources, constraints, the life-cycle table, placement and planning.
//!
//! Nothing here does I/O, reads a clock or a global: functions take a snapshot, `now` and a seeded generator and return
//! decisions as data. Map of the modules:
//!
//! - [`ids`], [`time`], [`version`]: names of things, instants, generations and epochs
//! - [`resources`], [`labels`], [`ports`]: quantities and attributes that placement compares
//! - [`spec`]: what one instance or service is asked to be; [`status`]: what is reported about it
//! - [`descriptor`]: users' descriptors (SLA v2.0 and native) to specs, with all mistakes at once
//! - [`lifecycle`]: the one table of instance states
//! - [`placement`]: filter, score, pick; [`liveness`]: heartbeats, loss, the brake; [`backoff`]
//! - [`registry`]: who may join a tier, by which token, and who was put out
//! - [`orchestrator`]: desired and observed state of a tier that places on children (root and cluster)
//! - [`rollout`]: which instances a service should have, and which may change now
//! - [`tier`]: what every tier is to the shell around it: events in, writes and acts out
//! - [`engine`]: desired and observed state of a tier that runs instances itself (node engine)
//! - [`overlay`]: addresses of endpoints and services, and the tables that join nodes
//! - [`hash`](crate::hash): FNV-1a
//! - [`planted`]: bugs for the simulation to find; inert without a feature
//!
//! Invariants: ids are 24 lowercase hex digits; quantities carry their unit in the name; planning twice changes nothing.

pub mod backoff;
pub mod descriptor;
pub mod engine;
pub mod hash;
pub mod ids;
pub mod labels;
pub mod lifecycle;
pub mod liveness;
pub mod orchestrator;
pub mod overlay;
pub mod placement;
pub mod planted;
pub mod ports;
pub mod registry;
pub mod resources;
pub mod rollout;
pub mod spec;
pub mod status;
pub mod tier;
pub mod time;
pub mod version;
