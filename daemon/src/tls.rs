//! TLS 1.3 on every connection, for both sides.
//!
//! - [`ServerTls`]: certificate and trust can be swapped while it runs; new handshakes use the new ones.
//! - [`ClientTls`] and [`Dialer`]: the other side is known by its name in the tree, whatever address was dialed, and
//!   trusted by the root authority or, to join, by that authority's pin.
//! - [`Probe`]: what a server shows, for a person who decides whether to trust it.
//! - [`Revocations`]: whom to refuse; refusing somebody closes the connections he has.
//!
//! Both sides check validity with the [`VerifierClock`](crate::clock::VerifierClock). Sessions are never resumed: a
//! resumed session would skip the check of the certificate, and with it the revocation.

mod client;
mod dial;
mod probe;
mod revocation;
mod server;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::{Arc, RwLock};

pub use client::{ClientTls, ClientTlsBuilder};
pub use dial::{Connector, DialError, DialedStream, Dialer};
pub use probe::Probe;
pub use revocation::{LiveConnection, Revocations, Revoked};
pub use server::{ClientAuth, ServerTls, ServerTlsBuilder};
pub use verify::{Accept, KnownKeys, with_pin};

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::pki::{Credential, PkiError};

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key, chain or trust does not fit.
    #[error("{attempt}")]
    Rustls {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: rustls::Error,
    },
    /// The authorities to trust cannot be used.
    #[error("trust {0}")]
    Trust(String),
    /// A certificate of ours cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What is spoken inside, offered in the handshake (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 or HTTP/1.1.
    Http,
    /// HTTP/2 only (gRPC).
    Http2,
    /// Anything else; nothing is offered.
    Raw,
}

impl Protocol {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Raw => Vec::new(),
        }
    }
}

/// Makes `ring` the process's cryptography. First line of every `main`, and of tests of libraries that ask for the
/// process's default; may be repeated.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what was asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

/// The one version that is spoken.
fn tls13<S: rustls::ConfigSide>(
    builder: rustls::ConfigBuilder<S, rustls::WantsVersions>,
) -> Result<rustls::ConfigBuilder<S, rustls::WantsVerifier>, TlsError> {
    builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Rustls {
            attempt: "choose TLS 1.3",
            source,
        })
}

fn certified(credential: &Credential) -> Result<Arc<CertifiedKey>, TlsError> {
    CertifiedKey::from_der(credential.chain().to_vec(), credential.key().to_der(), &provider())
        .map(Arc::new)
        .map_err(|source| TlsError::Rustls {
            attempt: "use the certificate",
            source,
        })
}

/// What is shown in handshakes; swapped as a whole.
#[derive(Debug)]
struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    fn new(credential: Option<&Credential>) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(RwLock::new(credential.map(certified).transpose()?))))
    }

    fn swap(&self, credential: &Credential) -> Result<(), TlsError> {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(certified(credential)?);
        Ok(())
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get()
    }

    fn has_certs(&self) -> bool {
        self.get().is_some()
    }
}
