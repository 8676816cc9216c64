//! See docs/ARCHITECTURE.md.

pub mod broker;
