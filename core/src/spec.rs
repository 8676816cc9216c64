//! What an instance and a service are asked to be.

use crate::ids::{ApplicationId, InstanceId, OrganizationId};
use crate::labels::Selector;
use crate::ports::PortMapping;
use crate::resources::Resources;
use crate::version::Version;

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// When an instance that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Whatever the exit code.
    #[default]
    Always,
    /// Only after a non-zero exit code, a signal or an out-of-memory kill.
    OnFailure,
    /// Never; the end is final.
    Never,
}

/// What the node does with an instance while nobody above answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenCutOff {
    /// Goes on, and may run twice while a partition lasts (at-least-one, the default).
    #[default]
    KeepRunning,
    /// Stops its copy before a replacement may start (at-most-one).
    Stop,
}

/// How much a container may do (reference table: docs/security.md).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityProfile {
    /// Root inside allowed, few capabilities, seccomp, no new privileges (the default).
    #[default]
    Baseline,
    /// Also a user other than root, a read-only root file system, no capability but NET_BIND_SERVICE.
    Restricted,
}

/// Where an instance may run; an empty constraint allows every place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Only the cluster of this name (Oakestra's `direct`).
    pub cluster: Option<String>,
    /// Only the node of this name (Oakestra's `direct`).
    pub node: Option<String>,
    /// Labels the cluster must carry.
    pub cluster_selector: Selector,
    /// Labels the node must carry.
    pub node_selector: Selector,
    /// Architectures allowed, in OCI's names; empty means any.
    pub architectures: Vec<String>,
}

/// The whole wish for one instance, the same for every number of a service and on every tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Owner.
    pub organization: OrganizationId,
    /// The application the service belongs to.
    pub application: ApplicationId,
    /// `application/service`, for people.
    pub path: String,
    /// How it is run: `container` is the only one so far.
    pub virtualization: String,
    /// OCI image reference as written by the user; `digest` pins it once known.
    pub image: String,
    /// `sha256:...` of the manifest, once resolved.
    pub image_digest: Option<String>,
    /// Replaces the image's entry point, if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments, if not empty.
    pub args: Vec<String>,
    /// `KEY`, `value`, in the order given; later ones win.
    pub environment: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// `uid[:gid]` or `name[:group]`; replaces the image's user.
    pub user: Option<String>,
    /// Reserved and enforced.
    pub resources: Resources,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
    /// When to start it again.
    pub restart: RestartPolicy,
    /// Exit code 0 completes it: it is not started again whatever `restart` says.
    pub one_shot: bool,
    /// Milliseconds between the polite signal and the kill.
    pub stop_grace_ms: u64,
    /// What to do while nobody above answers.
    pub when_cut_off: WhenCutOff,
    /// Confinement.
    pub security: SecurityProfile,
    /// Where it may run.
    pub constraints: Constraints,
}

/// One order from a tier to the tier below: run this instance, at this version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which instance.
    pub instance: InstanceId,
    /// Generation and epochs; a lower one than seen before is refused.
    pub version: Version,
    /// The whole wish.
    pub spec: Arc<InstanceSpec>,
}

/// A service as its owner wants it: one spec, so many copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// How many instances, numbered from 0.
    pub replicas: u32,
    /// What each of them is.
    pub template: Arc<InstanceSpec>,
}
