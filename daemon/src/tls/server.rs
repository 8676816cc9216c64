//! The accepting side.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::NoServerSessionStorage;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::verify::{ClientCheck, Rules};
use super::{Accept, KnownKeys, Protocol, Revocations, Shown, TlsError, provider};
use crate::clock::VerifierClock;
use crate::pki::{Credential, Peer};

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection: between tiers.
    Required,
    /// A certificate is checked if shown (a bad one ends the handshake): users and joining devices on the same port.
    Optional,
    /// None is asked for.
    None,
}

/// The accepting side of TLS. Clones share certificate, trust and deny set.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    shown: Arc<Shown>,
    check: Option<Arc<ClientCheck>>,
    revocations: Arc<Revocations>,
}

/// Settings of a [`ServerTls`]. Defaults: client certificate required from the credential's own root authority, any
/// identity accepted, no grace, [`Protocol::Http`].
pub struct ServerTlsBuilder<'a> {
    credential: &'a Credential,
    clock: Arc<VerifierClock>,
    roots: Vec<CertificateDer<'static>>,
    clients: ClientAuth,
    protocol: Protocol,
    rules: Rules,
}

impl<'a> ServerTlsBuilder<'a> {
    /// Authorities whose clients are let in, instead of the credential's own.
    #[must_use]
    pub fn trust(mut self, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        self.roots = roots.into_iter().collect();
        self
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub fn clients(mut self, clients: ClientAuth) -> Self {
        self.clients = clients;
        self
    }

    /// Which identities are let in. A cluster must say that it takes its own nodes only: the nodes of another cluster have
    /// certificates that lead to the same root.
    #[must_use]
    pub fn accept(mut self, accept: impl Fn(&crate::pki::Identity) -> bool + Send + Sync + 'static) -> Self {
        self.rules.accept = Arc::new(accept) as Accept;
        self
    }

    /// The daemon's deny set and live connections.
    #[must_use]
    pub fn revocations(mut self, revocations: Arc<Revocations>) -> Self {
        self.rules.revocations = revocations;
        self
    }

    /// Keys that go on past expiry.
    #[must_use]
    pub fn grace(mut self, known: Arc<dyn KnownKeys>) -> Self {
        self.rules.known = Some(known);
        self
    }

    /// What is spoken inside.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Puts it together.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn build(self) -> Result<ServerTls, TlsError> {
        let versions = rustls::ServerConfig::builder_with_details(provider(), self.clock)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| TlsError::Rustls {
                attempt: "choose TLS 1.3",
                source,
            })?;
        let revocations = self.rules.revocations.clone();
        let check = match self.clients {
            ClientAuth::None => None,
            mode => Some(Arc::new(ClientCheck::new(
                &self.roots,
                self.rules,
                mode == ClientAuth::Required,
            )?)),
        };
        let shown = Shown::new(Some(self.credential))?;
        let mut config = match &check {
            Some(check) => versions.with_client_cert_verifier(check.clone()),
            None => versions.with_no_client_auth(),
        }
        .with_cert_resolver(shown.clone());
        config.alpn_protocols = self.protocol.alpn();
        // See the module's comment: no resumption.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls {
            config: Arc::new(config),
            shown,
            check,
            revocations,
        })
    }
}

impl ServerTls {
    /// Starts from the certificate to show.
    pub fn builder(credential: &Credential, clock: Arc<VerifierClock>) -> ServerTlsBuilder<'_> {
        ServerTlsBuilder {
            credential,
            clock,
            roots: vec![credential.root().clone()],
            clients: ClientAuth::Required,
            protocol: Protocol::Http,
            rules: Rules {
                accept: Arc::new(|_| true),
                revocations: Revocations::new(),
                known: None,
            },
        }
    }

    /// Shows another certificate from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError`]; the old one stays.
    pub fn swap(&self, credential: &Credential) -> Result<(), TlsError> {
        self.shown.swap(credential)
    }

    /// Trusts other authorities from the next handshake on (old and new, while one replaces the other).
    ///
    /// # Errors
    /// [`TlsError`]; the old ones stay.
    pub fn set_trust(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        self.check.as_ref().map_or(Ok(()), |check| check.set_roots(roots))
    }

    /// The deny set and live connections it works with.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// For servers that do the handshake themselves. They must [`register`](Revocations::register) what they accept.
    pub fn config(&self) -> Arc<rustls::ServerConfig> {
        self.config.clone()
    }

    /// Does the handshake within `timeout`. Returns who the client proved to be, if it showed a certificate.
    ///
    /// # Errors
    /// What the handshake failed for; [`std::io::ErrorKind::TimedOut`].
    pub async fn handshake(
        &self,
        stream: TcpStream,
        timeout: Duration,
    ) -> std::io::Result<(TlsStream<TcpStream>, Option<Arc<Peer>>)> {
        let accept = TlsAcceptor::from(self.config.clone()).accept(stream);
        let stream = tokio::time::timeout(timeout, accept)
            .await
            .map_err(std::io::Error::from)??;
        let peer = match stream.get_ref().1.peer_certificates() {
            // The verifier has checked the chain.
            Some([leaf, ..]) => Some(Arc::new(Peer::from_verified(leaf).map_err(std::io::Error::other)?)),
            _ => None,
        };
        Ok((stream, peer))
    }
}
