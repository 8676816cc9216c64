//! The one owner of the attachments: decides on the state, writes it to disk, then sets the datapath to it. An attachment is
//! written while it is set, and answered when both are done: what is set and not written is removed after a crash.
//!
//! Stored in the state folder: `attachments.json` (see [`State`]). Requests are handled one after another, each runs to its
//! end even if the caller goes away.

use crate::datapath::{
    Counted, Datapath, DatapathConfig, DatapathError, Egress, Endpoint, EndpointFailure, InForce, LinkName, Overlay,
};
use crate::dns::{self, Caller, Callers};
use crate::metrics::NetMetrics;
use crate::state::{Attachment, Instant, RefusedAttach, SCHEMA, State};
use roble_core::ids::InstanceId;
use roble_core::overlay::block::Block;
use roble_core::ports::Protocol;
use roble_daemon::clock::Clock;
use roble_daemon::failpoint;
use roble_daemon::files::{self, FileError};
use roble_proto::local_net::{Attach, Attached};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use tokio::sync::{Mutex, watch};

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
            Self::Refused(RefusedAttach::NoBlock) => "no-block",
            Self::Datapath(DatapathError::NetnsMissing { .. }) => "netns-missing",
            Self::Write(_) | Self::Datapath(_) => "internal",
        }
    }
}

/// The attachments of one node.
pub struct NetService {
    path: PathBuf,
    boot_id: String,
    clock: Arc<dyn Clock>,
    datapath: Arc<dyn Datapath>,
    metrics: NetMetrics,
    state: Mutex<State>,
    /// Not stored here: whoever keeps the tables gives it again after a restart.
    overlay: std::sync::Mutex<Arc<Overlay>>,
    /// Who has which endpoint address, for the name server.
    callers: watch::Sender<Arc<Callers>>,
    egress: Egress,
}

