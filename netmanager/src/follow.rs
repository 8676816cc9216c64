//! Follows what the cluster tells: into the datapath, the name server, and what the node says of itself.

use crate::api;
use crate::config::{NetConfig, SPEC};
use crate::datapath::conntrack;
use crate::datapath::miss::Device;
use crate::datapath::tunnel::{Tunnel, TunnelKind};
use crate::dns::{self, DnsMetrics, Listeners, Upstream, Views, Zone};
use crate::metrics::NetMetrics;
use crate::misses;
use crate::nearness::Nearness;
use crate::overlay::{self, Own};
use crate::peers::{self, Known};
use crate::probe;
use crate::sealing::device::{Current, Guard};
use crate::sealing::{self, Sealing};
use crate::service::NetService;
use crate::session::{self, SessionConfig};
use crate::tier::Told;
use crate::wants::{self, Answers, Wants};
use anyhow::Context as _;
use roble_core::overlay::block::Block;
use roble_core::overlay::row::Row;
use roble_core::time::Timestamp;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{Clock as _, SystemClock};
use roble_daemon::home::Home;
use roble_tunnel::DeviceError;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// After what could not be done.
const AGAIN: Duration = Duration::from_secs(2);

/// The follower. See the module's text.
pub struct Follow {
    session: SessionConfig,
    block: Option<Block>,
    kind: Option<TunnelKind>,
    address: Option<IpAddr>,
    sealing: Option<Sealing>,
    services_idle: Duration,
    service: Arc<NetService>,
    metrics: DnsMetrics,
    counters: NetMetrics,
    shown: Shown,
    stop: CancellationToken,
}

/// What the local API shows of it.
pub struct Shown {
    /// Other nodes.
    pub peers: watch::Sender<Vec<Known>>,
    /// The tunnel's device, once there is one.
    pub device: Current,
    /// What is asked of the cluster at first use, from the start on.
    pub wants: watch::Sender<Option<Arc<Wants>>>,
    /// What the cluster tells.
    pub told: watch::Sender<Arc<Told>>,
}

impl Follow {
    /// Made of the settings.
    ///
    /// # Errors
    /// The tunnel's keys cannot be read or made.
    pub fn new(
        config: &NetConfig,
        service: Arc<NetService>,
        metrics: DnsMetrics,
        counters: NetMetrics,
        shown: Shown,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let now = Timestamp::from_millis(SystemClock.wall());
        let sealing = config.sealing.clone();
        let sealing = sealing.map(|sealing| Sealing::open(sealing, &config.state_dir, shown.device.clone(), now));
        Ok(Self {
            session: SessionConfig {
                state_dir: config.state_dir.clone(),
                identity: config.identity.clone(),
                software: SPEC.version,
            },
            block: config.endpoint_range,
            kind: config.tunnel,
            address: config.tunnel_address,
            sealing: sealing.transpose().context("open the tunnel's keys")?,
            services_idle: config.services_idle,
            service,
            metrics,
            counters,
            shown,
            stop,
        })
    }

