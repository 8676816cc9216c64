//! The cluster as a client of the child.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng, TryRngCore};
use roble_proto::limits::MQTT_PACKET_BYTES;
use roble_proto::topics::{ALL_UP, Topic};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::time::timeout;

use super::{MosquittoConfig, Shared};

/// Messages to all nodes that may wait for the child.
const QUEUE: usize = 1024;
/// Time to put a client out.
const PUT_OUT_WITHIN: Duration = Duration::from_secs(5);

/// The task that owns the client's event loop.
pub(super) struct Link {
    shared: Arc<Shared>,
    client: AsyncClient,
    event_loop: EventLoop,
    rng: SmallRng,
}

fn options(config: &MosquittoConfig, client_id: String) -> MqttOptions {
    let address = if config.listen.ip().is_unspecified() {
        "127.0.0.1".into()
    } else {
        config.listen.ip().to_string()
    };
    let mut options = MqttOptions::new(client_id, address, config.listen.port());
    options
        .set_keep_alive(Duration::from_secs(10))
        .set_max_packet_size(MQTT_PACKET_BYTES, MQTT_PACKET_BYTES);
    options
}

pub(super) fn new(shared: &Arc<Shared>, seed: u64) -> (AsyncClient, Link) {
    // Whoever knows a client's id can put it out, so this one cannot be guessed.
    let mut secret = [0; 16];
    rand::rngs::OsRng.unwrap_err().fill_bytes(&mut secret);
    let (client, event_loop) = AsyncClient::new(options(&shared.config, hex::encode(secret)), QUEUE);
    let link = Link {
        shared: shared.clone(),
        client: client.clone(),
        event_loop,
        rng: SmallRng::seed_from_u64(seed),
    };
    (client, link)
}

impl Link {
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            if self.dial() {
                failures = if self.connection().await { 0 } else { failures + 1 };
            }
            self.shared.state().linked = false;
            self.event_loop.clean();
            self.event_loop.pending.clear();
            self.event_loop.state.events.clear();
            self.event_loop.state.collision = None;
            let wait = self.shared.config.backoff.delay_ms(failures, &mut self.rng);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn dial(&mut self) -> bool {
        match (self.shared.config.tls)() {
            Ok(tls) => {
                let dial = Transport::tls_with_config(TlsConfiguration::Rustls(tls));
                self.event_loop.mqtt_options.set_transport(dial);
                true
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "no TLS configuration for mosquitto"
                );
                false
            }
        }
    }

    /// One connection; returns whether it was ever good for something.
    async fn connection(&mut self) -> bool {
        let mut linked = false;
        loop {
            match self.event_loop.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    if self.client.try_subscribe(ALL_UP, QoS::AtMostOnce).is_err() {
                        return linked;
                    }
                }
                Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                    if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                        tracing::error!("mosquitto refused the cluster's subscription");
                        return linked;
                    }
                    linked = true;
                    self.shared.state().linked = true;
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    // The access list has tied the topic to the sender's certificate.
                    if let Some(topic) = Topic::parse(&publish.topic) {
                        self.shared.message(topic, publish.payload).await;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "cluster's connection to mosquitto"
                    );
                    return linked;
                }
            }
        }
    }
}

/// Ends the connection of a client, by taking its id for a moment.
pub(super) async fn put_out(config: &MosquittoConfig, client_id: String) {
    let Ok(tls) = (config.tls)() else { return };
    let (_client, mut event_loop) = AsyncClient::new(options(config, client_id), 1);
    event_loop
        .mqtt_options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    // Accepted means that the other one is gone; dropping ends ours.
    let _ = timeout(PUT_OUT_WITHIN, event_loop.poll()).await;
}
