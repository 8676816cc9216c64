//! What is reported about an instance, from the node upwards.

use crate::ids::{ClusterId, InstanceId, NodeId};
use crate::ports::PortMapping;
use crate::time::Timestamp;
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Where an instance is in its life, for people and for the tier above. The table of moves is in [`crate::lifecycle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Accepted; no place found yet.
    Pending,
    /// A place is chosen, the order is on its way.
    Scheduled,
    /// The node prepares it: pulls the image, creates the container.
    Starting,
    /// Its process runs.
    Running,
    /// It ended or would not start; the node waits before the next try.
    BackingOff,
    /// It is being stopped.
    Stopping,
    /// It ended well and stays ended.
    Completed,
    /// It ended badly and stays ended.
    Failed,
    /// The child cannot take it; the parent looks for another place.
    Refused,
    /// The child that held it is silent beyond its lease.
    Lost,
}

impl Phase {
    /// All phases, in the order of life.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Scheduled,
        Self::Starting,
        Self::Running,
        Self::BackingOff,
        Self::Stopping,
        Self::Completed,
        Self::Failed,
        Self::Refused,
        Self::Lost,
    ];

    /// The word used in the API and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::BackingOff => "backing-off",
            Self::Stopping => "stopping",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }

    /// Whether the instance has ended for good under its present version.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something is as it is: a stable code for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable, kebab-case, e.g. `image-not-found`, `no-memory`, `port-taken`.
    pub code: String,
    /// One sentence, lower case, no full stop.
    pub message: String,
}

impl Reason {
    /// A reason of this code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// The report about one instance. Written by the child that holds it; `version` names the order it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Which instance.
    pub instance: InstanceId,
    /// The order this answers; a report for an older order is ignored.
    pub version: Version,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why, if there is something to say.
    pub reason: Option<Reason>,
    /// How often it was started again under this version.
    pub restarts: u32,
    /// Exit code of the last end: 128 + n for signal n.
    pub exit_code: Option<i32>,
    /// When the running process was started.
    pub started_at: Option<Timestamp>,
    /// The cluster that holds it, as the root sees it.
    pub cluster: Option<ClusterId>,
    /// The node that holds it.
    pub node: Option<NodeId>,
    /// That node's name.
    pub node_name: Option<String>,
    /// Address at which published ports of that node are reached.
    pub node_address: Option<String>,
    /// Ports really published.
    pub ports: Vec<PortMapping>,
    /// Digest of the manifest that runs.
    pub image_digest: Option<String>,
    /// Its endpoint addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl InstanceStatus {
    /// A bare report: phase only.
    pub fn new(instance: InstanceId, version: Version, phase: Phase) -> Self {
        Self {
            instance,
            version,
            phase,
            reason: None,
            restarts: 0,
            exit_code: None,
            started_at: None,
            cluster: None,
            node: None,
            node_name: None,
            node_address: None,
            ports: Vec::new(),
            image_digest: None,
            addresses: Vec::new(),
        }
    }
}
