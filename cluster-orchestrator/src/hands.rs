//! Does what the tier asks for.

use std::sync::Arc;

use roble_core::ids::{ClusterId, NodeId};
use roble_core::liveness::Standing;
use roble_core::orchestrator::Step;
use roble_core::overlay::tunnel::TunnelEnd;
use roble_daemon::pki::Identity;
use roble_daemon::shell::Hands;
use roble_daemon::tls::Revocations;
use roble_link::grpc::GrpcSender;
use tokio::sync::watch;

use crate::doors::{Doors, Reply};
use crate::members::Members;
use crate::metrics::ClusterMetrics;
use crate::nodes::NodeSender;
use crate::streams::Streams;
use crate::tier::{Act, Note};
use crate::uplink::UplinkState;

/// The seams that acts go to.
pub struct ClusterHands {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// To the root.
    pub uplink: GrpcSender,
    /// How the uplink is.
    pub uplink_state: UplinkState,
    /// To the nodes.
    pub nodes: NodeSender,
    /// To whoever asked.
    pub doors: Arc<Doors>,
    /// Streams to be passed on.
    pub streams: Arc<Streams>,
    /// Who is a member.
    pub members: Arc<Members>,
    /// Whom the listeners refuse.
    pub revocations: Arc<Revocations>,
    /// To the relay: whom it serves.
    pub relayed: watch::Sender<Vec<(NodeId, TunnelEnd)>>,
    /// What is counted.
    pub metrics: ClusterMetrics,
}

/// The node's identity in certificates of this cluster.
pub fn node_identity(cluster: ClusterId, node: NodeId) -> Identity {
    Identity::Node {
        cluster: cluster.to_string(),
        node: node.to_string(),
    }
}

impl Hands<Act> for ClusterHands {
    fn act(&mut self, act: Act) {
        match act {
            Act::SendUp(frame) => {
                if let Err(error) = self.uplink.send(frame) {
                    self.metrics.dropped_to_root.inc();
                    tracing::debug!(%error, "frame to the root dropped");
                }
            }
            Act::SendNode(node, branch, message) => {
                if !self.nodes.send(node, branch, message) {
                    self.metrics.dropped_to_nodes.inc();
                }
            }
            Act::Joined(asker, joined) => {
                match &joined {
                    Ok(member) => {
                        self.members.put(member);
                        self.metrics.granted.inc();
                    }
                    Err(error) => {
                        self.metrics.refused.inc();
                        tracing::warn!(code = error.code(), %error, "join or renewal refused");
                    }
                }
                self.doors.reply(asker, Reply::Joined(joined));
            }
            Act::Answer(asker, answer) => self.doors.reply(asker, Reply::Answer(answer)),
            Act::Expel(node) => {
                self.members.revoke(node);
                let closed = self.revocations.deny(node_identity(self.cluster, node));
                self.nodes.revoke(node);
                tracing::warn!(%node, closed, "node revoked");
            }
            Act::RelayFor(nodes) => drop(self.relayed.send_replace(nodes)),
            Act::ExpectStream(stream) => self.streams.expect(stream),
            Act::Connected(connected) => {
                self.uplink_state.set_connected(connected);
                self.metrics.uplink_connected.set(i64::from(connected));
                if connected {
                    self.metrics.uplink_sessions.inc();
                    tracing::info!("session with the root stands");
                } else {
                    tracing::warn!("session with the root lost, the site goes on by itself");
                }
            }
            Act::Note(note) => self.note(&note),
        }
    }
}

impl ClusterHands {
    fn note(&self, note: &Note) {
        match note {
            Note::Step(step) => {
                self.metrics.steps.inc();
                log_step(step);
            }
            Note::Standing(node, Standing::Ready) => tracing::info!(%node, "node is ready"),
            Note::Standing(node, standing) => tracing::warn!(%node, standing = standing.as_str(), "node is silent"),
            Note::Brake(held) => {
                self.metrics.brake.set(i64::from(*held));
                if *held {
                    tracing::warn!("most nodes fell silent together: nothing is moved until half of them are back");
                } else {
                    tracing::info!("enough nodes are back: work is moved again");
                }
            }
            Note::Cloned(node) => {
                tracing::error!(%node, "two machines use this identity: cordoned; revoke the wrong one")
            }
            Note::Violation(what) => {
                self.metrics.violations.inc();
                tracing::warn!(what, "message not understood");
            }
        }
    }
}

fn log_step(step: &Step) {
    match step {
        Step::Place(instance, node, _) => tracing::info!(%instance, %node, "placed"),
        Step::Adopt(instance, node, _) => tracing::info!(%instance, %node, "stays where it was found"),
        Step::Park(instance, _) => tracing::warn!(%instance, "no node can take it now"),
        Step::Withdraw(instance) => tracing::info!(%instance, "withdrawn"),
        Step::Keep(instance) => tracing::debug!(%instance, "stays where it is"),
        Step::Forget(instance) => tracing::info!(%instance, "gone"),
    }
}
