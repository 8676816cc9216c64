//! The node's end of the node link: MQTT over TLS to whatever broker the cluster runs.
//!
//! One task owns the client's event loop, dials for ever with jittered backoff, subscribes after each connection, and
//! reports [`TransportEvent::Up`] only once the broker has granted the subscription. Each dial asks for the TLS
//! configuration again, so a renewed certificate is used from the next connection on. What was queued when a connection
//! broke is dropped: sessions are clean, and the session above repeats what matters.

mod failure;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngCore;
use roble_core::backoff::Backoff;
use roble_core::ids::NodeId;
use roble_proto::limits::{MQTT_PACKET_BYTES, MQTT_QUEUE_BYTES, MQTT_QUEUE_PACKETS};
use roble_proto::topics::{Branch, Direction, Topic, client_id};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, Outgoing, QoS, SubscribeReasonCode, TlsConfiguration,
    Transport as Dial,
};
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::transport::{DownReason, SendError, Transport, TransportEvent, failures_after};
use failure::down_reason;

/// Room that a message needs in a packet besides its payload: header, topic, packet id.
const PACKET_OVERHEAD: usize = 64;
/// Events that may wait for [`Transport::next`]; then reading stops.
const EVENTS: usize = 64;
/// Requests besides messages that the client library may queue: subscription, disconnection.
const OTHER_REQUESTS: usize = 4;

/// Gives the TLS configuration for the next connection. It decides whom to trust **and must check the server's logical
/// name itself**: the name that rustls hands to the verifier is whatever address was dialed. Must not block.
pub type TlsSource = Arc<dyn Fn() -> Result<Arc<ClientConfig>, rustls::Error> + Send + Sync>;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// Host name or address of the broker; IPv6 without brackets.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// The node in our certificate.
    pub node: NodeId,
    /// Which of the node's two clients this is.
    pub branch: Branch,
    /// How often the connection is probed, whole seconds; a dead one is noticed within twice this time. The library probes
    /// whether or not anything else travels, so this is rare: the session above notices silence by its beats.
    pub keep_alive: Duration,
    /// Time for one try: resolve, connect, handshake, subscribe.
    pub connect_within: Duration,
    /// Waits between tries.
    pub backoff: Backoff,
    /// Asks for an acknowledgement of each packet, both ways. Off by default: the session acknowledges by itself, and each
    /// acknowledgement would cost a TLS record and a TCP segment.
    pub at_least_once: bool,
}

impl MqttConfig {
    /// The usual settings: keep-alive 20 minutes, 10 s for a try.
    pub fn new(host: impl Into<String>, port: u16, node: NodeId, branch: Branch) -> Self {
        Self {
            host: host.into(),
            port,
            node,
            branch,
            keep_alive: Duration::from_secs(1_200),
            connect_within: Duration::from_secs(10),
            backoff: Backoff::RECONNECT,
            at_least_once: false,
        }
    }

    fn topic(&self, direction: Direction) -> String {
        Topic {
            node: self.node,
            branch: self.branch,
            direction,
        }
        .to_string()
    }

    fn qos(&self) -> QoS {
        if self.at_least_once {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        }
    }

    fn options(&self) -> MqttOptions {
        let mut options = MqttOptions::new(client_id(self.node, self.branch), &self.host, self.port);
        options
            .set_clean_session(true)
            .set_keep_alive(self.keep_alive)
            .set_max_packet_size(MQTT_PACKET_BYTES, MQTT_PACKET_BYTES)
            .set_inflight(64);
        options
    }
}

/// The MQTT transport. Dropping it ends its task and its connection at once.
pub struct MqttTransport {
    shared: Arc<Shared>,
    events: tokio::sync::Mutex<mpsc::Receiver<TransportEvent>>,
    task: JoinHandle<()>,
}

struct Shared {
    client: AsyncClient,
    topic: String,
    qos: QoS,
    gate: Mutex<Gate>,
    reconnect: Notify,
    shutdown: Notify,
}

/// Holding the gate while a message is handed to the client library keeps messages of one connection out of the next.
#[derive(Default)]
struct Gate {
    up: bool,
    /// Sizes of the messages that have not yet left the library's queue, oldest first, and their sum.
    queued: VecDeque<usize>,
    queued_bytes: usize,
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MqttTransport {
    /// Starts dialing. Must be called within a tokio runtime.
    pub fn start(config: MqttConfig, tls: TlsSource, rng: Box<dyn RngCore + Send>) -> Self {
        let (client, mut event_loop) = AsyncClient::new(config.options(), MQTT_QUEUE_PACKETS + OTHER_REQUESTS);
        // Else CONNECT waits 40 ms for the broker's acknowledgement of the handshake, and a report for that of the one before.
        event_loop.network_options.set_tcp_nodelay(true);
        let shared = Arc::new(Shared {
            client,
            topic: config.topic(Direction::Up),
            qos: config.qos(),
            gate: Mutex::default(),
            reconnect: Notify::new(),
            shutdown: Notify::new(),
        });
        let (sender, events) = mpsc::channel(EVENTS);
        let driver = Driver {
            config,
            tls,
            rng,
            event_loop,
            shared: shared.clone(),
            events: sender,
        };
        Self {
            shared,
            events: tokio::sync::Mutex::new(events),
            task: tokio::spawn(driver.run()),
        }
    }

    /// Says goodbye to the broker if there is a connection, and stops. Events that wait are still returned by
    /// [`Transport::next`], then [`DownReason::Shutdown`].
    pub fn shutdown(&self) {
        self.shared.shutdown.notify_one();
    }
}

impl Drop for MqttTransport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Transport for MqttTransport {
    async fn send(&self, message: Bytes) -> Result<(), SendError> {
        let (bytes, limit) = (message.len(), MQTT_PACKET_BYTES - PACKET_OVERHEAD);
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let mut gate = self.shared.gate();
        if !gate.up {
            return Err(SendError::NotConnected);
        }
        if gate.queued.len() >= MQTT_QUEUE_PACKETS || gate.queued_bytes + bytes > MQTT_QUEUE_BYTES {
            return Err(SendError::QueueFull);
        }
        let topic = self.shared.topic.as_str();
        self.shared
            .client
            .try_publish(topic, self.shared.qos, false, message)
            .map_err(|_| SendError::QueueFull)?;
        gate.queued.push_back(bytes);
        gate.queued_bytes += bytes;
        Ok(())
    }

