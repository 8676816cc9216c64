//! The seam to the root: [`Api`] sends a request and gets an answer. [`https`] is the real one; tests bring their own.
//! Everything above works with [`get`], [`send`] and [`open`], which turn answers into types and failures.

pub mod https;
pub mod sse;

use crate::failure::Failure;
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::Method;
use roble_proto::rest::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest answer that is read into memory; streams have no bound.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What is asked of the root.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path and query, escaped.
    pub path: String,
    /// Content type and body.
    pub body: Option<(&'static str, Vec<u8>)>,
    /// The answer may go on without end: no deadline for the whole of it.
    pub is_stream: bool,
}

impl Request {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            is_stream: false,
        }
    }

    /// With `body` as JSON.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Failure> {
        let text = serde_json::to_vec(body).context("write the request as JSON")?;
        self.body = Some(("application/json", text));
        Ok(self)
    }
}

/// The root's answer: its head has arrived, its body comes piece by piece.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: BoxStream<'static, Result<Bytes, Failure>>,
}

/// Talks to one root.
#[async_trait::async_trait]
pub trait Api: Send + Sync {
    /// Sends one request; any status is an answer. Not repeated here: a caller knows whether it may be.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], or [`Failure::Refused`] if the other side is not the root we trust.
    async fn send(&self, request: Request) -> Result<Answer, Failure>;
    /// The root's address, for people.
    fn url(&self) -> &str;
}

/// Sends, and reads a success as `T`.
///
/// # Errors
/// [`Failure::Answer`] with what the root said, and those of [`Api::send`].
pub async fn send<T: DeserializeOwned>(api: &dyn Api, request: Request) -> Result<T, Failure> {
    let path = request.path.clone();
    let answer = open(api, request).await?;
    let body = collect(answer.body).await?;
    let read = || format!("the root's answer to {path} is not understood; do the versions of roble and the root fit?");
    Ok(serde_json::from_slice(&body).with_context(read)?)
}

/// GET, and reads a success as `T`.
///
/// # Errors
/// As [`send`].
pub async fn get<T: DeserializeOwned>(api: &dyn Api, path: impl Into<String>) -> Result<T, Failure> {
    send(api, Request::new(Method::GET, path)).await
}

/// Sends, and gives a success's body unread.
///
/// # Errors
/// As [`send`].
pub async fn open(api: &dyn Api, request: Request) -> Result<Answer, Failure> {
    let answer = api.send(request).await?;
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    let (status, body) = (answer.status, collect(answer.body).await?);
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
        code: format!("http-{status}"),
        message: match body.is_empty() {
            true => format!("{} answers {status} without a word", api.url()),
            false => String::from_utf8_lossy(&body).chars().take(300).collect(),
        },
        mistakes: Vec::new(),
    });
    Err(Failure::Answer { status, body })
}

async fn collect(mut body: BoxStream<'static, Result<Bytes, Failure>>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(Failure::other(format!(
                "the root's answer is longer than {MAX_ANSWER_BYTES} bytes"
            )));
        }
    }
    Ok(bytes)
}
