//! See docs/ARCHITECTURE.md.

pub mod broker;
pub mod tier;
