//! Over real sockets and certificates, with the node's own transport.

use std::sync::Arc;

use roble_daemon::CancellationToken;
use roble_daemon::pki::Credential;
use roble_daemon::serve;
use roble_daemon::tls::ServerTls;
use roble_link::transport::{DownReason, Transport, TransportEvent};
use tokio::net::TcpStream;

use super::super::super::fixture::Tree;
use super::super::super::suite::{self, Harness, down, heard, up};
use super::*;

struct Embedded {
    tree: Tree,
    broker: EmbeddedBroker,
    tls: ServerTls,
    port: u16,
    stop: CancellationToken,
}

impl Embedded {
    async fn start() -> Self {
        let (tree, broker, stop) = (
            Tree::new(),
            EmbeddedBroker::new(Limits::default()),
            CancellationToken::new(),
        );
        let socket = serve::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (port, tls) = (socket.local_addr().unwrap().port(), tree.server());
        let limits = serve::Limits {
            handshake_timeout: Duration::from_secs(2),
            ..serve::Limits::default()
        };
        let metrics = serve::ServeMetrics::default();
        let listener = Listener {
            socket,
            tls: tls.clone(),
            cluster: tree.cluster,
            limits,
            metrics,
        };
        let (serving, shutdown) = (broker.clone(), stop.clone());
        tokio::spawn(async move { serving.listen(listener, shutdown).await.unwrap() });
        Self {
            tree,
            broker,
            tls,
            port,
            stop,
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Harness for Embedded {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(self.broker.clone())
    }

    fn transport(&self, node: NodeId, branch: Branch) -> Box<dyn Transport> {
        Box::new(self.tree.transport(self.port, node, branch))
    }
}

#[tokio::test]
async fn contract() {
    suite::run(&Embedded::start().await).await;
}

/// The certificate that the server shows to a new connection.
async fn shown(harness: &Embedded, with: &Credential) -> Vec<u8> {
    let dialer = roble_daemon::tls::Dialer::new(harness.tree.client(with));
    let stream = dialer.connect(&format!("127.0.0.1:{}", harness.port)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn the_certificate_is_swapped_under_live_sessions() {
    let harness = Embedded::start().await;
    let (me, branch) = (node(1), Branch::Engine);
    let transport = harness.transport(me, branch);
    up(transport.as_ref()).await;
    let credential = harness.tree.node(node(2));
    let before = shown(&harness, &credential).await;
    let renewed = harness.tree.cluster();
    harness.tls.swap(&renewed).unwrap();
    harness.broker.reload_certificate().await.unwrap();
    let after = shown(&harness, &credential).await;
    assert_ne!(before, after);
    assert_eq!(after, renewed.chain()[0].to_vec());
    harness
        .broker
        .send(me, branch, Bytes::from_static(b"same session"))
        .await
        .unwrap();
    assert_eq!(heard(transport.as_ref()).await, "same session");
    up(harness.transport(node(3), branch).as_ref()).await;
}

#[tokio::test]
async fn a_revoked_node_does_not_get_through_the_handshake() {
    let harness = Embedded::start().await;
    let transport = harness.transport(node(1), Branch::Engine);
    up(transport.as_ref()).await;
    harness.broker.revoke(node(1)).await.unwrap();
    down(transport.as_ref()).await;
    let refused = within("refused", async {
        loop {
            if let TransportEvent::Down {
                reason: DownReason::Tls { detail },
            } = transport.next().await
            {
                return detail;
            }
        }
    });
    assert!(refused.await.contains("Revoked"));
    harness.broker.admit(node(1)).await.unwrap();
    up(transport.as_ref()).await;
}

#[tokio::test]
async fn stalled_handshakes_delay_nobody() {
    let harness = Embedded::start().await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        stalled.push(TcpStream::connect(("127.0.0.1", harness.port)).await.unwrap());
    }
    up(harness.transport(node(1), Branch::Engine).as_ref()).await;
    // And they are cut off.
    for stream in &mut stalled {
        within("cut off", async {
            while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
        })
        .await;
    }
}

#[tokio::test]
async fn a_restarted_broker_is_found_again() {
    let harness = Embedded::start().await;
    let transport = harness.transport(node(1), Branch::Net);
    up(transport.as_ref()).await;
    harness.stop.cancel();
    down(transport.as_ref()).await;
    assert_eq!(
        transport.send(Bytes::new()).await,
        Err(roble_link::transport::SendError::NotConnected)
    );
    let socket = within("port free", async {
        loop {
            match serve::bind(([127, 0, 0, 1], harness.port).into()).await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let listener = Listener {
        socket: socket.await,
        tls: harness.tls.clone(),
        cluster: harness.tree.cluster,
        limits: serve::Limits::default(),
        metrics: serve::ServeMetrics::default(),
    };
    let broker = EmbeddedBroker::new(Limits::default());
    let (serving, stop) = (broker.clone(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    tokio::spawn(async move { serving.listen(listener, stop).await.unwrap() });
    up(transport.as_ref()).await;
    event(
        &broker,
        BrokerEvent::Connected {
            node: node(1),
            branch: Branch::Net,
        },
    )
    .await;
}

/// A session that hears nothing may give up a connection that looks fine.
#[tokio::test]
async fn reconnecting_on_request() {
    let harness = Embedded::start().await;
    let transport = harness.transport(node(1), Branch::Engine);
    up(transport.as_ref()).await;
    transport.reconnect();
    down(transport.as_ref()).await;
    up(transport.as_ref()).await;
}
