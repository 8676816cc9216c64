//! The seam where instances really run: [`Runtime`], its orders, reports and errors.
//!
//! Two implementations: [`containerd::ContainerdRuntime`] and [`memory::MemoryRuntime`]; one contract suite
//! (`suite.rs`) runs on both.
//!
//! Promises of every implementation:
//! - at most one container per instance, whatever is called how often, also across restarts of this process;
//! - what runs survives the end of this process and is found again by [`Runtime::list`];
//! - a call may be dropped at any point; calling it again finishes what the dropped one began;
//! - calls for one instance exclude each other; calls for different instances do not wait for each other.

pub mod containerd;
mod error;
mod keyed;
mod log;
pub mod memory;
pub mod reference;
pub mod registry;
#[cfg(any(test, feature = "testkit"))]
pub mod suite;

pub use error::RuntimeError;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use roble_core::ids::InstanceId;
use roble_core::spec::InstanceSpec;
use roble_core::time::Timestamp;
use roble_core::version::Version;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Runs instances on this machine.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes an image present and ready to start from; pulls it only if this machine does not have it.
    ///
    /// Repeatable; what a broken pull left behind is used again or collected later.
    ///
    /// # Errors
    /// Those with `image-` and `registry-` codes, `digest-mismatch`, `runtime-unavailable`.
    async fn ensure_image(&self, image: &ImageRequest) -> Result<ImageInfo, RuntimeError>;

    /// Brings the instance of `order` to run at the order's version.
    ///
    /// - runs already at this version: does nothing, returns the same [`Started`];
    /// - a container of an older version is stopped (with the grace of `order`) and replaced;
    /// - a container of this version that ended, or was never started, is replaced by a fresh one; its log is kept.
    ///
    /// So the caller that must not restart an ended instance looks at [`Runtime::list`] first.
    ///
    /// # Errors
    /// [`RuntimeError::Outdated`] if a higher version is there; on any other error no process of the order runs.
    async fn ensure_running(&self, order: &RunOrder) -> Result<Started, RuntimeError>;

    /// Polite signal, `grace`, kill; then removes process, container, file system, files and log of the instance.
    /// Repeatable; `Ok` if there is nothing.
    ///
    /// # Errors
    /// Something remains; to be called again.
    async fn ensure_gone(&self, instance: InstanceId, grace: Duration) -> Result<(), RuntimeError>;

    /// All containers of ours, including what an earlier process of ours started, ordered by instance.
    ///
    /// # Errors
    /// The runtime does not answer: nothing is known, which does not mean that nothing runs.
    async fn list(&self) -> Result<Vec<RunningInstance>, RuntimeError>;

    /// Waits for the next end of a process. A hint: ends may be missing (after a restart of this process or of the
    /// runtime) or come twice; the caller lists now and then. One consumer; may be dropped and called again.
    async fn next_exit(&self) -> Exit;

    /// What the instance wrote to its standard output and error, oldest first, in the order of arrival.
    ///
    /// # Errors
    /// [`RuntimeError::NoSuchInstance`] if there is no log of it.
    async fn logs(&self, instance: InstanceId, request: LogRequest) -> Result<LogStream, RuntimeError>;

    /// Asks whether the runtime answers; returns its name and version for people.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn check(&self) -> Result<String, RuntimeError>;
}

/// Chunks of a log; ends when the log ends, or when a followed instance has ended or is gone.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Bytes, RuntimeError>> + Send>>;

/// Which image to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// As the user wrote it: `hello`, `ghcr.io/org/app:1.2`, `app@sha256:...`.
    pub reference: String,
    /// If given, the image must have this digest: that of the index or of this platform's manifest.
    pub digest: Option<String>,
}

impl ImageRequest {
    /// The request a spec makes.
    pub fn of(spec: &InstanceSpec) -> Self {
        Self {
            reference: spec.image.clone(),
            digest: spec.image_digest.clone(),
        }
    }
}

/// An image that is present and ready to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The normalised reference: `docker.io/library/hello:latest`.
    pub reference: String,
    /// `sha256:...` of the manifest for this machine's platform; goes into [`RunOrder::image_digest`].
    pub digest: String,
    /// Sum of the compressed layers, bytes.
    pub size_bytes: u64,
}

/// One instance to run.
#[derive(Debug, Clone)]
pub struct RunOrder {
    /// Which instance.
    pub instance: InstanceId,
    /// Generation and epochs of the order.
    pub version: Version,
    /// What to run.
    pub spec: Arc<InstanceSpec>,
    /// What [`Runtime::ensure_image`] answered.
    pub image_digest: String,
    /// Path of the network namespace to join; none: a fresh one with nothing but loopback.
    pub netns: Option<PathBuf>,
    /// Files put into the container by the node.
    pub files: SandboxFiles,
}

impl RunOrder {
    /// SHA-256 (hex) of the spec; kept with the container, so a changed spec is seen after a restart of the engine.
    pub fn spec_hash(&self) -> String {
        spec_hash(&self.spec)
    }
}

/// SHA-256 (hex) of a spec in its JSON form.
pub fn spec_hash(spec: &InstanceSpec) -> String {
    let json = serde_json::to_vec(spec).expect("a spec is plain data and always serialises");
    hex::encode(Sha256::digest(&json))
}

/// `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` as the instance sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFiles {
    /// Host name; none: made from the instance id.
    pub hostname: Option<String>,
    /// Whole text of `/etc/hosts`; none: loopback names and the host name.
    pub hosts: Option<String>,
    /// Whole text of `/etc/resolv.conf`; none: an empty file.
    pub resolv_conf: Option<String>,
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Process id on the node.
    pub pid: u32,
    /// When it was started.
    pub started_at: Timestamp,
}

/// A container of ours, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningInstance {
    /// Which instance.
    pub instance: InstanceId,
    /// The version it was started for; the default (lowest) one if its labels are damaged.
    pub version: Version,
    /// [`spec_hash`] of the spec it was started with.
    pub spec_hash: String,
    /// Manifest digest of its image.
    pub image_digest: String,
    /// The network namespace it joined.
    pub netns: Option<PathBuf>,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made but never started: a start was interrupted.
    Created,
    /// Its process runs.
    Running(Started),
    /// Its process ended.
    Exited(ExitReason),
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Which instance.
    pub instance: InstanceId,
    /// The version that ran.
    pub version: Version,
    /// How it ended.
    pub reason: ExitReason,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReason {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal, concluded from a code above 128.
    pub signal: Option<i32>,
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// When.
    pub at: Timestamp,
}

impl ExitReason {
    /// The reason for an exit code; the signal is concluded from it.
    pub fn from_code(code: i32, oom_killed: bool, at: Timestamp) -> Self {
        let signal = (129..=192).contains(&code).then(|| code - 128);
        Self {
            code,
            signal,
            oom_killed,
            at,
        }
    }
}

/// Which part of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Go on with what is written later, until the instance has ended.
    pub follow: bool,
    /// Only so many of the last lines; none: all that is kept.
    pub tail_lines: Option<u32>,
}

/// The wall clock.
pub(crate) fn wall_now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