    async fn next(&self) -> TransportEvent {
        let event = self.events.lock().await.recv().await;
        event.unwrap_or(TransportEvent::Down {
            reason: DownReason::Shutdown,
        })
    }

    fn reconnect(&self) {
        // Wakes a connection that is up now, and leaves no wish for the next one.
        self.shared.reconnect.notify_waiters();
    }
}

/// The task that owns the event loop.
struct Driver {
    config: MqttConfig,
    tls: TlsSource,
    rng: Box<dyn RngCore + Send>,
    event_loop: EventLoop,
    shared: Arc<Shared>,
    events: mpsc::Sender<TransportEvent>,
}

/// Why the driver left a connection.
enum End {
    Broken(DownReason),
    Shutdown,
}

impl Driver {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let mut up_since = None;
            let shared = self.shared.clone();
            let end = tokio::select! {
                end = self.connection(&mut up_since) => end,
                () = shared.shutdown.notified() => End::Shutdown,
            };
            self.leave();
            let reason = match end {
                End::Broken(reason) => reason,
                End::Shutdown => {
                    self.say_goodbye().await;
                    return;
                }
            };
            self.forget();
            failures = failures_after(failures, up_since);
            tracing::debug!(%reason, failures, "node link down");
            if self.events.send(TransportEvent::Down { reason }).await.is_err() {
                return;
            }
            let wait = Duration::from_millis(self.config.backoff.delay_ms(failures, &mut self.rng));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shared.shutdown.notified() => return,
            }
        }
    }

    /// One connection, from the dial to its end. Cancelling leaves it as it is.
    async fn connection(&mut self, up_since: &mut Option<Instant>) -> End {
        match (self.tls)() {
            Ok(tls) => {
                let dial = Dial::tls_with_config(TlsConfiguration::Rustls(tls));
                self.event_loop.mqtt_options.set_transport(dial);
            }
            Err(error) => {
                return End::Broken(DownReason::Tls {
                    detail: error.to_string(),
                });
            }
        }
        let within = self.config.connect_within;
        match timeout(within, self.subscribe()).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return End::Broken(reason),
            Err(_) => {
                let detail = format!("no session within {} s", within.as_secs());
                return End::Broken(DownReason::Unreachable { detail });
            }
        }
        *up_since = Some(Instant::now());
        let shared = self.shared.clone();
        let asked = shared.reconnect.notified();
        tokio::pin!(asked);
        // Before the event: whoever hears of it may send.
        self.shared.gate().up = true;
        if self.events.send(TransportEvent::Up).await.is_err() {
            return End::Shutdown;
        }
        loop {
            tokio::select! {
                event = self.event_loop.poll() => match event {
                    Ok(Event::Incoming(Incoming::Publish(publish))) => {
                        if self.events.send(TransportEvent::Message(publish.payload)).await.is_err() {
                            return End::Shutdown;
                        }
                    }
                    Ok(Event::Outgoing(Outgoing::Publish(_))) => {
                        let mut gate = self.shared.gate();
                        gate.queued_bytes -= gate.queued.pop_front().unwrap_or(0);
                    }
                    Ok(_) => {}
                    Err(error) => return End::Broken(down_reason(&error, true)),
                },
                () = &mut asked => return End::Broken(DownReason::Lost { detail: "given up by the session".into() }),
            }
        }
    }

    /// Dials, and returns once the broker has granted our topic.
    async fn subscribe(&mut self) -> Result<(), DownReason> {
        loop {
            match self.event_loop.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    let (topic, qos) = (self.config.topic(Direction::Down), self.config.qos());
                    self.shared.client.try_subscribe(topic, qos).map_err(|error| {
                        // The queue was emptied after the last connection, and the gate is closed.
                        DownReason::Lost {
                            detail: error.to_string(),
                        }
                    })?;
                }
                Ok(Event::Incoming(Incoming::SubAck(ack))) => {
                    if ack
                        .return_codes
                        .iter()
                        .all(|code| matches!(code, SubscribeReasonCode::Success(_)))
                    {
                        return Ok(());
                    }
                    return Err(DownReason::Refused {
                        detail: "subscription refused".into(),
                    });
                }
                Ok(_) => {}
                Err(error) => return Err(down_reason(&error, false)),
            }
        }
    }

    /// No more messages are taken.
    fn leave(&self) {
        *self.shared.gate() = Gate::default();
    }

    /// Drops the connection and all that the library keeps for the next one. The gate is closed, so nothing is added.
    fn forget(&mut self) {
        self.event_loop.clean();
        self.event_loop.pending.clear();
        self.event_loop.state.events.clear();
        // Left in place it stops all requests for ever: https://github.com/bytebeamio/rumqtt/issues/1056
        self.event_loop.state.collision = None;
    }

    async fn say_goodbye(&mut self) {
        if self.event_loop.network.is_none() || self.shared.client.try_disconnect().is_err() {
            return;
        }
        let polling = async {
            while !matches!(
                self.event_loop.poll().await,
                Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)
            ) {}
        };
        let _ = timeout(Duration::from_secs(1), polling).await;
    }
}
