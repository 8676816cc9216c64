//! The cluster's authority and the certificates it gives: to nodes, and to the cluster itself. Renews both in time and
//! puts what is new in force without closing a connection.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roble_core::ids::{ClusterId, NodeId};
use roble_daemon::CancellationToken;
use roble_daemon::clock::VerifierClock;
use roble_daemon::failpoint;
use roble_daemon::files::{self, FileError};
use roble_daemon::pki::{
    Authority, Credential, Identity, Lifetimes, Pin, PkiError, PrivateKey, VerifiedRequest, certificates_to_pem,
    validity,
};
use roble_daemon::tls::{ClientAuth, ClientTls, Dialer, Protocol, Revocations, ServerTls, TlsError};
use tokio::sync::Notify;

use crate::broker::Broker;
use crate::members::Members;
use crate::membership::{JoinError, Membership, key_path};

/// Key and chain of the cluster itself.
const LEAF: &str = "cluster.pem";
/// The root authority, for a broker outside the process.
const ROOT: &str = "root.pem";
/// Wait after a renewal of the authority that failed.
const AUTHORITY_AGAIN: Duration = Duration::from_secs(600);

/// Certificates could not be made or put in force.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The membership.
    #[error(transparent)]
    Membership(#[from] JoinError),
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The root's answer.
    #[error("renew the authority at the root")]
    Renew(#[from] roble_daemon::join::JoinError),
}

/// What changes at a renewal.
struct Current {
    membership: Membership,
    authority: Arc<Authority>,
    /// When to renew the cluster's own certificate, and the authority: milliseconds since 1970.
    leaf_due: u64,
    authority_due: u64,
}

/// All certificates of the daemon and the TLS sides that show them.
pub struct Certificates {
    folder: PathBuf,
    cluster: ClusterId,
    lifetimes: Lifetimes,
    clock: Arc<VerifierClock>,
    current: Mutex<Current>,
    /// For nodes' messages.
    pub nodes: ServerTls,
    /// For the API.
    pub api: ServerTls,
    /// Towards the root.
    pub uplink: ClientTls,
    /// Towards a broker of our own outside the process.
    pub own: ClientTls,
}

impl Certificates {
    /// Takes up what is in `folder` and issues what is missing or due.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn open(
        folder: &Path,
        membership: Membership,
        lifetimes: Lifetimes,
        clock: Arc<VerifierClock>,
        revocations: &Arc<Revocations>,
        members: &Arc<Members>,
    ) -> Result<Self, CertificateError> {
        let authority = membership.authority(folder, lifetimes)?;
        let cluster = membership.id;
        let leaf = own_certificate(folder, cluster, &authority, &clock)?;
        files::write_atomic(
            &folder.join(ROOT),
            certificates_to_pem(std::slice::from_ref(authority.root())).as_bytes(),
            0o644,
        )?;
        let id = cluster.to_string();
        let server = |clients, protocol| {
            let id = id.clone();
            ServerTls::builder(&leaf, clock.clone())
                .clients(clients)
                .accept(move |identity| matches!(identity, Identity::Node { cluster, .. } if *cluster == id))
                .revocations(revocations.clone())
                .grace(members.clone())
                .protocol(protocol)
                .build()
        };
        let roots = [authority.root().clone()];
        let client = |to, protocol| {
            ClientTls::trusting(to, &roots, clock.clone())
                .credential(&leaf)
                .protocol(protocol)
                .build()
        };
        let (nodes, api) = (
            server(ClientAuth::Required, Protocol::Raw)?,
            server(ClientAuth::Optional, Protocol::Http)?,
        );
        let (uplink, own) = (
            client(Identity::Root, Protocol::Http2)?,
            client(Identity::cluster(&id)?, Protocol::Raw)?,
        );
        let current = Current {
            authority_due: authority_due(&authority),
            leaf_due: leaf.renew_at(),
            membership,
            authority: Arc::new(authority),
        };
        Ok(Self {
            folder: folder.into(),
            cluster,
            lifetimes,
            clock,
            current: Mutex::new(current),
            nodes,
            api,
            uplink,
            own,
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which cluster this is.
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority in force.
    pub fn authority(&self) -> Arc<Authority> {
        self.current().authority.clone()
    }

    /// The file with the cluster's own key and chain.
    pub fn leaf_path(&self) -> PathBuf {
        self.folder.join(LEAF)
    }

    /// The file with the root authority.
    pub fn root_path(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// Certifies a node. Returns the chain without the root authority, and the root authority, as PEM.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn certify(&self, node: NodeId, request: &VerifiedRequest) -> Result<(String, String), PkiError> {
        let authority = self.authority();
        let issued = authority.issue_node(&node.to_string(), request, self.clock.now())?;
        let (root, chain) = issued.chain.split_last().ok_or(PkiError::Mismatch {
            what: "the chain is empty",
        })?;
        Ok((
            certificates_to_pem(chain),
            certificates_to_pem(std::slice::from_ref(root)),
        ))
    }

    /// The root's API as anybody sees it: it is checked, we show nothing.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn root_door(&self) -> Result<Dialer, CertificateError> {
        let roots = [self.authority().root().clone()];
        let tls = ClientTls::trusting(Identity::Root, &roots, self.clock.clone())
            .protocol(Protocol::Http)
            .build()?;
        Ok(Dialer::new(tls))
    }

    /// The root authority as PEM.
    pub fn root_pem(&self) -> String {
        certificates_to_pem(std::slice::from_ref(self.authority().root()))
    }

    /// Issues a new certificate for the cluster itself and puts it in force.
    ///
    /// # Errors
    /// [`CertificateError`]; the old one stays where the new one could not be put.
    pub async fn renew_leaf(&self, broker: &dyn Broker) -> Result<(), CertificateError> {
        let leaf = issue(&self.folder, self.cluster, &self.authority(), &self.clock)?;
        self.nodes.swap(&leaf)?;
        failpoint!("cluster.renew.nodes-swapped");
        self.api.swap(&leaf)?;
        failpoint!("cluster.renew.api-swapped");
        self.uplink.swap(&leaf)?;
        self.own.swap(&leaf)?;
        self.current().leaf_due = leaf.renew_at();
        failpoint!("cluster.renew.swapped");
        if let Err(error) = broker.reload_certificate().await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the broker still shows the old certificate"
            );
        }
        tracing::info!(not_after = leaf.peer().not_after, "own certificate renewed");
        Ok(())
    }

    /// Asks the root for a new certificate of the authority, with the same key.
    ///
    /// # Errors
    /// [`CertificateError`]; the old one stays.
    pub async fn renew_authority(&self) -> Result<(), CertificateError> {
        let (root, pin) = {
            let current = self.current();
            (
                current.membership.root.clone(),
                Pin::of_certificate(current.authority.root())?,
            )
        };
        let key = PrivateKey::load_or_generate(&key_path(&self.folder))?;
        let leaf = Credential::load(&self.leaf_path())?.ok_or_else(|| PkiError::Missing(self.leaf_path()))?;
        let tls = ClientTls::trusting(
            Identity::Root,
            std::slice::from_ref(self.authority().root()),
            self.clock.clone(),
        )
        .credential(&leaf)
        .protocol(Protocol::Raw)
        .build()?;
        let grant = roble_daemon::join::renew(&Dialer::new(tls), &root, &key, None).await?;
        let mut membership = Membership::of_grant(&grant, pin, &root, &self.folder)?;
        let authority = membership.authority(&self.folder, self.lifetimes)?;
        if membership.id != self.cluster {
            return Err(JoinError::Grant(format!("it is for cluster {}", membership.id)).into());
        }
        let mut current = self.current();
        if grant.link_port == 0 {
            membership.link_port = current.membership.link_port;
        }
        membership.save(&self.folder)?;
        failpoint!("cluster.renew.membership-written");
        current.authority_due = authority_due(&authority);
        current.authority = Arc::new(authority);
        current.membership = membership;
        failpoint!("cluster.renew.authority");
        tracing::info!(not_after = current.authority.not_after(), "authority renewed");
        Ok(())
    }

    /// Renews what is due, looking every `every`, and all `at_once` when told, until `stop`. Keeps the verifier's clock on disk, too.
    pub async fn keep(
        self: Arc<Self>,
        broker: Arc<dyn Broker>,
        every: Duration,
        at_once: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let mut authority_not_before = 0;
        let mut persisted = 0;
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(every) => false,
                () = at_once.notified() => true,
            };
            let (now, boot) = (self.clock.now(), self.clock.clock().boot());
            let (leaf_due, authority_due) = {
                let current = self.current();
                (current.leaf_due, current.authority_due)
            };
            let mut renewed = false;
            if told || (now >= authority_due && boot >= authority_not_before) {
                match self.renew_authority().await {
                    Ok(()) => renewed = true,
                    Err(error) => {
                        authority_not_before = boot + AUTHORITY_AGAIN.as_millis() as u64;
                        let error = format!("{:#}", anyhow::Error::new(error));
                        tracing::warn!(error, "the authority could not be renewed yet");
                    }
                }
            }
            if (told || renewed || now >= leaf_due)
                && let Err(error) = self.renew_leaf(&*broker).await
            {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(error, "own certificate could not be renewed");
            }
            if now >= persisted + 3_600_000 {
                persisted = now;
                self.persist_clock();
            }
        }
        self.persist_clock();
    }

    fn persist_clock(&self) {
        if let Err(error) = self.clock.persist() {
            tracing::warn!(error = &error as &dyn std::error::Error, "time not persisted");
        }
    }
}

