//! Checking the other side's certificate: chain and validity, grace past expiry, revocation, and who may come.

use std::sync::{Arc, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Revocations, TlsError, provider};
use crate::pki::{Identity, Peer, Pin, validity};

/// Keys that are known well enough to go on past expiry, while their issuer cannot be reached.
pub trait KnownKeys: Send + Sync {
    /// Whether a certificate for `key` that has expired, but is right in all else, still counts. Called in handshakes, so
    /// it must not block.
    fn is_known_key(&self, key: &Pin) -> bool;
}

impl<F: Fn(&Pin) -> bool + Send + Sync> KnownKeys for F {
    fn is_known_key(&self, key: &Pin) -> bool {
        self(key)
    }
}

/// Who may come at all, judged by name alone, after the chain was verified.
pub type Accept = Arc<dyn Fn(&Identity) -> bool + Send + Sync>;

/// What both sides check once the chain is right.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) accept: Accept,
    pub(super) revocations: Arc<Revocations>,
    pub(super) known: Option<Arc<dyn KnownKeys>>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Rules")
    }
}

impl Rules {
    /// `chain_holds_at` verifies everything about the chain as of a moment.
    fn check<T>(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        chain_holds_at: impl Fn(UnixTime) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (verified, expired) = match chain_holds_at(now) {
            Ok(verified) => (verified, false),
            Err(error) if is_expiry(&error) && self.knows(leaf) => {
                // All else must have been right while it was still valid.
                let then = last_valid_moment(leaf, intermediates)
                    .filter(|then| *then < now)
                    .ok_or(error)?;
                (chain_holds_at(then)?, true)
            }
            Err(error) => return Err(error),
        };
        let peer = Peer::from_verified(leaf).map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "certificate without identity");
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        if self.revocations.is_denied(&peer.identity) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        if !(self.accept)(&peer.identity) {
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        if expired {
            tracing::warn!(peer = %peer.identity, not_after = peer.not_after, "certificate has expired, known key goes on");
        }
        Ok(verified)
    }

    fn knows(&self, leaf: &CertificateDer<'_>) -> bool {
        let Some(known) = &self.known else {
            return false;
        };
        Pin::of_certificate(leaf).is_ok_and(|key| known.is_known_key(&key))
    }
}

fn is_expiry(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext};
    matches!(error, Error::InvalidCertificate(Expired | ExpiredContext { .. }))
}

/// The earliest end among the certificates shown. What a peer adds to them can only make it earlier.
fn last_valid_moment(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<UnixTime> {
    let ends = std::iter::once(leaf)
        .chain(intermediates)
        .map(|certificate| validity(certificate).map(|(_, end)| end));
    let earliest = ends.collect::<Result<Vec<_>, _>>().ok()?.into_iter().min()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(earliest)))
}

fn store(roots: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone().into_owned())
            .map_err(|source| TlsError::Rustls {
                attempt: "trust an authority",
                source,
            })?;
    }
    Ok(Arc::new(store))
}

/// The server's check of clients.
#[derive(Debug)]
pub(super) struct ClientCheck {
    chain: RwLock<Arc<dyn ClientCertVerifier>>,
    rules: Rules,
    mandatory: bool,
}

impl ClientCheck {
    pub(super) fn new(roots: &[CertificateDer<'_>], rules: Rules, mandatory: bool) -> Result<Self, TlsError> {
        Ok(Self {
            chain: RwLock::new(Self::chain(roots)?),
            rules,
            mandatory,
        })
    }

    pub(super) fn set_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        *self.chain.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Self::chain(roots)?;
        Ok(())
    }

    fn chain(roots: &[CertificateDer<'_>]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        WebPkiClientVerifier::builder_with_provider(store(roots)?, provider())
            .build()
            .map_err(|error| TlsError::Trust(error.to_string()))
    }

    fn current(&self) -> Arc<dyn ClientCertVerifier> {
        self.chain
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    // Clients of ours have one certificate, so hints would only cost bytes.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self.current();
        self.rules.check(leaf, intermediates, now, |at| {
            chain.verify_client_cert(leaf, intermediates, at)
        })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Which authority a dialing side trusts.
#[derive(Debug)]
pub(super) enum Trust {
    /// These.
    Roots(RwLock<Arc<WebPkiServerVerifier>>),
    /// The one among the certificates shown whose key has this pin.
    Pinned(Pin),
}

impl Trust {
    pub(super) fn roots(roots: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        Ok(Self::Roots(RwLock::new(webpki(store(roots)?)?)))
    }

    pub(super) fn set_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        match self {
            Self::Roots(current) => {
                *current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = webpki(store(roots)?)?;
                Ok(())
            }
            Self::Pinned(_) => Err(TlsError::Trust("authorities: the trust is by pin".into())),
        }
    }

    fn chain(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        match self {
            Self::Roots(current) => Ok(current.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()),
            Self::Pinned(pin) => {
                // Only the key of the anchor counts, and it is the pinned one whoever wrote the certificate around it.
                let anchor = with_pin(shown, pin).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                store(std::slice::from_ref(anchor))
                    .and_then(webpki)
                    .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
        }
    }
}

/// The certificate whose key has this pin, among the authorities that a server shows after its own certificate.
pub fn with_pin<'a, 'b>(shown: &'a [CertificateDer<'b>], pin: &Pin) -> Option<&'a CertificateDer<'b>> {
    let has_it = |certificate: &&CertificateDer<'_>| Pin::of_certificate(certificate).is_ok_and(|shown| shown == *pin);
    shown.iter().find(has_it)
}

fn webpki(store: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(store, provider())
        .build()
        .map_err(|error| TlsError::Trust(error.to_string()))
}

/// The client's check of a server: it must be `expected`, by its name in the tree, whatever name or address was dialed.
#[derive(Debug)]
pub(super) struct ServerCheck {
    pub(super) trust: Trust,
    pub(super) expected: ServerName<'static>,
    pub(super) rules: Rules,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialed: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = self.trust.chain(intermediates)?;
        self.rules.check(leaf, intermediates, now, |at| {
            chain.verify_server_cert(leaf, intermediates, &self.expected, ocsp, at)
        })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
