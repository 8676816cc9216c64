//! A datapath in memory: keeps what it was given, and can be told to miss namespaces, to fail, to have listeners.

use super::permits::Permits;
use super::rules::{self, Found};
use super::{Counted, Datapath, DatapathConfig, DatapathError, EndpointFailure, InForce};
use async_trait::async_trait;
use roble_core::overlay::plan::Plan;
use roble_core::ports::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is in the pretended kernel.
#[derive(Debug, Default)]
pub struct MemoryState {
    /// The last configuration, without failed endpoints.
    pub config: Option<DatapathConfig>,
    /// How often `set` was called.
    pub sets: u64,
    /// Namespaces that do not exist.
    pub missing: BTreeSet<PathBuf>,
    /// Whether `set` fails as a whole.
    pub fails: bool,
    /// Flows to what was translated: who began them, what they were sent to.
    pub translated: BTreeSet<(IpAddr, IpAddr)>,
    /// What was counted.
    pub counted: Counted,
    /// Ports in use by programs of the node.
    pub listeners: BTreeMap<(Protocol, u16), String>,
}

/// The in-memory [`Datapath`].
#[derive(Debug, Default)]
pub struct MemoryDatapath(Mutex<MemoryState>);

impl MemoryDatapath {
    /// Look at the state, or tell it how to behave.
    pub fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Datapath for MemoryDatapath {
    async fn set(&self, config: &DatapathConfig) -> Result<Vec<EndpointFailure>, DatapathError> {
        let mut state = self.state();
        state.sets += 1;
        if state.fails {
            return Err(DatapathError::Told);
        }
        let (gone, present): (Vec<_>, Vec<_>) = config
            .endpoints
            .iter()
            .cloned()
            .partition(|endpoint| state.missing.contains(&endpoint.netns));
        state.config = Some(DatapathConfig {
            endpoints: present,
            ..config.clone()
        });
        let failure = |endpoint: super::Endpoint| EndpointFailure {
            link: endpoint.link,
            error: DatapathError::NetnsMissing { path: endpoint.netns },
        };
        Ok(gone.into_iter().map(failure).collect())
    }

    async fn clean_up(&self) -> Result<(), DatapathError> {
        self.state().config = None;
        Ok(())
    }

    async fn translated(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.state().translated.clone()
    }

    async fn counted(&self, _: Plan) -> Counted {
        self.state().counted.clone()
    }

    async fn in_force(&self) -> Option<InForce> {
        let state = self.state();
        let config = state.config.as_ref()?;
        let endpoints: Vec<_> = config.endpoints.iter().collect();
        let permits = Permits::of(config, &endpoints);
        Some(InForce {
            rules: Arc::new(rules::render(config, &endpoints, &permits, &Found::default())),
            is_whole: true,
            links: Vec::new(),
        })
    }

    async fn listener(&self, protocol: Protocol, port: u16) -> Option<String> {
        self.state().listeners.get(&(protocol, port)).cloned()
    }
}
