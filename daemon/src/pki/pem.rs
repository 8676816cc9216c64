//! Certificates as text.

use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::PkiError;

/// The chain as PEM text, in the order given.
pub fn certificates_to_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        push_pem(&mut text, "CERTIFICATE", certificate);
    }
    text
}

fn push_pem(text: &mut String, label: &str, der: &[u8]) {
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

/// A certificate request (DER) as PEM text.
pub fn certificate_request_to_pem(der: &[u8]) -> String {
    let mut text = String::new();
    push_pem(&mut text, "CERTIFICATE REQUEST", der);
    text
}

/// The first certificate request in a PEM text, as DER.
///
/// # Errors
/// [`PkiError::BadPem`].
pub fn certificate_request_from_pem(text: &[u8]) -> Result<Vec<u8>, PkiError> {
    rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(text)
        .map(|request| request.as_ref().to_vec())
        .map_err(|_| PkiError::BadPem {
            what: "no certificate request in it",
        })
}

/// All certificates in a PEM text, in their order; at least one.
///
/// # Errors
/// [`PkiError::BadPem`].
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let chain = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| PkiError::BadPem {
            what: "a certificate is damaged",
        })?;
    if chain.is_empty() {
        return Err(PkiError::BadPem {
            what: "no certificate in it",
        });
    }
    Ok(chain)
}
