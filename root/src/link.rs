//! The clusters' links: one gRPC stream each, over mutual TLS. Who a cluster is says its certificate.

use crate::metrics::RootMetrics;
use crate::streams::LogStreams;
use crate::tier::Event;
use axum::Router;
use futures_util::Stream;
use roble_core::ids::ClusterId;
use roble_daemon::CancellationToken;
use roble_daemon::pki::Identity;
use roble_daemon::serve::{Draining, PeerIdentity};
use roble_proto::limits::GRPC_MESSAGE_BYTES;
use roble_proto::wire::link_server::{Link, LinkServer};
use roble_proto::wire::{Frame, StreamEnd, StreamFrame};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Frames that wait for one cluster; a cluster that is further behind is dropped and starts anew.
const QUEUE: usize = 256;

/// The current stream of every connected cluster. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Links {
    inner: Arc<Mutex<Inner>>,
    metrics: RootMetrics,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    streams: HashMap<ClusterId, Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    number: u64,
    frames: mpsc::Sender<Result<Frame, Status>>,
    closed: CancellationToken,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// A stream that was just opened.
struct Opened {
    number: u64,
    sender: mpsc::Sender<Result<Frame, Status>>,
    frames: mpsc::Receiver<Result<Frame, Status>>,
    closed: CancellationToken,
}

impl Links {
    /// Nobody is connected.
    pub fn new(metrics: RootMetrics) -> Self {
        Self {
            inner: Arc::default(),
            metrics,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends to a cluster, if it is connected; drops its stream if it does not keep up.
    pub fn send(&self, cluster: ClusterId, frame: Frame) {
        let mut inner = self.inner();
        let Some(stream) = inner.streams.get(&cluster) else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = stream.frames.try_send(Ok(frame)) {
            inner.streams.remove(&cluster);
            self.metrics.slow_links.inc();
            tracing::warn!(%cluster, "cluster does not keep up, link dropped");
        }
    }

    /// Ends the stream of a cluster.
    pub fn close(&self, cluster: ClusterId) {
        self.inner().streams.remove(&cluster);
    }

    /// A newer stream of a cluster takes the place of an older one.
    fn open(&self, cluster: ClusterId) -> Opened {
        let (sender, frames) = mpsc::channel(QUEUE);
        let closed = CancellationToken::new();
        let mut inner = self.inner();
        inner.next += 1;
        let number = inner.next;
        let outgoing = Outgoing {
            number,
            frames: sender.clone(),
            closed: closed.clone(),
        };
        if inner.streams.insert(cluster, outgoing).is_some() {
            tracing::info!(%cluster, "link replaced by a newer one");
        }
        Opened {
            number,
            sender,
            frames,
            closed,
        }
    }

    /// Forgets the stream `number`. Returns whether the cluster has no other now.
    fn forget(&self, cluster: ClusterId, number: u64) -> bool {
        let mut inner = self.inner();
        if inner
            .streams
            .get(&cluster)
            .is_some_and(|stream| stream.number == number)
        {
            inner.streams.remove(&cluster);
        }
        !inner.streams.contains_key(&cluster)
    }
}

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct LinkService {
    /// Where frames to clusters come from.
    pub links: Links,
    /// Log streams that were asked for.
    pub logs: LogStreams,
    /// Into the tier.
    pub events: mpsc::Sender<Event>,
}

impl LinkService {
    /// As a router for the accept loop.
    pub fn router(self) -> Router {
        let server = LinkServer::new(self)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES);
        tonic::service::Routes::new(server).into_axum_router()
    }
}

/// The cluster behind a request, as its certificate says.
fn cluster_of<T>(request: &Request<T>) -> Result<ClusterId, Status> {
    let refused = || Status::permission_denied("only clusters have a link here");
    match request.extensions().get::<PeerIdentity>() {
        Some(PeerIdentity(Some(Identity::Cluster(id)))) => id.parse().map_err(|_| refused()),
        _ => Err(refused()),
    }
}

fn draining<T>(request: &Request<T>) -> CancellationToken {
    let draining = request.extensions().get::<Draining>();
    draining.map_or_else(CancellationToken::new, |draining| draining.0.clone())
}

#[tonic::async_trait]
impl Link for LinkService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::SessionStream>, Status> {
        let (cluster, draining) = (cluster_of(&request)?, draining(&request));
        let incoming = request.into_inner();
        let opened = self.links.open(cluster);
        let (number, closed, sender) = (opened.number, opened.closed, opened.sender);
        tracing::info!(%cluster, "link opened");
        let (links, events) = (self.links.clone(), self.events.clone());
        tokio::spawn(async move {
            let why = tokio::select! {
                why = pump(cluster, incoming, &events) => why,
                () = closed.cancelled() => "closed here".to_owned(),
                () = sender.closed() => "the cluster left".to_owned(),
                () = draining.cancelled() => "the root stops".to_owned(),
            };
            tracing::info!(%cluster, %why, "link ended");
            if links.forget(cluster, number) {
                // Fails only if the tier has stopped.
                let _ = events.send(Event::Down(cluster)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(opened.frames))))
    }

    async fn stream(&self, request: Request<Streaming<StreamFrame>>) -> Result<Response<StreamEnd>, Status> {
        let (cluster, draining) = (cluster_of(&request)?, draining(&request));
        let mut incoming = request.into_inner();
        let mut next = incoming.message().await?;
        let id = next.as_ref().map(|first| first.stream.clone()).unwrap_or_default();
        let Some(reader) = self.logs.take(&id) else {
            return Err(Status::not_found("nobody waits for this stream (any more)"));
        };
        tracing::debug!(%cluster, "log stream opened");
        while let Some(frame) = next {
            let last = frame.failure.is_some();
            if reader.send(frame).await.is_err() {
                return Err(Status::cancelled("the reader has left"));
            }
            if last {
                break;
            }
            next = tokio::select! {
                next = incoming.message() => next?,
                () = reader.closed() => return Err(Status::cancelled("the reader has left")),
                () = draining.cancelled() => return Err(Status::unavailable("the root stops")),
            };
        }
        Ok(Response::new(StreamEnd {}))
    }
}

/// Passes frames to the tier until the stream ends; says why it did.
async fn pump(cluster: ClusterId, mut incoming: Streaming<Frame>, events: &mpsc::Sender<Event>) -> String {
    loop {
        match incoming.message().await {
            Ok(Some(frame)) => {
                if events.send(Event::Message(cluster, frame)).await.is_err() {
                    return "the root stops".to_owned();
                }
            }
            Ok(None) => return "the cluster ended it".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}
