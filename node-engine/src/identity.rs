//! This node's identity: joined for once, kept in the state folder, renewed while running.

use crate::config::NodeSettings;
use crate::tier::Event;
use anyhow::{Context as _, bail};
use roble_core::ids::NodeId;
use roble_core::registry::{MemberState, TokenKind};
use roble_daemon::clock::VerifierClock;
use roble_daemon::failpoint;
use roble_daemon::home::Home;
use roble_daemon::join;
use roble_daemon::pki::{Credential, Identity, PrivateKey, certificates_from_pem};
use roble_daemon::rng::{self, Randomness as _};
use roble_daemon::tls::{ClientTls, Dialer, Protocol};
use roble_proto::rest::JoinGrant;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The identity and what is dialed with it.
pub struct NodeIdentity {
    /// Who this is.
    pub node: NodeId,
    /// Host of the cluster, without port.
    pub host: String,
    /// Port of the node link.
    pub mqtt_port: u16,
    /// `host:port` of the cluster's API.
    pub api: String,
    /// For the node link.
    pub link: ClientTls,
    /// For the cluster's API.
    pub dialer: Dialer,
    /// For streams.
    pub streams: Dialer,
    /// The cluster's API as anybody sees it: it is checked, we show nothing.
    door: Dialer,
    name: String,
    credential: Credential,
    folder: std::path::PathBuf,
}

impl NodeIdentity {
    /// Loads the identity, or joins with the token.
    ///
    /// # Errors
    /// There is neither an identity nor a token, or the cluster refuses.
    pub async fn establish(settings: &NodeSettings, clock: &Arc<VerifierClock>) -> anyhow::Result<Self> {
        let folder = &settings.state_dir;
        let (mut home, credential) = match Home::load(folder)? {
            Some(stored) => stored,
            None => Self::join(settings, clock).await?,
        };
        if let Some(address) = settings.cluster.as_ref().filter(|address| **address != home.address) {
            home.address.clone_from(address);
            home.save(folder)?;
        }
        let server = home.server()?;
        let roots = [credential.root().clone()];
        let tls = |protocol| {
            ClientTls::trusting(server.clone(), &roots, clock.clone())
                .credential(&credential)
                .protocol(protocol)
                .build()
        };
        Ok(Self {
            node: home.node,
            host: home.host().to_owned(),
            mqtt_port: home.mqtt_port,
            api: home.address.clone(),
            link: tls(Protocol::Raw)?,
            dialer: Dialer::new(tls(Protocol::Http)?),
            streams: Dialer::new(tls(Protocol::Http2)?),
            door: Dialer::new(
                ClientTls::trusting(server.clone(), &roots, clock.clone())
                    .protocol(Protocol::Http)
                    .build()?,
            ),
            name: settings.name.clone(),
            credential,
            folder: folder.clone(),
        })
    }

    async fn join(settings: &NodeSettings, clock: &Arc<VerifierClock>) -> anyhow::Result<(Home, Credential)> {
        let token = settings.join.read(TokenKind::Node).context("join")?;
        let (Some(token), Some(address)) = (token, &settings.cluster) else {
            bail!(
                "this node has not joined a cluster yet: start it once with --cluster ADDRESS and --join TOKEN or \
                 --join-file FILE; `roble token create node` makes a token"
            );
        };
        let cluster = token.cluster.context("the join token names no cluster")?;
        let pin = token.pin.parse().context("read the pin of the join token")?;
        let server = Identity::cluster(&cluster.to_string())?;
        let tls = ClientTls::pinned(server, pin, clock.clone())
            .protocol(Protocol::Http)
            .build()?;
        let key = PrivateKey::load_or_generate(&settings.state_dir.join("key.pem"))?;
        tracing::info!(cluster = address, name = settings.name, "joining");
        let mut rng = rng::OsRandomness.generator();
        let grant = join::join(&Dialer::new(tls), address, &token, &settings.name, &key, &mut rng).await?;
        let home = Home {
            node: grant.id.parse().context("read the granted id")?,
            cluster: grant.cluster,
            address: address.clone(),
            mqtt_port: grant.link_port,
        };
        let credential = keep(&settings.state_dir, key, &grant)?;
        failpoint!("node.join.credential-written");
        home.save(&settings.state_dir)?;
        failpoint!("node.join.home-written");
        tracing::info!(node = %home.node, cluster = %home.cluster, "joined");
        Ok((home, credential))
    }

