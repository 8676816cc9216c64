//! Images in containerd: find, choose the platform, verify, unpack.

use super::client::{Client, describe, fresh, optional, unavailable};
use super::lease::Lease;
use crate::runtime::reference::{ImageReference, machine_architecture};
use crate::runtime::{ImageInfo, RuntimeError};
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, GetImageRequest, Info, ListImagesRequest, ReadContentRequest, UpdateRequest,
};
use containerd_client::types::Descriptor;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use prost_types::FieldMask;
use roble_daemon::failpoint;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Largest manifest, index or configuration that is read.
pub(super) const MAX_DOCUMENT_BYTES: i64 = 4 << 20;

/// A manifest with its configuration, both read and parsed.
#[derive(Debug)]
pub(super) struct Image {
    /// Normalised reference, for errors and containerd's records.
    pub(super) reference: String,
    /// Digest of the manifest.
    pub(super) digest: String,
    pub(super) manifest: ImageManifest,
    pub(super) config: ImageConfiguration,
}

impl Image {
    /// The name of the snapshot that holds all layers.
    pub(super) fn chain_id(&self) -> String {
        chain_ids(self.config.rootfs().diff_ids()).pop().unwrap_or_default()
    }

    pub(super) fn info(&self) -> ImageInfo {
        ImageInfo {
            reference: self.reference.clone(),
            digest: self.digest.clone(),
            size_bytes: self.manifest.layers().iter().map(|layer| layer.size()).sum(),
        }
    }
}

/// Whether a media type is that of an index.
pub(super) fn is_index(media_type: &str) -> bool {
    media_type.contains("image.index") || media_type.contains("manifest.list")
}

/// Reads a small blob and verifies its digest; `None` if containerd does not have it.
pub(super) async fn read_document(client: &Client, digest: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: MAX_DOCUMENT_BYTES,
    };
    let mut stream = match optional(client.content().read(client.request(request)).await).map_err(unavailable)? {
        Some(response) => response.into_inner(),
        None => return Ok(None),
    };
    let mut bytes = Vec::new();
    // "Not found" may also come with the first message.
    while let Some(message) = optional(stream.message().await).map_err(unavailable)?.flatten() {
        bytes.extend_from_slice(&message.data);
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let found = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    if found != digest {
        let what = "document in containerd's store".to_owned();
        return Err(RuntimeError::DigestMismatch {
            what,
            expected: digest.to_owned(),
            found,
        });
    }
    Ok(Some(bytes))
}

/// The image of this manifest digest with its configuration; `None` if a piece is missing.
pub(super) async fn load(client: &Client, reference: &str, digest: &str) -> Result<Option<Image>, RuntimeError> {
    let Some(bytes) = read_document(client, digest).await? else {
        return Ok(None);
    };
    let manifest: ImageManifest = parse(reference, "manifest", &bytes)?;
    let Some(bytes) = read_document(client, manifest.config().digest().as_ref()).await? else {
        return Ok(None);
    };
    let config: ImageConfiguration = parse(reference, "configuration", &bytes)?;
    let (layers, diffs) = (manifest.layers().len(), config.rootfs().diff_ids().len());
    if layers != diffs || layers == 0 {
        return Err(bad(reference, format!("it has {layers} layers and {diffs} layer ids")));
    }
    let (offered, machine) = (config.architecture().to_string(), machine_architecture());
    if offered != machine || config.os().to_string() != "linux" {
        let offered = format!("{}/{offered}", config.os());
        let (reference, machine) = (reference.to_owned(), format!("linux/{machine}"));
        return Err(RuntimeError::WrongArchitecture {
            reference,
            offered,
            machine,
        });
    }
    Ok(Some(Image {
        reference: reference.to_owned(),
        digest: digest.to_owned(),
        manifest,
        config,
    }))
}

/// The entry of an index for this machine: its digest.
pub(super) fn choose_platform(reference: &str, index: &[u8]) -> Result<String, RuntimeError> {
    let index: ImageIndex = parse(reference, "index", index)?;
    let machine = machine_architecture();
    let mut offered = Vec::new();
    for entry in index.manifests() {
        let Some(platform) = entry.platform() else {
            // An index with a single entry may leave its platform out; the configuration tells it later.
            if index.manifests().len() == 1 {
                return Ok(entry.digest().to_string());
            }
            continue;
        };
        if platform.os().to_string() == "linux" && platform.architecture().to_string() == machine {
            return Ok(entry.digest().to_string());
        }
        if platform.os().to_string() != "unknown" {
            offered.push(format!("{}/{}", platform.os(), platform.architecture()));
        }
    }
    let offered = if offered.is_empty() {
        "no platform".to_owned()
    } else {
        offered.join(", ")
    };
    let (reference, machine) = (reference.to_owned(), format!("linux/{machine}"));
    Err(RuntimeError::WrongArchitecture {
        reference,
        offered,
        machine,
    })
}

