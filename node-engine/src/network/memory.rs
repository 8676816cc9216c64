//! A network in memory: keeps attachments, and can be told to fail, to be slow, to run out of addresses, to miss namespaces.

use super::{Attach, Attached, Network, NetworkError};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is in the pretended network, and how it behaves.
#[derive(Debug)]
pub struct MemoryState {
    /// By container.
    pub attached: BTreeMap<String, Attached>,
    /// Who had which address before.
    pub former: BTreeMap<String, IpAddr>,
    /// How many addresses there are, at most 250.
    pub capacity: u8,
    /// Namespaces that do not exist; all others do.
    pub missing: BTreeSet<PathBuf>,
    /// Calls do not reach the net manager.
    pub unavailable: bool,
    /// How long every call takes.
    pub delay: Duration,
}

/// The in-memory [`Network`].
#[derive(Debug)]
pub struct MemoryNetwork(Mutex<MemoryState>);

impl Default for MemoryNetwork {
    fn default() -> Self {
        Self(Mutex::new(MemoryState {
            attached: BTreeMap::new(),
            former: BTreeMap::new(),
            capacity: 61,
            missing: BTreeSet::new(),
            unavailable: false,
            delay: Duration::ZERO,
        }))
    }
}

impl MemoryNetwork {
    /// Look at the state, or tell it how to behave.
    pub fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn arrive(&self) -> Result<(), NetworkError> {
        let delay = self.state().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match self.state().unavailable {
            true => Err(NetworkError::Unavailable {
                socket: "memory".into(),
                reason: "told to be away".into(),
            }),
            false => Ok(()),
        }
    }
}

fn refused(code: &str, message: String) -> NetworkError {
    NetworkError::Refused {
        code: code.into(),
        message,
    }
}

impl MemoryState {
    fn attach(&mut self, container: &str, wish: &Attach) -> Result<Attached, NetworkError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if container.is_empty() || container.len() > 128 || !container.bytes().all(allowed) {
            return Err(refused("invalid", "not a container id".into()));
        }
        let keys: BTreeSet<_> = wish.ports.iter().map(|port| port.host_key()).collect();
        if keys.len() != wish.ports.len() || !wish.netns.is_absolute() {
            return Err(refused(
                "invalid",
                "a port twice, or a path that is not absolute".into(),
            ));
        }
        for other in self.attached.values().filter(|other| other.container != container) {
            if other.netns == wish.netns {
                return Err(refused(
                    "invalid",
                    format!("namespace belongs to container {}", other.container),
                ));
            }
            if let Some(port) = other.ports.iter().find(|port| keys.contains(&port.host_key())) {
                let message = format!(
                    "port {}/{} is published by container {}",
                    port.host, port.protocol, other.container
                );
                return Err(refused("port-taken", message));
            }
        }
        if self.missing.contains(&wish.netns) {
            return Err(refused(
                "netns-missing",
                format!("no network namespace at {}", wish.netns.display()),
            ));
        }
        let address = match self.attached.get(container) {
            Some(attached) => attached.address,
            None => self.choose(container)?,
        };
        self.former.remove(container);
        let attached = Attached {
            container: container.into(),
            netns: wish.netns.clone(),
            address,
            address_v6: None,
            resolv_conf: None,
            ports: wish.ports.clone(),
        };
        self.attached.insert(container.into(), attached.clone());
        Ok(attached)
    }

    fn choose(&self, container: &str) -> Result<IpAddr, NetworkError> {
        let held: BTreeSet<_> = self.attached.values().map(|attached| attached.address).collect();
        if let Some(address) = self.former.get(container).filter(|address| !held.contains(address)) {
            return Ok(*address);
        }
        let mut all = (0..self.capacity.min(250)).map(|n| IpAddr::V4(Ipv4Addr::new(10, 18, 0, n + 2)));
        let fresh = all
            .clone()
            .find(|a| !held.contains(a) && !self.former.values().any(|former| former == a));
        let free = fresh.or_else(|| all.find(|address| !held.contains(address)));
        free.ok_or_else(|| refused("no-address", "no free address".into()))
    }
}

#[async_trait]
impl Network for MemoryNetwork {
    async fn attach(&self, container: &str, wish: &Attach) -> Result<Attached, NetworkError> {
        self.arrive().await?;
        self.state().attach(container, wish)
    }

    async fn detach(&self, container: &str) -> Result<(), NetworkError> {
        self.arrive().await?;
        let mut state = self.state();
        if let Some(attached) = state.attached.remove(container) {
            state.former.insert(container.into(), attached.address);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Attached>, NetworkError> {
        self.arrive().await?;
        Ok(self.state().attached.values().cloned().collect())
    }

    async fn trace(&self, _: Vec<u8>) -> Result<Vec<u8>, NetworkError> {
        self.arrive().await?;
        Err(refused("unsupported", "there are no ways to trace in memory".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::suite::{self, Namespaces};

    struct Pretended<'a>(&'a MemoryNetwork);

    #[async_trait]
    impl Namespaces for Pretended<'_> {
        async fn make(&self, name: &str) -> PathBuf {
            format!("/run/pretended/{name}").into()
        }
        async fn remove(&self, path: &std::path::Path) {
            self.0.state().missing.insert(path.into());
        }
    }

    #[tokio::test]
    async fn contract() {
        let network = MemoryNetwork::default();
        suite::run(&network, &Pretended(&network)).await;
    }

    #[tokio::test]
    async fn away_and_full_as_told() {
        let network = MemoryNetwork::default();
        network.state().capacity = 1;
        let wish = |netns: &str| Attach {
            netns: netns.into(),
            ports: vec![],
            instance: None,
        };
        network.attach("a", &wish("/a")).await.unwrap();
        assert_eq!(network.attach("b", &wish("/b")).await.unwrap_err().code(), "no-address");
        network.state().unavailable = true;
        let error = network.list().await.unwrap_err();
        assert!(error.is_retryable() && error.code() == "net-unavailable");
    }
}
