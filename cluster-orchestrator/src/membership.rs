//! What the cluster was given when it joined, and how it joins.
//!
//! | file in the state folder | what it is |
//! | --- | --- |
//! | `authority-key.pem` | key of the cluster's authority, made here, never sent |
//! | `membership.json` | id, authority's chain, root authority, where the root is; whole or absent |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::RngCore;
use roble_core::ids::ClusterId;
use roble_core::registry::JoinToken;
use roble_daemon::CancellationToken;
use roble_daemon::clock::VerifierClock;
use roble_daemon::failpoint;
use roble_daemon::files::{self, FileError, SECRET_MODE};
use roble_daemon::pki::{
    Authority, Identity, Lifetimes, Pin, PkiError, PrivateKey, certificates_from_pem, certificates_to_pem,
};
use roble_daemon::tls::{ClientTls, Dialer, Protocol, TlsError};
use roble_proto::limits::ROOT_LINK_PORT;
use roble_proto::rest::JoinGrant;
use serde::{Deserialize, Serialize};

use crate::config::host_of;

/// Longest membership file that is read.
const MAX_BYTES: u64 = 256 * 1024;

/// Joining failed for good: a person must do something.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody said where and with what.
    #[error(
        "this cluster has not joined yet: start it with --root ADDRESS and --join TOKEN or --join-file FILE; \
         `roble token create cluster` makes a token"
    )]
    NotJoined,
    /// The join token cannot be used.
    #[error("join token")]
    Token(#[from] roble_daemon::join::TokenError),
    /// The root's answer is final.
    #[error("join")]
    Join(#[from] roble_daemon::join::JoinError),
    /// The root granted something that is not an identity for us.
    #[error("the root's grant is not usable: {0}")]
    Grant(String),
    /// The stored membership cannot be used.
    #[error("membership in {path}: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Key or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The state folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// The daemon was asked to stop before.
    #[error("stopped before the cluster had joined")]
    Stopped,
}

/// What the root granted, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Schema of this file.
    schema: u32,
    /// The cluster's id.
    pub id: ClusterId,
    /// Chain of the cluster's authority (PEM), its own certificate first, the root authority last.
    certificates: String,
    /// The root's API, `host:port`.
    pub root: String,
    /// The root's link port.
    pub link_port: u16,
}

impl Membership {
    /// Where it is kept.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("membership.json")
    }

    /// Reads it; `None` before the first join.
    ///
    /// # Errors
    /// [`JoinError`]; a damaged file is an error, never a new join.
    pub fn load(folder: &Path) -> Result<Option<Self>, JoinError> {
        let path = Self::path(folder);
        let Some(bytes) = files::read_optional(&path, MAX_BYTES)? else {
            return Ok(None);
        };
        let damaged = |detail: String| JoinError::Damaged {
            path: path.clone(),
            detail,
        };
        let membership: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if membership.schema != 1 {
            return Err(damaged(format!(
                "schema {} is newer than this program",
                membership.schema
            )));
        }
        Ok(Some(membership))
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn save(&self, folder: &Path) -> Result<(), JoinError> {
        let path = Self::path(folder);
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| JoinError::Damaged {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        Ok(files::write_atomic(&path, &bytes, SECRET_MODE)?)
    }

    /// The root's link, `host:port`.
    pub fn link_address(&self) -> String {
        format!("{}:{}", host_of(&self.root), self.link_port)
    }

    /// The authority, with the key in `folder`.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn authority(&self, folder: &Path, lifetimes: Lifetimes) -> Result<Authority, JoinError> {
        let key = PrivateKey::load_or_generate(&key_path(folder))?;
        let chain = certificates_from_pem(self.certificates.as_bytes())?;
        Ok(Authority::new(key, chain, lifetimes)?)
    }

    /// What a grant of the root means. `pin`: of the root authority that is trusted; `root`: the API that was asked.
    ///
    /// # Errors
    /// [`JoinError::Grant`] if anything in it is not as it must be.
    pub fn of_grant(grant: &JoinGrant, pin: Pin, root: &str, folder: &Path) -> Result<Self, JoinError> {
        let bad = |detail: String| JoinError::Grant(detail);
        let of_pki = |error: PkiError| JoinError::Grant(error.to_string());
        let authority = certificates_from_pem(grant.authority.as_bytes()).map_err(of_pki)?;
        let anchor = authority.first().ok_or_else(|| bad("no root authority".into()))?;
        if Pin::of_certificate(anchor).map_err(of_pki)? != pin {
            return Err(bad("its root authority is not the one of the join token".into()));
        }
        let mut chain = certificates_from_pem(grant.certificates.as_bytes()).map_err(of_pki)?;
        if chain.last() != Some(anchor) {
            chain.push(anchor.clone());
        }
        let membership = Self {
            schema: 1,
            id: grant.cluster,
            certificates: certificates_to_pem(&chain),
            root: root.to_owned(),
            link_port: if grant.link_port == 0 {
                ROOT_LINK_PORT
            } else {
                grant.link_port
            },
        };
        let made = membership
            .authority(folder, Lifetimes::default())
            .map_err(|error| bad(error.to_string()))?;
        let expected = Identity::cluster(&grant.cluster.to_string()).map_err(of_pki)?;
        if *made.owner() != expected {
            return Err(bad(format!("an authority of {}, not of {expected}", made.owner())));
        }
        Ok(membership)
    }
}

/// The key of the cluster's authority.
pub fn key_path(folder: &Path) -> PathBuf {
    folder.join("authority-key.pem")
}

/// Joins the root at `root`, however long it takes. The result is stored before it is returned.
///
/// # Errors
/// [`JoinError`] if trying again would not help.
pub async fn join(
    folder: &Path,
    root: &str,
    token: &JoinToken,
    name: &str,
    clock: Arc<VerifierClock>,
    rng: &mut (dyn RngCore + Send),
    stop: &CancellationToken,
) -> Result<Membership, JoinError> {
    let pin: Pin = token.pin.parse()?;
    let key = PrivateKey::load_or_generate(&key_path(folder))?;
    let tls = ClientTls::pinned(Identity::Root, pin, clock)
        .protocol(Protocol::Raw)
        .build()?;
    let dialer = Dialer::new(tls);
    let grant = tokio::select! {
        () = stop.cancelled() => return Err(JoinError::Stopped),
        grant = roble_daemon::join::join(&dialer, root, token, name, &key, rng) => grant?,
    };
    let membership = Membership::of_grant(&grant, pin, root, folder)?;
    membership.save(folder)?;
    failpoint!("cluster.join.membership-written");
    tracing::info!(cluster = %membership.id, name, root, "joined");
    Ok(membership)
}
