//! The child's end of a link: what a session needs from gRPC, MQTT or memory, and nothing more.
//!
//! A transport carries whole messages in order while it is up. It promises no delivery: what was sent around a break may
//! be lost, and is never delivered after the next [`TransportEvent::Up`]. The session above compares digests after each
//! `Up` and repeats what is missing.

use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

/// A connection that lasted this long was a success; one that did not (two machines with one key put each other out) makes
/// the next wait longer.
const STEADY: Duration = Duration::from_secs(10);
/// Failures that shorter ones count as at most: a parent that is restarted again and again is found again within 4 s.
const BRIEF: u32 = 3;

/// Failures in a row after one more try. `up_since`: when its connection came up, if it did.
pub(crate) fn failures_after(failures: u32, up_since: Option<Instant>) -> u32 {
    match up_since {
        Some(since) if since.elapsed() >= STEADY => 0,
        Some(_) => (failures + 1).min(BRIEF),
        None => failures.saturating_add(1),
    }
}

/// What happened on a transport, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportEvent {
    /// Connected, authenticated and able to receive; messages may be sent.
    Up,
    /// Not connected. Reported when a connection ends and again for each failed try; the transport tries again by itself.
    Down {
        /// Why.
        reason: DownReason,
    },
    /// One message of the other end.
    Message(Bytes),
}

/// Why a transport is down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// No connection could be made.
    #[error("unreachable: {detail}")]
    Unreachable {
        /// What the operating system or resolver said.
        detail: String,
    },
    /// A certificate or the handshake was refused, by either side.
    #[error("TLS: {detail}")]
    Tls {
        /// What the TLS library said.
        detail: String,
    },
    /// Connected, but the other end refused the session.
    #[error("refused: {detail}")]
    Refused {
        /// What the other end said.
        detail: String,
    },
    /// An established connection ended.
    #[error("connection lost: {detail}")]
    Lost {
        /// What was seen last.
        detail: String,
    },
    /// The transport was shut down; no further event follows.
    #[error("transport shut down")]
    Shutdown,
}

/// Why a message was not taken for sending. It can be sent again later, except if it is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The transport is down.
    #[error("not connected")]
    NotConnected,
    /// The queue of outgoing messages is full.
    #[error("outgoing queue full")]
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

/// A connection to the parent that comes back by itself.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Queues one message; does not wait for the other end. `Ok` means taken, not delivered.
    async fn send(&self, message: Bytes) -> Result<(), SendError>;

    /// Waits for the next event. Cancelling loses nothing. One caller at a time; a second one waits.
    /// A caller that stops calling stops the transport's reading, not its memory: queues are bounded.
    /// After [`DownReason::Shutdown`] the same event is returned for ever.
    async fn next(&self) -> TransportEvent;

    /// Gives up the connection, if there is one, and dials again: for a session that hears nothing although the transport
    /// is up. Does nothing where there is nothing to dial.
    fn reconnect(&self) {}
}

/// Passes messages to the transport; what cannot be sent is dropped, the session repeats what matters.
pub async fn forward(mut outbox: mpsc::Receiver<Bytes>, transport: Arc<dyn Transport>) {
    while let Some(message) = outbox.recv().await {
        if let Err(error) = transport.send(message).await {
            tracing::debug!(%error, "message not sent");
        }
    }
}
