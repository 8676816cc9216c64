//! `roble-node`: see the library's documentation. Only wiring here.

use anyhow::Context as _;
use roble_core::engine::NodeFacts;
use roble_core::liveness::Clocks;
use roble_daemon::clock::{Clock, SystemClock, VerifierClock};
use roble_daemon::files::FileLock;
use roble_daemon::health::{self, Health};
use roble_daemon::incomplete::Incomplete;
use roble_daemon::logs::{self, LogFormat};
use roble_daemon::metrics::Metrics;
use roble_daemon::rng::{OsRandomness, Randomness as _};
use roble_daemon::serve::{Limits, bind_unix, serve_unix};
use roble_daemon::shell::{self, Shell};
use roble_daemon::shutdown::{Shutdown, hangups};
use roble_daemon::{config as settings, notify};
use roble_link::child::ChildClocks;
use roble_link::mqtt::{MqttConfig, MqttTransport};
use roble_link::transport::{DownReason, Transport, TransportEvent, forward};
use roble_node::config::{NodeSettings, SPEC};
use roble_node::hands::{FirstListError, NodeHands, Worker, ended};
use roble_node::identity::NodeIdentity;
use roble_node::network::client::NetClient;
use roble_node::runtime::Runtime;
use roble_node::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use roble_node::streams::StreamDialer;
use roble_node::tier::{Event, NodeConfig, NodeTier};
use roble_proto::topics::Branch;
use roble_store::OpenOptions;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// How often everything the runtime has is looked at, besides its own hints.
const LOOK: Duration = Duration::from_secs(5);

fn main() -> anyhow::Result<()> {
    let config = settings::from_process(&SPEC);
    let settings = NodeSettings::build(&config)?;
    logs::init(
        LogFormat::from_name(config.string("log.format")),
        config.string("log.level"),
    )?;
    roble_daemon::install_crypto_provider();
    let shutdown = Shutdown::new(config.duration("shutdown.deadline"));
    roble_daemon::runtime(2)?.block_on(run(settings, shutdown))
}

