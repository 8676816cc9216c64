//! Builds the root, binds its listeners, runs it, and drains it.

use crate::api::{self, ApiState};
use crate::certs::Certificates;
use crate::config::{Settings, millis};
use crate::first::{CredentialFile, Invitation, has_credential};
use crate::hands::{ApiHandle, Calls, EVENT_QUEUE, FOLLOW_QUEUE, RootHands};
use crate::link::{LinkService, Links};
use crate::local::{self, Inviter};
use crate::metrics::RootMetrics;
use crate::streams::LogStreams;
use crate::tier::{Act, Call, Caller, Event, RootConfig, RootTier};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roble_core::registry::MemberState;
use roble_core::tier::Tier as _;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{Clock, VerifierClock};
use roble_daemon::files::{FileError, FileLock};
use roble_daemon::health::{Check, Health};
use roble_daemon::metrics::Metrics;
use roble_daemon::pki::{Identity, PkiError};
use roble_daemon::rate::RateLimit;
use roble_daemon::serve::{self, Limits, ServeError, Server};
use roble_daemon::shell::{self, Shell, ShellError};
use roble_daemon::tls::{Revocations, TlsError};
use roble_proto::limits::HTTP_BODY_BYTES;
use roble_store::{OpenOptions, Store, StoreError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// The root did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder or a file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store cannot be opened or read.
    #[error("open the store in {path}")]
    Store {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The store was damaged; an empty one in its place would tell all clusters to stop everything.
    #[error(
        "the store was damaged and has been set aside as {set_aside}{damage}. Restore a backup of {path}, or start once \
         with --accept-empty-store to go on with nothing: users, services and clusters are then forgotten"
    )]
    Damaged {
        /// The store's folder.
        path: PathBuf,
        /// Where the old one is.
        set_aside: PathBuf,
        /// What is wrong with it, if known.
        damage: String,
    },
    /// Records of the store are not understood; without them instances would be lost.
    #[error(
        "{} record(s) of the store are not understood, the first: {first}. Was it written by a newer roble-root?",
        count
    )]
    Records {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The authority is gone while the store is not.
    #[error("{0} is missing, but the store has users and clusters that trust it: restore it from a backup")]
    AuthorityMissing(PathBuf),
    /// Authority or certificate.
    #[error("prepare the root authority and the server's certificate")]
    Pki(#[from] PkiError),
    /// TLS.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// A listener.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The first writes failed.
    #[error("write what the first start makes")]
    Write(#[from] ShellError),
}

/// The root ended for another reason than being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// State cannot be kept any more.
    #[error("the store failed; the root stops, and starts again from what is on disk")]
    Shell(#[from] ShellError),
    /// A listener failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A task panicked.
    #[error("a task of the root failed")]
    Task(#[from] tokio::task::JoinError),
}

/// A root that serves.
#[derive(Debug)]
pub struct Running {
    /// Where users are served.
    pub api: SocketAddr,
    /// Where clusters are served.
    pub link: SocketAddr,
    /// The local socket.
    pub socket: PathBuf,
    /// What users are told to log in to.
    pub url: String,
    /// The authority's pin.
    pub pin: String,
    /// Made in this start, because nobody has ever logged in.
    pub invitation: Option<Invitation>,
    servers: JoinSet<Result<(), ServeError>>,
    tier: JoinHandle<Result<(), ShellError>>,
    stop: CancellationToken,
    stop_tier: CancellationToken,
    clock: Arc<VerifierClock>,
    ready: Check,
    lock: FileLock,
}

/// The tier with what was on disk.
struct Restored {
    tier: RootTier,
    store: Arc<dyn Store>,
    /// Nobody has ever logged in.
    is_first: bool,
    /// A credential for that is known.
    is_invited: bool,
}

/// Starts a root; it ends after `stop` is cancelled. Must run on a tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing is served then.
pub async fn start(settings: Settings, clock: Arc<dyn Clock>, stop: CancellationToken) -> Result<Running, StartError> {
    let lock = FileLock::acquire(&settings.state_dir)?;
    let verifier = Arc::new(VerifierClock::open(clock.clone(), settings.state_dir.join("time")));
    let (certificates, restored) = Box::pin(restore(&settings, &verifier)).await?;
    let Restored {
        mut tier,
        store,
        is_first,
        is_invited,
    } = restored;
    let pin = certificates.authority().pin().to_string();

    // Bound before anything is promised.
    let api_listener = serve::bind(settings.api).await?;
    let link_listener = serve::bind(settings.link).await?;
    let socket = local::socket(&settings.state_dir);
    let unix_listener = serve::bind_unix(&socket)?;
    let address = |listener: &tokio::net::TcpListener| listener.local_addr().map_err(ServeError::Address);
    let (api, link) = (address(&api_listener)?, address(&link_listener)?);
    let url = format!("https://{}:{}", host(&settings.advertise[0]), api.port());

    let credential = CredentialFile::new(&settings.state_dir);
    let mut rng = StdRng::from_os_rng();
    let invitation = match is_first && !(is_invited && credential.path().exists()) {
        true => Some(invite(&mut tier, &*store, &*clock, &mut rng, &credential, &url, &pin).await?),
        false => None,
    };

    let (metrics, root_metrics, health) = (Metrics::new(), RootMetrics::default(), Health::new());
    root_metrics.register(&metrics);
    let ready = health.check("tier");
    let revocations = Revocations::new();
    let revoked = tier
        .registry()
        .members()
        .filter(|member| member.state == MemberState::Revoked);
    revocations.replace(revoked.map(|member| Identity::Cluster(member.id.to_string())));
    let (events, incoming) = mpsc::channel::<Event>(EVENT_QUEUE);
    let (happened, _) = broadcast::channel(FOLLOW_QUEUE);
    let (calls, links, logs) = (
        Calls::default(),
        Links::new(root_metrics.clone()),
        LogStreams::default(),
    );
    let handle = ApiHandle::new(events.clone(), calls.clone());

    let hands = RootHands {
        calls,
        links: links.clone(),
        revocations: revocations.clone(),
        happened: happened.clone(),
        metrics: root_metrics.clone(),
    };
    let stop_tier = CancellationToken::new();
    let looks = root_metrics.clone();
    let look = move |tier: &RootTier| looks.look(tier);
    let shell = Shell {
        store: store.clone(),
        clock: clock.clone(),
        rng,
        hands,
        look,
    };
    let tier = tokio::spawn(shell::run(tier, incoming, shell, stop_tier.clone()));

    let state = ApiState {
        handle: handle.clone(),
        authority: certificates.authority().clone(),
        clock: verifier.clone(),
        link_port: link.port(),
        logs: logs.clone(),
        happened,
        rate: RateLimit::new(10, 5.0),
        store,
        metrics: root_metrics.clone(),
        health: health.clone(),
        credential: credential.clone(),
    };
    let service = LinkService { links, logs, events };
    let inviter = Inviter {
        handle,
        url: url.clone(),
        pin: pin.clone(),
        file: credential,
    };
    let (api_tls, link_tls) = (certificates.api(revocations.clone())?, certificates.link(revocations)?);
    let mut servers = JoinSet::new();
    servers.spawn(
        Server::new(api_tls.clone(), api_limits(&settings), stop.clone())
            .metrics(root_metrics.api)
            .http(api_listener, api::router(state)),
    );
    servers.spawn(
        Server::new(link_tls.clone(), link_limits(&settings), stop.clone())
            .metrics(root_metrics.link)
            .http(link_listener, service.router()),
    );
    servers.spawn(serve::serve_unix(
        unix_listener,
        local::router(inviter, health, metrics),
        api_limits(&settings),
        stop.clone(),
    ));
    tokio::spawn(certificates.keep(vec![api_tls, link_tls], stop.clone()));
    ready.pass();
    Ok(Running {
        api,
        link,
        socket,
        url,
        pin,
        invitation,
        servers,
        tier,
        stop,
        stop_tier,
        clock: verifier,
        ready,
        lock,
    })
}

impl Running {
    /// Waits for the end: after `stop`, listeners drain first, the tier ends last. If the tier ends by itself, everything
    /// ends.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn finished(mut self) -> Result<(), RunError> {
        let mut result = Ok(());
        let mut tier_ended = false;
        loop {
            let ended = tokio::select! {
                ended = self.servers.join_next() => match ended {
                    Some(ended) => ended.map_err(RunError::from).and_then(|ended| ended.map_err(RunError::from)),
                    None => break,
                },
                ended = &mut self.tier, if !tier_ended => {
                    tier_ended = true;
                    ended.map_err(RunError::from).and_then(|ended| ended.map_err(RunError::from))
                }
            };
            if !self.stop.is_cancelled() {
                self.ready.fail("stopping");
                self.stop.cancel();
            }
            result = result.and(ended);
        }
        self.stop_tier.cancel();
        if !tier_ended {
            result = result.and((&mut self.tier).await?.map_err(RunError::from));
        }
        if let Err(error) = self.clock.persist() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "time not kept for the next start"
            );
        }
        drop(self.lock);
        result
    }
}

