//! Who somebody is, as proved by a verified certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::{DOMAIN, Pin, PkiError, parse, shortened};

/// A member of the tree. Its name in certificates is [`dns_name`](Self::dns_name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The root orchestrator.
    Root,
    /// A cluster orchestrator, by the cluster's id.
    Cluster(
        /// The cluster's id.
        String,
    ),
    /// A node (node engine and net manager), by its cluster's id and its own.
    Node {
        /// The cluster it belongs to.
        cluster: String,
        /// Its own id.
        node: String,
    },
}

impl Identity {
    /// The cluster with this id.
    ///
    /// # Errors
    /// [`PkiError::BadId`].
    pub fn cluster(id: &str) -> Result<Self, PkiError> {
        Ok(Self::Cluster(check_id(id)?.to_owned()))
    }

    /// The node with this id in this cluster.
    ///
    /// # Errors
    /// [`PkiError::BadId`].
    pub fn node(cluster: &str, node: &str) -> Result<Self, PkiError> {
        Ok(Self::Node {
            cluster: check_id(cluster)?.to_owned(),
            node: check_id(node)?.to_owned(),
        })
    }

    /// The cluster it is or belongs to.
    pub fn cluster_id(&self) -> Option<&str> {
        match self {
            Self::Root => None,
            Self::Cluster(cluster) | Self::Node { cluster, .. } => Some(cluster),
        }
    }

    /// Its name in certificates: `root.roble.internal`, `c-<id>.roble.internal`, `n-<id>.c-<id>.roble.internal`.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Root => format!("root.{DOMAIN}"),
            Self::Cluster(cluster) => format!("c-{cluster}.{DOMAIN}"),
            Self::Node { cluster, node } => format!("n-{node}.c-{cluster}.{DOMAIN}"),
        }
    }

    /// The identity with this name; exact, so a wildcard or another case is none.
    pub fn from_dns_name(name: &str) -> Option<Self> {
        let labels = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        let id = |label: &str, prefix| check_id(label.strip_prefix(prefix)?).ok().map(str::to_owned);
        match labels.split_once('.') {
            None if labels == "root" => Some(Self::Root),
            None => Some(Self::Cluster(id(labels, "c-")?)),
            Some((node, cluster)) => Some(Self::Node {
                cluster: id(cluster, "c-")?,
                node: id(node, "n-")?,
            }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => formatter.write_str("root"),
            Self::Cluster(cluster) => write!(formatter, "cluster {cluster}"),
            Self::Node { cluster, node } => write!(formatter, "node {node} of cluster {cluster}"),
        }
    }
}

/// `id` if it is 24 lowercase hexadecimal digits.
///
/// # Errors
/// [`PkiError::BadId`].
pub fn check_id(id: &str) -> Result<&str, PkiError> {
    let good = id.len() == 24 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if good {
        Ok(id)
    } else {
        Err(PkiError::BadId { text: shortened(id) })
    }
}

/// What a verified certificate says about the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// Serial number of the certificate, lowercase hexadecimal.
    pub serial: String,
    /// Its public key.
    pub key: Pin,
    /// End of the certificate's validity, in milliseconds since 1970; in the past if it was let in by grace.
    pub not_after: u64,
}

impl Peer {
    /// Reads a certificate. **The caller has verified its chain**; the functions of [`crate::tls`] do.
    ///
    /// The DNS names under our domain must be exactly one identity. Other names may stand beside it (the root's advertised
    /// addresses) and mean nothing here.
    ///
    /// # Errors
    /// [`PkiError::BadCertificate`], [`PkiError::NoIdentity`].
    pub fn from_verified(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let parsed = parse(certificate)?;
        let extension = parsed
            .subject_alternative_name()
            .map_err(|_| PkiError::BadCertificate)?;
        let names: Vec<&str> = extension
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            })
            .collect();
        let none = || PkiError::NoIdentity {
            names: names.iter().take(4).map(|name| shortened(name)).collect(),
        };
        let mut ours = names.iter().filter(|name| is_ours(name));
        let identity = match (ours.next(), ours.next()) {
            (Some(name), None) => Identity::from_dns_name(name).ok_or_else(none)?,
            _ => return Err(none()),
        };
        Ok(Self {
            identity,
            serial: hex::encode(parsed.raw_serial()),
            key: Pin::of_key(parsed.public_key().raw),
            not_after: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0) * 1000,
        })
    }
}

/// Whether a DNS name lies in our domain, however it is spelled.
pub(super) fn is_ours(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.strip_suffix(DOMAIN)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
