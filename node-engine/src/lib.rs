//! See docs/ARCHITECTURE.md.

pub mod network;