    /// Renews the certificate when it is time, and when told to `now`, for ever. What goes on uses the old one until the next
    /// connection. With every `doubt` the cluster is asked what this node is to it: put out, it stops; forgotten, it asks to
    /// be taken up again.
    pub async fn keep_fresh(
        mut self,
        clock: Arc<VerifierClock>,
        now: Arc<Notify>,
        doubt: Arc<Notify>,
        events: mpsc::Sender<Event>,
    ) {
        const LOOK: Duration = Duration::from_secs(60);
        /// Between two questions.
        const ASK_EVERY: Duration = Duration::from_secs(2);
        let mut was_revoked = false;
        loop {
            let told = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = now.notified() => true,
                () = doubt.notified() => {
                    self.settle_doubt(&events, &mut was_revoked).await;
                    tokio::time::sleep(ASK_EVERY).await;
                    continue;
                }
            };
            if let Err(error) = clock.persist() {
                tracing::warn!(%error, "cannot keep the time");
            }
            if !told && clock.now() < self.credential.renew_at() {
                continue;
            }
            match self.renew().await {
                Ok(()) => tracing::info!(serial = %self.credential.peer().serial, "certificate renewed"),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot renew the certificate; trying again"
                ),
            }
        }
    }

    async fn settle_doubt(&mut self, events: &mpsc::Sender<Event>, was_revoked: &mut bool) {
        match self.standing().await {
            Ok(Some(MemberState::Revoked)) => {
                if !std::mem::replace(was_revoked, true) {
                    tracing::error!(
                        "the cluster has put this node out: what it ordered here is stopped; to use the machine again, \
                         start with an empty state folder and a new join token"
                    );
                }
                // Refused only when the daemon ends.
                let _ = events.send(Event::Revoked).await;
            }
            Ok(Some(MemberState::Pending)) => tracing::info!("waiting for a person to approve this node"),
            Ok(Some(MemberState::Active)) => {}
            Ok(None) => match self.renew().await {
                Ok(()) => tracing::info!("the cluster had lost its records and took this node up again"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the cluster does not know this node; asking again");
                }
            },
            Err(error) => tracing::debug!(
                error = format!("{error:#}"),
                "the cluster does not say what we are to it"
            ),
        }
    }

    /// What this node is to its cluster. A connection that is refused proves nothing; this answer does.
    async fn standing(&self) -> anyhow::Result<Option<MemberState>> {
        let key = PrivateKey::load_or_generate(&self.folder.join("key.pem"))?;
        Ok(join::member_state(&self.door, &self.api, &key.pin()).await?)
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let key = PrivateKey::load_or_generate(&self.folder.join("key.pem"))?;
        let grant = join::renew(&self.dialer, &self.api, &key, Some(&self.name)).await?;
        if grant.state != MemberState::Active {
            bail!("a person must approve this node first");
        }
        let credential = keep(&self.folder, key, &grant)?;
        failpoint!("node.renew.credential-written");
        self.link.swap(&credential)?;
        failpoint!("node.renew.link-swapped");
        self.dialer.tls().swap(&credential)?;
        self.streams.tls().swap(&credential)?;
        self.credential = credential;
        failpoint!("node.renew.swapped");
        Ok(())
    }
}

/// Checks and stores what was granted.
fn keep(folder: &Path, key: PrivateKey, grant: &JoinGrant) -> anyhow::Result<Credential> {
    let mut chain = certificates_from_pem(grant.certificates.as_bytes())?;
    let authority = certificates_from_pem(grant.authority.as_bytes())?;
    if chain.last() != authority.first() {
        chain.extend(authority.into_iter().take(1));
    }
    let credential = Credential::new(key, chain)?;
    credential.save(&Home::credential(folder))?;
    Ok(credential)
}
