//! The session with the cluster: opened once the node has joined, under its identity.

use crate::tier::{Act, Event, NetTier, Told};
use anyhow::Context as _;
use roble_core::liveness::Clocks;
use roble_core::overlay::row::Row;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{Clock, VerifierClock};
use roble_daemon::home::Home;
use roble_daemon::pki::Credential;
use roble_daemon::rng::{OsRandomness, Randomness as _};
use roble_daemon::shell::{self, Hands, Shell};
use roble_daemon::tls::{ClientTls, Protocol};
use roble_link::child::ChildClocks;
use roble_link::mqtt::{MqttConfig, MqttTransport};
use roble_link::transport::{Transport, TransportEvent, forward};
use roble_proto::topics::Branch;
use roble_store::{BackendKind, OpenOptions, Store};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often it is looked whether the node has joined.
const LOOK: Duration = Duration::from_millis(200);
/// How often a new certificate is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Until the cluster says how often.
const BEAT_MS: u64 = 60_000;

/// What the session needs.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The net manager's state folder.
    pub state_dir: PathBuf,
    /// The node engine's state folder, in which the identity is.
    pub identity: PathBuf,
    /// Software version.
    pub software: &'static str,
}

struct NetHands {
    outbox: mpsc::Sender<bytes::Bytes>,
    told: watch::Sender<Arc<Told>>,
    transport: Arc<OnceLock<Arc<dyn Transport>>>,
}

impl Hands<Act> for NetHands {
    fn act(&mut self, act: Act) {
        match act {
            // A full queue means a stalled link: the session repeats what matters.
            Act::Send(bytes) => drop(self.outbox.try_send(bytes.into())),
            Act::Told(told) => drop(self.told.send_replace(told)),
            Act::Connected(true) => tracing::info!("cluster answers"),
            Act::Connected(false) => {
                tracing::warn!("cluster does not answer; what is known goes on");
                if let Some(transport) = self.transport.get() {
                    transport.reconnect();
                }
            }
            Act::Violation(what) => tracing::warn!(what, "message not understood"),
        }
    }
}

/// A session that can begin: what was stored is told already.
pub struct Session {
    config: SessionConfig,
    store: Arc<dyn Store>,
    tier: NetTier,
    told: watch::Sender<Arc<Told>>,
    home: watch::Sender<Option<Home>>,
}

/// Reads what was stored; what the cluster tells goes to `told`, at first that. `home` hears where the node belongs, once it
/// has joined.
///
/// # Errors
/// The store cannot be opened or read.
pub async fn open(
    config: SessionConfig,
    told: watch::Sender<Arc<Told>>,
    home: watch::Sender<Option<Home>>,
) -> anyhow::Result<Session> {
    let path = config.state_dir.join("store");
    let opened = roble_store::open(BackendKind::Redb, &path, &OpenOptions::default()).await?;
    if let Some(damaged) = &opened.set_aside {
        tracing::error!(file = %damaged.display(), "the store was damaged and set aside; the cluster tells everything again");
    }
    let records = shell::records(opened.records, &[]).context("read the store")?;
    let mut rng = OsRandomness.generator();
    let clocks = ChildClocks {
        beat_ms: BEAT_MS,
        silence_ms: Clocks::NODES.unreachable_ms,
    };
    let (tier, bad) = NetTier::new(clocks, config.software, &records, &mut rng);
    for record in bad {
        tracing::error!(record, "a stored record cannot be read");
    }
    told.send_replace(Arc::new(tier.told().clone()));
    Ok(Session {
        config,
        store: opened.store,
        tier,
        told,
        home,
    })
}

