//! The parts of the daemon's start that have a choice in them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use roble_core::ids::NodeId;
use roble_core::registry::{MemberState, TokenKind};
use roble_daemon::CancellationToken;
use roble_daemon::clock::VerifierClock;
use roble_daemon::incomplete::Incomplete;
use roble_daemon::metrics::Metrics;
use roble_daemon::serve::{self, ServeMetrics, bind};
use tokio::task::JoinSet;

use super::Seams;
use crate::broker::Broker;
use crate::broker::embedded::{self, EmbeddedBroker, Listener};
use crate::broker::mosquitto::{MosquittoBroker, MosquittoConfig};
use crate::certificates::Certificates;
use crate::config::{BrokerChoice, DaemonConfig};
use crate::membership::{self, JoinError, Membership};
use crate::metrics::ClusterMetrics;
use crate::tier::ClusterTier;

/// The stored membership, or a new one.
pub(super) async fn membership(
    config: &DaemonConfig,
    seams: &Seams,
    clock: Arc<VerifierClock>,
    stop: &CancellationToken,
) -> Result<Membership, JoinError> {
    let folder = config.state_dir.as_path();
    if let Some(mut membership) = Membership::load(folder)? {
        if let Some(root) = config.root.as_ref().filter(|root| **root != membership.root) {
            tracing::info!(from = membership.root, to = root, "the root's address changed");
            membership.root.clone_from(root);
            membership.save(folder)?;
        }
        return Ok(membership);
    }
    let token = config.join.read(TokenKind::Cluster)?;
    let (Some(root), Some(token)) = (&config.root, token) else {
        return Err(JoinError::NotJoined);
    };
    let mut rng = seams.randomness.generator();
    membership::join(folder, root, &token, &config.name, clock, &mut rng, stop).await
}

/// Keeps gauges, and forgets the mark of a lost store once all is known again.
pub(super) fn watch(mut incomplete: Incomplete, metrics: ClusterMetrics) -> impl FnMut(&ClusterTier) + Send {
    move |tier| {
        incomplete.end_if(tier.is_settled());
        let members = tier
            .registry()
            .members()
            .filter(|member| member.state != MemberState::Revoked);
        metrics.members.set(i64::try_from(members.count()).unwrap_or(i64::MAX));
        let instances = tier.children().orchestrator().instances().count();
        metrics.instances.set(i64::try_from(instances).unwrap_or(i64::MAX));
    }
}

/// The broker that was chosen, listening.
pub(super) async fn start_broker(
    config: &DaemonConfig,
    seams: &Seams,
    certificates: &Arc<Certificates>,
    metrics: &Metrics,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
    admitted: Vec<NodeId>,
) -> anyhow::Result<(Arc<dyn Broker>, SocketAddr)> {
    match &config.broker {
        BrokerChoice::Embedded => {
            let socket: tokio::net::TcpListener = bind(config.listen_mqtt).await?;
            let address = socket.local_addr()?;
            let serve_metrics = ServeMetrics::default();
            metrics.register(|registry| serve_metrics.register(registry, "roble_cluster_mqtt"));
            let broker = EmbeddedBroker::new(embedded::Limits::default());
            let listener = Listener {
                socket,
                tls: certificates.nodes.clone(),
                cluster: certificates.cluster(),
                limits: serve::Limits {
                    connections: config.broker_clients,
                    connections_per_peer: config.broker_clients,
                    drain: Duration::from_secs(1),
                    ..serve::Limits::default()
                },
                metrics: serve_metrics,
            };
            let (serving, token) = (broker.clone(), stop.clone());
            tasks.spawn(async move { Ok(serving.listen(listener, token).await?) });
            Ok((Arc::new(broker), address))
        }
        BrokerChoice::Mosquitto { program } => {
            let own = certificates.own.clone();
            let broker = MosquittoBroker::start(
                MosquittoConfig {
                    program: program.clone(),
                    folder: config.state_dir.join("mosquitto"),
                    listen: config.listen_mqtt,
                    cluster: certificates.cluster(),
                    credential: certificates.leaf_path(),
                    authority: certificates.root_path(),
                    tls: Arc::new(move || Ok(own.config())),
                    admitted,
                    clients: config.broker_clients,
                    backoff: seams.reconnect,
                },
                rand::RngCore::next_u64(&mut seams.randomness.generator()),
            )
            .await?;
            Ok((Arc::new(broker), config.listen_mqtt))
        }
    }
}
