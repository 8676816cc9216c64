//! The child's end over gRPC: a cluster towards the root. One bidirectional stream, dialed again by itself.
//!
//! Who is dialed and how it is trusted is the caller's: it gives a [`ChannelSource`]. Both queues are bounded; a caller
//! that does not call [`GrpcTransport::next`] stops the reading, not the process. A parent that does not answer HTTP/2's
//! pings ([`endpoint`]) counts as gone.

mod failure;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use prost::Message;
use rand::RngCore;
use roble_core::backoff::Backoff;
use roble_proto::limits::GRPC_MESSAGE_BYTES;
use roble_proto::wire;
use roble_proto::wire::link_client::LinkClient;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::transport::{DownReason, SendError, failures_after};

/// Frames that may wait to be sent.
const QUEUE_FRAMES: usize = 256;
/// Bytes that may wait to be sent; one frame of the largest size always finds room in an empty queue.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Events that may wait for [`GrpcTransport::next`]; then reading stops.
const EVENTS: usize = 64;
/// HTTP/2: silence after which the other end is pinged.
const PING_AFTER: Duration = Duration::from_secs(10);
/// HTTP/2: time for the answer.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// Opens a new connection to the parent, once per try. It decides whom to trust.
pub type ChannelSource = Arc<dyn Fn() -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>;

/// Where `address` (`host:port`) is dialed, with the keep-alive that both ends count on. TLS is in the connector that the
/// caller gives to [`Endpoint::connect_with_connector`].
///
/// # Errors
/// If `address` cannot be part of a URI.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(512 * 1024))
}

/// What happened on the link, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum GrpcEvent {
    /// A stream is open; frames may be sent.
    Up,
    /// Not connected; reported when a stream ends and again for each failed try. Dialed again by itself.
    Down {
        /// Why.
        reason: DownReason,
    },
    /// A frame of the parent.
    Frame(wire::Frame),
}

/// Timing of the transport.
#[derive(Debug, Clone, Copy)]
pub struct GrpcConfig {
    /// Time for one try: connect, handshake, open the stream.
    pub connect_within: Duration,
    /// Waits between tries.
    pub backoff: Backoff,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            connect_within: Duration::from_secs(15),
            backoff: Backoff::RECONNECT,
        }
    }
}

/// The gRPC transport. Dropping it ends its task and its connection at once.
pub struct GrpcTransport {
    shared: Arc<Shared>,
    events: tokio::sync::Mutex<mpsc::Receiver<GrpcEvent>>,
    task: JoinHandle<()>,
}

struct Shared {
    /// Where frames of the stream that is open go; `None` while there is none.
    gate: Mutex<Option<Gate>>,
    reconnect: Notify,
}

