//! See docs/ARCHITECTURE.md.

pub mod runtime;