impl NetService {
    /// Reads the state in `folder`, which the caller has locked; a damaged one is set aside. Touches nothing else:
    /// [`reconcile`](Self::reconcile) does.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        folder: &Path,
        datapath: Arc<dyn Datapath>,
        clock: Arc<dyn Clock>,
        metrics: NetMetrics,
    ) -> Result<Self, OpenError> {
        let path = folder.join("attachments.json");
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(OpenError::BootId)?;
        let state = read(&path, clock.wall())?;
        metrics.attachments.set(state.attachments.len() as i64);
        let boot_id = boot_id.trim().to_owned();
        let service = Self {
            path,
            boot_id,
            clock,
            datapath,
            metrics,
            state: Mutex::new(state),
            overlay: std::sync::Mutex::default(),
            callers: watch::Sender::default(),
            egress: Egress::default(),
        };
        Ok(service)
    }

    /// What containers reach beside the overlay and the internet; nothing, unless it is said here.
    #[must_use]
    pub fn with_egress(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    /// Attaches `container`, or changes what is attached. May be repeated; a repetition also repairs the datapath.
    ///
    /// # Errors
    /// [`NetError`]; `container` is then as it was before.
    pub async fn attach(&self, container: &str, wish: &Attach) -> Result<Attached, NetError> {
        let mut state = self.state.lock().await;
        let mut next = state.clone();
        let overlay = self.overlay();
        let range = overlay.block.ok_or(RefusedAttach::NoBlock)?;
        let mut attached = next.attach(&overlay.plan, &range, container, wish, &self.now())?;
        attached.resolv_conf = wish.instance.as_ref().and_then(|tenant| {
            Some(dns::resolv_conf(
                &[range.gateway().into()],
                tenant.path.split_once('/')?.0,
            ))
        });
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
        let store = async {
            match next != before {
                true => self.store(&next).await,
                false => Ok(()),
            }
        };
        let (stored, set) = tokio::join!(store, self.set(&next));
        if let Err(error) = stored {
            self.undo(container, &before).await;
            return Err(error);
        }
        self.adopt(&mut state, next);
        failpoint!("net.attach.recorded");
        let error = match set {
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
            self.undo(container, &state).await;
        }
        Err(NetError::Datapath(error))
    }

    /// Sets the datapath to what was before; what fails is done by the next reconciliation.
    async fn undo(&self, container: &str, before: &State) {
        if let Err(error) = self.set(before).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(container, error, "attachment was not undone yet");
        }
    }

    /// Takes over what the tables say now, and brings the datapath to it if it differs. What was stored of the tables must
    /// be given before the first [`reconcile`](Self::reconcile): until then no service is known, and new flows to services
    /// are refused.
    ///
    /// # Errors
    /// [`NetError::Datapath`]; it is tried again by the next reconciliation.
    pub async fn set_overlay(&self, mut overlay: Overlay) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        let mut next = state.clone();
        if let Some((container, address)) = next.set_block(overlay.block) {
            tracing::error!(container, %address, block = ?overlay.block, "containers have addresses of another block, which is kept until they are gone");
        }
        overlay.block = next.block;
        if next != *state {
            self.write(&mut state, next).await?;
        }
        if let Some(block) = overlay.block {
            self.metrics.addresses.set(block.capacity() as i64);
        }
        let overlay = Arc::new(overlay);
        let before = std::mem::replace(
            &mut *self.overlay.lock().unwrap_or_else(PoisonError::into_inner),
            overlay.clone(),
        );
        if before == overlay {
            return Ok(());
        }
        self.show_callers(&state);
        self.set(&state).await.map(drop).map_err(NetError::Datapath)
    }

    /// See [`Datapath::translated`].
    pub async fn translated(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.datapath.translated().await
    }

    /// The block that containers get addresses of.
    pub fn block(&self) -> Option<Block> {
        self.overlay().block
    }

    /// Who has which endpoint address, as it changes.
    pub fn callers(&self) -> watch::Receiver<Arc<Callers>> {
        self.callers.subscribe()
    }

    fn show_callers(&self, state: &State) {
        let plan = self.overlay().plan;
        let callers = state.attachments.values().flat_map(|attachment| {
            let caller = attachment.instance.as_ref().map(|tenant| Caller {
                organization: tenant.organization,
                application: tenant.application,
            });
            let v4 = attachment.address;
            let addresses = [IpAddr::V4(v4), IpAddr::V6(plan.endpoint_v6(v4))];
            addresses
                .into_iter()
                .filter_map(move |address| Some((address, caller?)))
        });
        self.callers.send_replace(Arc::new(callers.collect()));
    }

    /// What came from the tables last.
    pub fn overlay(&self) -> Arc<Overlay> {
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

    /// What an instance has here, if it is attached.
    pub async fn attachment(&self, instance: InstanceId) -> Option<Attachment> {
        let state = self.state.lock().await;
        let is_meant = |attachment: &&Attachment| {
            let tenant = attachment.instance.as_ref();
            tenant.is_some_and(|tenant| tenant.instance == instance)
        };
        state.attachments.values().find(is_meant).cloned()
    }

    /// See [`Datapath::counted`].
    pub async fn counted(&self) -> Counted {
        let plan = self.overlay().plan;
        self.datapath.counted(plan).await
    }

    /// See [`Datapath::in_force`].
    pub async fn in_force(&self) -> Option<InForce> {
        self.datapath.in_force().await
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
        let Some(range) = overlay.block else {
            // Before anything is known nothing is changed: what an earlier process set goes on.
            return Ok(Vec::new());
        };
        let config = DatapathConfig {
            plan: overlay.plan,
            range,
            endpoints: endpoints.collect(),
            resting: state.resting(&self.now()),
            services: overlay.services.clone(),
            members: overlay.members.clone(),
            nodes: overlay.nodes.clone(),
            sealed: overlay.sealed.clone(),
            tunnel: overlay.tunnel,
            egress: self.egress,
            misses: overlay.misses.clone(),
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
        self.store(&next).await?;
        self.adopt(state, next);
        Ok(())
    }

    async fn store(&self, next: &State) -> Result<(), NetError> {
        let path = self.path.clone();
        let bytes = serde_json::to_vec(next).expect("the state is JSON: its keys are text");
        tokio::task::spawn_blocking(move || files::write_atomic(&path, &bytes, files::SECRET_MODE))
            .await
            .expect("writing a file does not panic")
            .map_err(NetError::Write)
    }

    /// What was stored is the state from now on.
    fn adopt(&self, state: &mut State, next: State) {
        self.metrics.attachments.set(next.attachments.len() as i64);
        *state = next;
        self.show_callers(state);
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