impl Session {
    /// Runs until `stop`. `says` is what the node says of itself.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn run(
        self,
        clock: Arc<dyn Clock>,
        says: watch::Receiver<Vec<Row>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self {
            config,
            store,
            tier,
            told,
            home,
        } = self;
        let (events, inbox) = mpsc::channel(1024);
        let (outbox, queue) = mpsc::channel(512);
        let transport = Arc::new(OnceLock::new());
        let hands = NetHands {
            outbox,
            told,
            transport: transport.clone(),
        };
        let link = tokio::spawn(join(config, clock.clone(), home, transport, queue, events.clone()));
        let speaking = tokio::spawn(speak(says, events));
        let shell = Shell {
            store: store.clone(),
            clock,
            rng: OsRandomness.generator(),
            hands,
            look: |_: &_| (),
        };
        let result = shell::run(tier, inbox, shell, stop).await;
        link.abort();
        speaking.abort();
        store.close().await?;
        result.context("the store failed; starting again reads what is on disk")
    }
}

/// Passes on what the node says of itself.
async fn speak(mut says: watch::Receiver<Vec<Row>>, events: mpsc::Sender<Event>) {
    loop {
        let rows = says.borrow_and_update().clone();
        if events.send(Event::Says(rows)).await.is_err() || says.changed().await.is_err() {
            return;
        }
    }
}

/// Opens the link once the node has joined, and takes up each new certificate.
async fn join(
    config: SessionConfig,
    clock: Arc<dyn Clock>,
    joined: watch::Sender<Option<Home>>,
    slot: Arc<OnceLock<Arc<dyn Transport>>>,
    queue: mpsc::Receiver<bytes::Bytes>,
    events: mpsc::Sender<Event>,
) {
    let mut was_bad = false;
    let (home, credential) = loop {
        match Home::load(&config.identity) {
            Ok(Some(found)) => break found,
            Ok(None) => {}
            Err(error) if was_bad => drop(error),
            Err(error) => {
                was_bad = true;
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, folder = %config.identity.display(), "cannot read the node's identity");
            }
        }
        tokio::time::sleep(LOOK).await;
    };
    let verifier = Arc::new(VerifierClock::open(clock, config.state_dir.join("time")));
    let tls = match tls(&home, &credential, &verifier) {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "no link to the cluster");
            return;
        }
    };
    let current = tls.clone();
    let mqtt = MqttConfig::new(home.host().to_owned(), home.mqtt_port, home.node, Branch::Net);
    let transport: Arc<dyn Transport> = Arc::new(MqttTransport::start(
        mqtt,
        Arc::new(move || Ok(current.config())),
        Box::new(OsRandomness.generator()),
    ));
    let _ = slot.set(transport.clone());
    joined.send_replace(Some(home.clone()));
    tracing::info!(node = %home.node, cluster = %home.cluster, "link to the cluster is dialed");
    tokio::join!(
        forward(queue, transport.clone()),
        listen(transport, events),
        renew(&config.identity, credential, &tls)
    );
}

fn tls(home: &Home, credential: &Credential, clock: &Arc<VerifierClock>) -> anyhow::Result<ClientTls> {
    let roots = [credential.root().clone()];
    Ok(ClientTls::trusting(home.server()?, &roots, clock.clone())
        .credential(credential)
        .protocol(Protocol::Raw)
        .build()?)
}

/// Passes on what the cluster says.
async fn listen(transport: Arc<dyn Transport>, events: mpsc::Sender<Event>) {
    loop {
        let event = match transport.next().await {
            TransportEvent::Up => Event::LinkUp,
            TransportEvent::Down { reason } => {
                tracing::debug!(%reason, "link down");
                Event::LinkDown
            }
            TransportEvent::Message(bytes) => Event::Message(bytes.to_vec()),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// The node engine renews the certificate: the next connection uses the new one.
async fn renew(folder: &Path, mut credential: Credential, tls: &ClientTls) {
    loop {
        // Certificates live for days.
        tokio::time::sleep(LOOK_AGAIN).await;
        let Ok(Some((_, newest))) = Home::load(folder) else {
            continue;
        };
        if newest.peer().serial != credential.peer().serial {
            match tls.swap(&newest) {
                Ok(()) => tracing::info!(serial = %newest.peer().serial, "new certificate taken up"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "new certificate not taken up");
                    continue;
                }
            }
            credential = newest;
        }
    }
}
