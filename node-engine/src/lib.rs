//! The node engine: runtimes, resources, reports. See docs/ARCHITECTURE.md.

pub mod config;
pub mod hands;
pub mod identity;
pub mod network;
pub mod runtime;
pub mod streams;
pub mod tier;
