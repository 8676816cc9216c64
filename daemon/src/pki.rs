//! Authorities, keys and certificates (all ECDSA on P-256), and the identity that a certificate proves.
//!
//! ```text
//! root authority (10 years, made at the root's first start)
//! ├── root.roble.internal                          the root's server certificate (90 days)
//! └── authority of cluster c (1 year, may issue only c-<c>.roble.internal and names below it)
//!     ├── c-<c>.roble.internal                     the cluster, towards root and nodes (30 days)
//!     └── n-<n>.c-<c>.roble.internal               a node (7 days)
//! ```
//! A key is made where it is used and never leaves; what travels is a signing request ([`PrivateKey::request`]), of which
//! the issuer takes nothing but the public key. Why this shape: docs/adr/0003-identity.md.

mod authority;
mod credential;
mod identity;
mod key;
mod pem;
mod template;
#[cfg(test)]
mod tests;

pub use authority::{Authority, ExtraName, Issued, Lifetimes};
pub use credential::Credential;
pub use identity::{Identity, Peer, check_id};
pub use key::{PrivateKey, VerifiedRequest};
pub use pem::{certificates_from_pem, certificates_to_pem};

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::FileError;

/// The domain all identities live under. It is never looked up in DNS.
pub const DOMAIN: &str = "roble.internal";

/// What went wrong with keys, certificates or names.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not 24 lowercase hexadecimal digits.
    #[error("{text:?} is not an id (24 lowercase hexadecimal digits)")]
    BadId {
        /// As given, shortened.
        text: String,
    },
    /// Not a pin.
    #[error("{text:?} is not a pin (64 lowercase hexadecimal digits)")]
    BadPin {
        /// As given, shortened.
        text: String,
    },
    /// The bytes are not a certificate.
    #[error("certificate cannot be read")]
    BadCertificate,
    /// The certificate names no identity of ours, or more than one.
    #[error("certificate names no identity: {names:?}")]
    NoIdentity {
        /// The DNS names in it.
        names: Vec<String>,
    },
    /// The signing request is malformed, not for P-256, or not signed by its own key.
    #[error("signing request refused: {reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The authority may not issue that.
    #[error("the authority of {authority} does not issue {wanted}")]
    NotMine {
        /// Whose authority it is.
        authority: Identity,
        /// What was asked for.
        wanted: Identity,
    },
    /// A name that cannot stand in a certificate.
    #[error("{name:?} cannot be an extra name of the root")]
    BadName {
        /// The name.
        name: String,
    },
    /// Key and certificate do not belong together, or the chain is empty or not an authority's.
    #[error("{what}")]
    Mismatch {
        /// What does not fit.
        what: &'static str,
    },
    /// The PEM text holds no key, or no certificate, or is damaged.
    #[error("PEM: {what}")]
    BadPem {
        /// What is missing or damaged.
        what: &'static str,
    },
    /// Making a key, request or certificate failed.
    #[error("{attempt}")]
    Generate {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: rcgen::Error,
    },
    /// A key or certificate file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no such file.
    #[error("no key at {0}")]
    Missing(std::path::PathBuf),
}

/// SHA-256 of a public key (the DER of its SubjectPublicKeyInfo): what a join token pins, and how a key is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Of the SubjectPublicKeyInfo in DER.
    pub fn of_key(spki: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(spki).into())
    }

    /// Of the key in `certificate`.
    ///
    /// # Errors
    /// [`PkiError::BadCertificate`].
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        Ok(Self::of_key(parse(certificate)?.public_key().raw))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let bad = || PkiError::BadPin { text: shortened(text) };
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
        let pin = Self(bytes);
        // Upper case decodes too; one pin has one spelling.
        if pin.to_string() == text { Ok(pin) } else { Err(bad()) }
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(PkiError::BadCertificate),
    }
}

/// First and last moment of validity, in milliseconds since 1970.
///
/// # Errors
/// [`PkiError::BadCertificate`].
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(u64, u64), PkiError> {
    let parsed = parse(certificate)?;
    let milliseconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0) * 1000;
    Ok((
        milliseconds(parsed.validity().not_before),
        milliseconds(parsed.validity().not_after),
    ))
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
