//! Logs of containers: kept bounded and read, one not during the other.

use super::Shared;
use super::folder::Folder;
use crate::runtime::log::{Reader, rotate};
use crate::runtime::{LogRequest, LogStream, RuntimeError};
use bytes::Bytes;
use containerd_client::types::v1::Status as TaskStatus;
use roble_core::ids::InstanceId;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Between two looks for new bytes of a followed log.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Looks without new bytes before the container is asked whether it still runs.
const LOOKS_BEFORE_ASKING: u32 = 3;

impl Shared {
    /// Bounds the log of an instance.
    pub(super) async fn rotate_log(self: &Arc<Self>, instance: InstanceId) {
        let shared = Arc::clone(self);
        let rotated = tokio::task::spawn_blocking(move || {
            let folder = Folder::new(&shared.config.state_dir, instance);
            let mut rotations = shared.rotations.write().unwrap_or_else(PoisonError::into_inner);
            let rotated = rotate(&folder.log(), &folder.old_log(), shared.config.log_bytes)?;
            if rotated {
                *rotations.entry(instance).or_insert(0) += 1;
            }
            Ok::<_, io::Error>(())
        });
        if let Ok(Err(error)) = rotated.await {
            tracing::warn!(%instance, %error, "log not rotated");
        }
    }

    /// Runs `read` with the number of rotations so far, while none happens.
    async fn reading<T: Send + 'static>(
        self: &Arc<Self>,
        instance: InstanceId,
        read: impl FnOnce(u64) -> io::Result<T> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let rotations = shared.rotations.read().unwrap_or_else(PoisonError::into_inner);
            read(rotations.get(&instance).copied().unwrap_or(0))
        });
        let result = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        result.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RuntimeError::NoSuchInstance { instance },
            _ => RuntimeError::State {
                what: format!("read log of {instance}"),
                detail: error.to_string(),
            },
        })
    }

    /// The log of an instance, from its folder.
    pub(super) async fn open_log(
        self: &Arc<Self>,
        instance: InstanceId,
        request: LogRequest,
    ) -> Result<LogStream, RuntimeError> {
        let folder = Folder::new(&self.config.state_dir, instance);
        let (log, old) = (folder.log(), folder.old_log());
        let reader = self
            .reading(instance, move |rotations| {
                std::fs::metadata(&log)?;
                Reader::open(log, old, request.tail_lines, rotations)
            })
            .await?;
        let start = Some((Arc::clone(self), reader));
        Ok(Box::pin(futures_util::stream::unfold(start, move |place| async move {
            let (shared, reader) = place?;
            match next_chunk(&shared, instance, reader, request.follow).await {
                Ok(Some((chunk, reader))) => Some((Ok(chunk), Some((shared, reader)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    /// Whether more may come into the log. If containerd is away it may.
    async fn may_write(&self, instance: InstanceId) -> bool {
        match self.get_task(&instance.to_string()).await {
            Ok(Some(task)) => task.status() != TaskStatus::Stopped,
            Ok(None) => false,
            Err(_) => true,
        }
    }
}

async fn next_chunk(
    shared: &Arc<Shared>,
    instance: InstanceId,
    mut reader: Reader,
    follow: bool,
) -> Result<Option<(Bytes, Reader)>, RuntimeError> {
    let mut looks = 0;
    let mut last = !follow;
    loop {
        let (chunk, back) = shared
            .reading(instance, move |rotations| {
                let chunk = reader.read(rotations)?;
                Ok((chunk, reader))
            })
            .await?;
        reader = back;
        if !chunk.is_empty() {
            return Ok(Some((chunk.into(), reader)));
        }
        if last {
            return Ok(None);
        }
        looks += 1;
        if looks % LOOKS_BEFORE_ASKING == 0 && !shared.may_write(instance).await {
            // What was written between the last look and the end is still to be read.
            last = true;
            continue;
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}
