//! Between the link to the root and the tier.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use roble_daemon::CancellationToken;
use roble_daemon::tls::{ClientTls, Dialer};
use roble_link::grpc::{ChannelSource, GrpcEvent, GrpcTransport, endpoint};
use roble_link::transport::DownReason;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::tier::Event;

/// Dials the root's link port, with the cluster's certificate.
#[derive(Debug, Clone)]
pub struct RootLink {
    endpoint: Endpoint,
    dialer: Dialer,
}

impl RootLink {
    /// The root's link is at `address` (`host:port`).
    ///
    /// # Errors
    /// If the address cannot be part of a URI.
    pub fn new(address: &str, tls: ClientTls) -> Result<Self, tonic::transport::Error> {
        Ok(Self {
            endpoint: endpoint(address)?,
            dialer: Dialer::new(tls),
        })
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.endpoint.connect_with_connector(self.dialer.connector()).await
    }

    /// As the transport takes it.
    pub fn source(&self) -> ChannelSource {
        let link = self.clone();
        Arc::new(move || {
            let link = link.clone();
            Box::pin(async move { link.connect().await })
        })
    }
}

/// How the uplink is, for people.
#[derive(Debug, Clone, Default)]
pub struct UplinkState(Arc<Mutex<(bool, String)>>);

impl UplinkState {
    /// Whether the session stands, and if not, why.
    pub fn get(&self) -> (bool, String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session stands, or does not.
    pub fn set_connected(&self, connected: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = connected;
        if connected {
            state.1.clear();
        }
    }

    fn set_reason(&self, reason: &DownReason) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = reason.to_string();
        let is_new = state.1 != reason;
        state.1 = reason;
        is_new
    }
}

/// Hands the transport's events to the tier until `stop`.
pub async fn carry(transport: GrpcTransport, events: mpsc::Sender<Event>, state: UplinkState, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = transport.next() => event,
        };
        let event = match event {
            GrpcEvent::Up => Event::UplinkUp,
            GrpcEvent::Frame(frame) => Event::UplinkMessage(frame),
            GrpcEvent::Down { reason } => {
                if state.set_reason(&reason) {
                    tracing::warn!(%reason, "no link to the root, the site goes on by itself");
                }
                if reason == DownReason::Shutdown {
                    return;
                }
                Event::UplinkDown
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
