//! HTTP/1.1 and HTTP/2 on one accepted connection.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{Extensions, Request};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower_http::timeout::TimeoutBody;

use super::{Connection, Draining, Limits, PeerAddress, PeerCertificate, PeerIdentity};

/// Windows of HTTP/2 connections and streams: what may be buffered for one peer.
const WINDOW: u32 = 64 * 1024;

pub(super) async fn serve_tls(connection: Connection, router: Router, limits: Arc<Limits>) {
    let Connection {
        mut stream,
        address,
        peer,
        draining,
    } = connection;
    let mut extensions = Extensions::new();
    extensions.insert(PeerIdentity(peer.as_ref().map(|peer| peer.identity.clone())));
    extensions.insert(PeerAddress(address));
    extensions.insert(ConnectInfo(address));
    if let Some(peer) = peer {
        extensions.insert(PeerCertificate(peer));
    }
    // hyper waits without end for a first byte, which tells the version.
    let first = tokio::select! {
        () = draining.cancelled() => return,
        first = tokio::time::timeout(limits.header_timeout, stream.fill_buf()) => first,
    };
    if matches!(first, Ok(Ok(bytes)) if !bytes.is_empty()) {
        serve(stream, router, &limits, extensions, draining).await;
    }
}

/// Serves requests until the peer leaves or, when draining, until those under way are answered.
pub(super) async fn serve<S>(
    stream: S,
    router: Router,
    limits: &Limits,
    mut extensions: Extensions,
    draining: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    extensions.insert(Draining(draining.clone()));
    let (body_timeout, body_bytes) = (limits.body_timeout, limits.body_bytes);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (mut parts, body) = request.into_parts();
        parts.extensions.extend(extensions.clone());
        let mut body = Body::new(body);
        if let Some(limit) = body_bytes {
            body = Body::new(Limited::new(body, limit));
        }
        if let Some(timeout) = body_timeout {
            body = Body::new(TimeoutBody::new(timeout, body));
        }
        router.clone().oneshot(Request::from_parts(parts, body))
    });
    // No upgrades: an upgraded connection would leave this task, and with it the bounds and the revocation.
    let builder = builder(limits);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Peers come and go; that is their business.
        tracing::debug!(error = &*error, "connection ended");
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let header_bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        // hyper refuses less than 8 KiB.
        .max_buf_size(header_bytes.max(8 * 1024));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_interval)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(limits.header_bytes)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_send_buf_size(4 * WINDOW as usize);
    builder
}