async fn run(settings: NodeSettings, shutdown: Shutdown) -> anyhow::Result<()> {
    shutdown.listen_for_signals()?;
    let renew_now = hangups()?;
    let _lock = FileLock::acquire(&settings.state_dir)?;
    // First of all, so that a node that waits for its cluster to let it in can already be asked how it is.
    let health = Health::new();
    let metrics = Metrics::new();
    let runtime_check = health.check("runtime");
    let socket = bind_unix(&settings.state_dir.join("node.sock"))?;
    tokio::spawn(serve_unix(
        socket,
        health::router(health, metrics),
        Limits::default(),
        shutdown.token(),
    ));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let verifier = Arc::new(VerifierClock::open(clock.clone(), settings.state_dir.join("time")));
    let identity = tokio::select! {
        identity = NodeIdentity::establish(&settings, &verifier) => identity?,
        () = shutdown.requested() => return Ok(()),
    };

    let backend = settings.backend.parse()?;
    let opened = roble_store::open(backend, &settings.state_dir.join("store"), &OpenOptions::default()).await?;
    if let Some(damaged) = &opened.set_aside {
        tracing::error!(file = %damaged.display(), "the store was damaged and set aside; what runs goes on, the rest comes from the cluster");
    }
    let mut incomplete = Incomplete::open(&settings.state_dir, &opened)?;
    let records = shell::records(opened.records, &[]).context("read the store")?;
    let mut rng = OsRandomness.generator();
    let node = NodeConfig {
        name: settings.name.clone(),
        address: settings
            .advertise
            .clone()
            .unwrap_or_else(|| own_address(&identity.host, identity.mqtt_port)),
        facts: NodeFacts {
            allocatable: settings.allocatable(),
            labels: settings.labels.clone(),
            virtualizations: vec!["container".to_owned()],
        },
        clocks: ChildClocks {
            beat_ms: Clocks::NODES.beat_ms,
            silence_ms: Clocks::NODES.unreachable_ms,
        },
        software: SPEC.version.to_owned(),
    };
    let (tier, bad) = NodeTier::new(node, &records, incomplete.is_complete(), shell::now(&*clock), &mut rng);
    for record in bad {
        tracing::error!(record, "a stored record cannot be read");
    }
    drop(records);

    let (events, inbox) = mpsc::channel(1024);
    let mut containerd = ContainerdConfig::new(&settings.name, settings.state_dir.join("containers"));
    containerd.socket.clone_from(&settings.containerd_socket);
    containerd.namespace.clone_from(&settings.containerd_namespace);
    containerd.cgroup_parent.clone_from(&settings.cgroup_parent);
    containerd
        .registry
        .insecure_registries
        .clone_from(&settings.insecure_registries);
    containerd
        .registry
        .credentials_file
        .clone_from(&settings.registry_credentials);
    let runtime: Arc<dyn Runtime> = Arc::new(ContainerdRuntime::new(containerd)?);
    let network = Arc::new(NetClient::new(settings.net_socket.clone(), Duration::from_secs(10)));
    let worker = Worker::new(runtime.clone(), network, settings.netns_dir.clone(), events.clone());

    let tls = identity.link.clone();
    let mqtt = MqttConfig::new(identity.host.clone(), identity.mqtt_port, identity.node, Branch::Engine);
    let transport: Arc<dyn Transport> = Arc::new(MqttTransport::start(
        mqtt,
        Arc::new(move || Ok(tls.config())),
        Box::new(OsRandomness.generator()),
    ));
    let (outbox, queue) = mpsc::channel(512);
    let streams = Arc::new(StreamDialer {
        address: identity.api.clone(),
        dialer: identity.streams.clone(),
    });
    let doubt = Arc::new(Notify::new());
    let hands = NodeHands {
        worker: worker.clone(),
        outbox,
        link: transport.clone(),
        streams,
        doubt: doubt.clone(),
    };

    tokio::spawn(forward(queue, transport.clone()));
    tokio::spawn(listen(transport, events.clone(), doubt.clone()));
    tokio::spawn(exits(runtime, events.clone()));
    tokio::spawn(look(worker, events.clone(), runtime_check));
    tokio::spawn(identity.keep_fresh(verifier.clone(), renew_now, doubt, events));
    tracing::info!(name = settings.name, version = SPEC.version, "serving");
    notify::ready();
    let shell = Shell {
        store: opened.store.clone(),
        clock,
        rng,
        hands,
        look: move |tier: &NodeTier| incomplete.end_if(tier.engine().is_complete()),
    };
    let result = shell::run(tier, inbox, shell, shutdown.token()).await;
    notify::stopping();
    verifier.persist()?;
    opened.store.close().await?;
    result.context("the store failed; starting again reads what is on disk")?;
    tracing::info!("stopped, containers go on");
    Ok(())
}

/// Passes on what the cluster says.
async fn listen(transport: Arc<dyn Transport>, events: mpsc::Sender<Event>, doubt: Arc<Notify>) {
    loop {
        let event = match transport.next().await {
            TransportEvent::Up => Event::LinkUp,
            TransportEvent::Down { reason } => {
                tracing::debug!(%reason, "link down");
                if matches!(reason, DownReason::Tls { .. } | DownReason::Refused { .. }) {
                    doubt.notify_one();
                }
                Event::LinkDown
            }
            TransportEvent::Message(bytes) => Event::Message(bytes.to_vec()),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Passes on the ends of containers.
async fn exits(runtime: Arc<dyn Runtime>, events: mpsc::Sender<Event>) {
    loop {
        let exit = runtime.next_exit().await;
        let event = Event::Exited {
            instance: exit.instance,
            version: exit.version,
            exit: ended(&exit.reason),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Looks at everything the runtime has, at once and then now and then.
async fn look(worker: Worker, events: mpsc::Sender<Event>, check: health::Check) {
    let mut is_first = true;
    loop {
        let looked = match is_first {
            true => worker.first_list().await,
            false => worker.list().await.map_err(FirstListError::from),
        };
        match looked {
            Ok(list) => {
                is_first = false;
                check.pass();
                if events.send(Event::Listed(list)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                check.fail(error.to_string());
                tracing::warn!(%error, "the runtime does not answer");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The address of this machine that leads to the cluster: what the kernel would send from. Nothing is sent.
fn own_address(host: &str, port: u16) -> String {
    let probe = || -> std::io::Result<String> {
        let socket = std::net::UdpSocket::bind(if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect((host, port))?;
        Ok(socket.local_addr()?.ip().to_string())
    };
    probe().unwrap_or_default()
}
