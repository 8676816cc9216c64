//! Puts the daemon together and runs it.

mod parts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use roble_core::backoff::Backoff;
use roble_core::ids::NodeId;
use roble_core::registry::{Member, MemberState};
use roble_daemon::CancellationToken;
use roble_daemon::clock::{Clock, SystemClock, VerifierClock};
use roble_daemon::files::FileLock;
use roble_daemon::health::Health;
use roble_daemon::incomplete::Incomplete;
use roble_daemon::metrics::Metrics;
use roble_daemon::pki::Lifetimes;
use roble_daemon::rate::RateLimit;
use roble_daemon::rng::{OsRandomness, Randomness};
use roble_daemon::serve::{Limits, ServeMetrics, Server, bind, bind_unix, serve_unix};
use roble_daemon::shell::{self, Shell};
use roble_daemon::tls::Revocations;
use roble_link::grpc::{GrpcConfig, GrpcTransport};
use roble_store::OpenOptions;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::api::{self, Api};
use crate::certificates::Certificates;
use crate::config::DaemonConfig;
use crate::doors::Doors;
use crate::hands::{ClusterHands, node_identity};
use crate::local::{self, Local};
use crate::members::Members;
use crate::membership::Membership;
use crate::metrics::{BrokerFigures, ClusterMetrics};
use crate::relay::RelayServer;
use crate::streams::{NodeStreams, Streams};
use crate::tier::{ClusterConfig, ClusterTier};
use crate::uplink::{RootDoor, RootLink, UplinkState};
use crate::{nodes, uplink};

/// Events that may wait for the tier.
const EVENTS: usize = 4_096;

/// What tests replace.
#[derive(Clone)]
pub struct Seams {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub randomness: Arc<dyn Randomness>,
    /// How long certificates are valid.
    pub lifetimes: Lifetimes,
    /// How often it is looked whether they must be renewed.
    pub renew_every: Duration,
    /// Waits between tries to reach the root.
    pub reconnect: Backoff,
    /// Tells to renew all certificates at once.
    pub renew_now: Arc<Notify>,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            randomness: Arc::new(OsRandomness),
            lifetimes: Lifetimes::default(),
            renew_every: Duration::from_secs(60),
            reconnect: Backoff::RECONNECT,
            renew_now: Arc::default(),
        }
    }
}

/// A daemon that serves. Dropping it ends everything at once; [`run`](Self::run) waits and drains.
pub struct Daemon {
    /// Where nodes connect.
    pub mqtt: SocketAddr,
    /// Where nodes join.
    pub api: SocketAddr,
    /// What the root granted.
    pub membership: Membership,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
    deadline: Duration,
    _lock: FileLock,
}

