//! Hostile, broken and stalled clients, over in-memory streams in virtual time. What a well-behaved client gets is in the
//! suite that all brokers run.

mod hostile;
mod sessions;
mod tls;

use bytes::{Bytes, BytesMut};
use roble_proto::topics::{Direction, Topic, client_id};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, PubAck};
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, Publish, Subscribe, SubscribeReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::suite::{event, node, within};
use super::*;

/// A client that says exactly what the test tells it to.
struct Raw {
    stream: DuplexStream,
    buffer: BytesMut,
}

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::new(Limits::default())
}

fn topic(node: NodeId, branch: Branch, direction: Direction) -> String {
    Topic {
        node,
        branch,
        direction,
    }
    .to_string()
}

impl Raw {
    /// A connection with the certificate of `node`, nothing said yet. The pipe between holds `pipe_bytes`.
    fn with_pipe(broker: &EmbeddedBroker, node: NodeId, pipe_bytes: usize) -> Self {
        let (stream, far) = tokio::io::duplex(pipe_bytes);
        let broker = broker.clone();
        tokio::spawn(async move { broker.serve(node, far).await });
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    fn open(broker: &EmbeddedBroker, node: NodeId) -> Self {
        Self::with_pipe(broker, node, 64 * 1024)
    }

    /// Connected and subscribed as the branch.
    async fn session(broker: &EmbeddedBroker, node: NodeId, branch: Branch) -> Self {
        let mut raw = Self::open(broker, node);
        raw.enter(node, branch, QoS::AtMostOnce).await;
        event(broker, BrokerEvent::Connected { node, branch }).await;
        raw
    }

    async fn enter(&mut self, node: NodeId, branch: Branch, qos: QoS) {
        self.say(&Packet::Connect(Connect::new(client_id(node, branch)))).await;
        assert_eq!(self.connack().await, ConnectReturnCode::Success);
        assert_eq!(
            self.subscribe(&topic(node, branch, Direction::Down), qos).await,
            vec![SubscribeReasonCode::Success(qos)]
        );
    }

    async fn bytes(&mut self, bytes: &[u8]) {
        // The broker may have closed already; the test sees that when it reads.
        let _ = self.stream.write_all(bytes).await;
    }

    async fn say(&mut self, packet: &Packet) {
        let mut buffer = BytesMut::new();
        packet.write(&mut buffer, usize::MAX).unwrap();
        self.bytes(&buffer).await;
    }

    /// The next packet, or `None` when the broker has closed.
    async fn hear(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.buffer, 1 << 20) {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn connack(&mut self) -> ConnectReturnCode {
        match self.hear().await {
            Some(Packet::ConnAck(ack)) => ack.code,
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    async fn subscribe(&mut self, filter: &str, qos: QoS) -> Vec<SubscribeReasonCode> {
        let mut subscribe = Subscribe::new(filter, qos);
        subscribe.pkid = 1;
        self.say(&Packet::Subscribe(subscribe)).await;
        match self.hear().await {
            Some(Packet::SubAck(ack)) => ack.return_codes,
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    async fn publish(&mut self, topic: &str, payload: &'static [u8]) {
        let publish = Publish::from_bytes(topic, QoS::AtMostOnce, Bytes::from_static(payload));
        self.say(&Packet::Publish(publish)).await;
    }

    async fn closed(&mut self) {
        within("closed by the broker", async { while self.hear().await.is_some() {} }).await;
    }

    /// Whether the broker answers.
    async fn is_alive(&mut self) -> bool {
        self.say(&Packet::PingReq).await;
        within("answer or end", self.hear()).await == Some(Packet::PingResp)
    }
}

/// Waits until the broker's figures are as wished.
async fn until(broker: &EmbeddedBroker, what: &str, wished: impl Fn(&BrokerStats) -> bool) {
    within(what, async {
        while !wished(&broker.stats()) {
            // Virtual time must pass, or the deadline around would never come.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
