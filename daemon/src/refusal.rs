//! A request that is not granted, and what it is in HTTP: the one table for every door of every daemon.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use roble_core::registry::RegistryError;
use roble_proto::rest::ErrorBody;
use roble_proto::wire;

/// Codes by HTTP status; docs/errors.md has a line for each.
const CODES: &[(u16, &[&str])] = &[
    (
        400,
        &[
            "invalid",
            "path-invalid",
            "query-invalid",
            "body-invalid",
            "body-unreadable",
        ],
    ),
    (401, &["not-logged-in", "credential-invalid", "certificate-required"]),
    (
        403,
        &[
            "forbidden",
            "other-key",
            "revoked",
            "token-invalid",
            "token-expired",
            "token-used",
            "token-for-other-name",
        ],
    ),
    (404, &["not-found", "no-such-path", "unknown-member"]),
    (405, &["method-not-allowed"]),
    (408, &["body-too-slow"]),
    (
        409,
        &[
            "name-taken",
            "name-mismatch",
            "deleting",
            "no-cluster",
            "not-placed",
            "address-taken",
        ],
    ),
    (413, &["body-too-large"]),
    (
        422,
        &[
            "descriptor-invalid",
            "name-invalid",
            "out-of-range",
            "address-outside",
            "request-invalid",
            "ttl-out-of-range",
            "which-cluster",
        ],
    ),
    (429, &["too-many-requests"]),
    (500, &["internal", "no-admin"]),
    (502, &["cluster-answer", "stream-broken"]),
    (
        503,
        &["stopping", "unavailable", "cluster-unreachable", "node-unreachable"],
    ),
    (504, &["timeout", "log-timeout"]),
];

fn status_of(code: &str) -> Option<u16> {
    let row = CODES.iter().find(|(_, codes)| codes.contains(&code));
    row.map(|(status, _)| *status)
}

/// A request that is not granted: HTTP status and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What is wrong.
    pub body: ErrorBody,
}

impl Refusal {
    /// With a code of the table and a sentence.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let status = status_of(code);
        debug_assert!(status.is_some(), "`{code}` is not in the table");
        Self::with(status.unwrap_or(500), code, message.into())
    }

    fn with(status: u16, code: &str, message: String) -> Self {
        let body = ErrorBody {
            code: code.to_owned(),
            message,
            mistakes: Vec::new(),
        };
        Self { status, body }
    }

    /// Something of ours failed; details are in the log only.
    pub fn internal(error: impl std::error::Error + 'static) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "request failed");
        Self::new("internal", "the request failed here; the daemon's log tells more")
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// What a lower tier answered. A code that only it knows is its failure, not the asker's.
impl From<wire::Failure> for Refusal {
    fn from(failure: wire::Failure) -> Self {
        let status = status_of(&failure.code).unwrap_or(502);
        Self::with(status, &failure.code, failure.message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body)).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_once_and_with_its_status_in_the_docs() {
        let page = include_str!("../../docs/errors.md");
        let mut seen = std::collections::BTreeSet::new();
        for (status, codes) in CODES {
            for code in *codes {
                assert!(seen.insert(code), "{code} twice");
                let row = page.lines().find(|line| {
                    let mut cells = line.split('|').skip(1);
                    let codes = cells.next().unwrap_or_default();
                    codes.contains(&format!("`{code}`"))
                        && cells.next().is_some_and(|it| it.trim() == status.to_string())
                });
                assert!(
                    row.is_some(),
                    "docs/errors.md has no row for `{code}` with status {status}"
                );
            }
        }
    }

    #[test]
    fn every_refusal_of_the_registry_has_a_status() {
        let time = roble_core::time::Timestamp::from_millis(0);
        for (error, status) in [
            (RegistryError::BadToken, 403),
            (RegistryError::Expired(time), 403),
            (RegistryError::Used, 403),
            (
                RegistryError::WrongName {
                    expected: "a".into(),
                    given: "b".into(),
                },
                403,
            ),
            (RegistryError::BadName("A".into()), 422),
            (RegistryError::NameTaken("a".into()), 409),
            (RegistryError::Lifetime, 422),
            (RegistryError::Revoked, 403),
            (RegistryError::Unknown, 404),
        ] {
            assert_eq!(Refusal::from(error).status, status);
        }
    }

    #[test]
    fn what_only_the_lower_tier_knows_is_its_failure() {
        let failure = |code: &str| wire::Failure {
            code: code.to_owned(),
            message: String::new(),
        };
        assert_eq!(Refusal::from(failure("not-placed")).status, 409);
        assert_eq!(Refusal::from(failure("of-a-newer-version")).status, 502);
    }
}
