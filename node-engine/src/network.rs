//! The seam to the net manager: an interface with an endpoint address and published ports for every container.
//!
//! The node engine owns the network namespaces ([`netns`]); the net manager owns what is inside them. Order of a life:
//! [`netns::ensure`], [`Network::attach`], run the container in the namespace, [`Network::detach`], [`netns::ensure_gone`].
//! Each step may be repeated; after a crash the engine compares [`Network::list`] and [`netns::list`] with what it wants.
//!
//! Two implementations: [`client::NetClient`] and [`memory::MemoryNetwork`]; one contract suite (`suite.rs`) runs on both.

pub mod client;
pub mod memory;
pub mod netns;
#[cfg(any(test, feature = "testkit"))]
pub mod suite;

use async_trait::async_trait;
pub use roble_proto::local_net::{Attach, Attached, Tenant};
use std::io;
use std::path::PathBuf;

/// Gives containers of this node their place in the network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Attaches `container` (1 to 128 characters out of `A-Z a-z 0-9 . _ -`), or changes its ports; its address stays.
    /// Repeatable: the same wish has the same answer, and repairs what is broken. A container that was detached gets its
    /// former address back as long as no other needs it.
    ///
    /// # Errors
    /// [`NetworkError::Refused`]: it is as it was before. [`NetworkError::Unavailable`]: unknown, to be repeated.
    async fn attach(&self, container: &str, wish: &Attach) -> Result<Attached, NetworkError>;

    /// Removes whatever is left of `container`. Repeatable; `Ok` if there is nothing, also if its namespace is gone.
    ///
    /// # Errors
    /// Something may remain; to be repeated.
    async fn detach(&self, container: &str) -> Result<(), NetworkError>;

    /// Everything attached, ordered by container.
    ///
    /// # Errors
    /// Nothing is known then, which does not mean that nothing is attached.
    async fn list(&self) -> Result<Vec<Attached>, NetworkError>;

    /// Passes on a question about the way of a packet (JSON of `roble_proto::local_net::Question`) and its answer (JSON, too).
    ///
    /// # Errors
    /// There is no answer.
    async fn trace(&self, question: Vec<u8>) -> Result<Vec<u8>, NetworkError>;
}

/// Why something about the network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The net manager said no.
    #[error("{message}")]
    Refused {
        /// Stable code, see `roble_proto::local_net::LocalError`.
        code: String,
        /// For people.
        message: String,
    },
    /// The net manager does not answer, or not as agreed.
    #[error("net manager at {socket} does not answer: {reason}")]
    Unavailable {
        /// Its socket.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A network namespace could not be made, entered, listed or removed.
    #[error("{attempt} network namespace {path}")]
    Netns {
        /// What was tried.
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// The stable code: that of the net manager, `net-unavailable` or `netns-failed`.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Unavailable { .. } => "net-unavailable",
            Self::Netns { .. } => "netns-failed",
        }
    }

    /// Whether the same request may succeed later although nobody changes it.
    pub fn is_retryable(&self) -> bool {
        !matches!(self.code(), "invalid" | "netns-missing")
    }
}
