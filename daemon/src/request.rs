//! One request over the local socket.

use std::path::Path;
use std::time::Duration;

use crate::join::error_chain;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use roble_proto::limits::HTTP_BODY_BYTES;
use roble_proto::rest::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Time for one request, from the dial to the end of the answer.
const WITHIN: Duration = Duration::from_secs(20);

/// The request brought no answer of use.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody answered; worth another try.
    #[error("no answer from {to}: {detail}")]
    Unreachable {
        /// Whom.
        to: String,
        /// Why.
        detail: String,
    },
    /// The other side refused.
    #[error("{to} refused ({code}): {message}", code = body.code, message = body.message)]
    Refused {
        /// Who.
        to: String,
        /// Its status.
        status: StatusCode,
        /// What it said.
        body: ErrorBody,
    },
    /// The answer is not what it should be.
    #[error("answer from {to} not understood: {detail}")]
    Answer {
        /// From whom.
        to: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// Asks the daemon behind a Unix socket.
///
/// # Errors
/// [`RequestError`].
pub async fn local<B: Serialize, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<A, RequestError> {
    let to = socket.display().to_string();
    let request = request(&to, method, path, body)?;
    let answer = within(&to, async {
        let stream = tokio::net::UnixStream::connect(socket)
            .await
            .map_err(|error| unreachable(&to, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&to, &error))?;
        let asking = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| unreachable(&to, &error))?;
            collect(&to, answer).await
        };
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The answer may still be on its way out of the buffers.
            _ = connection => asking.await,
        }
    });
    parse(&to, answer.await?)
}

fn request<B: Serialize>(
    to: &str,
    method: Method,
    uri: &str,
    body: Option<&B>,
) -> Result<Request<Full<Bytes>>, RequestError> {
    let failed = |detail: String| RequestError::Answer {
        to: to.to_owned(),
        detail,
    };
    let bytes = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| failed(error.to_string()))?,
        None => Vec::new(),
    };
    Request::builder()
        .method(method)
        .uri(uri)
        .header(header::HOST, "roble")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(bytes)))
        .map_err(|error| failed(error.to_string()))
}

async fn within<T>(to: &str, work: impl Future<Output = Result<T, RequestError>>) -> Result<T, RequestError> {
    tokio::time::timeout(WITHIN, work).await.unwrap_or_else(|_| {
        Err(RequestError::Unreachable {
            to: to.to_owned(),
            detail: format!("nothing within {} s", WITHIN.as_secs()),
        })
    })
}

async fn collect(to: &str, answer: http::Response<hyper::body::Incoming>) -> Result<(StatusCode, Bytes), RequestError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), 4 * HTTP_BODY_BYTES).collect().await;
    let body = body.map_err(|error| RequestError::Unreachable {
        to: to.to_owned(),
        detail: error.to_string(),
    })?;
    Ok((status, body.to_bytes()))
}

fn parse<A: DeserializeOwned>(to: &str, (status, body): (StatusCode, Bytes)) -> Result<A, RequestError> {
    let answer = |detail: String| RequestError::Answer {
        to: to.to_owned(),
        detail,
    };
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| answer(error.to_string()));
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => Err(RequestError::Refused {
            to: to.to_owned(),
            status,
            body,
        }),
        Err(_) if status.is_server_error() => Err(RequestError::Unreachable {
            to: to.to_owned(),
            detail: status.to_string(),
        }),
        Err(_) => Err(answer(status.to_string())),
    }
}

fn unreachable(to: &str, error: &dyn std::error::Error) -> RequestError {
    RequestError::Unreachable {
        to: to.to_owned(),
        detail: error_chain(error),
    }
}
