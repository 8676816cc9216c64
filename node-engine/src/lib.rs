//! The node engine: runtimes, resources, reports. See docs/ARCHITECTURE.md.

pub mod network;
pub mod runtime;
pub mod tier;
