//! Labels of clusters and nodes, and selectors over them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Attributes of a cluster or node, e.g. `zone=north`. Ordered, so that two equal sets print and hash alike.
pub type Labels = BTreeMap<String, String>;

/// Label that every node carries: its CPU architecture in OCI's names (`amd64`, `arm64`, `arm`).
pub const ARCH: &str = "roble.io/arch";
/// Label that every cluster carries: its type (`native`, `kubernetes`).
pub const CLUSTER_TYPE: &str = "roble.io/cluster-type";

/// What a child must carry: every pair must be present with the same value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub BTreeMap<String, String>);

impl Selector {
    /// The first pair that `labels` does not satisfy.
    pub fn first_mismatch<'a>(&'a self, labels: &Labels) -> Option<(&'a str, &'a str)> {
        self.0
            .iter()
            .find(|(key, value)| labels.get(*key) != Some(*value))
            .map(|(k, v)| (k.as_str(), v.as_str()))
    }
}