struct Gate {
    frames: mpsc::Sender<wire::Frame>,
    bytes: Arc<AtomicUsize>,
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Option<Gate>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrpcTransport {
    /// Starts dialing. Must be called within a tokio runtime.
    pub fn start(config: GrpcConfig, channels: ChannelSource, rng: Box<dyn RngCore + Send>) -> Self {
        let shared = Arc::new(Shared {
            gate: Mutex::new(None),
            reconnect: Notify::new(),
        });
        let (sender, events) = mpsc::channel(EVENTS);
        let driver = Driver {
            config,
            channels,
            rng,
            shared: shared.clone(),
            events: sender,
        };
        Self {
            shared,
            events: tokio::sync::Mutex::new(events),
            task: tokio::spawn(driver.run()),
        }
    }

    /// A handle for sending; it does not keep the transport alive.
    pub fn sender(&self) -> GrpcSender {
        GrpcSender(self.shared.clone())
    }

    /// Waits for the next event. Cancelling loses nothing. One caller at a time; a second one waits.
    pub async fn next(&self) -> GrpcEvent {
        let event = self.events.lock().await.recv().await;
        event.unwrap_or(GrpcEvent::Down {
            reason: DownReason::Shutdown,
        })
    }

    /// Gives up the stream, if there is one, and dials again.
    pub fn reconnect(&self) {
        self.shared.reconnect.notify_waiters();
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends frames on whatever stream is open.
#[derive(Clone)]
pub struct GrpcSender(Arc<Shared>);

impl GrpcSender {
    /// Queues one frame; does not wait. `Ok` means taken, not delivered.
    ///
    /// # Errors
    /// [`SendError`]; the session repeats what matters.
    pub fn send(&self, frame: wire::Frame) -> Result<(), SendError> {
        let (bytes, limit) = (frame.encoded_len(), GRPC_MESSAGE_BYTES);
        if bytes > limit {
            return Err(SendError::TooLarge { bytes, limit });
        }
        let gate = self.0.gate();
        let gate = gate.as_ref().ok_or(SendError::NotConnected)?;
        if gate.bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return Err(SendError::QueueFull);
        }
        // Added first: the other side may take the frame before this thread goes on.
        gate.bytes.fetch_add(bytes, Ordering::Relaxed);
        gate.frames.try_send(frame).map_err(|error| {
            gate.bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => SendError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
            }
        })
    }
}

/// The task that dials and reads.
struct Driver {
    config: GrpcConfig,
    channels: ChannelSource,
    rng: Box<dyn RngCore + Send>,
    shared: Arc<Shared>,
    events: mpsc::Sender<GrpcEvent>,
}

impl Driver {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let mut up_since = None;
            let reason = self.session(&mut up_since).await;
            *self.shared.gate() = None;
            failures = failures_after(failures, up_since);
            tracing::debug!(%reason, failures, "link down");
            if reason == DownReason::Shutdown || self.events.send(GrpcEvent::Down { reason }).await.is_err() {
                return;
            }
            let wait = self
                .config
                .backoff
                .delay_ms(failures - u32::from(failures > 0), &mut self.rng);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// One stream, from the dial to its end. Returns why it ended.
    async fn session(&mut self, up_since: &mut Option<Instant>) -> DownReason {
        let within = self.config.connect_within;
        let mut inbound = match timeout(within, self.open()).await {
            Ok(Ok(inbound)) => inbound,
            Ok(Err(reason)) => return reason,
            Err(_) => {
                let detail = format!("no session within {} s", within.as_secs());
                return DownReason::Unreachable { detail };
            }
        };
        *up_since = Some(Instant::now());
        let shared = self.shared.clone();
        let asked = shared.reconnect.notified();
        tokio::pin!(asked);
        if self.events.send(GrpcEvent::Up).await.is_err() {
            return DownReason::Shutdown;
        }
        let mut waiting = None;
        loop {
            tokio::select! {
                message = inbound.message(), if waiting.is_none() => match message {
                    Ok(Some(frame)) => waiting = Some(frame),
                    Ok(None) => return DownReason::Lost { detail: "the other end closed the stream".into() },
                    Err(status) => return failure::of_status(&status, true),
                },
                permit = self.events.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                    (Ok(permit), Some(frame)) => permit.send(GrpcEvent::Frame(frame)),
                    _ => return DownReason::Shutdown,
                },
                () = &mut asked => return DownReason::Lost { detail: "given up by the session".into() },
            }
        }
    }

    /// Dials and opens the stream; afterwards frames may be sent.
    async fn open(&mut self) -> Result<tonic::Streaming<wire::Frame>, DownReason> {
        let channel = (self.channels)().await.map_err(|error| failure::of_connect(&error))?;
        let mut client = LinkClient::new(channel)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES);
        let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
        let bytes = Arc::new(AtomicUsize::new(0));
        let queued = bytes.clone();
        let outgoing = ReceiverStream::new(queue).inspect(move |frame: &wire::Frame| {
            queued.fetch_sub(frame.encoded_len(), Ordering::Relaxed);
        });
        let inbound = client
            .session(outgoing)
            .await
            .map_err(|status| failure::of_status(&status, false))?
            .into_inner();
        *self.shared.gate() = Some(Gate { frames, bytes });
        Ok(inbound)
    }
}
