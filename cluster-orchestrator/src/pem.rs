//! Signing requests as text.

use base64::Engine as _;
use roble_daemon::pki::{PkiError, VerifiedRequest};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;

/// The request (PKCS #10, DER) as PEM.
pub fn request_to_pem(der: &[u8]) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE REQUEST-----\n");
    text
}

/// Reads and checks a request in PEM.
///
/// # Errors
/// [`PkiError`].
pub fn request_from_pem(text: &str) -> Result<VerifiedRequest, PkiError> {
    let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| PkiError::BadPem {
        what: "no signing request in it",
    })?;
    VerifiedRequest::parse(der.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_daemon::pki::PrivateKey;

    #[test]
    fn a_request_survives_the_text() {
        let key = PrivateKey::generate().unwrap();
        let text = request_to_pem(&key.request().unwrap());
        assert_eq!(request_from_pem(&text).unwrap().pin(), key.pin());
        assert!(request_from_pem("hello").is_err());
    }
}
