//! The dialing side.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, ServerName};

use super::verify::{Rules, ServerCheck, Trust};
use super::{KnownKeys, Protocol, Revocations, Shown, TlsError, provider, tls13};
use crate::clock::VerifierClock;
use crate::pki::{Credential, Identity, Pin};

/// The dialing side of TLS, towards one member of the tree. Clones share certificate and trust.
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    shown: Arc<Shown>,
    check: Arc<ServerCheck>,
    server: Identity,
}

/// Settings of a [`ClientTls`]. Defaults: no certificate of our own, no grace, [`Protocol::Http2`].
pub struct ClientTlsBuilder<'a> {
    server: Identity,
    trust: Result<Trust, TlsError>,
    clock: Arc<VerifierClock>,
    credential: Option<&'a Credential>,
    protocol: Protocol,
    rules: Rules,
}

impl<'a> ClientTlsBuilder<'a> {
    /// The certificate to show.
    #[must_use]
    pub fn credential(mut self, credential: &'a Credential) -> Self {
        self.credential = Some(credential);
        self
    }

    /// The daemon's deny set.
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
    pub fn build(self) -> Result<ClientTls, TlsError> {
        let expected = ServerName::try_from(self.server.dns_name())
            .map_err(|_| TlsError::Trust(format!("{}: not a name", self.server)))?;
        let check = Arc::new(ServerCheck {
            trust: self.trust?,
            expected,
            rules: self.rules,
        });
        let shown = Shown::new(self.credential)?;
        let mut config = tls13(rustls::ClientConfig::builder_with_details(provider(), self.clock))?
            .dangerous()
            // Not less checked than by default but more: see `ServerCheck`.
            .with_custom_certificate_verifier(check.clone())
            .with_client_cert_resolver(shown.clone());
        config.alpn_protocols = self.protocol.alpn();
        config.resumption = Resumption::disabled();
        Ok(ClientTls {
            config: Arc::new(config),
            shown,
            check,
            server: self.server,
        })
    }
}

impl ClientTls {
    /// Towards `server`, whose chain must lead to one of `roots`.
    pub fn trusting<'a>(
        server: Identity,
        roots: &[CertificateDer<'_>],
        clock: Arc<VerifierClock>,
    ) -> ClientTlsBuilder<'a> {
        Self::builder(server, Trust::roots(roots), clock)
    }

    /// Towards `server`, to join: the chain it shows must lead to an authority with this pin, which it must show too.
    pub fn pinned<'a>(server: Identity, pin: Pin, clock: Arc<VerifierClock>) -> ClientTlsBuilder<'a> {
        Self::builder(server, Ok(Trust::Pinned(pin)), clock)
    }

    fn builder<'a>(
        server: Identity,
        trust: Result<Trust, TlsError>,
        clock: Arc<VerifierClock>,
    ) -> ClientTlsBuilder<'a> {
        let expected = server.clone();
        let rules = Rules {
            accept: Arc::new(move |shown| *shown == expected),
            revocations: Revocations::new(),
            known: None,
        };
        ClientTlsBuilder {
            server,
            trust,
            clock,
            credential: None,
            protocol: Protocol::Http2,
            rules,
        }
    }

    /// Shows another certificate from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError`]; the old one stays.
    pub fn swap(&self, credential: &Credential) -> Result<(), TlsError> {
        self.shown.swap(credential)
    }

    /// Trusts other authorities from the next handshake on.
    ///
    /// # Errors
    /// [`TlsError`], also if the trust is by pin; the old ones stay.
    pub fn set_trust(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        self.check.trust.set_roots(roots)
    }

    /// Whom it dials.
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// For client libraries that dial themselves. Whatever name they dial, the server must be [`server`](Self::server).
    pub fn config(&self) -> Arc<rustls::ClientConfig> {
        self.config.clone()
    }

    pub(super) fn server_name(&self) -> ServerName<'static> {
        self.check.expected.clone()
    }
}
