//! The one owner of the attachments: decides on the state, writes it to disk, then sets the datapath to it.
//!
//! Stored in the state folder: `attachments.json` (see [`State`]). Requests are handled one after another, each runs to its
//! end even if the caller goes away.

use crate::datapath::{Datapath, DatapathConfig, DatapathError, Endpoint, EndpointFailure, LinkName, Overlay};
use crate::metrics::NetMetrics;
use crate::state::{Instant, RefusedAttach, SCHEMA, State};
use roble_core::overlay::block::Block;
use roble_core::ports::Protocol;
use roble_daemon::clock::Clock;
use roble_daemon::failpoint;
use roble_daemon::files::{self, FileError};
use roble_proto::local_net::{Attach, Attached};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

/// Largest state file that is read, in bytes.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state cannot be read.
    #[error("read attachments")]
    Read(#[source] FileError),
    /// The state was written by a newer release.
    #[error("{path} has schema {found}, this release knows {SCHEMA}: install the newer release again")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// Containers are attached with addresses outside of the range.
    #[error(
        "container {container} has address {address}, outside of endpoint range {range}: run `roble-net --clean-up` first"
    )]
    RangeChanged {
        /// One of them.
        container: String,
        /// Its address.
        address: std::net::Ipv4Addr,
        /// The range now asked for.
        range: Block,
    },
    /// A damaged state file could not be set aside.
    #[error("set damaged {path} aside")]
    SetAside {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell which boot this is.
    #[error("read the boot id")]
    BootId(#[source] io::Error),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The request cannot be fulfilled as it is; nothing changed.
    #[error(transparent)]
    Refused(#[from] RefusedAttach),
    /// A program of the node listens on a port that shall be published; nothing changed.
    #[error("port {port}/{protocol} is in use by {owner}")]
    PortInUse {
        /// The port.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// Who listens.
        owner: String,
    },
    /// The state could not be written; nothing changed.
    #[error("write attachments")]
    Write(#[source] FileError),
    /// The datapath could not be set; what was attached before still is.
    #[error("set datapath")]
    Datapath(#[source] DatapathError),
}

impl NetError {
    /// The stable code of the local API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(RefusedAttach::Invalid(_)) | Self::Datapath(DatapathError::NetnsIsOurs { .. }) => "invalid",
            Self::Refused(RefusedAttach::PortTaken { .. }) | Self::PortInUse { .. } => "port-taken",
            Self::Refused(RefusedAttach::NoAddress { .. }) => "no-address",
            Self::Datapath(DatapathError::NetnsMissing { .. }) => "netns-missing",
            Self::Write(_) | Self::Datapath(_) => "internal",
        }
    }
}

/// The attachments of one node.
pub struct NetService {
    range: Block,
    path: PathBuf,
    boot_id: String,
    clock: Arc<dyn Clock>,
    datapath: Arc<dyn Datapath>,
    metrics: NetMetrics,
    state: Mutex<State>,
    /// Not stored here: whoever keeps the tables gives it again after a restart.
    overlay: std::sync::Mutex<Arc<Overlay>>,
}

impl NetService {
    /// Reads the state in `folder`, which the caller has locked; a damaged one is set aside. Touches nothing else:
    /// [`reconcile`](Self::reconcile) does.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        folder: &Path,
        range: Block,
        datapath: Arc<dyn Datapath>,
        clock: Arc<dyn Clock>,
        metrics: NetMetrics,
    ) -> Result<Self, OpenError> {
        let path = folder.join("attachments.json");
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(OpenError::BootId)?;
        let state = read(&path, clock.wall())?;
        if let Some((container, attachment)) = state.attachments.iter().find(|(_, a)| !range.contains(a.address)) {
            let (container, address) = (container.clone(), attachment.address);
            return Err(OpenError::RangeChanged {
                container,
                address,
                range,
            });
        }
        metrics.addresses.set(range.capacity() as i64);
        metrics.attachments.set(state.attachments.len() as i64);
        let boot_id = boot_id.trim().to_owned();
        Ok(Self {
            range,
            path,
            boot_id,
            clock,
            datapath,
            metrics,
            state: Mutex::new(state),
            overlay: std::sync::Mutex::default(),
        })
    }

    /// Attaches `container`, or changes what is attached. May be repeated; a repetition also repairs the datapath.
    ///
    /// # Errors
    /// [`NetError`]; `container` is then as it was before.
    pub async fn attach(&self, container: &str, wish: &Attach) -> Result<Attached, NetError> {
        let mut state = self.state.lock().await;
        let mut next = state.clone();
        let attached = next.attach(&self.overlay().plan, &self.range, container, wish, &self.now())?;
        let link = LinkName::of(container);
        if state
            .attachments
            .keys()
            .any(|other| other != container && LinkName::of(other) == link)
        {
            let text = "the hash of this container id equals that of another; choose another id";
            return Err(RefusedAttach::Invalid(text.into()).into());
        }
        for port in state.new_ports(container, wish) {
            if let Some(owner) = self.datapath.listener(port.protocol, port.host).await {
                return Err(NetError::PortInUse {
                    port: port.host,
                    protocol: port.protocol,
                    owner,
                });
            }
        }
        let before = state.clone();
        if next != before {
            self.write(&mut state, next).await?;
        }
        failpoint!("net.attach.recorded");
        let error = match self.set(&state).await {
            Err(error) => error,
            Ok(failures) => match failures.into_iter().find(|failure| failure.link == link) {
                Some(failure) => failure.error,
                None => {
                    failpoint!("net.attach.set");
                    return Ok(attached);
                }
            },
        };
        if *state != before {
            self.write(&mut state, before).await?;
            if let Err(error) = self.set(&state).await {
                tracing::warn!(
                    container,
                    error = &error as &dyn std::error::Error,
                    "attachment was not undone yet"
                );
            }
        }
        Err(NetError::Datapath(error))
    }

    /// Takes over what the tables say now, and brings the datapath to it if it differs. What was stored of the tables must
    /// be given before the first [`reconcile`](Self::reconcile): until then no service is known, and new flows to services
    /// are refused.
    ///
    /// # Errors
    /// [`NetError::Datapath`]; it is tried again by the next reconciliation.
    pub async fn set_overlay(&self, overlay: Overlay) -> Result<(), NetError> {
        let state = self.state.lock().await;
        let overlay = Arc::new(overlay);
        let before = std::mem::replace(
            &mut *self.overlay.lock().unwrap_or_else(PoisonError::into_inner),
            overlay.clone(),
        );
        if before == overlay {
            return Ok(());
        }
        self.set(&state).await.map(drop).map_err(NetError::Datapath)
    }

    fn overlay(&self) -> Arc<Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes whatever is left of `container`. May be repeated.
    ///
    /// # Errors
    /// [`NetError::Write`]: nothing changed; [`NetError::Datapath`]: it is no longer listed, and removed by the next call
    /// or reconciliation.
    pub async fn detach(&self, container: &str) -> Result<(), NetError> {
        crate::state::check_container(container)?;
        let mut state = self.state.lock().await;
        let mut next = state.clone();
        if next.detach(container, &self.now()) {
            self.write(&mut state, next).await?;
        }
        failpoint!("net.detach.recorded");
        self.set(&state).await.map(drop).map_err(NetError::Datapath)?;
        failpoint!("net.detach.set");
        Ok(())
    }

    /// Everything attached, by container id.
    pub async fn list(&self) -> Vec<Attached> {
        self.state.lock().await.list(&self.overlay().plan)
    }

    /// Takes up what is there: containers whose namespace is gone are forgotten (their addresses stay theirs as long as
    /// possible), everything else is set, leftovers are removed. To be called at start and now and then.
    ///
    /// # Errors
    /// [`NetError`]; also if single endpoints are not as they should be.
    pub async fn reconcile(&self) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        let mut failures = self.set(&state).await.map_err(NetError::Datapath)?;
        let missing = |failure: &EndpointFailure| matches!(failure.error, DatapathError::NetnsMissing { .. });
        let (gone, other): (Vec<_>, Vec<_>) = failures.drain(..).partition(missing);
        if !gone.is_empty() {
            let mut next = state.clone();
            for container in state.attachments.keys() {
                if gone.iter().any(|failure| failure.link == LinkName::of(container)) {
                    next.detach(container, &self.now());
                    tracing::info!(container, "container forgotten, its network namespace is gone");
                }
            }
            self.write(&mut state, next).await?;
            self.set(&state).await.map_err(NetError::Datapath)?;
        }
        failpoint!("net.reconcile.set");
        self.metrics.reconciliations.inc();
        match other.into_iter().next() {
            Some(failure) => Err(NetError::Datapath(failure.error)),
            None => Ok(()),
        }
    }

    /// Removes everything from the kernel and forgets all attachments; addresses stay with their containers as long as
    /// possible.
    ///
    /// # Errors
    /// [`NetError`]; may be repeated.
    pub async fn clean_up(&self) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        let mut next = state.clone();
        for container in state.attachments.keys() {
            next.detach(container, &self.now());
        }
        self.write(&mut state, next).await?;
        self.datapath.clean_up().await.map_err(NetError::Datapath)
    }

    fn now(&self) -> Instant {
        Instant {
            boot_id: self.boot_id.clone(),
            boot_ms: self.clock.boot(),
        }
    }

    async fn set(&self, state: &State) -> Result<Vec<EndpointFailure>, DatapathError> {
        let endpoints = state.attachments.iter().map(|(container, attachment)| Endpoint {
            link: LinkName::of(container),
            netns: attachment.netns.clone(),
            address: attachment.address,
            ports: attachment.ports.clone(),
            tenant: attachment.instance.clone(),
        });
        let overlay = self.overlay();
        let config = DatapathConfig {
            plan: overlay.plan,
            range: self.range,
            endpoints: endpoints.collect(),
            resting: state.resting(&self.now()),
            services: overlay.services.clone(),
            nodes: overlay.nodes.clone(),
            tunnel: overlay.tunnel,
        };
        let result = self.datapath.set(&config).await;
        match &result {
            Ok(failures) => drop(self.metrics.failed_endpoints.set(failures.len() as i64)),
            Err(_) => drop(self.metrics.set_failures.inc()),
        }
        result
    }

    /// On disk first; `state` is `next` afterwards, or as before.
    async fn write(&self, state: &mut State, next: State) -> Result<(), NetError> {
        let path = self.path.clone();
        let bytes = serde_json::to_vec(&next).expect("the state is JSON: its keys are text");
        tokio::task::spawn_blocking(move || files::write_atomic(&path, &bytes, files::SECRET_MODE))
            .await
            .expect("writing a file does not panic")
            .map_err(NetError::Write)?;
        self.metrics.attachments.set(next.attachments.len() as i64);
        *state = next;
        Ok(())
    }
}

fn read(path: &Path, wall_ms: u64) -> Result<State, OpenError> {
    let Some(bytes) = files::read_optional(path, MAX_STATE_BYTES).map_err(OpenError::Read)? else {
        return Ok(State::default());
    };
    let schema = serde_json::from_slice::<serde_json::Value>(&bytes)
        .ok()
        .and_then(|value| value["schema"].as_u64());
    if let Some(found) = schema.filter(|found| *found > u64::from(SCHEMA)) {
        return Err(OpenError::Newer {
            path: path.into(),
            found,
        });
    }
    serde_json::from_slice(&bytes).or_else(|error| {
        let aside = path.with_extension(format!("damaged-{wall_ms}"));
        std::fs::rename(path, &aside).map_err(|source| OpenError::SetAside { path: path.into(), source })?;
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, aside = %aside.display(), "attachments are damaged and were set aside; containers must be attached again");
        Ok(State::default())
    })
}

#[cfg(test)]
mod tests;