/// After a third of its life; two thirds remain for the root to come back.
fn authority_due(authority: &Authority) -> u64 {
    let (from, until) = authority
        .chain()
        .first()
        .and_then(|first| validity(first).ok())
        .unwrap_or_default();
    from + until.saturating_sub(from) / 3
}

/// The stored certificate of the cluster itself, if it is still good; else a new one.
fn own_certificate(
    folder: &Path,
    cluster: ClusterId,
    authority: &Authority,
    clock: &VerifierClock,
) -> Result<Credential, CertificateError> {
    let stored = Credential::load(&folder.join(LEAF)).unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "own certificate is damaged, issuing a new one"
        );
        None
    });
    let good = stored.filter(|stored| {
        stored.peer().identity.cluster_id() == Some(cluster.to_string().as_str())
            && stored.chain().get(1) == authority.chain().first()
            && clock.now() < stored.renew_at()
    });
    match good {
        Some(good) => Ok(good),
        None => issue(folder, cluster, authority, clock),
    }
}

fn issue(
    folder: &Path,
    cluster: ClusterId,
    authority: &Authority,
    clock: &VerifierClock,
) -> Result<Credential, CertificateError> {
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    let issued = authority.issue_cluster(&cluster.to_string(), &request, clock.now())?;
    let leaf = Credential::new(key, issued.chain)?;
    failpoint!("cluster.leaf.issued");
    leaf.save(&folder.join(LEAF))?;
    failpoint!("cluster.leaf.written");
    Ok(leaf)
}
