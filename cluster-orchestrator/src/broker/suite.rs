//! What every broker must do, run against all of them with the node's real transport where there is one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roble_core::ids::{NodeId, RawId};
use roble_link::transport::{SendError as TransportSendError, Transport, TransportEvent};
use roble_proto::topics::Branch;

use super::{Broker, BrokerEvent, SendError};

/// Nothing here may take longer; reached only on failure.
const PATIENCE: Duration = Duration::from_secs(30);
/// What DESIGN promises for revocation.
const REVOKED_WITHIN: Duration = Duration::from_secs(10);

/// A broker under test and a way to connect nodes to it.
pub(super) trait Harness: Send + Sync {
    /// The broker.
    fn broker(&self) -> Arc<dyn Broker>;
    /// A node's connection, with a valid certificate.
    fn transport(&self, node: NodeId, branch: Branch) -> Box<dyn Transport>;
}

/// A node for tests.
pub(super) fn node(number: u8) -> NodeId {
    NodeId(RawId::from_bytes([number; 12]))
}

/// Waits for what must happen.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

pub(super) async fn up(transport: &dyn Transport) {
    within("up", async { while transport.next().await != TransportEvent::Up {} }).await;
}

pub(super) async fn down(transport: &dyn Transport) {
    within("down", async {
        while !matches!(transport.next().await, TransportEvent::Down { .. }) {}
    })
    .await;
}

pub(super) async fn heard(transport: &dyn Transport) -> Bytes {
    within("message from the cluster", async {
        loop {
            if let TransportEvent::Message(message) = transport.next().await {
                return message;
            }
        }
    })
    .await
}

