//! What handlers take from a request, with refusals of ours when it is not there.

use crate::tier::Caller;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use roble_core::registry::sha256_hex;
use roble_daemon::refusal::Refusal;
use roble_daemon::serve::PeerAddress;
use serde::de::DeserializeOwned;
use std::net::IpAddr;

/// The caller, by the token he shows; without one he is nobody, and the tier refuses him.
pub(super) struct Who(pub(super) Caller);

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
            return Ok(Self(Caller::Anonymous));
        };
        let token = value.to_str().ok().and_then(|text| text.split_once(' '));
        match token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Self(Caller::Session(sha256_hex(token.trim().as_bytes()))))
            }
            _ => Err(Refusal::new("not-logged-in", "`Authorization: Bearer TOKEN` expected")),
        }
    }
}

/// The address of the other end.
pub(super) struct From(pub(super) IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let address = parts.extensions.get::<PeerAddress>();
        let unknown = || Refusal::new("internal", "the request has no address");
        address.map(|address| Self(address.0.ip())).ok_or_else(unknown)
    }
}

/// The `{ref}` of a path, percent-decoded.
pub(super) struct Ref(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Ref {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(reference)| Self(reference)).map_err(bad_path)
    }
}

/// The `{ref}` of a path and what follows it.
pub(super) struct RefAnd(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for RefAnd {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        path.map(|Path((reference, what))| Self(reference, what))
            .map_err(bad_path)
    }
}

fn bad_path(rejection: PathRejection) -> Refusal {
    Refusal::new("path-invalid", rejection.body_text())
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let bad = |rejection: QueryRejection| Refusal::new("query-invalid", rejection.body_text());
        query.map(|Query(params)| Self(params)).map_err(bad)
    }
}

/// The body as it is.
pub(super) struct Raw(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await;
        bytes
            .map(Self)
            .map_err(|rejection: BytesRejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Refusal::new("body-too-large", "the request's body is too large"),
                _ => Refusal::new("body-unreadable", rejection.body_text()),
            })
    }
}

/// The body as JSON of one type; unknown fields are mistakes.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        let bad =
            |error: serde_json::Error| Refusal::new("body-invalid", format!("the body is not as expected: {error}"));
        serde_json::from_slice(&bytes).map(Self).map_err(bad)
    }
}

/// A switch in a query: `follow`, `follow=true`, `follow=1`.
pub(super) fn switch(name: &str, value: Option<&str>) -> Result<bool, Refusal> {
    match value {
        None | Some("false" | "0") => Ok(false),
        Some("" | "true" | "1") => Ok(true),
        Some(_) => Err(Refusal::new("query-invalid", format!("`{name}` is true or false"))),
    }
}
