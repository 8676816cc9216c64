//! A private key together with the chain that certifies it.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::key::MAX_FILE_BYTES;
use super::{Peer, Pin, PkiError, PrivateKey, certificates_from_pem, certificates_to_pem, validity};
use crate::files::{self, SECRET_MODE};

/// What one side shows and proves in a handshake: its key, its certificate, and the authorities up to the root's own.
#[derive(Debug)]
pub struct Credential {
    key: PrivateKey,
    chain: Vec<CertificateDer<'static>>,
    peer: Peer,
}

impl Credential {
    /// Puts a key and its chain (leaf first, root authority last) together.
    ///
    /// # Errors
    /// [`PkiError::Mismatch`] if the leaf is for another key; [`PkiError::NoIdentity`].
    pub fn new(key: PrivateKey, chain: Vec<CertificateDer<'static>>) -> Result<Self, PkiError> {
        let leaf = chain.first().ok_or(PkiError::Mismatch {
            what: "the chain is empty",
        })?;
        let peer = Peer::from_verified(leaf)?;
        if peer.key != key.pin() {
            return Err(PkiError::Mismatch {
                what: "the certificate is for another key",
            });
        }
        Ok(Self { key, chain, peer })
    }

    /// Key and chain from one PEM file written by [`save`](Self::save); `None` if there is none.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn load(path: &Path) -> Result<Option<Self>, PkiError> {
        let Some(text) = files::read_optional(path, MAX_FILE_BYTES)? else {
            return Ok(None);
        };
        let text = Zeroizing::new(text);
        Self::new(PrivateKey::from_pem(&text)?, certificates_from_pem(&text)?).map(Some)
    }

    /// Writes key and chain into one PEM file (0600), so that they change together.
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        let text = Zeroizing::new(format!("{}{}", *self.key.to_pem(), certificates_to_pem(&self.chain)));
        Ok(files::write_atomic(path, text.as_bytes(), SECRET_MODE)?)
    }

    /// Who it certifies, and until when.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Leaf first, root authority last.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The last certificate of the chain: the authority to trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("new() refuses an empty chain")
    }

    /// Pin of [`root`](Self::root).
    ///
    /// # Errors
    /// [`PkiError::BadCertificate`].
    pub fn root_pin(&self) -> Result<Pin, PkiError> {
        Pin::of_certificate(self.root())
    }

    /// When to ask for the next certificate: after one third of this one's life, in milliseconds since 1970. Two thirds
    /// remain for the issuer to come back.
    pub fn renew_at(&self) -> u64 {
        let (from, until) = validity(&self.chain[0]).unwrap_or_default();
        from + until.saturating_sub(from) / 3
    }
}