/// What containerd has under a name of this reference: the target's digest and the image; `None` if a piece is missing.
pub(super) async fn find(
    client: &Client,
    reference: &ImageReference,
    written: &str,
) -> Result<Option<(String, Image)>, RuntimeError> {
    for name in names(reference, written) {
        let request = client.request(GetImageRequest { name });
        let found = optional(client.images().get(request).await).map_err(unavailable)?;
        let target = found
            .and_then(|response| response.into_inner().image)
            .and_then(|image| image.target);
        if let Some(target) = target
            && let Some(image) = load_target(client, &reference.to_string(), &target).await?
        {
            return Ok(Some((target.digest, image)));
        }
    }
    Ok(None)
}

/// The image of a pinned digest, under whatever name containerd has it.
pub(super) async fn find_digest(client: &Client, reference: &str, digest: &str) -> Result<Option<Image>, RuntimeError> {
    let filters = vec![format!("target.digest=={digest}")];
    let listed = client
        .images()
        .list(client.request(ListImagesRequest { filters }))
        .await
        .map_err(unavailable)?;
    match listed.into_inner().images.into_iter().find_map(|image| image.target) {
        Some(target) => load_target(client, reference, &target).await,
        None => Ok(None),
    }
}

async fn load_target(client: &Client, reference: &str, target: &Descriptor) -> Result<Option<Image>, RuntimeError> {
    if !is_index(&target.media_type) {
        return load(client, reference, &target.digest).await;
    }
    let Some(index) = read_document(client, &target.digest).await? else {
        return Ok(None);
    };
    let digest = choose_platform(reference, &index)?;
    load(client, reference, &digest).await
}

/// Names under which people and tools may have stored the image: the full one, as written, and the short ones.
fn names(reference: &ImageReference, written: &str) -> Vec<String> {
    let full = reference.to_string();
    let mut names = vec![full.clone(), written.to_owned()];
    names.extend(full.strip_prefix("docker.io/").map(str::to_owned));
    names.extend(full.strip_prefix("docker.io/library/").map(str::to_owned));
    names.dedup();
    names
}

/// Makes the snapshot of every layer, from the lowest up; does nothing for those that exist.
pub(super) async fn unpack(
    client: &Client,
    snapshotter: &str,
    image: &Image,
    settled: &Mutex<HashSet<String>>,
) -> Result<(), RuntimeError> {
    let chain = chain_ids(image.config.rootfs().diff_ids());
    let top = chain.last().cloned().unwrap_or_default();
    let is_settled = || settled.lock().unwrap_or_else(PoisonError::into_inner).contains(&top);
    let settle = || {
        settled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(top.clone())
    };
    let purpose = format!("unpack-{top}");
    if has_snapshot(client, snapshotter, &top).await? {
        // An engine that died after the last layer has left the label undone and its lease behind.
        if !is_settled() {
            label(client, snapshotter, image).await?;
            Lease::end_left(client, &purpose).await?;
            settle();
        }
        return Ok(());
    }
    let lease = Lease::begin(client, &purpose).await?;
    failpoint!("node.unpack.lease");
    let done = unpack_layers(client, snapshotter, image, lease.id(), &chain).await;
    lease.settle(client, done).await?;
    settle();
    Ok(())
}

async fn unpack_layers(
    client: &Client,
    snapshotter: &str,
    image: &Image,
    lease: &str,
    chain: &[String],
) -> Result<(), RuntimeError> {
    let mut parent = String::new();
    for ((layer, diff_id), name) in image
        .manifest
        .layers()
        .iter()
        .zip(image.config.rootfs().diff_ids())
        .zip(chain)
    {
        if !has_snapshot(client, snapshotter, name).await? {
            let descriptor = Descriptor {
                media_type: layer.media_type().to_string(),
                digest: layer.digest().to_string(),
                size: i64::try_from(layer.size()).unwrap_or(i64::MAX),
                annotations: HashMap::new(),
            };
            let target = Layer {
                descriptor,
                diff_id,
                name,
                parent: &parent,
            };
            unpack_layer(client, snapshotter, &image.reference, lease, &target).await?;
        }
        parent.clone_from(name);
    }
    failpoint!("node.unpack.committed");
    label(client, snapshotter, image).await?;
    failpoint!("node.unpack.labelled");
    Ok(())
}

