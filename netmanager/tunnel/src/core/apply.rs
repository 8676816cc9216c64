//! Wishes for the device, and its state as values.

use super::peer::Peer;
use super::{Core, Now, PeerId, Slot};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::noise::Identity;
use crate::types::{DeviceConfig, DeviceStatus, PeerConfig, PeerStatus};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a key that was replaced is understood.
const FORMER_LIFE: Duration = Duration::from_secs(600);

/// A wish that contradicts itself: a key is named twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a peer is named twice")]
pub struct BadConfig;

impl Core {
    /// Brings keys and peers to what they shall be. Port, mark and MTU are the caller's.
    ///
    /// # Errors
    /// [`BadConfig`]; nothing has changed.
    pub fn apply(&mut self, config: &DeviceConfig, now: Now) -> Result<(), BadConfig> {
        let mut names = HashSet::new();
        for peer in &config.peers {
            let former = peer.previous_public_key.filter(|former| *former != peer.public_key);
            if ![Some(peer.public_key), former]
                .into_iter()
                .flatten()
                .all(|name| names.insert(name))
            {
                return Err(BadConfig);
            }
        }
        if let Some(key) = &config.private_key {
            self.set_private_key(key, now);
        }
        if config.replace_peers {
            let unwanted = self.peers.iter().filter(|(_, peer)| !names.contains(&peer.public_key));
            let unwanted: Vec<PeerId> = unwanted.map(|(id, _)| *id).collect();
            for id in unwanted {
                self.remove_peer(id);
            }
        }
        for peer in &config.peers {
            self.apply_peer(peer, now);
        }
        Ok(())
    }

    fn set_private_key(&mut self, key: &PrivateKey, now: Now) {
        if self.identity.as_ref().is_some_and(|identity| identity.private() == key) {
            return;
        }
        let new = (!key.is_zero()).then(|| Identity::new(key.clone()));
        let old = std::mem::replace(&mut self.identity, new);
        if self.identity.is_none() {
            self.former = None;
            self.slots.clear();
            for peer in self.peers.values_mut() {
                peer.forget_sessions();
                peer.waiting = None;
            }
            return;
        }
        self.former = old.map(|old| (old, now.boot + FORMER_LIFE));
        for peer in self.peers.values_mut() {
            renew(peer, now);
        }
        self.wake_by(Some(now.boot));
    }

    fn remove_peer(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.remove(&id) {
            for range in self.routes.of(id) {
                self.routes.remove(range, id);
            }
            self.by_key.retain(|_, owner| *owner != id);
            self.slots.retain(|_, slot| match slot {
                Slot::Session(session) => session.peer != id,
                Slot::Handshake(owner) => *owner != id,
            });
            drop(peer);
        }
    }

    fn apply_peer(&mut self, config: &PeerConfig, now: Now) {
        let known = self.by_key.get(&config.public_key).copied();
        if config.remove {
            known.into_iter().for_each(|id| self.remove_peer(id));
            return;
        }
        let was = config
            .previous_public_key
            .and_then(|key| self.by_key.get(&key))
            .copied();
        let id = match (known, was) {
            (Some(id), former) => {
                if let Some(former) = former.filter(|former| *former != id) {
                    self.remove_peer(former);
                }
                id
            }
            (None, Some(former)) => former,
            (None, None) if config.update_only => return,
            (None, None) => {
                let id = self.next_id;
                self.next_id += 1;
                self.peers.insert(id, Peer::new(config.public_key, self.default_mtu));
                id
            }
        };
        self.rename(id, config, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(shared) = &config.preshared_key {
            peer.shared = shared.clone();
        }
        let before = (peer.paths.all(), peer.persistent_keepalive);
        if let Some(endpoint) = config.endpoint {
            peer.paths.set_endpoint(endpoint, config.endpoint_relayed);
        }
        peer.paths.set_candidates(&config.candidates, config.replace_candidates);
        if let Some(seconds) = config.persistent_keepalive {
            peer.persistent_keepalive = seconds;
        }
        if before != (peer.paths.all(), peer.persistent_keepalive) {
            peer.arm_persistent(now.boot);
            if peer.paths.has_several() {
                peer.probe_now(now.boot);
            }
        }
        if config.replace_allowed_ips {
            for range in self.routes.of(id) {
                if !config.allowed_ips.contains(&range) {
                    self.routes.remove(range, id);
                }
            }
        }
        for range in &config.allowed_ips {
            self.routes.insert(*range, id);
        }
        self.wake_by(Some(now.boot));
    }

    /// Sets who the peer is and was.
    fn rename(&mut self, id: PeerId, config: &PeerConfig, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let previous = config.previous_public_key.filter(|key| *key != config.public_key);
        if peer.public_key != config.public_key {
            peer.public_key = config.public_key;
            renew(peer, now);
        }
        peer.previous_key = previous;
        let names: Vec<PublicKey> = [Some(config.public_key), previous].into_iter().flatten().collect();
        self.by_key.retain(|name, owner| *owner != id || names.contains(name));
        self.by_key.extend(names.into_iter().map(|name| (name, id)));
    }

    /// Keys and peers as they are. Port, mark, MTU and drops are the caller's.
    pub fn status(&self) -> DeviceStatus {
        let mut peers: Vec<_> = self
            .peers
            .iter()
            .map(|(id, peer)| self.peer_status(*id, peer))
            .collect();
        peers.sort_by_key(|peer| peer.public_key);
        DeviceStatus {
            private_key: self.identity.as_ref().map(|identity| identity.private().clone()),
            peers,
            ..DeviceStatus::default()
        }
    }

    fn peer_status(&self, id: PeerId, peer: &Peer) -> PeerStatus {
        let shared = (peer.shared != PresharedKey::default()).then(|| peer.shared.clone());
        PeerStatus {
            public_key: peer.public_key,
            previous_public_key: peer.previous_key,
            preshared_key: shared,
            endpoint: peer.paths.current(),
            endpoint_relayed: peer.paths.is_relayed(),
            candidates: peer.paths.candidates().to_vec(),
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: self.routes.of(id),
            mtu: peer.mtu,
            last_handshake: peer.last_handshake,
            handshake_rtt: peer.rtt,
            rx_bytes: peer.traffic.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: peer.traffic.tx_bytes.load(Ordering::Relaxed),
            rx_packets: peer.traffic.rx_packets.load(Ordering::Relaxed),
            tx_packets: peer.traffic.tx_packets.load(Ordering::Relaxed),
        }
    }

    /// Drops by reason.
    pub fn drops(&self) -> &Arc<crate::counters::DropCounters> {
        &self.drops
    }
}

/// A key has changed: a new session is made at once, beside the ones that stand.
fn renew(peer: &mut Peer, now: Now) {
    peer.attempts = 0;
    if let Some(waiting) = &mut peer.waiting {
        // Its answer still counts, but need not be waited for.
        waiting.sent = Duration::ZERO;
    }
    if peer.sealing_session(now.boot).is_some() || peer.persistent_interval().is_some() || peer.has_staged() {
        peer.initiate_due = Some(now.boot);
    }
}
