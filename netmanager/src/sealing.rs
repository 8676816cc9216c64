//! This node's end of the encrypted tunnel: its keys, its worker, and who its peers are.
//!
//! Packets are sealed by the kernel, or by a process of its own (`roble-tunnel`); either goes on when the net manager does
//! not. It is told everything each time; what is the same disturbs nothing.

pub mod device;

use crate::datapath::sealed::LINK;
use crate::overlay::{self, Own};
use crate::tier::Told;
use anyhow::Context as _;
use device::{Current, Guard, Wanted};
use roble_core::overlay::row::{NodeRow, Row};
use roble_core::overlay::tunnel::{PublicKey, TunnelEnd};
use roble_core::time::Timestamp;
use roble_daemon::files;
use roble_proto::local_net::SealedBy;
use roble_tunnel::client::Launch;
use roble_tunnel::{AllowedIp, Client, DeviceConfig, DeviceError, PeerConfig, PrivateKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// File of the keys, in the state folder.
const KEYS: &str = "tunnel-keys.json";
/// Most bytes of that.
const MAX_KEYS_BYTES: u64 = 4 << 10;
/// Between packets that keep a way through a NAT open, seconds: shorter than the usual 30.
const KEEPALIVE: u16 = 25;

/// Smallest MTU of IPv6.
const MIN_MTU: u16 = 1280;

/// How the tunnel is set up on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealingConfig {
    /// What seals.
    pub device: Wanted,
    /// The program `roble-tunnel`.
    pub worker: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
    /// UDP port at which this node is reached.
    pub port: u16,
    /// Age at which a key is replaced.
    pub key_life: Duration,
}

/// The keys of this end, as they are on disk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Keys {
    /// Hex.
    key: String,
    /// The one before: others may still know nothing else.
    #[serde(default)]
    previous: Option<String>,
    /// When `key` was made.
    since: Timestamp,
}

impl Keys {
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        Ok(files::write_atomic(
            path,
            &serde_json::to_vec(self)?,
            files::SECRET_MODE,
        )?)
    }
}

/// This node's end. See the module's text.
pub struct Sealing {
    config: SealingConfig,
    keys: Mutex<Keys>,
    path: PathBuf,
    current: Current,
}

impl Sealing {
    /// Reads the keys, or makes them. The device will be in `current`.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub fn open(config: SealingConfig, state_dir: &Path, current: Current, now: Timestamp) -> anyhow::Result<Self> {
        let path = state_dir.join(KEYS);
        let unusable = || format!("{} holds no keys; remove it and new ones are made", path.display());
        let keys = match files::read_optional(&path, MAX_KEYS_BYTES)? {
            Some(bytes) => {
                let keys: Keys = serde_json::from_slice(&bytes).with_context(unusable)?;
                PrivateKey::from_hex(&keys.key).with_context(unusable)?;
                keys
            }
            None => {
                let keys = Keys {
                    key: PrivateKey::generate().to_hex(),
                    previous: None,
                    since: now,
                };
                keys.write(&path)?;
                keys
            }
        };
        Ok(Self {
            config,
            keys: Mutex::new(keys),
            path,
            current,
        })
    }

    fn keys(&self) -> Keys {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a new key if the one there is too old; true if so. Others learn it from [`end`](Self::end).
    ///
    /// # Errors
    /// If it cannot be written; nothing has changed.
    pub fn rotate(&self, now: Timestamp) -> anyhow::Result<bool> {
        let keys = self.keys();
        let age = now.as_millis().saturating_sub(keys.since.as_millis());
        if u128::from(age) < self.config.key_life.as_millis() {
            return Ok(false);
        }
        let next = Keys {
            key: PrivateKey::generate().to_hex(),
            previous: Some(keys.key),
            since: now,
        };
        next.write(&self.path)?;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(true)
    }

    /// What others are told of this end. `address`: this node's in its site.
    pub fn end(&self, address: IpAddr) -> TunnelEnd {
        let public = |hex: &String| PrivateKey::from_hex(hex).ok().map(|key| PublicKey(key.public().0));
        let keys = self.keys();
        TunnelEnd {
            // Looked at when it was read.
            key: public(&keys.key).unwrap_or(PublicKey([0; 32])),
            previous: keys.previous.as_ref().and_then(public),
            endpoints: vec![SocketAddr::new(address, self.config.port)],
        }
    }

    /// UDP port of what is sealed.
    pub fn port(&self) -> u16 {
        self.config.port
    }

    /// The device, once there is one.
    pub fn current(&self) -> &Current {
        &self.current
    }

    /// Makes the device if there is none, and tells it who the peers are. Returns what notices its end. `None`: there is none,
    /// and as long as there are no peers none is needed.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn ensure(&self, told: &Told, own: Own<'_>) -> Result<Option<Guard>, DeviceError> {
        let launch = Launch {
            program: self.config.worker.clone(),
            device: LINK.to_owned(),
            socket: self.config.socket.clone(),
        };
        let config = DeviceConfig {
            private_key: PrivateKey::from_hex(&self.keys().key).ok(),
            listen_port: Some(self.config.port),
            replace_peers: true,
            peers: peers(told, own),
            ..DeviceConfig::default()
        };
        let (current, wanted) = (self.current.clone(), self.config.device);
        let work = tokio::task::spawn_blocking(move || current.ensure(wanted, &launch, &config));
        work.await.expect("speaking with the device does not panic")
    }
}

