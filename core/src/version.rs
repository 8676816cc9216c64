//! Versions that fence: the generation of a spec and the epochs of its placements (DESIGN.md section 2, rule 3).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of a spec; written by the root only, starts at 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts of placements, one per assigning tier from the root down: `[root's, cluster's]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epochs(pub Vec<u64>);

impl Epochs {
    /// The path with this tier's own count appended.
    pub fn child(&self, own: u64) -> Self {
        let mut path = self.0.clone();
        path.push(own);
        Self(path)
    }
    /// The path as the tier above knows it: without the last count.
    pub fn parent(&self) -> Self {
        Self(self.0.split_last().map(|(_, head)| head.to_vec()).unwrap_or_default())
    }
    /// The count of the tier that assigned directly.
    pub fn last(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }
}

impl fmt::Display for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, epoch) in self.0.iter().enumerate() {
            write!(f, "{}{epoch}", if i == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

/// What a receiver compares: an order with a lower version than one already seen is refused.
/// The order of fields is the order of comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Version of the spec.
    pub generation: Generation,
    /// Placements, from the root down.
    pub epochs: Epochs,
}

impl Version {
    /// The version that the tier above knows.
    pub fn parent(&self) -> Self {
        Self {
            generation: self.generation,
            epochs: self.epochs.parent(),
        }
    }
    /// This version with the own placement count appended.
    pub fn child(&self, own_epoch: u64) -> Self {
        Self {
            generation: self.generation,
            epochs: self.epochs.child(own_epoch),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}e{}", self.generation, self.epochs)
    }
}
