//! Looking at the chain that a server shows, and nothing else.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, provider, tls13};

/// TLS that notes the chain shown and then refuses the handshake, whatever it was: nothing can be sent over it.
#[derive(Debug)]
pub struct Probe {
    config: rustls::ClientConfig,
    seen: Arc<Seen>,
}

impl Probe {
    /// For one server.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new() -> Result<Self, TlsError> {
        let seen = Arc::new(Seen::default());
        let mut config = tls13(rustls::ClientConfig::builder_with_provider(provider()))?
            .dangerous()
            .with_custom_certificate_verifier(seen.clone())
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config, seen })
    }

    /// For a client library, which will fail to connect.
    pub fn config(&self) -> rustls::ClientConfig {
        self.config.clone()
    }

    /// The chain that was shown, the server's own certificate first; empty if no handshake came that far.
    pub fn into_chain(self) -> Vec<CertificateDer<'static>> {
        std::mem::take(&mut *self.seen.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

#[derive(Debug, Default)]
struct Seen(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf)
            .chain(intermediates)
            .map(|certificate| certificate.clone().into_owned());
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = chain.collect();
        Err(Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("never reached: the chain is refused".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("never reached: the chain is refused".into()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