/// Skips to the event. A broker that learns of connections by traffic reports them a little later than others.
pub(super) async fn event(broker: &dyn Broker, wanted: BrokerEvent) {
    within(&format!("{wanted:?}"), async { while broker.next().await != wanted {} }).await;
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// All of it.
pub(super) async fn run(harness: &dyn Harness) {
    messages_go_both_ways(harness).await;
    order_is_kept(harness).await;
    nobody_hears_what_is_for_others(harness).await;
    too_large_is_refused(harness).await;
    the_end_of_a_client_is_reported(harness).await;
    a_second_client_takes_the_place_of_the_first(harness).await;
    a_revoked_node_is_put_out_and_stays_out(harness).await;
}

async fn hello(harness: &dyn Harness, node: NodeId, branch: Branch) -> Box<dyn Transport> {
    let broker = harness.broker();
    broker.admit(node).await.expect("admit");
    let transport = harness.transport(node, branch);
    up(transport.as_ref()).await;
    // A session speaks first.
    transport.send(text("hello")).await.expect("up");
    event(broker.as_ref(), BrokerEvent::Connected { node, branch }).await;
    event(
        broker.as_ref(),
        BrokerEvent::Message {
            node,
            branch,
            payload: text("hello"),
        },
    )
    .await;
    transport
}

async fn messages_go_both_ways(harness: &dyn Harness) {
    let (broker, node) = (harness.broker(), node(1));
    assert_eq!(
        broker.send(node, Branch::Engine, text("early")).await,
        Err(SendError::NotConnected)
    );
    let engine = hello(harness, node, Branch::Engine).await;
    let net = hello(harness, node, Branch::Net).await;
    for (branch, transport) in [(Branch::Engine, &engine), (Branch::Net, &net)] {
        broker.send(node, branch, text("down")).await.expect("connected");
        assert_eq!(heard(transport.as_ref()).await, text("down"));
        transport.send(text("up")).await.expect("connected");
        event(
            broker.as_ref(),
            BrokerEvent::Message {
                node,
                branch,
                payload: text("up"),
            },
        )
        .await;
    }
}

async fn order_is_kept(harness: &dyn Harness) {
    let (broker, node) = (harness.broker(), node(2));
    let transport = hello(harness, node, Branch::Engine).await;
    for round in 0..20 {
        for number in 0..50_u32 {
            let payload = Bytes::from(format!("{round} {number}"));
            broker
                .send(node, Branch::Engine, payload.clone())
                .await
                .expect("within the queue");
            transport.send(payload).await.expect("within the queue");
        }
        for number in 0..50_u32 {
            let payload = Bytes::from(format!("{round} {number}"));
            assert_eq!(heard(transport.as_ref()).await, payload);
            let next = within("message", async {
                loop {
                    match broker.next().await {
                        BrokerEvent::Message { payload, .. } => return payload,
                        _ => continue,
                    }
                }
            });
            assert_eq!(next.await, payload);
        }
    }
}

async fn nobody_hears_what_is_for_others(harness: &dyn Harness) {
    let broker = harness.broker();
    let one = hello(harness, node(3), Branch::Engine).await;
    let other = hello(harness, node(4), Branch::Engine).await;
    let net = hello(harness, node(3), Branch::Net).await;
    broker
        .send(node(3), Branch::Engine, text("for one"))
        .await
        .expect("connected");
    for (node, branch) in [
        (node(3), Branch::Engine),
        (node(4), Branch::Engine),
        (node(3), Branch::Net),
    ] {
        broker.send(node, branch, text("for each")).await.expect("connected");
    }
    assert_eq!(heard(one.as_ref()).await, text("for one"));
    assert_eq!(heard(one.as_ref()).await, text("for each"));
    assert_eq!(heard(other.as_ref()).await, text("for each"));
    assert_eq!(heard(net.as_ref()).await, text("for each"));
}

async fn too_large_is_refused(harness: &dyn Harness) {
    let (broker, node) = (harness.broker(), node(5));
    let transport = hello(harness, node, Branch::Engine).await;
    let large = Bytes::from(vec![7; 300 * 1024]);
    let result = broker.send(node, Branch::Engine, large.clone()).await;
    assert!(matches!(result, Err(SendError::TooLarge { .. })), "{result:?}");
    let result = transport.send(large).await;
    assert!(matches!(result, Err(TransportSendError::TooLarge { .. })), "{result:?}");
    let fits = Bytes::from(vec![8; 250 * 1024]);
    broker.send(node, Branch::Engine, fits.clone()).await.expect("fits");
    assert_eq!(heard(transport.as_ref()).await, fits);
    transport.send(fits.clone()).await.expect("fits");
    event(
        broker.as_ref(),
        BrokerEvent::Message {
            node,
            branch: Branch::Engine,
            payload: fits,
        },
    )
    .await;
}

async fn the_end_of_a_client_is_reported(harness: &dyn Harness) {
    let (broker, node, branch) = (harness.broker(), node(6), Branch::Engine);
    let transport = hello(harness, node, branch).await;
    drop(transport);
    event(broker.as_ref(), BrokerEvent::Disconnected { node, branch }).await;
    assert_eq!(
        broker.send(node, branch, text("late")).await,
        Err(SendError::NotConnected)
    );
    let transport = hello(harness, node, branch).await;
    broker.send(node, branch, text("again")).await.expect("connected");
    assert_eq!(heard(transport.as_ref()).await, text("again"));
}

async fn a_second_client_takes_the_place_of_the_first(harness: &dyn Harness) {
    let (broker, node, branch) = (harness.broker(), node(7), Branch::Engine);
    let first = hello(harness, node, branch).await;
    let second = harness.transport(node, branch);
    event(broker.as_ref(), BrokerEvent::Duplicate { node }).await;
    down(first.as_ref()).await;
    drop((first, second));
}

async fn a_revoked_node_is_put_out_and_stays_out(harness: &dyn Harness) {
    let (broker, node, branch) = (harness.broker(), node(8), Branch::Engine);
    let transport = hello(harness, node, branch).await;
    let bystander = hello(harness, self::node(9), branch).await;
    let before = tokio::time::Instant::now();
    broker.revoke(node).await.expect("revoke");
    broker.revoke(node).await.expect("revoke again");
    down(transport.as_ref()).await;
    event(broker.as_ref(), BrokerEvent::Disconnected { node, branch }).await;
    assert!(before.elapsed() < REVOKED_WITHIN, "{:?}", before.elapsed());
    drop(transport);
    let again = harness.transport(node, branch);
    // A broker that cannot refuse in the handshake puts it out right after.
    down(again.as_ref()).await;
    assert_eq!(
        broker.send(node, branch, text("no")).await,
        Err(SendError::NotConnected)
    );
    broker
        .send(self::node(9), branch, text("still here"))
        .await
        .expect("untouched");
    assert_eq!(heard(bystander.as_ref()).await, text("still here"));
}