async fn restore(settings: &Settings, clock: &Arc<VerifierClock>) -> Result<(Certificates, Restored), StartError> {
    let path = settings.state_dir.join("store");
    let failed = |source| StartError::Store {
        path: path.clone(),
        source,
    };
    let options = OpenOptions {
        cache_bytes: settings.cache_bytes,
    };
    let opened = roble_store::open(settings.backend, &path, &options)
        .await
        .map_err(failed)?;
    if let Some(set_aside) = opened.set_aside.filter(|_| !settings.accept_empty_store) {
        return Err(StartError::Damaged {
            path,
            set_aside,
            damage: opened.damage.map(|damage| format!(" ({damage})")).unwrap_or_default(),
        });
    }
    let authority = settings.state_dir.join("authority.pem");
    if !opened.fresh && !authority.exists() {
        return Err(StartError::AuthorityMissing(authority));
    }
    let certificates = Certificates::new(settings, clock.clone())?;
    let store = opened.store;
    let records = shell::records(opened.records, &["audit"]).map_err(failed)?;
    let config = RootConfig {
        clocks: settings.clocks,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        pin: certificates.authority().pin().to_string(),
        session_ms: millis(settings.session),
        audit: settings.audit,
        plan: settings.plan,
    };
    let now = shell::now(&**clock.clock());
    let (tier, writes, bad) = RootTier::new(config, &records, now, &mut StdRng::from_os_rng());
    if let Some(first) = bad.first().cloned() {
        let count = bad.len();
        return Err(StartError::Records { count, first });
    }
    shell::write(&*store, writes).await?;
    tracing::info!(records = records.len(), store = %settings.backend, "state loaded");
    let is_invited = has_credential(&records);
    // Freeing tens of thousands of them takes its time.
    tokio::task::spawn_blocking(move || drop(records));
    let is_first = tier.is_untouched();
    Ok((
        certificates,
        Restored {
            tier,
            store,
            is_first,
            is_invited,
        },
    ))
}

