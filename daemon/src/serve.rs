//! The one accept loop.
//!
//! A handshake runs in the connection's own task with a deadline, so a peer that stalls costs one slot and nobody else's
//! time. Connections are bounded in total and per peer address; what exceeds a bound is closed at once. A connection of a
//! revoked identity ends at once too. When asked to stop, the loop stops accepting, lets requests finish, and drops the
//! rest at the drain deadline.

mod accept;
mod requests;
#[cfg(test)]
mod tests;
mod unix;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub use unix::{UnixPeer, bind_unix, serve_unix};

use crate::pki::{Identity, Peer};
use crate::rate::RateLimit;
use crate::tls::ServerTls;

/// Bounds of one listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time from one address (IPv6: one /64). Nodes behind one NAT share an address.
    pub connections_per_peer: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the first byte after the handshake, and for the headers of an HTTP/1.1 request.
    pub header_timeout: Duration,
    /// Longest silence within a request body; `None` for streams that may rest.
    pub body_timeout: Option<Duration>,
    /// Longest request body; `None` for streams, whose messages are bounded one by one.
    pub body_bytes: Option<usize>,
    /// Longest header section.
    pub header_bytes: u32,
    /// HTTP/2 streams at a time on one connection.
    pub streams_per_connection: u32,
    /// HTTP/2: ping after so much silence; the connection ends if no answer comes within as long again.
    pub ping_interval: Duration,
    /// Time for requests to finish after the wish to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 256,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            body_timeout: Some(Duration::from_secs(30)),
            body_bytes: Some(4 * 1024 * 1024),
            header_bytes: 16 * 1024,
            streams_per_connection: 128,
            ping_interval: Duration::from_secs(10),
            drain: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// For long-lived gRPC streams: as the default, but bodies may rest and have no total length.
    pub fn streams() -> Self {
        Self {
            body_timeout: None,
            body_bytes: None,
            ..Self::default()
        }
    }
}

/// Serving ended for another reason than being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be bound.
    #[error("listen on {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The listener has no address.
    #[error("read the listener's address")]
    Address(#[source] io::Error),
}

/// Who is at the other end: request extension of every HTTP request over TLS. `None`: no certificate was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity(pub Option<Identity>);

/// The certificate behind [`PeerIdentity`]; present only if one was shown.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub Arc<Peer>);

/// The other end's address: request extension of every HTTP request over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// Cancelled when the server drains: request extension, for handlers whose answer has no end by itself.
#[derive(Debug, Clone)]
pub struct Draining(pub CancellationToken);

/// What a listener counted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ServeMetrics {
    /// Connections open now.
    pub open: Gauge,
    /// Handshakes completed.
    pub accepted: Counter,
    /// Handshakes that failed: bad or missing certificate, no TLS.
    pub handshake_failures: Counter,
    /// Handshakes that did not end in time.
    pub handshake_timeouts: Counter,
    /// Connections closed at once because a bound was reached.
    pub over_limit: Counter,
    /// Connections refused or closed because of revocation.
    pub revoked: Counter,
    /// Connections dropped at the drain deadline.
    pub dropped_at_deadline: Counter,
}

impl ServeMetrics {
    /// Registers all under `<prefix>_...`.
    pub fn register(&self, registry: &mut Registry, prefix: &str) {
        let registry = registry.sub_registry_with_prefix(prefix);
        registry.register("connections", "Connections open now", self.open.clone());
        registry.register("accepted", "Handshakes completed", self.accepted.clone());
        registry.register(
            "handshake_failures",
            "Handshakes that failed",
            self.handshake_failures.clone(),
        );
        registry.register(
            "handshake_timeouts",
            "Handshakes too slow",
            self.handshake_timeouts.clone(),
        );
        registry.register("over_limit", "Connections closed at a bound", self.over_limit.clone());
        registry.register(
            "revoked",
            "Connections of revoked identities ended",
            self.revoked.clone(),
        );
        registry.register(
            "dropped_at_deadline",
            "Connections dropped when draining",
            self.dropped_at_deadline.clone(),
        );
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    /// The stream.
    pub stream: TlsStream<TcpStream>,
    /// The other end's address.
    pub address: SocketAddr,
    /// Who it proved to be, if a certificate was shown.
    pub peer: Option<Arc<Peer>>,
    /// Cancelled when the server drains; the handler should then end soon.
    pub draining: CancellationToken,
}

/// Binds a TCP listener. Port 0 picks a free one; read it back with `local_addr`.
///
/// # Errors
/// [`ServeError::Bind`] names the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind {
        address: address.to_string(),
        source,
    })
}

