//! Issuing certificates.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::identity::is_ours;
use super::key::MAX_FILE_BYTES;
use super::template::{millis, new_serial, params, san, set_subject};
use super::{
    Identity, Pin, PkiError, PrivateKey, VerifiedRequest, certificates_from_pem, certificates_to_pem, check_id, parse,
    shortened, validity,
};
use crate::files::{self, SECRET_MODE};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long certificates are valid.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// The root's authority.
    pub root_authority: Duration,
    /// A cluster's authority.
    pub cluster_authority: Duration,
    /// The root's server certificate.
    pub root: Duration,
    /// A cluster's certificate.
    pub cluster: Duration,
    /// A node's certificate.
    pub node: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root_authority: 3650 * DAY,
            cluster_authority: 365 * DAY,
            root: 90 * DAY,
            cluster: 30 * DAY,
            node: 7 * DAY,
        }
    }
}

/// A further name or address under which the root is reached by tools that do not know our names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraName {
    /// A DNS name outside our domain.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl From<&str> for ExtraName {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }
}

/// A new certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate, then the authorities up to the root's own.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its serial number, lowercase hexadecimal.
    pub serial: String,
    /// End of its validity, in milliseconds since 1970.
    pub not_after: u64,
}

/// A key that certifies others: the root's, or a cluster's.
#[derive(Debug)]
pub struct Authority {
    pub(super) owner: Identity,
    pub(super) key: PrivateKey,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) not_after: u64,
    pub(super) lifetimes: Lifetimes,
}

impl Authority {
    /// A new root authority. `now`: milliseconds since 1970, from the verifier's clock.
    ///
    /// # Errors
    /// [`PkiError::Generate`].
    pub fn create_root(now: u64, lifetimes: Lifetimes) -> Result<Self, PkiError> {
        let key = PrivateKey::generate()?;
        let (serial, not_after) = (new_serial(), now + millis(lifetimes.root_authority));
        let mut params = params(now, not_after, &serial);
        // The subject is unique per key, so that two authorities can be told apart while one replaces the other.
        set_subject(
            &mut params,
            &format!("Roble root authority {}", &key.pin().to_string()[..8]),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.pair()).map_err(|source| PkiError::Generate {
            attempt: "make the root authority",
            source,
        })?;
        Ok(Self {
            owner: Identity::Root,
            chain: vec![certificate.der().clone()],
            key,
            not_after,
            lifetimes,
        })
    }

    /// A cluster's authority from its own key and the chain that [`issue_cluster_authority`](Self::issue_cluster_authority)
    /// returned.
    ///
    /// # Errors
    /// [`PkiError::Mismatch`] if they do not belong together.
    pub fn new(key: PrivateKey, chain: Vec<CertificateDer<'static>>, lifetimes: Lifetimes) -> Result<Self, PkiError> {
        let mismatch = |what| PkiError::Mismatch { what };
        let first = chain.first().ok_or(mismatch("the chain is empty"))?;
        if Pin::of_certificate(first)? != key.pin() {
            return Err(mismatch("the authority's certificate is for another key"));
        }
        let parsed = parse(first)?;
        if !parsed.is_ca() {
            return Err(mismatch("the certificate is not an authority's"));
        }
        let owner = owner_of(&parsed)?;
        let (_, not_after) = validity(first)?;
        Ok(Self {
            owner,
            key,
            chain,
            not_after,
            lifetimes,
        })
    }

