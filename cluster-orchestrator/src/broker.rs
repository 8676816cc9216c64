//! The node link as the cluster orchestrator sees it: who is connected, what they say, and how to answer or expel them.
//!
//! A broker carries messages in order for as long as a client stays connected and promises no more: the session above
//! compares digests after each [`BrokerEvent::Connected`]. Nothing is stored. Who a client is comes from its certificate
//! alone; a client reaches its own two topics and nothing else. See docs/adr/0002-broker.md for why the embedded one is
//! the default.

pub mod embedded;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod matrix;
pub mod memory;
pub mod mosquitto;
#[cfg(test)]
mod suite;

use async_trait::async_trait;
use bytes::Bytes;
use roble_core::ids::NodeId;
use roble_proto::topics::Branch;

/// What happened at the broker. For one `(node, branch)`: `Connected`, then any number of `Message`, then `Disconnected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerEvent {
    /// A client is connected and subscribed: what is sent from now on reaches it.
    Connected {
        /// The node in its certificate.
        node: NodeId,
        /// Which of the node's two clients.
        branch: Branch,
    },
    /// A client is gone, or was put out.
    Disconnected {
        /// The node in its certificate.
        node: NodeId,
        /// Which of the node's two clients.
        branch: Branch,
    },
    /// A client said something.
    Message {
        /// The node in its certificate.
        node: NodeId,
        /// Which of the node's two clients.
        branch: Branch,
        /// What it said, as sent.
        payload: Bytes,
    },
    /// A second connection with the identity and branch of a live one took its place. Once: a reconnection that was faster
    /// than the old connection's end. Again and again: two machines with one key.
    Duplicate {
        /// The node in both certificates.
        node: NodeId,
    },
}

/// Why a message was not taken. The session repeats what matters after the next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The client is not connected.
    #[error("client not connected")]
    NotConnected,
    /// The client does not read; it is being disconnected, or was told to read faster by losing this message.
    #[error("queue of the client full")]
    QueueFull,
    /// The message can never be sent.
    #[error("message of {bytes} bytes exceeds {limit}")]
    TooLarge {
        /// Size of the message.
        bytes: usize,
        /// Largest size that is taken.
        limit: usize,
    },
}

/// Why a command to the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The revocation could not be made effective now; it is remembered and applied at the next restart of the broker.
    #[error("revoke node {node}")]
    Revoke {
        /// The node to put out.
        node: NodeId,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The admission could not be made effective now; it is remembered and applied at the next restart of the broker.
    #[error("admit node {node}")]
    Admit {
        /// The node to let in.
        node: NodeId,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The certificate could not be read or put in force; the old one stays.
    #[error("reload server certificate")]
    Certificate {
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The broker could not be started.
    #[error("start broker")]
    Start {
        /// What failed.
        #[source]
        source: std::io::Error,
    },
}

/// Counters since the start, and two gauges. A broker that cannot know a figure leaves it 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerStats {
    /// Clients connected now.
    pub clients: u64,
    /// Bytes waiting in the queues of all clients now.
    pub queued_bytes: u64,
    /// Connections accepted as clients.
    pub connects: u64,
    /// Connections refused after the TLS handshake: bad identity, revoked, too many, no CONNECT in time.
    pub refused: u64,
    /// Messages from clients.
    pub received: u64,
    /// Messages handed to clients' connections.
    pub sent: u64,
    /// Messages not taken because a client's queue was full.
    pub queue_full: u64,
    /// Publishes to a forbidden topic; each closed its connection.
    pub forbidden_publish: u64,
    /// Subscriptions to a forbidden filter; each was refused.
    pub forbidden_subscribe: u64,
    /// Connections closed for a broken or forbidden packet, oversize included.
    pub protocol_errors: u64,
    /// Connections closed because the client stopped reading.
    pub stalled: u64,
    /// Connections closed because the client was silent for 1.5 times its keep-alive.
    pub silent: u64,
    /// Connections replaced by another one with the same identity and branch.
    pub duplicates: u64,
    /// Connections closed or refused because the node is revoked.
    pub revoked: u64,
    /// Restarts of a broker that runs as a child process.
    pub restarts: u64,
}

/// Carries messages between the cluster and its nodes.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Queues one message for a client; does not wait for the client. `Ok` means taken, not delivered.
    async fn send(&self, node: NodeId, branch: Branch, payload: Bytes) -> Result<(), SendError>;

    /// Waits for the next event. Cancelling loses nothing. One caller at a time; a second one waits. While nobody calls,
    /// clients that send are made to wait, each on its own account.
    async fn next(&self) -> BrokerEvent;

    /// Lets `node` in, for the first time or again. Called before a new node is
    /// given its certificate; may be repeated. A broker that goes by certificates alone needs it only after `revoke`.
    async fn admit(&self, node: NodeId) -> Result<(), BrokerError>;

    /// Puts `node` out at once and refuses it from now on; may be repeated. The set of revoked nodes is the caller's to
    /// store and to repeat after a restart.
    async fn revoke(&self, node: NodeId) -> Result<(), BrokerError>;

    /// Puts the renewed server certificate in force for new connections; the old connections stay.
    async fn reload_certificate(&self) -> Result<(), BrokerError>;

    /// Counters and gauges now.
    fn stats(&self) -> BrokerStats;
}
