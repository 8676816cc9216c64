//! Dialing an address and proving who answers.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientTls;

/// Time for name lookup, TCP and TLS together, unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// No connection was made. All are worth another try later, except that [`DialError::Handshake`] may need a person.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("connect to {address}")]
    Connect {
        /// What was dialed.
        address: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The other side is not who it should be, or does not speak TLS 1.3.
    #[error("TLS handshake with {address}")]
    Handshake {
        /// What was dialed.
        address: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("no answer from {address} within {timeout:?}")]
    Timeout {
        /// What was dialed.
        address: String,
        /// The time that was given.
        timeout: Duration,
    },
    /// The URI has no host or no port.
    #[error("{uri} has no host and port")]
    Uri {
        /// As given.
        uri: String,
    },
}

/// Opens TLS connections to one member of the tree, at whatever addresses it has.
///
/// With TLS 1.3 the server judges the client's certificate after the client's handshake is done: a refusal shows as an
/// error of the first read.
#[derive(Debug, Clone)]
pub struct Dialer {
    tls: ClientTls,
    timeout: Duration,
}

impl Dialer {
    /// With 10 seconds per attempt.
    pub fn new(tls: ClientTls) -> Self {
        Self {
            tls,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Another time per attempt, for name lookup, TCP and TLS together.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its TLS side, for swapping the certificate.
    pub fn tls(&self) -> &ClientTls {
        &self.tls
    }

    /// Dials `address` (`host:port`, `[v6]:port`) once. Dropping the future gives up.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn connect(&self, address: &str) -> Result<TlsStream<TcpStream>, DialError> {
        let attempt = async {
            let connect = |source| DialError::Connect {
                address: address.into(),
                source,
            };
            let stream = TcpStream::connect(address).await.map_err(connect)?;
            stream.set_nodelay(true).map_err(connect)?;
            TlsConnector::from(self.tls.config())
                .connect(self.tls.server_name(), stream)
                .await
                .map_err(|source| DialError::Handshake {
                    address: address.into(),
                    source,
                })
        };
        match tokio::time::timeout(self.timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout {
                address: address.into(),
                timeout: self.timeout,
            }),
        }
    }

    /// For `tonic::transport::Endpoint::connect_with_connector` and hyper-util's client. Give them `http://` URIs: TLS is
    /// in the connector.
    pub fn connector(&self) -> Connector {
        Connector(self.clone())
    }
}

/// A [`Dialer`] as a service from URI to connection.
#[derive(Debug, Clone)]
pub struct Connector(Dialer);

impl tower::Service<Uri> for Connector {
    type Response = DialedStream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            let address = match (uri.host(), uri.port_u16()) {
                (Some(host), Some(port)) => format!("{host}:{port}"),
                _ => {
                    return Err(DialError::Uri { uri: uri.to_string() });
                }
            };
            dialer
                .connect(&address)
                .await
                .map(|stream| DialedStream(TokioIo::new(stream)))
        })
    }
}

/// What a [`Connector`] opens: a TLS connection as hyper wants it.
#[derive(Debug)]
pub struct DialedStream(TokioIo<TlsStream<TcpStream>>);

impl Connection for DialedStream {
    fn connected(&self) -> Connected {
        match self.0.inner().get_ref().1.alpn_protocol() {
            Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl Read for DialedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for DialedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, buffers)
    }
}
