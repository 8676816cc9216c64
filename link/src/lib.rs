//! See docs/ARCHITECTURE.md.

pub mod mqtt;
pub mod transport;
