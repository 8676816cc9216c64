//! Pull: a registry's manifest, configuration and layers into containerd's content store.
//!
//! Everything is written under a lease and under refs made of the digests: a pull that was broken off goes on where it
//! stopped while the lease lasts, afterwards containerd collects the pieces. The image record comes last, so that what
//! has a name is complete. containerd verifies the digest of each blob when it is committed.

use super::client::{Client, describe, fresh, is_unavailable, unavailable};
use super::image::{self, MAX_DOCUMENT_BYTES, bad, choose_platform, is_index};
use crate::runtime::RuntimeError;
use crate::runtime::reference::ImageReference;
use crate::runtime::registry::{RegistryConfig, RegistryImage};
use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, CreateImageRequest, Image as ImageRecord, UpdateImageRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use containerd_client::types::Descriptor;
use futures_util::StreamExt;
use oci_spec::image::ImageManifest;
use std::collections::HashMap;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

/// Largest piece sent to containerd at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Pulls `reference` and gives it a name in containerd; `pin` is fetched in place of the tag.
pub(super) async fn pull(
    client: &Client,
    config: &RegistryConfig,
    reference: &ImageReference,
    pin: Option<&str>,
) -> Result<image::Image, RuntimeError> {
    let name = reference.to_string();
    let source = RegistryImage::open(config, reference).await?;
    let (target_bytes, target) = source.manifest(pin).await?;
    check_size(&name, &target_bytes)?;
    let media_type = media_type(&target_bytes);
    let lease = image::lease(client, &format!("pull-{name}-{target}")).await?;
    let writer = Writer {
        client,
        lease: &lease,
        name: &name,
    };

    let (manifest_bytes, manifest_digest) = if is_index(&media_type) {
        let digest = choose_platform(&name, &target_bytes)?;
        let (bytes, found) = source.manifest(Some(&digest)).await?;
        check_size(&name, &bytes)?;
        (bytes, found)
    } else {
        (target_bytes.clone(), target.clone())
    };
    let manifest: ImageManifest = serde_json::from_slice(&manifest_bytes)
        .map_err(|error| bad(&name, format!("its manifest cannot be read: {error}")))?;
    if i64::try_from(manifest.config().size()).is_ok_and(|size| size > MAX_DOCUMENT_BYTES) {
        return Err(bad(&name, "its configuration is too large".to_owned()));
    }
    // The configuration first: it is small and tells the architecture before the layers are moved.
    let mut references = HashMap::new();
    for (at, piece) in std::iter::once(manifest.config()).chain(manifest.layers()).enumerate() {
        let size = i64::try_from(piece.size()).unwrap_or(i64::MAX);
        let digest = piece.digest().to_string();
        writer.copy(&source, piece.media_type().as_ref(), &digest, size).await?;
        references.insert(format!("containerd.io/gc.ref.content.{at}"), digest);
        if at == 0 {
            writer.document(&manifest_digest, &manifest_bytes).await?;
            if image::load(client, &name, &manifest_digest).await?.is_none() {
                return Err(bad(&name, "it vanished while it was pulled".to_owned()));
            }
        }
    }
    image::set_labels(client, &manifest_digest, references).await?;
    if target != manifest_digest {
        writer.document(&target, &target_bytes).await?;
        let label = ("containerd.io/gc.ref.content.m.0".to_owned(), manifest_digest.clone());
        image::set_labels(client, &target, HashMap::from([label])).await?;
    }
    let size = i64::try_from(target_bytes.len()).unwrap_or(i64::MAX);
    let descriptor = Descriptor {
        media_type,
        digest: target.clone(),
        size,
        annotations: HashMap::new(),
    };
    // A pinned image must not move the tag that other services use.
    let record = match pin {
        Some(pin) => ImageReference {
            tag: None,
            digest: Some(pin.to_owned()),
            ..reference.clone()
        }
        .to_string(),
        None => name.clone(),
    };
    record_image(client, &record, descriptor).await?;
    let loaded = image::load(client, &name, &manifest_digest).await?;
    image::end_lease(client, &lease).await;
    loaded.ok_or_else(|| bad(&name, "it vanished while it was pulled".to_owned()))
}

/// Names a complete image; an earlier image of that name gives way.
async fn record_image(client: &Client, name: &str, target: Descriptor) -> Result<(), RuntimeError> {
    let record = ImageRecord {
        name: name.to_owned(),
        target: Some(target),
        ..ImageRecord::default()
    };
    let create = CreateImageRequest {
        image: Some(record.clone()),
        source_date_epoch: None,
    };
    if fresh(client.images().create(client.request(create)).await)
        .map_err(unavailable)?
        .is_none()
    {
        let update = UpdateImageRequest {
            image: Some(record),
            update_mask: None,
            source_date_epoch: None,
        };
        client
            .images()
            .update(client.request(update))
            .await
            .map_err(unavailable)?;
    }
    Ok(())
}

fn check_size(name: &str, bytes: &Bytes) -> Result<(), RuntimeError> {
    let too_large = i64::try_from(bytes.len()).is_ok_and(|size| size > MAX_DOCUMENT_BYTES);
    if too_large {
        Err(bad(name, "its manifest is too large".to_owned()))
    } else {
        Ok(())
    }
}

