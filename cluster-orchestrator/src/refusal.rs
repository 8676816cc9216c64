//! Errors of both HTTP doors: an [`ErrorBody`] with a status that fits.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use roble_core::registry::RegistryError;
use roble_proto::rest::ErrorBody;
use roble_proto::wire;

use crate::doors::NoAnswer;

/// A request that is not granted.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    code: String,
    message: String,
}

impl Refusal {
    /// With a stable code and a sentence.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    /// The request is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// Something of ours failed; details are in the log only.
    pub fn internal(error: impl std::error::Error + 'static) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request failed here; see the cluster's log",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.code,
            message: self.message,
            mistakes: Vec::new(),
        };
        (self.status, Json(body)).into_response()
    }
}

impl From<NoAnswer> for Refusal {
    fn from(error: NoAnswer) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string())
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self::new(status_of(error.code()), error.code(), error.to_string())
    }
}

impl From<wire::Failure> for Refusal {
    fn from(failure: wire::Failure) -> Self {
        Self::new(status_of(&failure.code), &failure.code, failure.message)
    }
}

fn status_of(code: &str) -> StatusCode {
    match code {
        "invalid" | "ttl-too-long" => StatusCode::BAD_REQUEST,
        "token-invalid" | "token-expired" | "token-used" | "token-for-other-name" | "revoked" => StatusCode::FORBIDDEN,
        "unknown-member" | "not-placed" => StatusCode::NOT_FOUND,
        "name-invalid" => StatusCode::UNPROCESSABLE_ENTITY,
        "name-taken" => StatusCode::CONFLICT,
        "node-unreachable" => StatusCode::SERVICE_UNAVAILABLE,
        "internal" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::CONFLICT,
    }
}