/// Nodes to which the way takes less than the device, by the first addresses of their blocks: the kernel's device tells nobody,
/// so routes do. The worker tells senders itself.
pub async fn narrow(current: &Current, told: &Told, own: Own<'_>) -> BTreeMap<Ipv4Addr, u32> {
    let Some(running) = current.running().filter(|running| running.by == SealedBy::Kernel) else {
        return BTreeMap::new();
    };
    let status = tokio::task::spawn_blocking(move || running.device.get()).await;
    let Ok(Ok(status)) = status else { return BTreeMap::new() };
    let narrow = overlay::sealed_nodes(told, own).filter_map(|(row, end)| {
        let peer = status.peers.iter().find(|peer| peer.public_key.0 == end.key.0)?;
        // Less than that is not IPv6.
        let is_narrow = (MIN_MTU..status.mtu).contains(&peer.mtu);
        is_narrow.then(|| (row.block.network(), peer.mtu.into()))
    });
    narrow.collect()
}

/// Ends a worker that runs, and waits until its socket is gone. None is fine.
pub async fn stop_worker(socket: &Path) {
    let client = Client::new(socket);
    let stopped = tokio::task::spawn_blocking(move || client.stop()).await;
    if let Ok(Ok(())) = stopped {
        tracing::info!("tunnel's worker stopped");
    }
}

/// Who is behind the tunnel: nodes by their blocks, and relays, which have none.
fn peers(told: &Told, own: Own<'_>) -> Vec<PeerConfig> {
    let relays: Vec<_> = told
        .rows()
        .filter_map(|row| match row {
            Row::Relay(relay) => Some(relay),
            _ => None,
        })
        .collect();
    // Both ends choose the same while both know the same; any other will do as well.
    let relay = relays.first().map(|relay| relay.address);
    let nodes = overlay::sealed_nodes(told, own).map(|(row, end)| peer(told, row, end, relay));
    let relays = relays.iter().map(|relay| PeerConfig {
        endpoint: Some(relay.address),
        persistent_keepalive: Some(KEEPALIVE),
        replace_allowed_ips: true,
        replace_candidates: true,
        ..PeerConfig::new(roble_tunnel::PublicKey(relay.key.0))
    });
    // A key that two claim is the first one's, and the one in use before one that was: a device takes none twice.
    let mut seen = BTreeSet::new();
    let mut peers: Vec<PeerConfig> = nodes
        .chain(relays)
        .filter(|peer| seen.insert(peer.public_key.0))
        .collect();
    for peer in &mut peers {
        peer.previous_public_key = peer.previous_public_key.filter(|former| seen.insert(former.0));
    }
    peers
}

