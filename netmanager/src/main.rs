//! `roble-net`: see the library's documentation. Only wiring here.

use anyhow::Context as _;
use axum::middleware::from_fn_with_state;
use roble_daemon::clock::SystemClock;
use roble_daemon::files::FileLock;
use roble_daemon::health::{self, Check, Health};
use roble_daemon::logs::{self, LogFormat};
use roble_daemon::metrics::Metrics;
use roble_daemon::serve::{Limits, bind_unix, serve_unix};
use roble_daemon::shutdown::Shutdown;
use roble_daemon::{config as settings, notify};
use roble_net::api;
use roble_net::config::{NetConfig, SPEC};
use roble_net::datapath::kernel::KernelDatapath;
use roble_net::dns::DnsMetrics;
use roble_net::follow::{Follow, Shown};
use roble_net::metrics::NetMetrics;
use roble_net::sealing::{self, device::Current};
use roble_net::service::NetService;
use roble_net::traffic::{self, Traffic};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bounds of the local API: a node engine and a few tools talk to it.
fn limits(drain: Duration) -> Limits {
    Limits {
        connections: 128,
        body_bytes: Some(256 * 1024),
        drain,
        ..Limits::default()
    }
}

fn main() -> anyhow::Result<()> {
    let settings = settings::from_process(&SPEC);
    let config = NetConfig::build(&settings)?;
    logs::init(
        LogFormat::from_name(settings.string("log.format")),
        settings.string("log.level"),
    )?;
    let shutdown = Shutdown::new(settings.duration("shutdown.deadline"));
    roble_daemon::runtime(2)?.block_on(run(config, shutdown))
}

async fn run(config: NetConfig, shutdown: Shutdown) -> anyhow::Result<()> {
    let _lock = FileLock::acquire(&config.state_dir)?;
    let metrics = Metrics::new();
    let counters = NetMetrics::default();
    metrics.register(|registry| counters.register(registry));
    let datapath = Arc::new(KernelDatapath::new(&config.state_dir));
    if config.clean_up || config.sealing.is_none() {
        sealing::stop_worker(&config.worker_socket).await;
    }
    if config.clean_up {
        return clean_up(&config, datapath, counters).await;
    }
    let service = NetService::open(&config.state_dir, datapath, Arc::new(SystemClock), counters.clone())?;
    let service = Arc::new(service.with_egress(config.egress));
    let names = DnsMetrics::default();
    metrics.register(|registry| names.register(registry));

    shutdown.listen_for_signals()?;
    if let Some(folder) = config.socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    }
    let listener = bind_unix(&config.socket)?;
    let health = Health::new();
    let check = health.check("datapath");
    let (open, is_open) = watch::channel(false);
    let ((peers, known), (asked, wants)) = (watch::channel(Vec::new()), watch::channel(None));
    let (tell, told) = watch::channel(Arc::default());
    let device = Current::default();
    let ways = api::Ways {
        known,
        device: device.clone(),
        wants,
        told,
    };
    let traffic = Traffic::new(service.clone(), ways.clone());
    metrics.register(|registry| traffic.register(registry));
    let shown = Shown {
        peers,
        device,
        wants: asked,
        told: tell,
    };
    let measured = health::router(health, metrics).layer(from_fn_with_state(traffic, traffic::before_metrics));
    let router = api::router(service.clone(), counters.clone(), ways, is_open).merge(measured);
    tracing::info!(
        node = config.node_name, socket = %config.socket.display(), version = SPEC.version, "serving"
    );
    let serving = serve_unix(listener, router, limits(shutdown.deadline()), shutdown.token());
    let serving = tokio::spawn(serving);
    let follow = Follow::new(&config, service.clone(), names, counters, shown, shutdown.token())?;
    let told = follow.start().await?;
    open.send_replace(true);
    let rounds = tokio::spawn(reconcile(service, check, config.reconcile_interval));
    let served = serving.await?;
    notify::stopping();
    rounds.abort();
    told.abort();
    // Removed while the lock is held, so it is never a successor's. The datapath stays: containers go on.
    let _ = std::fs::remove_file(&config.socket);
    served?;
    tracing::info!("stopped, containers keep their network");
    Ok(())
}

/// Looks at everything at once, then every `interval`; sooner while something is wrong.
async fn reconcile(service: Arc<NetService>, check: Check, interval: Duration) {
    let mut was_fine = None;
    loop {
        let pause = match service.reconcile().await {
            Ok(()) => {
                check.pass();
                if was_fine != Some(true) {
                    let attachments = service.list().await.len();
                    tracing::info!(attachments, "datapath is as it should be");
                }
                if was_fine.is_none() {
                    notify::ready();
                }
                was_fine = Some(true);
                interval
            }
            Err(error) => {
                let message = format!("{:#}", anyhow::Error::new(error));
                if was_fine != Some(false) {
                    tracing::error!(error = message, "datapath is not as it should be");
                }
                check.fail(message);
                was_fine = Some(false);
                interval.min(Duration::from_secs(3))
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn clean_up(config: &NetConfig, datapath: Arc<KernelDatapath>, counters: NetMetrics) -> anyhow::Result<()> {
    let service = NetService::open(&config.state_dir, datapath, Arc::new(SystemClock), counters)?;
    service.clean_up().await?;
    tracing::info!("everything removed");
    Ok(())
}