/// From the configuration's label containerd's collector knows that the image needs the snapshot.
async fn label(client: &Client, snapshotter: &str, image: &Image) -> Result<(), RuntimeError> {
    let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    set_labels(
        client,
        image.manifest.config().digest().as_ref(),
        HashMap::from([(label, image.chain_id())]),
    )
    .await
}

struct Layer<'a> {
    descriptor: Descriptor,
    diff_id: &'a str,
    name: &'a str,
    parent: &'a str,
}

async fn unpack_layer(
    client: &Client,
    snapshotter: &str,
    reference: &str,
    lease: &str,
    layer: &Layer<'_>,
) -> Result<(), RuntimeError> {
    let failed = |what: &str, status: tonic::Status| {
        if super::client::is_unavailable(&status) {
            return unavailable(status);
        }
        bad(
            reference,
            format!("{what} layer {}: {}", layer.descriptor.digest, describe(&status)),
        )
    };
    // One process unpacks one image at a time (lock by reference), but two images may share the layer.
    let key = format!("roble-extract-{}-{}", lease.get(..32).unwrap_or(lease), layer.name);
    let remove = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
    };
    // Left behind by a crash: its content is unknown.
    optional(client.snapshots().remove(client.request(remove.clone())).await).map_err(|s| failed("clear", s))?;
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: layer.parent.to_owned(),
        labels: HashMap::new(),
    };
    let prepared = client.snapshots().prepare(client.leased(lease, prepare)).await;
    let mounts = prepared
        .map_err(|status| failed("prepare", status))?
        .into_inner()
        .mounts;
    failpoint!("node.unpack.prepared");
    let apply = ApplyRequest {
        diff: Some(layer.descriptor.clone()),
        mounts,
        ..ApplyRequest::default()
    };
    let applied = client.diff().apply(client.leased(lease, apply)).await;
    let found = match applied {
        Ok(response) => response
            .into_inner()
            .applied
            .map(|descriptor| descriptor.digest)
            .unwrap_or_default(),
        Err(status) => {
            let _ = client.snapshots().remove(client.request(remove)).await;
            return Err(failed("unpack", status));
        }
    };
    if found != layer.diff_id {
        let _ = client.snapshots().remove(client.request(remove)).await;
        let what = format!("unpacked layer {} of {reference}", layer.descriptor.digest);
        return Err(RuntimeError::DigestMismatch {
            what,
            expected: layer.diff_id.to_owned(),
            found,
        });
    }
    failpoint!("node.unpack.applied");
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: layer.name.to_owned(),
        key,
        labels: HashMap::new(),
    };
    let committed = fresh(client.snapshots().commit(client.leased(lease, commit)).await);
    if committed.map_err(|status| failed("commit", status))?.is_none() {
        let _ = client.snapshots().remove(client.request(remove)).await;
    }
    Ok(())
}

async fn has_snapshot(client: &Client, snapshotter: &str, key: &str) -> Result<bool, RuntimeError> {
    let request = StatSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let found = optional(client.snapshots().stat(client.request(request)).await).map_err(unavailable)?;
    Ok(found.is_some())
}

/// Sets labels of a blob, leaving its others as they are.
pub(super) async fn set_labels(
    client: &Client,
    digest: &str,
    labels: HashMap<String, String>,
) -> Result<(), RuntimeError> {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Info {
        digest: digest.to_owned(),
        labels,
        ..Info::default()
    };
    let request = UpdateRequest {
        info: Some(info),
        update_mask: Some(FieldMask { paths }),
    };
    client
        .content()
        .update(client.request(request))
        .await
        .map_err(unavailable)?;
    Ok(())
}

/// Names of the snapshots of a stack of layers (OCI image specification, "ChainID").
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{parent} {diff_id}")))),
        };
        chain.push(next);
    }
    chain
}

fn parse<T: serde::de::DeserializeOwned>(reference: &str, what: &str, bytes: &[u8]) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|error| bad(reference, format!("its {what} cannot be read: {error}")))
}

pub(super) fn bad(reference: &str, detail: String) -> RuntimeError {
    RuntimeError::BadImage {
        reference: reference.to_owned(),
        detail,
    }
}
