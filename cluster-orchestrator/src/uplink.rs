//! Between the link to the root and the tier.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use roble_core::registry::MemberState;
use roble_daemon::CancellationToken;
use roble_daemon::pki::{Pin, PrivateKey};
use roble_daemon::tls::{ClientTls, Dialer};
use roble_link::grpc::{ChannelSource, GrpcEvent, GrpcTransport, endpoint};
use roble_link::transport::DownReason;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::certificates::{CertificateError, Certificates};
use crate::membership::{Membership, key_path};
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

/// How often the root is asked at most what this cluster is to it.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Where anybody may ask the root what the holder of a key is to it.
#[derive(Debug, Clone)]
pub struct RootDoor {
    dialer: Dialer,
    address: String,
    key: Pin,
}

impl RootDoor {
    /// For the key of this cluster's authority.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn new(certificates: &Certificates, membership: &Membership) -> Result<Self, CertificateError> {
        let key = PrivateKey::load_or_generate(&key_path(certificates.folder()))?;
        Ok(Self {
            dialer: certificates.root_door()?,
            address: membership.root.clone(),
            key: key.pin(),
        })
    }

    /// Whether the root itself says that this cluster is put out. What a broken connection looks like proves nothing.
    async fn is_revoked(&self) -> bool {
        match roble_daemon::join::member_state(&self.dialer, &self.address, &self.key).await {
            Ok(state) => state == Some(MemberState::Revoked),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the root does not say what we are to it"
                );
                false
            }
        }
    }
}

/// Hands the transport's events to the tier until `stop`.
pub async fn carry(
    transport: GrpcTransport,
    door: RootDoor,
    events: mpsc::Sender<Event>,
    state: UplinkState,
    stop: CancellationToken,
) {
    let mut asked: Option<Instant> = None;
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
                let is_refused = matches!(reason, DownReason::Tls { .. } | DownReason::Refused { .. });
                if is_refused && asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                    asked = Some(Instant::now());
                    if door.is_revoked().await {
                        tracing::error!(
                            "the root has put this cluster out: what it ordered here is stopped; to use the site again, \
                             start with an empty state folder and a new join token"
                        );
                        if events.send(Event::UplinkRevoked).await.is_err() {
                            return;
                        }
                    }
                }
                Event::UplinkDown
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
