//! Private keys, and requests to have them certified.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
use zeroize::Zeroizing;

use super::{Pin, PkiError};
use crate::failpoint;
use crate::files::{self, SECRET_MODE};

/// Longest signing request that is looked at.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// Longest key or chain file that is read.
pub(super) const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A P-256 key, made on this device. `Debug` shows its pin only.
pub struct PrivateKey(KeyPair);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PrivateKey({})", self.pin())
    }
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// [`PkiError::Generate`].
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| PkiError::Generate {
                attempt: "make a key",
                source,
            })
    }

    /// The first private key (PKCS #8) in a PEM text.
    ///
    /// # Errors
    /// [`PkiError::BadPem`].
    pub fn from_pem(text: &[u8]) -> Result<Self, PkiError> {
        let bad = || PkiError::BadPem {
            what: "no P-256 key in it",
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_| bad())?;
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| bad())
    }

    /// As PEM text (PKCS #8).
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// In the form rustls takes.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// The key in `path`; made and written there (0600) if there is none, so that repeating an interrupted join uses the
    /// same key. The folder must exist.
    ///
    /// # Errors
    /// [`PkiError`]; a damaged file is an error and is left alone.
    pub fn load_or_generate(path: &Path) -> Result<Self, PkiError> {
        if let Some(text) = files::read_optional(path, MAX_FILE_BYTES)? {
            return Self::from_pem(&Zeroizing::new(text));
        }
        let key = Self::generate()?;
        failpoint!("key.made");
        files::write_atomic(path, key.to_pem().as_bytes(), SECRET_MODE)?;
        failpoint!("key.written");
        Ok(key)
    }

    /// A signing request (PKCS #10, DER): the public key, signed by the private one. It carries no name: whoever issues
    /// decides that.
    ///
    /// # Errors
    /// [`PkiError::Generate`].
    pub fn request(&self) -> Result<Vec<u8>, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .serialize_request(&self.0)
            .map(|request| request.der().to_vec())
            .map_err(|source| PkiError::Generate {
                attempt: "make a signing request",
                source,
            })
    }

    /// Hash of its public key.
    pub fn pin(&self) -> Pin {
        Pin::of_key(&self.0.subject_public_key_info())
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

/// A public key whose owner has proved to hold the private one.
#[derive(Debug)]
pub struct VerifiedRequest {
    pub(super) key: SubjectPublicKeyInfo,
    pin: Pin,
}

impl VerifiedRequest {
    /// Checks a signing request (PKCS #10, DER): P-256, and signed by its own key. Names and extensions in it are ignored.
    ///
    /// # Errors
    /// [`PkiError::BadRequest`].
    pub fn parse(request: &[u8]) -> Result<Self, PkiError> {
        let bad = |reason| PkiError::BadRequest { reason };
        if request.len() > MAX_REQUEST_BYTES {
            return Err(bad("it is too long"));
        }
        let (rest, parsed) =
            X509CertificationRequest::from_der(request).map_err(|_| bad("it is not a PKCS #10 request"))?;
        if !rest.is_empty() {
            return Err(bad("bytes follow the request"));
        }
        let spki = parsed.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| bad("its key is not P-256"))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(bad("its key is not P-256"));
        }
        parsed
            .verify_signature()
            .map_err(|_| bad("it is not signed by its own key"))?;
        Ok(Self {
            pin: Pin::of_key(spki),
            key,
        })
    }

    /// Hash of the public key: what the redemption of a join token is bound to.
    pub fn pin(&self) -> Pin {
        self.pin
    }
}