    /// Gives the service what was stored, and goes on with what is told.
    ///
    /// # Errors
    /// What was stored cannot be read.
    pub async fn start(self) -> anyhow::Result<JoinHandle<()>> {
        let (told, hears) = watch::channel(Arc::new(Told::default()));
        // Known from the first moment: without it the way to other nodes would be taken down until the session has it.
        let known = Home::load(&self.session.identity).ok().flatten().map(|(home, _)| home);
        let address = self.own_address(known.as_ref()).await;
        let (joined, home) = watch::channel(known.clone());
        let session = session::open(self.session.clone(), told.clone(), joined).await?;
        // Whoever starts after a power cut has this and nothing else.
        let kept = told.borrow().clone();
        let wants = Arc::new(Wants::new(self.services_idle, &kept));
        self.shown.wants.send_replace(Some(wants.clone()));
        let device = open_device();
        let holds = device.is_some();
        let own = self.own(known.as_ref(), address);
        let first = overlay::overlay(&kept, own, &mut Nearness::default()).holding(holds, &kept);
        if let Err(error) = self.service.set_overlay(first).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "datapath not set yet");
        }
        let rows = self.says(known.as_ref(), self.service.block(), own.tunnel, address);
        let (own_rows, owned) = watch::channel(rows);
        // Whole from the first moment, or the cluster would take back what was wanted before, and give another block.
        let (says, said) = watch::channel([owned.borrow().clone(), wants.rows().borrow().clone()].concat());
        Ok(tokio::spawn(async move {
            let hold = async {
                if let Some(device) = device {
                    misses::run(
                        device,
                        wants.clone(),
                        self.service.callers(),
                        self.counters.clone(),
                        self.stop.clone(),
                    )
                    .await;
                }
            };
            tokio::join!(
                self.session_ends(session.run(Arc::new(SystemClock), said, self.stop.clone())),
                self.follow(hears.clone(), home, own_rows, &wants, holds),
                say(owned, wants.rows(), says),
                wants::tend(&wants, &self.service, hears),
                hold
            );
        }))
    }

    async fn session_ends(&self, session: impl Future<Output = anyhow::Result<()>>) {
        if let Err(error) = session.await {
            tracing::error!(error = format!("{error:#}"), "nothing more is heard of the cluster");
            // Started again, it reads what is on disk.
            self.stop.cancel();
        }
    }

    async fn follow(
        &self,
        mut hears: watch::Receiver<Arc<Told>>,
        mut home: watch::Receiver<Option<Home>>,
        own_rows: watch::Sender<Vec<Row>>,
        wants: &Arc<Wants>,
        holds: bool,
    ) {
        let (zones, zone) = watch::channel(Arc::new(Zone::default()));
        let mut serving: Option<(Block, JoinHandle<()>)> = None;
        let (gateways, targets) = watch::channel(BTreeMap::new());
        let mut rounds = probe::start(targets, self.stop.clone());
        let mut nearness = Nearness::default();
        let mut set_last = None;
        loop {
            let (told, member) = (hears.borrow_and_update().clone(), home.borrow_and_update().clone());
            let address = self.own_address(member.as_ref()).await;
            let own = self.own(member.as_ref(), address);
            let wanted = overlay::overlay(&told, own, &mut nearness).holding(holds, &told);
            let answers = Answers::of(told.rows(), wanted.known());
            zones.send_replace(Arc::new(Zone::new(told.plan(), told.rows())));
            let near = overlay::gateways(&told, member.as_ref());
            gateways.send_if_modified(|last| {
                let is_changed = *last != near;
                *last = near;
                is_changed
            });
            // What containers have addresses of, be it told or not: a cluster that has forgotten whose it is hears it again.
            let said = self.service.block().or(wanted.block);
            own_rows.send_replace(self.says(member.as_ref(), said, own.tunnel, address));
            self.shown.told.send_replace(told.clone());
            self.shown.peers.send_replace(peers::known(&told, own, &nearness));
            let sealed = self.seal(&told, own).await;
            let wanted = match &self.sealing {
                Some(sealing) => wanted.with_narrow(sealing::narrow(sealing.current(), &told, own).await),
                None => wanted,
            };
            let set = if set_last.as_ref() == Some(&wanted) {
                Ok(())
            } else {
                self.service.set_overlay(wanted.clone()).await
            };
            if set.is_ok() {
                wants.set_answers(answers);
            }
            set_last = set.is_ok().then_some(wanted);
            let block = self.service.block();
            if block != said {
                own_rows.send_replace(self.says(member.as_ref(), block, own.tunnel, address));
            }
            if let Some(block) = block
                && serving
                    .as_ref()
                    .is_none_or(|(served, task)| *served != block || task.is_finished())
            {
                if let Some((_, task)) = serving.take() {
                    task.abort();
                }
                serving = self.serve_names(block, &told, &zone, wants).map(|task| (block, task));
            }
            if let Err(error) = &set {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "datapath not as told; trying again"
                );
            }
            // An address that is not there yet is looked for again.
            let is_alone = self.kind.is_none() && self.sealing.is_none();
            let is_settled = set.is_ok()
                && (address.is_some() || is_alone)
                && sealed.is_ok()
                && (serving.is_some() || block.is_none());
            tokio::select! {
                changed = hears.changed() => if changed.is_err() { return },
                changed = home.changed() => if changed.is_err() { return },
                () = ended(sealed.ok().flatten()) => {
                    tracing::warn!("the tunnel's device is gone; it is made again");
                    set_last = None;
                }
                Some(round) = rounds.recv() => self.hear_round(round, &told, &mut nearness),
                () = tokio::time::sleep(AGAIN), if !is_settled => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// What the node says of itself; nothing before it has joined.
    fn says(
        &self,
        home: Option<&Home>,
        block: Option<Block>,
        tunnel: Option<Tunnel>,
        address: Option<IpAddr>,
    ) -> Vec<Row> {
        let Some(home) = home else { return Vec::new() };
        let end = self.sealing.as_ref().zip(address).map(|(sealing, address)| {
            rotate(sealing);
            sealing.end(address)
        });
        overlay::says(home, block, tunnel, end)
    }

    /// What was measured of other nodes, and how many flows lead where.
    fn hear_round(&self, round: probe::Round, told: &Told, nearness: &mut Nearness) {
        for (node, rtt) in round {
            nearness.hear(node, rtt);
        }
        nearness.retain(
            &told.nodes().map(|row| row.node).collect(),
            &told.services().map(|row| row.service).collect(),
        );
        let plan = told.plan();
        match conntrack::count(|to| plan.is_service(to)) {
            Ok(flows) => nearness.set_flows(flows),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "tracked flows were not counted");
            }
        }
    }

    /// This node's address in its site: the one from which the cluster is reached, unless it is told.
    async fn own_address(&self, home: Option<&Home>) -> Option<IpAddr> {
        match self.address {
            Some(address) => Some(address),
            None => own_address(home?).await,
        }
    }

    fn own<'a>(&self, home: Option<&'a Home>, address: Option<IpAddr>) -> Own<'a> {
        Own {
            home,
            block: self.block,
            tunnel: self.kind.zip(address).map(|(kind, address)| Tunnel { address, kind }),
            sealed: address
                .zip(self.sealing.as_ref())
                .map(|(address, sealing)| (address, sealing.port()).into()),
        }
    }

    /// The device runs and knows its peers, if there are any. Returns what notices its end.
    async fn seal(&self, told: &Told, own: Own<'_>) -> Result<Option<Guard>, DeviceError> {
        let (Some(sealing), true) = (&self.sealing, own.home.is_some()) else {
            return Ok(None);
        };
        let ensured = sealing.ensure(told, own).await;
        let failure = ensured.as_ref().err().map(|error| {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "no encrypted tunnel to other nodes; trying again");
            api::chain(error)
        });
        sealing.current().set_failure(failure);
        ensured
    }

    /// Answers names on the gateway addresses of the block.
    fn serve_names(
        &self,
        block: Block,
        told: &Told,
        zone: &watch::Receiver<Arc<Zone>>,
        wants: &Arc<Wants>,
    ) -> Option<JoinHandle<()>> {
        let gateway = block.gateway();
        let addresses = [IpAddr::V4(gateway), IpAddr::V6(told.plan().endpoint_v6(gateway))];
        let addresses = addresses.map(|address| SocketAddr::new(address, dns::PORT));
        let listeners = match Listeners::bind(&addresses) {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "names are not served; trying again"
                );
                return None;
            }
        };
        let views = Views {
            zone: zone.clone(),
            callers: self.service.callers(),
            wants: wants.clone(),
        };
        tracing::info!(%gateway, "names are served");
        let served = dns::serve(
            listeners,
            views,
            Upstream::default(),
            self.metrics.clone(),
            self.stop.clone(),
        );
        Some(tokio::spawn(served))
    }
}

