//! Streams of this node's own to its cluster: logs, asked for over the link, with flow control from end to end.

use crate::runtime::{LogRequest, Runtime};
use futures_util::StreamExt as _;
use roble_core::ids::InstanceId;
use roble_daemon::tls::Dialer;
use roble_proto::wire::link_client::LinkClient;
use roble_proto::wire::{Failure, StreamFrame};
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Frames waiting to be sent, per stream.
const QUEUE: usize = 4;

/// Dials streams to the cluster.
pub struct StreamDialer {
    /// `host:port` of the cluster's API.
    pub address: String,
    /// With this node's identity.
    pub dialer: Dialer,
}

impl StreamDialer {
    /// Sends the log of an instance as the stream `stream`, until it ends or nobody reads it any more.
    pub async fn send_logs(&self, stream: String, instance: InstanceId, request: LogRequest, runtime: &dyn Runtime) {
        if let Err(error) = self.try_send_logs(stream, instance, request, runtime).await {
            tracing::warn!(%instance, error = format!("{error:#}"), "log stream ended");
        }
    }

    async fn try_send_logs(
        &self,
        stream: String,
        instance: InstanceId,
        request: LogRequest,
        runtime: &dyn Runtime,
    ) -> anyhow::Result<()> {
        let endpoint =
            Endpoint::from_shared(format!("http://{}", self.address))?.connect_timeout(Duration::from_secs(10));
        let channel = endpoint.connect_with_connector(self.dialer.connector()).await?;
        let (frames, receiver) = tokio::sync::mpsc::channel(QUEUE);
        let call = async move { LinkClient::new(channel).stream(ReceiverStream::new(receiver)).await };
        let feed = async move {
            let first = StreamFrame {
                stream,
                ..StreamFrame::default()
            };
            if frames.send(first).await.is_err() {
                return;
            }
            let failure = |error: crate::runtime::RuntimeError| StreamFrame {
                failure: Some(Failure {
                    code: error.code().to_owned(),
                    message: error.to_string(),
                }),
                ..StreamFrame::default()
            };
            let mut log = match runtime.logs(instance, request).await {
                Ok(log) => log,
                Err(error) => return drop(frames.send(failure(error)).await),
            };
            loop {
                // Whoever read may be gone while the log is silent.
                let piece = tokio::select! {
                    piece = log.next() => piece,
                    () = frames.closed() => return,
                };
                let frame = match piece {
                    Some(Ok(data)) => StreamFrame {
                        data: data.to_vec(),
                        ..StreamFrame::default()
                    },
                    Some(Err(error)) => failure(error),
                    None => return,
                };
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        };
        let (answer, ()) = tokio::join!(call, feed);
        answer?;
        Ok(())
    }
}