    /// Reads key and chain from one PEM file; `None` if there is none.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn load(path: &Path, lifetimes: Lifetimes) -> Result<Option<Self>, PkiError> {
        let Some(text) = files::read_optional(path, MAX_FILE_BYTES)? else {
            return Ok(None);
        };
        let text = Zeroizing::new(text);
        Self::new(PrivateKey::from_pem(&text)?, certificates_from_pem(&text)?, lifetimes).map(Some)
    }

    /// Reads the root authority from `path`, or makes it there at the first start. The folder must exist.
    ///
    /// # Errors
    /// [`PkiError`]; a damaged file is an error, never replaced.
    pub fn load_or_create_root(path: &Path, now: u64, lifetimes: Lifetimes) -> Result<Self, PkiError> {
        if let Some(authority) = Self::load(path, lifetimes)? {
            return Ok(authority);
        }
        let authority = Self::create_root(now, lifetimes)?;
        authority.save(path)?;
        tracing::info!(pin = %authority.pin(), "root authority made");
        Ok(authority)
    }

    /// Writes key and chain into one PEM file (0600).
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        let text = Zeroizing::new(format!("{}{}", *self.key.to_pem(), certificates_to_pem(&self.chain)));
        Ok(files::write_atomic(path, text.as_bytes(), SECRET_MODE)?)
    }

    /// Whose authority it is.
    pub fn owner(&self) -> &Identity {
        &self.owner
    }

    /// Its own certificate first, the root authority's last.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The root authority's certificate: what members of the tree trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a chain is never empty here")
    }

    /// Pin of this authority's own key.
    pub fn pin(&self) -> Pin {
        self.key.pin()
    }

    /// Pin of the root authority: what join tokens carry.
    ///
    /// # Errors
    /// [`PkiError::BadCertificate`].
    pub fn root_pin(&self) -> Result<Pin, PkiError> {
        Pin::of_certificate(self.root())
    }

    /// End of its validity, in milliseconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Certifies a cluster's own authority: it may issue nothing but `c-<cluster>.roble.internal` and names below it, no
    /// addresses, and no further authorities.
    ///
    /// # Errors
    /// [`PkiError::NotMine`] unless this is the root's; [`PkiError::BadId`].
    pub fn issue_cluster_authority(
        &self,
        cluster: &str,
        request: &VerifiedRequest,
        now: u64,
    ) -> Result<Issued, PkiError> {
        let wanted = Identity::cluster(cluster)?;
        if self.owner != Identity::Root {
            return Err(PkiError::NotMine {
                authority: self.owner.clone(),
                wanted,
            });
        }
        let (serial, not_after) = self.term(now, self.lifetimes.cluster_authority);
        let mut params = params(now, not_after, &serial);
        set_subject(
            &mut params,
            &format!("{AUTHORITY_OF}{cluster} {}", &request.pin().to_string()[..8]),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(wanted.dns_name())],
            // A kind of name that is not mentioned is unconstrained (RFC 5280 section 4.2.1.10), so every other kind
            // that a verifier of ours or of others looks at is excluded as a whole.
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
            ],
        });
        self.sign(&params, &request.key, serial, not_after)
    }

    /// Certifies the root's server, also under the names and addresses it is advertised by.
    ///
    /// # Errors
    /// [`PkiError::NotMine`] unless this is the root's; [`PkiError::BadName`].
    pub fn issue_root(&self, extra: &[ExtraName], request: &VerifiedRequest, now: u64) -> Result<Issued, PkiError> {
        self.issue(&Identity::Root, extra, request, now)
    }

    /// Certifies a cluster, as client of the root and as server of its nodes. The root and the cluster itself may.
    ///
    /// # Errors
    /// [`PkiError::NotMine`], [`PkiError::BadId`].
    pub fn issue_cluster(&self, cluster: &str, request: &VerifiedRequest, now: u64) -> Result<Issued, PkiError> {
        self.issue(&Identity::cluster(cluster)?, &[], request, now)
    }

    /// Certifies a node of this authority's cluster.
    ///
    /// # Errors
    /// [`PkiError::Mismatch`] if this is the root's; [`PkiError::BadId`].
    pub fn issue_node(&self, node: &str, request: &VerifiedRequest, now: u64) -> Result<Issued, PkiError> {
        let node = check_id(node)?.to_owned();
        match &self.owner {
            Identity::Cluster(cluster) => self.issue(
                &Identity::Node {
                    cluster: cluster.clone(),
                    node,
                },
                &[],
                request,
                now,
            ),
            _ => Err(PkiError::Mismatch {
                what: "only a cluster's authority certifies nodes",
            }),
        }
    }

    fn issue(
        &self,
        identity: &Identity,
        extra: &[ExtraName],
        request: &VerifiedRequest,
        now: u64,
    ) -> Result<Issued, PkiError> {
        let (mine, lifetime) = match identity {
            Identity::Root => (self.owner == Identity::Root, self.lifetimes.root),
            Identity::Cluster(_) => (
                self.owner == Identity::Root || &self.owner == identity,
                self.lifetimes.cluster,
            ),
            Identity::Node { cluster, .. } => (self.owner.cluster_id() == Some(cluster.as_str()), self.lifetimes.node),
        };
        if !mine {
            return Err(PkiError::NotMine {
                authority: self.owner.clone(),
                wanted: identity.clone(),
            });
        }
        let (serial, not_after) = self.term(now, lifetime);
        let mut params = params(now, not_after, &serial);
        let name = identity.dns_name();
        set_subject(&mut params, &name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            Identity::Root => vec![ExtendedKeyUsagePurpose::ServerAuth],
            // A cluster dials the root and serves its nodes; a node dials its cluster and may serve its own metrics.
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.subject_alt_names = vec![san(&name)?];
        for name in extra {
            params.subject_alt_names.push(match name {
                ExtraName::Ip(address) => SanType::IpAddress(*address),
                ExtraName::Dns(name) if is_ours(name) => {
                    return Err(PkiError::BadName { name: shortened(name) });
                }
                ExtraName::Dns(name) => san(name)?,
            });
        }
        self.sign(&params, &request.key, serial, not_after)
    }

    /// A serial number, and the end of a life of `lifetime` from `now`, never beyond this authority's own.
    fn term(&self, now: u64, lifetime: Duration) -> (SerialNumber, u64) {
        (new_serial(), (now + millis(lifetime)).min(self.not_after))
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
        serial: SerialNumber,
        not_after: u64,
    ) -> Result<Issued, PkiError> {
        let failed = |source| PkiError::Generate {
            attempt: "issue a certificate",
            source,
        };
        let issuer = Issuer::from_ca_cert_der(&self.chain[0], self.key.pair()).map_err(failed)?;
        let certificate = params.signed_by(key, &issuer).map_err(failed)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(&self.chain);
        Ok(Issued {
            chain,
            serial: hex::encode(serial.to_bytes()),
            not_after,
        })
    }
}

#[cfg(test)]
impl Authority {
    /// What a hostile holder of the key could do.
    pub(crate) fn sign_anything(&self, params: &CertificateParams, key: &PrivateKey) -> Vec<CertificateDer<'static>> {
        let issuer = Issuer::from_ca_cert_der(&self.chain[0], self.key.pair()).unwrap();
        let mut chain = vec![params.signed_by(key.pair(), &issuer).unwrap().der().clone()];
        chain.extend_from_slice(&self.chain);
        chain
    }
}

/// Start of the subject of a cluster's authority; the id follows.
const AUTHORITY_OF: &str = "Roble authority of cluster ";

fn owner_of(parsed: &x509_parser::prelude::X509Certificate<'_>) -> Result<Identity, PkiError> {
    let subject = parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or("");
    match subject.strip_prefix(AUTHORITY_OF) {
        Some(rest) => Identity::cluster(rest.split(' ').next().unwrap_or("")),
        None if subject.starts_with("Roble root authority ") => Ok(Identity::Root),
        None => Err(PkiError::Mismatch {
            what: "the authority is not one of ours",
        }),
    }
}
