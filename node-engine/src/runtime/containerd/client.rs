//! The connection to containerd: one channel that reconnects by itself, and the metadata every request carries.

use crate::runtime::RuntimeError;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How long an ordinary call may take; a slow flash card needs some seconds for a write to disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// containerd's services, in one containerd namespace.
#[derive(Debug, Clone)]
pub(super) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    /// A client of the containerd at `socket`. Does not connect yet: each call connects anew if the connection is lost,
    /// so a restart of containerd shows up as failed calls and ends by itself.
    pub(super) fn new(socket: &Path, namespace: &str) -> Result<Self, RuntimeError> {
        let namespace = namespace.parse().map_err(|_| RuntimeError::Unavailable {
            detail: format!("`{namespace}` is not a containerd namespace"),
        })?;
        let socket = socket.to_owned();
        // The URI is never used: the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5));
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }));
        Ok(Self { channel, namespace })
    }

    /// A request with a time limit.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unlimited(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A request that may take any time: waiting for an end, moving an image.
    pub(super) fn unlimited<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request without a time limit whose results are kept by the lease until that ends.
    pub(super) fn leased<T>(&self, lease: &str, message: T) -> Request<T> {
        let mut request = self.unlimited(message);
        let lease = lease.parse().expect("lease ids are made of hex digits and dashes");
        request.metadata_mut().insert("containerd-lease", lease);
        request
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(super) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    pub(super) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(super) fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}

/// Whether containerd did not answer, as opposed to having answered with an error.
pub(super) fn is_unavailable(status: &Status) -> bool {
    // A broken connection comes as `Unknown` with the transport's error as source.
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    ) || status.source().is_some()
}

/// The text of a status: code, message and what is below.
pub(super) fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = status.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// [`RuntimeError::Unavailable`] for a call that has no other way to fail.
pub(super) fn unavailable(status: Status) -> RuntimeError {
    RuntimeError::Unavailable {
        detail: describe(&status),
    }
}

/// Turns "not found" into `None`.
pub(super) fn optional<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Turns "already exists" into `None`.
pub(super) fn fresh<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        Err(status) => Err(status),
    }
}