/// The media type a manifest states, or the one it must have by its content.
fn media_type(manifest: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice(manifest) {
        Ok(Head {
            media_type: Some(media_type),
            ..
        }) => media_type,
        Ok(Head { manifests: Some(_), .. }) => "application/vnd.oci.image.index.v1+json".to_owned(),
        _ => "application/vnd.oci.image.manifest.v1+json".to_owned(),
    }
}

struct Writer<'a> {
    client: &'a Client,
    lease: &'a str,
    name: &'a str,
}

impl Writer<'_> {
    /// Writes a document that is at hand.
    async fn document(&self, digest: &str, bytes: &Bytes) -> Result<(), RuntimeError> {
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let Some((mut ingest, offset)) = self.begin(digest, size).await? else {
            return Ok(());
        };
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..))
            .unwrap_or_default();
        let sent = async {
            ingest.write(rest).await?;
            ingest.commit().await
        };
        self.finish(digest, sent.await).await
    }

    /// Copies a blob from the registry, from where an earlier try stopped.
    async fn copy(&self, from: &RegistryImage, media_type: &str, digest: &str, size: i64) -> Result<(), RuntimeError> {
        let Some((mut ingest, offset)) = self.begin(digest, size).await? else {
            return Ok(());
        };
        let offset = u64::try_from(offset).unwrap_or(0);
        if i64::try_from(offset).is_ok_and(|offset| offset < size) || size == 0 {
            let (mut blob, honoured) = from.blob(media_type, digest, size, offset).await?;
            if !honoured {
                ingest.offset = 0;
            }
            while let Some(chunk) = blob.next().await {
                let chunk = chunk?;
                if ingest.offset.saturating_add(chunk.len() as i64) > size {
                    return Err(bad(
                        self.name,
                        format!("blob {digest} is longer than its manifest says"),
                    ));
                }
                if let Err(status) = ingest.write(&chunk).await {
                    return self.finish(digest, Err(status)).await;
                }
            }
        }
        let committed = ingest.commit().await;
        self.finish(digest, committed).await
    }

    /// Opens the ingest of a blob: where it stands; `None` if the blob is already there.
    async fn begin(&self, digest: &str, size: i64) -> Result<Option<(Ingest, i64)>, RuntimeError> {
        let (sender, receiver) = mpsc::channel(1);
        let head = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: ingest_ref(digest),
            total: size,
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        // The server answers the call only after the first message, so that must be in the channel before.
        let _ = sender.send(head.clone()).await;
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let opened = async {
            let mut answers = self
                .client
                .content()
                .write(self.client.leased(self.lease, stream))
                .await?
                .into_inner();
            let answer = answers
                .message()
                .await?
                .ok_or_else(|| Status::unavailable("the stream ended"))?;
            Ok((answers, answer.offset))
        };
        match fresh(opened.await).map_err(|status: Status| self.error(digest, status))? {
            Some((answers, offset)) => Ok(Some((
                Ingest {
                    sender,
                    answers,
                    head,
                    offset,
                },
                offset,
            ))),
            None => Ok(None),
        }
    }

    async fn finish(&self, digest: &str, result: Result<(), Status>) -> Result<(), RuntimeError> {
        let error = match fresh(result) {
            Ok(_) => return Ok(()),
            Err(status) => self.error(digest, status),
        };
        if !matches!(error, RuntimeError::Unavailable { .. }) {
            // The next try must not go on from bytes that are wrong.
            let abort = AbortRequest {
                r#ref: ingest_ref(digest),
            };
            let _ = self.client.content().abort(self.client.request(abort)).await;
        }
        Err(error)
    }

    fn error(&self, digest: &str, status: Status) -> RuntimeError {
        if is_unavailable(&status) {
            return unavailable(status);
        }
        // containerd answers so to a commit whose size or digest is not the expected one.
        if status.code() == Code::FailedPrecondition {
            let what = format!("blob of {}", self.name);
            return RuntimeError::DigestMismatch {
                what,
                expected: digest.to_owned(),
                found: describe(&status),
            };
        }
        let (what, detail) = (format!("store blob {digest} of {}", self.name), describe(&status));
        RuntimeError::State { what, detail }
    }
}

/// The name of a write in progress; the same for the same blob, so that a later try finds it.
fn ingest_ref(digest: &str) -> String {
    format!("roble-{digest}")
}

/// An open write of one blob.
struct Ingest {
    sender: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    head: WriteContentRequest,
    offset: i64,
}

impl Ingest {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Status> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.send(WriteAction::Write, chunk.to_vec()).await?;
            self.offset += chunk.len() as i64;
        }
        Ok(())
    }

    /// An offset of 0 would truncate what was written, so every message carries the real one.
    async fn commit(&mut self) -> Result<(), Status> {
        self.send(WriteAction::Commit, Vec::new()).await
    }

    async fn send(&mut self, action: WriteAction, data: Vec<u8>) -> Result<(), Status> {
        let message = WriteContentRequest {
            action: action as i32,
            offset: self.offset,
            data,
            ..self.head.clone()
        };
        // If the stream is closed the answer tells why.
        let _ = self.sender.send(message).await;
        self.answers
            .message()
            .await?
            .ok_or_else(|| Status::unavailable("the stream ended"))?;
        Ok(())
    }
}