impl Daemon {
    /// Joins, if that was not done before, takes up the state, and serves. Ends when `stop` is cancelled.
    ///
    /// # Errors
    /// Whatever keeps the daemon from serving.
    pub async fn start(config: DaemonConfig, seams: Seams, stop: CancellationToken) -> anyhow::Result<Self> {
        let lock = FileLock::acquire(&config.state_dir)?;
        let folder = config.state_dir.as_path();
        let verifier = Arc::new(VerifierClock::open(seams.clock.clone(), folder.join("time")));
        let health = Health::new();
        let (store_check, broker_check, identity_check) =
            (health.check("store"), health.check("broker"), health.check("identity"));
        let is_known = Membership::path(folder).try_exists()?;
        let membership = parts::membership(&config, &seams, verifier.clone(), &stop).await?;
        identity_check.pass();

        let opened = roble_store::open(config.backend, &folder.join("store"), &OpenOptions::default()).await?;
        if let Some(damage) = &opened.damage {
            tracing::error!(
                damage,
                "the store was damaged and set aside; orders come again from the root"
            );
        }
        let incomplete = Incomplete::open(folder, &opened)?;
        let store = opened.store.clone();
        let records = shell::records(opened.records, &[]).context("read the store")?;

        let revocations = Revocations::new();
        let lost = opened.set_aside.is_some() || (opened.fresh && is_known);
        let members = Arc::new(Members::open(folder, lost)?);
        let certificates = Arc::new(Certificates::open(
            folder,
            membership.clone(),
            seams.lifetimes,
            verifier,
            &revocations,
            &members,
        )?);
        let mut rng = seams.randomness.generator();
        let cluster = membership.id;
        let tier_config = ClusterConfig {
            id: cluster,
            name: config.name.clone(),
            labels: config.labels.clone(),
            address: config.advertise.clone(),
            clocks: config.clocks,
            uplink: config.uplink,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            pin: certificates.authority().root_pin()?.to_string(),
            is_new: !is_known && !lost,
        };
        let now = shell::now(&*seams.clock);
        let (tier, bad) = ClusterTier::new(tier_config, &records, incomplete.is_complete(), now, &mut rng);
        for record in bad {
            tracing::error!(record, "record not understood, left out");
        }
        store_check.pass();

        let mut tasks = JoinSet::new();
        let metrics = Metrics::new();
        let counters = ClusterMetrics::default();
        metrics.register(|registry| counters.register(registry));
        let is_active = |member: &&Member| member.state == MemberState::Active;
        let active = tier
            .registry()
            .members()
            .filter(is_active)
            .map(|member| NodeId(member.id.0));
        let active: Vec<NodeId> = active.collect();
        let (broker, mqtt) =
            parts::start_broker(&config, &seams, &certificates, &metrics, &mut tasks, &stop, active).await?;
        let (node_sender, node_queues) = nodes::queues();
        for member in tier.registry().members() {
            members.put(member);
            let node = NodeId(member.id.0);
            match member.state {
                MemberState::Active => broker.admit(node).await?,
                MemberState::Pending | MemberState::Revoked => {}
            }
        }
        for node in members.revoked() {
            revocations.deny(node_identity(cluster, node));
            broker.revoke(node).await?;
        }
        metrics.register(|registry| registry.register_collector(Box::new(BrokerFigures(broker.clone()))));
        broker_check.pass();

        let (events, event_queue) = mpsc::channel(EVENTS);
        let root =
            RootLink::new(&membership.link_address(), certificates.uplink.clone()).context("the root's address")?;
        let transport = GrpcTransport::start(
            GrpcConfig {
                backoff: seams.reconnect,
                ..GrpcConfig::default()
            },
            root.source(),
            Box::new(seams.randomness.generator()),
        );
        let uplink_state = UplinkState::default();
        let (doors, streams) = (Arc::new(Doors::new(events.clone())), Arc::new(Streams::default()));
        let (relayed, relays) = watch::channel(Vec::new());
        if let Some(relay) = config.relay {
            let relay = RelayServer::open(relay, folder, seams.clock.clone()).await?;
            metrics.register(|registry| registry.register_collector(Box::new(relay.figures())));
            tasks.spawn(done(relay.run(relays, events.clone(), stop.clone())));
        }
        let hands = ClusterHands {
            cluster,
            uplink: transport.sender(),
            uplink_state: uplink_state.clone(),
            nodes: node_sender,
            doors: doors.clone(),
            streams: streams.clone(),
            members: members.clone(),
            revocations,
            relayed,
            metrics: counters.clone(),
        };

        // Listeners first, so that a port that is taken is told before anything runs.
        let api_socket = bind(config.listen_api).await?;
        let api_address = api_socket.local_addr()?;
        let local_socket = bind_unix(&config.socket())?;
        let node_api = Arc::new(Api {
            certificates: certificates.clone(),
            doors: doors.clone(),
            broker: broker.clone(),
            members,
            rate: RateLimit::new(60, 2.0),
            mqtt_port: mqtt.port(),
        });
        let node_streams = NodeStreams {
            cluster,
            streams,
            root,
            metrics: counters.clone(),
        };
        let limits = Limits {
            drain: config.shutdown_deadline,
            ..Limits::streams()
        };
        let api_metrics = ServeMetrics::default();
        metrics.register(|registry| api_metrics.register(registry, "roble_cluster_api"));
        let api_router = api::router(node_api, node_streams, health.clone());
        let local_router = local::router(
            Arc::new(Local {
                doors,
                id: cluster,
                name: config.name.clone(),
                uplink: uplink_state.clone(),
            }),
            health,
            metrics,
        );
        let server = Server::new(certificates.api.clone(), limits, stop.clone()).metrics(api_metrics);
        tasks.spawn(async move { Ok(server.http(api_socket, api_router).await?) });
        let local_limits = Limits {
            connections: 64,
            body_bytes: Some(64 * 1024),
            drain: config.shutdown_deadline,
            ..Limits::default()
        };
        let token = stop.clone();
        tasks.spawn(async move { Ok(serve_unix(local_socket, local_router, local_limits, token).await?) });
        tasks.spawn(done(nodes::carry(
            broker.clone(),
            node_queues,
            events.clone(),
            counters.clone(),
            stop.clone(),
        )));
        tasks.spawn(done(uplink::carry(
            transport,
            RootDoor::new(&certificates, &membership)?,
            events.clone(),
            uplink_state,
            stop.clone(),
        )));
        tasks.spawn(done(certificates.keep(
            broker,
            seams.renew_every,
            seams.renew_now.clone(),
            stop.clone(),
        )));
        let shell = Shell {
            store,
            clock: seams.clock.clone(),
            rng,
            hands,
            look: parts::watch(incomplete, counters),
        };
        let token = stop.clone();
        tasks.spawn(async move { Ok(shell::run(tier, event_queue, shell, token).await?) });
        tracing::info!(
            cluster = %cluster, name = config.name, %mqtt, api = %api_address, root = membership.root,
            socket = %config.socket().display(), version = env!("CARGO_PKG_VERSION"), "serving"
        );
        drop(events);
        Ok(Self {
            mqtt,
            api: api_address,
            membership,
            tasks,
            stop,
            deadline: config.shutdown_deadline,
            _lock: lock,
        })
    }

    /// Runs until asked to stop, or until a part of it fails; then everything stops.
    ///
    /// # Errors
    /// What failed.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a part of the daemon broke down").and_then(|ended| ended);
            if !self.stop.is_cancelled() {
                let failed = ended.and_then(|()| Err(anyhow::anyhow!("a part of the daemon ended by itself")));
                result = result.and(failed);
                self.stop.cancel();
            }
            if self.stop.is_cancelled() {
                break;
            }
        }
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.deadline + Duration::from_secs(1), rest)
            .await
            .is_err()
        {
            tracing::warn!("some work did not end in time and was dropped");
        }
        result
    }
}

async fn done(work: impl Future<Output = ()>) -> anyhow::Result<()> {
    work.await;
    Ok(())
}
