//! What a failure of the client library means.

use std::error::Error;

use rumqttc::ConnectionError;

use crate::transport::DownReason;

/// `established`: whether the broker had accepted the session.
pub(super) fn down_reason(error: &ConnectionError, established: bool) -> DownReason {
    if let Some(tls) = tls_error(error) {
        return DownReason::Tls {
            detail: tls.to_string(),
        };
    }
    let detail = error.to_string();
    match error {
        ConnectionError::Tls(_) => DownReason::Tls { detail },
        ConnectionError::ConnectionRefused(code) => DownReason::Refused {
            detail: format!("{code:?}"),
        },
        _ if established => DownReason::Lost { detail },
        _ => DownReason::Unreachable { detail },
    }
}

/// With TLS 1.3 the server refuses a client's certificate after the handshake, as an error of the first read.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}
