//! Quantities that placement reserves.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An amount of compute: CPU in thousandths of a core, memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

impl Resources {
    /// Nothing.
    pub const ZERO: Self = Self {
        cpu_millis: 0,
        memory_bytes: 0,
    };

    /// Whether `request` fits into this amount.
    pub const fn covers(&self, request: &Self) -> bool {
        self.cpu_millis >= request.cpu_millis && self.memory_bytes >= request.memory_bytes
    }
    /// The sum, saturating.
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
    /// The difference, never below zero.
    pub const fn minus(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m CPU, {} MiB", self.cpu_millis, self.memory_bytes / (1024 * 1024))
    }
}
