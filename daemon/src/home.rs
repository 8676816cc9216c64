//! Where a node belongs: written once by the node engine when it joins, read by everything on the node that speaks to the
//! cluster.

use crate::files::{FileError, SECRET_MODE, read_optional, write_atomic};
use crate::pki::{Credential, Identity, PkiError};
use roble_core::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the node is a member. Stored as `home.json` in the node engine's state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Which node this is.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// `host:port` of the cluster's API.
    pub address: String,
    /// Port of the node link.
    pub mqtt_port: u16,
}

/// The membership could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what was written.
    #[error("read {path}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The certificate or key.
    #[error("read the node's credential")]
    Pki(#[from] PkiError),
}

impl Home {
    /// The membership in the node engine's state folder, with its credential; `None` before the node has joined.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn load(folder: &Path) -> Result<Option<(Self, Credential)>, HomeError> {
        let path = folder.join("home.json");
        let Some(bytes) = read_optional(&path, MAX_BYTES)? else {
            return Ok(None);
        };
        let Some(credential) = Credential::load(&Self::credential(folder))? else {
            return Ok(None);
        };
        let home = serde_json::from_slice(&bytes).map_err(|source| HomeError::Json { path, source })?;
        Ok(Some((home, credential)))
    }

    /// Stores it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn save(&self, folder: &Path) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(self).expect("ids and text are JSON");
        write_atomic(&folder.join("home.json"), &bytes, SECRET_MODE)
    }

    /// Where the credential is stored.
    pub fn credential(folder: &Path) -> PathBuf {
        folder.join("credential.pem")
    }

    /// Host of the cluster, without port.
    pub fn host(&self) -> &str {
        let host = self
            .address
            .rsplit_once(':')
            .map_or(self.address.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']'])
    }

    /// What the cluster's certificate must prove.
    ///
    /// # Errors
    /// [`PkiError`] if the id cannot be part of a name.
    pub fn server(&self) -> Result<Identity, PkiError> {
        Identity::cluster(&self.cluster.to_string())
    }
}
