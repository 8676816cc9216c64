//! What a failure of the gRPC library means.

use std::error::Error;

use crate::transport::DownReason;

/// No connection was made.
pub(super) fn of_connect(error: &tonic::transport::Error) -> DownReason {
    match tls_error(error) {
        Some(detail) => DownReason::Tls { detail },
        None => DownReason::Unreachable { detail: chain(error) },
    }
}

/// The call failed, or its stream broke. `established`: whether the parent had opened the stream.
pub(super) fn of_status(status: &tonic::Status, established: bool) -> DownReason {
    use tonic::Code::{FailedPrecondition, PermissionDenied, ResourceExhausted, Unauthenticated, Unimplemented};
    if let Some(detail) = tls_error(status) {
        return DownReason::Tls { detail };
    }
    let detail = if status.message().is_empty() {
        chain(status)
    } else {
        status.message().to_owned()
    };
    match status.code() {
        PermissionDenied | Unauthenticated | FailedPrecondition | ResourceExhausted | Unimplemented => {
            DownReason::Refused { detail }
        }
        _ if established => DownReason::Lost { detail },
        _ => DownReason::Unreachable { detail },
    }
}

/// All causes in one line: the libraries' own texts say little.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        next = error.source();
    }
    text
}

/// With TLS 1.3 the server refuses a client's certificate after the handshake, as an error of the first read.
fn tls_error(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(tls.to_string());
        }
        next = error.source();
    }
    None
}
