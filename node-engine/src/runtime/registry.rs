//! Registries: where images come from when this machine does not have them.
//!
//! HTTPS always, except for registries named in [`RegistryConfig::insecure_registries`]. Credentials come from a file
//! in Docker's `config.json` format, read again for each pull, so that a changed password needs no restart.

use super::RuntimeError;
use super::reference::{DEFAULT_REGISTRY, ImageReference};
use base64::Engine;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// What may be asked for as a manifest.
const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// `host:port` of registries spoken to without TLS; for tests and closed networks.
    pub insecure_registries: Vec<String>,
    /// Credentials in the format of Docker's `config.json`; none: anonymous.
    pub credentials_file: Option<PathBuf>,
    /// Proxy for HTTPS, as a URL.
    pub https_proxy: Option<String>,
}

/// Chunks of a blob.
pub(super) type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RuntimeError>> + Send>>;

/// One image of one registry, for the time of one pull.
pub(super) struct RegistryImage {
    client: Client,
    auth: RegistryAuth,
    image: ImageReference,
}

impl RegistryImage {
    /// Prepares to pull `image`; reads the credentials, does not connect.
    pub(super) async fn open(config: &RegistryConfig, image: &ImageReference) -> Result<Self, RuntimeError> {
        // Fails only if a provider is already chosen, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let auth = match &config.credentials_file {
            None => RegistryAuth::Anonymous,
            Some(path) => {
                let error = |detail: String| RuntimeError::State {
                    what: format!("read registry credentials {}", path.display()),
                    detail,
                };
                let text = tokio::fs::read(path)
                    .await
                    .map_err(|source| error(source.to_string()))?;
                credentials(&text, &image.registry).map_err(error)?
            }
        };
        // Not `Client::new`: with a configuration that it cannot take it goes on with its own, without our proxy and list of
        // insecure registries, and panics on a machine without certificates of authorities.
        let client = Client::try_from(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(config.insecure_registries.clone()),
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(60)),
            https_proxy: config.https_proxy.clone(),
            user_agent: concat!("roble-node/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| classify(image, error))?;
        client.store_auth_if_needed(self::host(&image.registry), &auth).await;
        Ok(Self {
            client,
            auth,
            image: image.clone(),
        })
    }

    /// The manifest or index the reference names, or the one of `digest`; its bytes and digest, verified.
    pub(super) async fn manifest(&self, digest: Option<&str>) -> Result<(Bytes, String), RuntimeError> {
        let reference = self.reference(digest.or(self.image.digest.as_deref()))?;
        let pulled = self
            .client
            .pull_manifest_raw(&reference, &self.auth, MANIFEST_TYPES)
            .await;
        pulled.map_err(|error| self.error(error))
    }

    /// The bytes of a blob from `offset` on, and whether the registry honoured the offset; if not, they begin at 0.
    pub(super) async fn blob(
        &self,
        media_type: &str,
        digest: &str,
        size: i64,
        offset: u64,
    ) -> Result<(BlobStream, bool), RuntimeError> {
        let reference = self.reference(None)?;
        let descriptor = OciDescriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size,
            ..OciDescriptor::default()
        };
        let (image, registry) = (self.image.to_string(), self.image.registry.clone());
        let failed = move |error: std::io::Error| match error.downcast::<oci_client::errors::DigestError>() {
            Ok(digest) => RuntimeError::DigestMismatch {
                what: format!("layer of {image}"),
                expected: "the digest of its manifest".to_owned(),
                found: digest.to_string(),
            },
            Err(error) => RuntimeError::RegistryUnreachable {
                registry: registry.clone(),
                detail: error.to_string(),
            },
        };
        if offset == 0 {
            let sized = self
                .client
                .pull_blob_stream(&reference, &descriptor)
                .await
                .map_err(|e| self.error(e))?;
            return Ok((Box::pin(sized.stream.map(move |chunk| chunk.map_err(&failed))), true));
        }
        let response = self
            .client
            .pull_blob_stream_partial(&reference, &descriptor, offset, None)
            .await;
        let (sized, honoured) = match response.map_err(|error| self.error(error))? {
            BlobResponse::Full(sized) => (sized, false),
            BlobResponse::Partial(sized) => (sized, true),
        };
        Ok((
            Box::pin(sized.stream.map(move |chunk| chunk.map_err(&failed))),
            honoured,
        ))
    }

    fn reference(&self, digest: Option<&str>) -> Result<oci_client::Reference, RuntimeError> {
        let mut image = self.image.clone();
        if let Some(digest) = digest {
            (image.tag, image.digest) = (None, Some(digest.to_owned()));
        }
        let text = image.to_string();
        text.parse()
            .map_err(|error: oci_client::ParseError| RuntimeError::BadReference {
                reference: text.clone(),
                detail: error.to_string(),
            })
    }

    fn error(&self, error: OciDistributionError) -> RuntimeError {
        classify(&self.image, error)
    }
}