/// A key that is too old is replaced.
fn rotate(sealing: &Sealing) {
    match sealing.rotate(Timestamp::from_millis(SystemClock.wall())) {
        Ok(true) => tracing::info!("the tunnel has a new key"),
        Ok(false) => {}
        Err(error) => tracing::error!(error = format!("{error:#}"), "the tunnel keeps its old key"),
    }
}

/// Returns when the device has ended, if there is one.
async fn ended(guard: Option<Guard>) {
    match guard {
        Some(guard) => guard.ended().await,
        None => std::future::pending().await,
    }
}

/// Without the device all works but the first packet to an unknown service, which is refused then.
fn open_device() -> Option<Device> {
    Device::open()
        .inspect_err(|error| {
            tracing::warn!(%error, "no TUN device: packets to services of other applications that were not asked for by name are refused");
        })
        .ok()
}

/// All that the node says: of itself, and what it wants.
async fn say(mut own: watch::Receiver<Vec<Row>>, mut wants: watch::Receiver<Vec<Row>>, says: watch::Sender<Vec<Row>>) {
    loop {
        let all = [own.borrow_and_update().clone(), wants.borrow_and_update().clone()].concat();
        says.send_replace(all);
        let changed = tokio::select! {
            changed = own.changed() => changed,
            changed = wants.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The address of this node from which its cluster is reached.
async fn own_address(home: &Home) -> Option<IpAddr> {
    let target = tokio::net::lookup_host((home.host(), home.mqtt_port))
        .await
        .ok()?
        .next()?;
    let any: SocketAddr = if target.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    // Nothing is sent: the kernel only chooses the way.
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
