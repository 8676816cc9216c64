//! See docs/ARCHITECTURE.md.

pub mod transport;