/// Serves TLS connections on one listener until asked to stop.
#[derive(Debug, Clone)]
pub struct Server {
    tls: ServerTls,
    limits: Limits,
    shutdown: CancellationToken,
    metrics: ServeMetrics,
    /// How often refused certificates of one address are named in the log.
    named: RateLimit,
}

/// Whether a handshake failed because of the certificate that the other side showed.
fn is_about_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

impl Server {
    /// `shutdown`: when cancelled, the server drains and returns.
    pub fn new(tls: ServerTls, limits: Limits, shutdown: CancellationToken) -> Self {
        Self {
            tls,
            limits,
            shutdown,
            metrics: ServeMetrics::default(),
            named: RateLimit::new(5, 0.1),
        }
    }

    /// Counts into `metrics`.
    #[must_use]
    pub fn metrics(mut self, metrics: ServeMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Serves `router` over HTTP/1.1 and HTTP/2. Requests carry [`PeerIdentity`], [`PeerCertificate`] (if any),
    /// [`PeerAddress`], axum's `ConnectInfo<SocketAddr>` and [`Draining`]. Ends after the drain.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn http(self, listener: TcpListener, router: Router) -> Result<(), ServeError> {
        let limits = Arc::new(self.limits.clone());
        self.streams(listener, move |connection| {
            requests::serve_tls(connection, router.clone(), limits.clone())
        })
        .await
    }

    /// Hands every connection to `handler`. A connection ends when its handler does, at once if its identity is revoked,
    /// and at the drain deadline. Ends after the drain.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn streams<H, F>(self, listener: TcpListener, handler: H) -> Result<(), ServeError>
    where
        H: Fn(Connection) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let local = listener.local_addr().map_err(ServeError::Address)?;
        tracing::debug!(address = %local, "serving");
        let gate = accept::Gate::new(&self.limits);
        let drain = accept::Drain::new();
        loop {
            let (stream, address) = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = accept::next(&listener) => accepted,
            };
            let Some(permit) = gate.admit(address.ip()) else {
                self.metrics.over_limit.inc();
                tracing::debug!(peer = %address, "over the limit of connections, closed");
                continue;
            };
            let (server, handler) = (self.clone(), handler.clone());
            drain.spawn(async move {
                let _permit = permit;
                server.metrics.open.inc();
                let _open = accept::OnDrop(|| {
                    server.metrics.open.dec();
                });
                server.connection(stream, address, handler).await;
            });
        }
        drop(listener);
        let dropped = drain.finish(self.limits.drain).await;
        if dropped > 0 {
            self.metrics.dropped_at_deadline.inc_by(dropped as u64);
            tracing::warn!(address = %local, connections = dropped, "dropped at the drain deadline");
        }
        Ok(())
    }

    async fn connection<H, F>(&self, stream: TcpStream, address: SocketAddr, handler: H)
    where
        H: Fn(Connection) -> F,
        F: Future<Output = ()>,
    {
        let _ = stream.set_nodelay(true);
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            done = self.tls.handshake(stream, self.limits.handshake_timeout) => done,
        };
        let (stream, peer) = match handshake {
            Ok(done) => done,
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::TimedOut => self.metrics.handshake_timeouts.inc(),
                    _ => self.metrics.handshake_failures.inc(),
                };
                let named = is_about_certificate(&error) && self.named.admit(address.ip(), Instant::now());
                let error: &dyn std::error::Error = &error;
                if named {
                    tracing::warn!(peer = %address, error, "certificate refused");
                } else {
                    tracing::debug!(peer = %address, error, "handshake failed");
                }
                return;
            }
        };
        // Checked again together with the registration: the revocation may have come during the handshake.
        let live = match peer
            .as_ref()
            .map(|peer| self.tls.revocations().register(&peer.identity))
            .transpose()
        {
            Ok(live) => live,
            Err(error) => {
                self.metrics.revoked.inc();
                tracing::info!(peer = %address, %error, "connection refused");
                return;
            }
        };
        self.metrics.accepted.inc();
        let connection = Connection {
            stream,
            address,
            peer,
            draining: self.shutdown.clone(),
        };
        let handled = handler(connection);
        match live {
            None => handled.await,
            Some(live) => tokio::select! {
                () = handled => {}
                () = live.closed() => {
                    self.metrics.revoked.inc();
                    tracing::info!(peer = %address, "connection closed, identity revoked or disconnected");
                }
            },
        }
    }
}