/// Makes the first credential, before anything is served.
async fn invite(
    tier: &mut RootTier,
    store: &dyn Store,
    clock: &dyn Clock,
    rng: &mut StdRng,
    file: &CredentialFile,
    url: &str,
    pin: &str,
) -> Result<Invitation, StartError> {
    let out = tier.on(
        Event::Call(0, Caller::Local, Call::NewCredential { organization: None }),
        shell::now(clock),
        rng,
    );
    shell::write(store, out.writes).await?;
    let answer = out.acts.into_iter().find_map(|act| match act {
        Act::Answer(0, Ok(answer)) => Some(answer),
        _ => None,
    });
    let credential = answer.unwrap_or_default()["credential"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    file.write(&credential)?;
    Ok(Invitation {
        url: url.to_owned(),
        credential,
        pin: pin.to_owned(),
    })
}

fn api_limits(settings: &Settings) -> Limits {
    Limits {
        body_bytes: Some(HTTP_BODY_BYTES),
        drain: settings.drain,
        ..Limits::default()
    }
}

fn link_limits(settings: &Settings) -> Limits {
    Limits {
        // A cluster that is gone is noticed within twice this.
        ping_interval: Duration::from_millis(7_500),
        drain: settings.drain,
        ..Limits::streams()
    }
}

/// IPv6 addresses stand in brackets in a URL.
fn host(name: &str) -> String {
    match name.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => name.to_owned(),
    }
}