fn peer(told: &Told, row: &NodeRow, end: &TunnelEnd, relay: Option<SocketAddr>) -> PeerConfig {
    let plan = told.plan();
    let (v4, v6) = (row.block.network(), plan.endpoint_v6(row.block.network()));
    let seen = told.rows().filter_map(|other| match other {
        Row::Seen(seen) if seen.node == row.node => Some(seen.address),
        _ => None,
    });
    let ways: Vec<SocketAddr> = end.endpoints.iter().copied().chain(seen).collect();
    let allowed = [(v4.into(), row.block.prefix()), (v6.into(), 96 + row.block.prefix())];
    PeerConfig {
        previous_public_key: end.previous.map(|key| roble_tunnel::PublicKey(key.0)),
        endpoint: relay.or(ways.first().copied()),
        endpoint_relayed: relay.is_some(),
        persistent_keepalive: Some(KEEPALIVE),
        replace_allowed_ips: true,
        allowed_ips: allowed
            .into_iter()
            .filter_map(|(address, prefix)| AllowedIp::new(address, prefix).ok())
            .collect(),
        replace_candidates: true,
        candidates: ways,
        ..PeerConfig::new(roble_tunnel::PublicKey(end.key.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::{ClusterId, NodeId, RawId};
    use roble_core::overlay::row::{RelayRow, SeenRow};
    use roble_daemon::home::Home;

    const fn node(number: u8) -> NodeId {
        NodeId(RawId::from_bytes([number; 12]))
    }

    fn home() -> Home {
        Home {
            node: node(1),
            cluster: ClusterId(RawId::MIN),
            address: String::new(),
            mqtt_port: 0,
        }
    }

    fn own(home: &Home) -> Own<'_> {
        Own {
            home: Some(home),
            ..Own::default()
        }
    }

    fn row(number: u8, key: u8, previous: Option<u8>) -> Row {
        Row::Node(NodeRow {
            node: node(number),
            cluster: ClusterId(RawId::MIN),
            address: None,
            block: format!("10.18.{number}.0/26").parse().unwrap(),
            tunnel: Some(TunnelEnd {
                key: PublicKey([key; 32]),
                previous: previous.map(|key| PublicKey([key; 32])),
                endpoints: vec![SocketAddr::from(([192, 0, 2, number], 50_103))],
            }),
        })
    }

    #[test]
    fn peers_are_nodes_with_their_blocks_and_relays_without() {
        let relay = Row::Relay(RelayRow {
            cluster: ClusterId(RawId::MAX),
            address: ([198, 51, 100, 1], 50_104).into(),
            key: PublicKey([9; 32]),
        });
        let seen = Row::Seen(SeenRow {
            node: node(2),
            relay: ClusterId(RawId::MAX),
            address: ([203, 0, 113, 2], 4096).into(),
        });
        let rows = [row(1, 1, None), row(2, 2, Some(7)), row(3, 3, None)];
        let home = home();
        let direct = peers(&Told::of(rows.clone()), own(&home));
        assert_eq!(direct.len(), 2, "not the node itself");
        let first = &direct[0];
        assert_eq!(first.endpoint, Some(([192, 0, 2, 2], 50_103).into()));
        assert!(!first.endpoint_relayed);
        assert_eq!(first.previous_public_key.unwrap().0, [7; 32]);
        let allowed: Vec<String> = first.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["10.18.2.0/26", "fc00::a12:200/122"]);

        let relayed = peers(&Told::of(rows.into_iter().chain([relay, seen])), own(&home));
        assert_eq!(relayed.len(), 3);
        assert_eq!(relayed[0].endpoint, Some(([198, 51, 100, 1], 50_104).into()));
        assert!(relayed[0].endpoint_relayed);
        let ways = [([192, 0, 2, 2], 50_103).into(), ([203, 0, 113, 2], 4096).into()];
        assert_eq!(relayed[0].candidates, ways);
        assert!(relayed[2].allowed_ips.is_empty() && relayed[2].persistent_keepalive.is_some());
    }

    #[test]
    fn no_key_is_given_to_two_peers() {
        let rows = [row(2, 2, Some(3)), row(3, 3, Some(2)), row(4, 3, None)];
        let home = home();
        let peers = peers(&Told::of(rows), own(&home));
        let keys: Vec<_> = peers
            .iter()
            .map(|peer| (peer.public_key.0[0], peer.previous_public_key))
            .collect();
        assert_eq!(keys, [(2, None), (3, None)]);
    }

    #[test]
    fn a_key_that_is_too_old_is_replaced_and_told_as_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let config = SealingConfig {
            device: Wanted::User,
            worker: "roble-tunnel".into(),
            socket: folder.path().join("tunnel.sock"),
            port: 1,
            key_life: Duration::from_secs(60),
        };
        let at = Timestamp::from_millis;
        let open = || Sealing::open(config.clone(), folder.path(), Current::default(), at(1_000)).unwrap();
        let address = IpAddr::from([192, 0, 2, 1]);
        let sealing = open();
        let first = sealing.end(address);
        assert_eq!(first.previous, None);
        assert!(!sealing.rotate(at(60_999)).unwrap());
        assert!(sealing.rotate(at(61_000)).unwrap());
        let second = sealing.end(address);
        assert_eq!(second.previous, Some(first.key));
        assert_ne!(second.key, first.key);
        assert_eq!(open().end(address), second, "and so after a restart");
        std::fs::write(folder.path().join(KEYS), "{}").unwrap();
        let error = Sealing::open(config.clone(), folder.path(), Current::default(), at(0))
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("remove it"), "{error:#}");
    }
}
