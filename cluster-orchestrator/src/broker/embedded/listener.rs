//! TLS in front of the embedded broker.

use roble_core::ids::{ClusterId, NodeId};
use roble_daemon::CancellationToken;
use roble_daemon::pki::Identity;
use roble_daemon::serve::{self, Connection, ServeError, Server};
use roble_daemon::tls::ServerTls;
use tokio::net::TcpListener;

use super::EmbeddedBroker;

/// Where the broker's clients come from.
pub struct Listener {
    /// The bound socket.
    pub socket: TcpListener,
    /// Certificate, trust and deny set; shared with whoever renews the certificate and revokes nodes.
    pub tls: ServerTls,
    /// The cluster whose nodes may come.
    pub cluster: ClusterId,
    /// Bounds on connections and handshakes. Many nodes behind one address need a larger bound per peer.
    pub limits: serve::Limits,
    /// Counts connections and handshakes.
    pub metrics: serve::ServeMetrics,
}

/// The node of `cluster` that a certificate is for.
pub(in super::super) fn node_of(cluster: ClusterId, identity: &Identity) -> Option<NodeId> {
    match identity {
        Identity::Node { cluster: of, node } if of.parse() == Ok(cluster) => node.parse().ok(),
        _ => None,
    }
}

impl EmbeddedBroker {
    /// Serves the nodes of one cluster until `shutdown`. A handshake that stalls costs a slot and nobody's time.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn listen(&self, listener: Listener, shutdown: CancellationToken) -> Result<(), ServeError> {
        let (broker, cluster) = (self.clone(), listener.cluster);
        self.hub
            .state()
            .listeners
            .push((cluster, listener.tls.revocations().clone()));
        let server = Server::new(listener.tls, listener.limits, shutdown).metrics(listener.metrics);
        server
            .streams(listener.socket, move |connection: Connection| {
                let broker = broker.clone();
                async move {
                    let Some(peer) = &connection.peer else { return };
                    let Some(node) = node_of(cluster, &peer.identity) else {
                        return tracing::warn!(peer = %peer.identity, "not a node of this cluster");
                    };
                    let stream = connection.stream;
                    tokio::select! {
                        () = broker.serve(node, stream) => {}
                        () = connection.draining.cancelled() => {}
                    }
                }
            })
            .await
    }
}
