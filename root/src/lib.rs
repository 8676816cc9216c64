//! The root: users, applications, clusters. See docs/ARCHITECTURE.md.

pub mod tier;
