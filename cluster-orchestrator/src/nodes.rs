//! Between the broker and the tier.

use std::sync::Arc;

use bytes::Bytes;
use roble_core::ids::NodeId;
use roble_daemon::CancellationToken;
use roble_proto::topics::Branch;
use tokio::sync::mpsc;

use crate::broker::{Broker, BrokerEvent, SendError};
use crate::metrics::ClusterMetrics;
use crate::tier::Event;

/// Messages to nodes that may wait for the broker to take them.
const QUEUE: usize = 4_096;

/// Messages and revocations on their way to the broker. Clones share the queues.
#[derive(Debug, Clone)]
pub struct NodeSender {
    messages: mpsc::Sender<(NodeId, Branch, Bytes)>,
    /// Without bound, since none may be lost; as many as a person revokes.
    revoked: mpsc::UnboundedSender<NodeId>,
}

impl NodeSender {
    /// Queues a message; `false`: there was no room, and it is lost.
    pub fn send(&self, node: NodeId, branch: Branch, message: Vec<u8>) -> bool {
        self.messages.try_send((node, branch, message.into())).is_ok()
    }

    /// Has the node put out.
    pub fn revoke(&self, node: NodeId) {
        // Refused only when the daemon stops; it is repeated at the next start.
        let _ = self.revoked.send(node);
    }
}

/// The other ends of a [`NodeSender`].
#[derive(Debug)]
pub struct NodeQueues {
    messages: mpsc::Receiver<(NodeId, Branch, Bytes)>,
    revoked: mpsc::UnboundedReceiver<NodeId>,
}

/// Empty queues.
pub fn queues() -> (NodeSender, NodeQueues) {
    let (messages, message_queue) = mpsc::channel(QUEUE);
    let (revoked, revoked_queue) = mpsc::unbounded_channel();
    (
        NodeSender { messages, revoked },
        NodeQueues {
            messages: message_queue,
            revoked: revoked_queue,
        },
    )
}

/// Carries everything both ways until `stop`.
pub async fn carry(
    broker: Arc<dyn Broker>,
    queues: NodeQueues,
    events: mpsc::Sender<Event>,
    metrics: ClusterMetrics,
    stop: CancellationToken,
) {
    let NodeQueues {
        mut messages,
        mut revoked,
    } = queues;
    let down = async {
        while let Some((node, branch, message)) = messages.recv().await {
            match broker.send(node, branch, message).await {
                Ok(()) => {}
                Err(SendError::NotConnected) => {
                    metrics.dropped_to_nodes.inc();
                }
                Err(error) => {
                    metrics.dropped_to_nodes.inc();
                    tracing::warn!(%node, %error, "message to a node dropped");
                }
            }
        }
    };
    let out = async {
        while let Some(node) = revoked.recv().await {
            match broker.revoke(node).await {
                Ok(()) => tracing::info!(%node, "node put out"),
                Err(error) => {
                    tracing::error!(%node, error = &error as &dyn std::error::Error, "node not put out of the broker");
                }
            }
        }
    };
    let up = async {
        loop {
            let event = match broker.next().await {
                BrokerEvent::Message { node, branch, payload } => Event::NodeMessage(node, branch, payload.into()),
                BrokerEvent::Disconnected { node, branch } => {
                    tracing::info!(%node, ?branch, "node disconnected");
                    Event::NodeDown(node, branch)
                }
                BrokerEvent::Connected { node, branch } => {
                    tracing::info!(%node, ?branch, "node connected");
                    continue;
                }
                BrokerEvent::Duplicate { node } => {
                    tracing::warn!(%node, "a second connection of the node took the place of the first");
                    continue;
                }
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = down => {}
        () = out => {}
        () = up => {}
    }
}
