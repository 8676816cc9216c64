//! Streams that a node brings and the root takes: frames are passed on one by one, so that whoever is slow slows the
//! whole way, and nothing piles up here.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::Stream;
use roble_core::ids::ClusterId;
use roble_daemon::pki::Identity;
use roble_daemon::serve::PeerIdentity;
use roble_proto::wire::link_client::LinkClient;
use roble_proto::wire::link_server::Link;
use roble_proto::wire::{Failure, Frame, StreamEnd, StreamFrame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::ClusterMetrics;
use crate::uplink::RootLink;

/// How long a stream may take to arrive.
const KEPT: Duration = Duration::from_secs(30);
/// Time for its first frame.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// Largest piece of a stream.
pub const PIECE_BYTES: usize = 1024 * 1024;
/// Streams expected at a time.
const MOST: usize = 1_024;

/// Streams that the root has asked for and that have not arrived yet.
#[derive(Debug, Default)]
pub struct Streams(Mutex<HashMap<String, Instant>>);

impl Streams {
    fn expected(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node will bring this one.
    pub fn expect(&self, stream: String) {
        let mut expected = self.expected();
        expected.retain(|_, since| since.elapsed() < KEPT);
        if expected.len() < MOST {
            expected.insert(stream, Instant::now());
        }
    }

    /// It is here; `false` if nobody expects it, or not any more.
    fn take(&self, stream: &str) -> bool {
        self.expected()
            .remove(stream)
            .is_some_and(|since| since.elapsed() < KEPT)
    }
}

/// The service that nodes dial.
pub struct NodeStreams {
    /// The cluster whose nodes may come.
    pub cluster: ClusterId,
    /// Which streams are expected.
    pub streams: std::sync::Arc<Streams>,
    /// Where they go.
    pub root: RootLink,
    /// What is counted.
    pub metrics: ClusterMetrics,
}

#[tonic::async_trait]
impl Link for NodeStreams {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn session(&self, _: Request<Streaming<Frame>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("a node's session goes over MQTT"))
    }

    async fn stream(&self, request: Request<Streaming<StreamFrame>>) -> Result<Response<StreamEnd>, Status> {
        let of = match request.extensions().get::<PeerIdentity>() {
            Some(PeerIdentity(Some(Identity::Node { cluster, node }))) if *cluster == self.cluster.to_string() => {
                node.clone()
            }
            _ => {
                return Err(Status::unauthenticated(
                    "a certificate of a node of this cluster is needed",
                ));
            }
        };
        let mut pieces = request.into_inner();
        let first = tokio::time::timeout(FIRST_WITHIN, pieces.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first frame"))??
            .ok_or_else(|| Status::invalid_argument("no first frame"))?;
        if !self.streams.take(&first.stream) {
            return Err(Status::not_found("nobody expects this stream, or not any more"));
        }
        tracing::debug!(node = of, stream = first.stream, "stream passed on");
        self.metrics.streams.inc();
        let unavailable = |error: tonic::transport::Error| Status::unavailable(format!("the root: {error}"));
        let channel = self.root.connect().await.map_err(unavailable)?;
        let mut client = LinkClient::new(channel).max_encoding_message_size(PIECE_BYTES);
        let (onward, queue) = mpsc::channel(1);
        let pass = async {
            let mut next = Some(first);
            while let Some(piece) = next {
                if onward.send(piece).await.is_err() {
                    // The root has heard enough; its answer says so.
                    break;
                }
                next = match pieces.message().await {
                    Ok(next) => next,
                    Err(status) => {
                        let failure = Failure {
                            code: "stream-broken".to_owned(),
                            message: status.message().to_owned(),
                        };
                        let last = StreamFrame {
                            failure: Some(failure),
                            ..StreamFrame::default()
                        };
                        let _ = onward.send(last).await;
                        None
                    }
                };
            }
            drop(onward);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = client.stream(ReceiverStream::new(queue)) => answer,
            () = pass => Err(Status::internal("passing on ended")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_once_and_only_if_expected() {
        let streams = Streams::default();
        assert!(!streams.take("a"));
        streams.expect("a".into());
        assert!(streams.take("a") && !streams.take("a"));
    }
}