/// What a registry's error means to us.
fn classify(image: &ImageReference, error: OciDistributionError) -> RuntimeError {
    let (registry, reference) = (image.registry.clone(), image.to_string());
    let detail = chain(&error);
    let unauthorized = |detail| RuntimeError::RegistryUnauthorized {
        registry: registry.clone(),
        reference: reference.clone(),
        detail,
    };
    let not_found = |detail| RuntimeError::ImageNotFound {
        reference: reference.clone(),
        detail,
    };
    let unreachable = |detail| RuntimeError::RegistryUnreachable {
        registry: registry.clone(),
        detail,
    };
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| &error.code) {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NameInvalid
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown,
                ) => not_found(detail),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => unauthorized(detail),
                _ => unreachable(detail),
            }
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            unauthorized(detail)
        }
        OciDistributionError::ServerError { code: 401 | 403, .. } => unauthorized(detail),
        OciDistributionError::ServerError { code: 404, .. } | OciDistributionError::ImageManifestNotFoundError(_) => {
            not_found(detail)
        }
        OciDistributionError::DigestError(_) => RuntimeError::DigestMismatch {
            what: reference,
            expected: image
                .digest
                .clone()
                .unwrap_or_else(|| "what the registry announced".to_owned()),
            found: detail,
        },
        OciDistributionError::JsonError(_)
        | OciDistributionError::ManifestParsingError(_)
        | OciDistributionError::ManifestEncodingError(_)
        | OciDistributionError::UnsupportedMediaTypeError(_)
        | OciDistributionError::UnsupportedSchemaVersionError(_)
        | OciDistributionError::VersionedParsingError(_) => RuntimeError::BadImage { reference, detail },
        _ => unreachable(detail),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// The host a registry is spoken to at.
fn host(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY {
        "index.docker.io"
    } else {
        registry
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

/// The credentials for `registry` in a Docker `config.json`; anonymous if it has none.
fn credentials(text: &[u8], registry: &str) -> Result<RegistryAuth, String> {
    let config: DockerConfig = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let matches = |key: &str| {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://");
        host(bare.split('/').next().unwrap_or(bare)) == host(registry)
    };
    let Some((_, entry)) = config.auths.into_iter().find(|(key, _)| matches(key)) else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let Some(token) = entry.registry_token {
        return Ok(RegistryAuth::Bearer(token));
    }
    if let (Some(username), Some(password)) = (entry.username, entry.password) {
        return Ok(RegistryAuth::Basic(username, password));
    }
    let Some(auth) = entry.auth else {
        return Ok(RegistryAuth::Anonymous);
    };
    let bad = || format!("`auth` of {registry} is not base64 of `user:password`");
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .map_err(|_| bad())?;
    let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
    let (username, password) = decoded.split_once(':').ok_or_else(bad)?;
    Ok(RegistryAuth::Basic(username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "YTpiOmM="},
            "127.0.0.1:5000": {"username": "u", "password": "p"},
            "t.example": {"registrytoken": "tok"}
        }, "credsStore": "ignored"}"#;
        let find = |registry| credentials(text, registry).expect("valid");
        assert_eq!(find("docker.io"), RegistryAuth::Basic("a".into(), "b:c".into()));
        assert_eq!(find("127.0.0.1:5000"), RegistryAuth::Basic("u".into(), "p".into()));
        assert_eq!(find("t.example"), RegistryAuth::Bearer("tok".into()));
        assert_eq!(find("127.0.0.1:5001"), RegistryAuth::Anonymous);
        assert!(credentials(b"{", "docker.io").is_err());
        assert!(credentials(br#"{"auths": {"x": {"auth": "%"}}}"#, "x").is_err());
    }

    /// Found in a virtual machine without certificates of authorities, where the client panicked.
    #[tokio::test]
    async fn a_client_that_cannot_be_made_is_an_error_and_never_one_of_another_configuration() {
        let config = RegistryConfig {
            https_proxy: Some("no proxy".to_owned()),
            ..RegistryConfig::default()
        };
        let image = ImageReference::parse("r.example/app").expect("valid");
        let error = RegistryImage::open(&config, &image).await.err().expect("must fail");
        assert_eq!(error.code(), "registry-unreachable", "{error}");
    }
}
