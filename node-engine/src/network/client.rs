//! The net manager's local API over its Unix socket. One connection per request: the net manager may restart at any time.

use super::{Attach, Attached, Network, NetworkError};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use roble_proto::local_net::LocalError;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The [`Network`] of this node.
#[derive(Debug, Clone)]
pub struct NetClient {
    socket: PathBuf,
    timeout: Duration,
}

impl NetClient {
    /// Talks to the net manager at `socket`; a request may take `timeout` (10 s is plenty).
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout }
    }

    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, NetworkError> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(http::header::HOST, "roble-net")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body)))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await?
                .to_bytes();
            driver.abort();
            Ok::<_, Box<dyn Error + Send + Sync>>((status, bytes))
        };
        let (status, bytes) = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.unavailable(error.to_string())),
            Err(_) => return Err(self.unavailable(format!("no answer within {:?}", self.timeout))),
        };
        if status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<LocalError>(&bytes) {
            Ok(LocalError { code, message }) => Err(NetworkError::Refused { code, message }),
            // Bounds of the listener are answered without a body of ours.
            Err(_) if status == StatusCode::PAYLOAD_TOO_LARGE => Err(NetworkError::Refused {
                code: "invalid".into(),
                message: "the request is too large".into(),
            }),
            Err(_) => Err(self.unavailable(format!("status {status}"))),
        }
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, NetworkError> {
        serde_json::from_slice(bytes).map_err(|error| self.unavailable(error.to_string()))
    }

    fn unavailable(&self, reason: String) -> NetworkError {
        NetworkError::Unavailable {
            socket: self.socket.clone(),
            reason,
        }
    }
}

/// The path of one attachment; whatever `container` is, it stays one segment.
fn attachment(container: &str) -> String {
    let mut path = "/v1/attachments/".to_owned();
    for byte in container.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' => path.push(byte.into()),
            _ => drop(write!(path, "%{byte:02X}")),
        }
    }
    path
}

#[async_trait]
impl Network for NetClient {
    async fn attach(&self, container: &str, wish: &Attach) -> Result<Attached, NetworkError> {
        let body = serde_json::to_vec(wish).map_err(|error| NetworkError::Refused {
            code: "invalid".into(),
            message: format!("the path of the namespace is not text: {error}"),
        })?;
        let answer = self.call(Method::PUT, &attachment(container), body).await?;
        self.decode(&answer)
    }

    async fn detach(&self, container: &str) -> Result<(), NetworkError> {
        self.call(Method::DELETE, &attachment(container), Vec::new())
            .await
            .map(drop)
    }

    async fn list(&self) -> Result<Vec<Attached>, NetworkError> {
        let answer = self.call(Method::GET, "/v1/attachments", Vec::new()).await?;
        self.decode(&answer)
    }

    async fn trace(&self, question: Vec<u8>) -> Result<Vec<u8>, NetworkError> {
        let answer = self.call(Method::POST, "/v1/trace", question).await?;
        Ok(answer.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_one_segment() {
        assert_eq!(attachment("a.b_c-1"), "/v1/attachments/a.b_c-1");
        assert_eq!(attachment("a/../b?c#"), "/v1/attachments/a%2F..%2Fb%3Fc%23");
    }

    #[tokio::test]
    async fn nobody_there_is_unavailable() {
        let client = NetClient::new("/nowhere/net.sock".into(), Duration::from_secs(1));
        assert_eq!(client.list().await.unwrap_err().code(), "net-unavailable");
    }
}
