//! From a wish and what the kernel has to what must be told it: only differences. No kernel, no clock.
//!
//! A peer that changes its key is two peers to the kernel while the change lasts. A range of inner addresses belongs to one
//! of them: to the new key once a session of it stands, else to the one before while that one has a session.

use super::ways::Ways;
use super::{Change, Found, FoundPeer, PeerChange};
use crate::key::{PresharedKey, PublicKey};
use crate::types::{AllowedIp, DeviceConfig, PeerConfig};
use std::collections::{BTreeMap, BTreeSet};

/// What was wished for a peer, and its ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    pub(super) previous: Option<PublicKey>,
    pub(super) ways: Ways,
    pub(super) ranges: BTreeSet<AllowedIp>,
    pub(super) keepalive: u16,
}

/// Peers by their newest key.
pub type Peers = BTreeMap<PublicKey, Known>;

/// What brings `found` to `wish`; `peers` takes note of it. Port, mark and key are told if they differ.
///
/// # Errors
/// A key is named twice.
pub fn plan(wish: &DeviceConfig, found: &Found, peers: &mut Peers) -> Result<Change, crate::core::BadConfig> {
    let mut names = BTreeSet::new();
    for peer in &wish.peers {
        let keys = [Some(peer.public_key), previous(peer)];
        if !keys.into_iter().flatten().all(|key| names.insert(key)) {
            return Err(crate::core::BadConfig);
        }
    }
    let mut change = Change {
        listen_port: wish.listen_port.filter(|port| *port != found.listen_port && *port != 0),
        fwmark: wish.fwmark.filter(|mark| *mark != found.fwmark),
        ..Change::default()
    };
    let is_unwanted = |key: &PublicKey| match wish.replace_peers {
        true => !names.contains(key),
        false => wish.peers.iter().any(|peer| peer.public_key == *key && peer.remove),
    };
    peers.retain(|key, _| !is_unwanted(key));
    change.peers.extend(
        found
            .peers
            .keys()
            .filter(|key| is_unwanted(key))
            .map(|key| PeerChange::removal(*key)),
    );
    for peer in wish.peers.iter().filter(|peer| !peer.remove) {
        let is_there = [Some(peer.public_key), previous(peer)]
            .into_iter()
            .flatten()
            .any(|key| found.peers.contains_key(&key));
        if is_there || !peer.update_only {
            plan_peer(peer, found, peers, &mut change.peers);
        }
    }
    Ok(change)
}

fn previous(peer: &PeerConfig) -> Option<PublicKey> {
    peer.previous_public_key.filter(|key| *key != peer.public_key)
}

fn plan_peer(peer: &PeerConfig, found: &Found, peers: &mut Peers, changes: &mut Vec<PeerChange>) {
    let former = previous(peer);
    // It was known by that key alone.
    let inherited = former.and_then(|key| peers.remove(&key));
    let known = peers
        .entry(peer.public_key)
        .or_insert_with(|| inherited.unwrap_or_default());
    let is_known = *known != Known::default();
    known.previous = former;
    known.keepalive = peer.persistent_keepalive.unwrap_or(known.keepalive);
    if peer.replace_allowed_ips {
        known.ranges.clear();
    }
    known.ranges.extend(&peer.allowed_ips);
    let [now, before] = [Some(peer.public_key), former].map(|key| key.and_then(|key| found.peers.get(&key)));
    let holder = Holder::of(now, before);
    let in_use = match holder {
        Holder::New => now.or(before),
        Holder::Former => before,
    };
    let current = in_use.and_then(|peer| peer.endpoint);
    let moves = known.ways.set(peer, current, !is_known && in_use.is_none());
    let endpoint = moves.or(current);
    // Of a peer that is new to the kernel nobody knows which key it has by now.
    let tries_former = now.is_none() && before.is_none();
    let entries = [
        (Some(peer.public_key), now, true),
        (former, before, before.is_some() || tries_former),
    ];
    for (key, entry, is_wanted) in entries {
        let Some(key) = key.filter(|_| is_wanted) else { continue };
        let is_new_key = key == peer.public_key;
        if !is_new_key && now.is_some_and(|now| now.last_handshake.is_some()) {
            changes.push(PeerChange::removal(key));
            continue;
        }
        let holds = is_new_key == (holder == Holder::New);
        let ranges = if holds { Some(&known.ranges) } else { None };
        let endpoint = endpoint.filter(|_| entry.is_none() || (holds && moves.is_some()));
        let change = difference(key, entry, ranges, peer, known.keepalive, endpoint);
        changes.extend(change.filter(|change| *change != PeerChange::new(key) || entry.is_none()));
    }
}

/// Who has the ranges of a peer that is known by two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The entry of the new key.
    New,
    /// The one before.
    Former,
}

impl Holder {
    /// From both entries, as far as they are there.
    pub fn of(now: Option<&FoundPeer>, before: Option<&FoundPeer>) -> Self {
        match (now, before) {
            (Some(now), _) if now.last_handshake.is_some() => Self::New,
            (_, Some(before)) if before.last_handshake.is_some() => Self::Former,
            // Nobody has a session: what is stays.
            (Some(now), Some(before)) if now.allowed_ips.is_empty() && !before.allowed_ips.is_empty() => Self::Former,
            (None, Some(_)) => Self::Former,
            _ => Self::New,
        }
    }
}

fn difference(
    key: PublicKey,
    entry: Option<&FoundPeer>,
    ranges: Option<&BTreeSet<AllowedIp>>,
    wish: &PeerConfig,
    keepalive: u16,
    endpoint: Option<std::net::SocketAddr>,
) -> Option<PeerChange> {
    let none = FoundPeer::default();
    let found = entry.unwrap_or(&none);
    let mut change = PeerChange {
        endpoint,
        persistent_keepalive: (found.persistent_keepalive != keepalive).then_some(keepalive),
        preshared_key: wish.preshared_key.clone().filter(|key| *key != found.preshared_key),
        ..PeerChange::new(key)
    };
    if let Some(ranges) = ranges {
        // The kernel takes away all or none.
        change.replace_allowed_ips = found.allowed_ips.iter().any(|range| !ranges.contains(range));
        let missing = ranges
            .iter()
            .filter(|range| change.replace_allowed_ips || !found.allowed_ips.contains(range));
        change.allowed_ips = missing.copied().collect();
    }
    if wish.preshared_key.as_ref() == Some(&PresharedKey::default()) && entry.is_none() {
        change.preshared_key = None;
    }
    Some(change)
}

/// Moves the ranges of peers that changed their keys, and lets their former keys go. Also says whether any change lasts.
pub fn settle(peers: &Peers, found: &Found) -> (Vec<PeerChange>, bool) {
    let (mut changes, mut lasts) = (Vec::new(), false);
    for (key, known) in peers {
        let Some(former) = known.previous else { continue };
        let (now, before) = (found.peers.get(key), found.peers.get(&former));
        let (Some(now), Some(before)) = (now, before) else {
            continue;
        };
        let holder = Holder::of(Some(now), Some(before));
        let (holder_key, entry) = match holder {
            Holder::New => (*key, now),
            Holder::Former => (former, before),
        };
        let missing: Vec<_> = known.ranges.difference(&entry.allowed_ips).copied().collect();
        if !missing.is_empty() {
            changes.push(PeerChange {
                update_only: true,
                allowed_ips: missing,
                ..PeerChange::new(holder_key)
            });
        }
        let is_done = holder == Holder::New && now.last_handshake.is_some();
        if is_done {
            changes.push(PeerChange::removal(former));
        }
        lasts |= !is_done;
    }
    (changes, lasts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;
    use std::net::SocketAddr;
    use std::time::Duration;

    const KEY: [PublicKey; 4] = [
        PublicKey([1; 32]),
        PublicKey([2; 32]),
        PublicKey([3; 32]),
        PublicKey([4; 32]),
    ];

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// What the kernel does with a change.
    fn apply(found: &mut Found, change: &Change) {
        found.listen_port = change.listen_port.unwrap_or(found.listen_port);
        found.fwmark = change.fwmark.unwrap_or(found.fwmark);
        found.private_key = change.private_key.clone().or(found.private_key.take());
        for change in &change.peers {
            if change.remove {
                found.peers.remove(&change.public_key);
                continue;
            }
            if change.update_only && !found.peers.contains_key(&change.public_key) {
                continue;
            }
            for (key, other) in &mut found.peers {
                let is_taken = |range: &AllowedIp| {
                    *key != change.public_key && change.allowed_ips.contains(range)
                        || *key == change.public_key && change.replace_allowed_ips
                };
                other.allowed_ips.retain(|range| !is_taken(range));
            }
            let peer = found.peers.entry(change.public_key).or_default();
            peer.endpoint = change.endpoint.or(peer.endpoint);
            peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
            peer.preshared_key = change.preshared_key.clone().unwrap_or(peer.preshared_key.clone());
            peer.allowed_ips.extend(&change.allowed_ips);
        }
    }

    fn wish(peers: Vec<PeerConfig>) -> DeviceConfig {
        DeviceConfig {
            private_key: Some(PrivateKey::from_bytes([9; 32])),
            listen_port: Some(50_103),
            replace_peers: true,
            peers,
            ..DeviceConfig::default()
        }
    }

    fn peer(key: usize, former: Option<usize>, ranges: &[&str]) -> PeerConfig {
        PeerConfig {
            previous_public_key: former.map(|former| KEY[former]),
            endpoint: Some(at(7)),
            persistent_keepalive: Some(25),
            replace_allowed_ips: true,
            allowed_ips: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..PeerConfig::new(KEY[key])
        }
    }

    fn ranges(found: &Found, key: usize) -> Vec<String> {
        let ranges = found.peers[&KEY[key]].allowed_ips.iter();
        ranges.map(ToString::to_string).collect()
    }

    /// Does it, and that doing it again is nothing.
    fn set(wish: &DeviceConfig, found: &mut Found, peers: &mut Peers) -> Change {
        let change = plan(wish, found, peers).unwrap();
        apply(found, &change);
        let again = plan(wish, found, peers).unwrap();
        assert!(again.is_empty(), "{again:?}");
        change
    }

    #[test]
    fn only_differences_are_told() {
        let (mut found, mut peers) = (Found::default(), Peers::new());
        let mut wanted = wish(vec![
            peer(0, None, &["10.1.0.0/24", "fc00::1:0/112"]),
            peer(1, None, &["10.2.0.0/24"]),
        ]);
        set(&wanted, &mut found, &mut peers);
        assert_eq!(found.listen_port, 50_103);
        assert_eq!(found.peers[&KEY[0]].endpoint, Some(at(7)));
        assert_eq!(ranges(&found, 0), ["10.1.0.0/24", "fc00::1:0/112"]);
        // It has moved; nothing brings it back.
        found.peers.get_mut(&KEY[0]).unwrap().endpoint = Some(at(8));
        set(&wanted, &mut found, &mut peers);
        assert_eq!(found.peers[&KEY[0]].endpoint, Some(at(8)));
        // A range goes from one to the other, and one goes.
        wanted.peers = vec![
            peer(0, None, &["10.1.0.0/24"]),
            peer(1, None, &["10.2.0.0/24", "fc00::1:0/112"]),
        ];
        let change = set(&wanted, &mut found, &mut peers);
        assert_eq!((ranges(&found, 0).len(), ranges(&found, 1).len()), (1, 2));
        assert!(change.peers.iter().all(|change| change.endpoint.is_none()));
        wanted.peers.pop();
        set(&wanted, &mut found, &mut peers);
        assert_eq!(found.peers.len(), 1);
        // Who comes after another process finds what that one left.
        assert!(plan(&wanted, &found, &mut Peers::new()).unwrap().is_empty());
        wanted.peers.push(peer(1, Some(0), &[]));
        assert!(plan(&wanted, &found, &mut peers).is_err(), "a key is named twice");
    }

    #[test]
    fn a_peer_that_changes_its_key_keeps_its_ranges_where_the_session_is() {
        let (mut found, mut peers) = (Found::default(), Peers::new());
        set(&wish(vec![peer(0, None, &["10.1.0.0/24"])]), &mut found, &mut peers);
        let session = Some(Duration::from_secs(1_000));
        let old = found.peers.get_mut(&KEY[0]).unwrap();
        (old.last_handshake, old.endpoint) = (session, Some(at(8)));
        let renamed = wish(vec![peer(1, Some(0), &["10.1.0.0/24"])]);
        set(&renamed, &mut found, &mut peers);
        assert_eq!((ranges(&found, 0).len(), ranges(&found, 1).len()), (1, 0));
        assert_eq!(found.peers[&KEY[1]].endpoint, Some(at(8)), "it is where it was");
        assert_eq!(settle(&peers, &found), (vec![], true), "not before there is a session");
        found.peers.get_mut(&KEY[1]).unwrap().last_handshake = session;
        let (changes, lasts) = settle(&peers, &found);
        assert!(!lasts);
        apply(
            &mut found,
            &Change {
                peers: changes,
                ..Change::default()
            },
        );
        assert_eq!(
            (found.peers.len(), ranges(&found, 1)),
            (1, vec!["10.1.0.0/24".to_owned()])
        );
        set(&renamed, &mut found, &mut peers);
        assert_eq!(found.peers.len(), 1, "the former key does not come back");
        assert_eq!(settle(&peers, &found), (vec![], false));
        // And so on with the next key.
        set(&wish(vec![peer(2, Some(1), &["10.1.0.0/24"])]), &mut found, &mut peers);
        assert_eq!((ranges(&found, 1).len(), ranges(&found, 2).len()), (1, 0));
        set(&wish(vec![peer(2, None, &["10.1.0.0/24"])]), &mut found, &mut peers);
        assert_eq!(
            (found.peers.len(), ranges(&found, 2).len()),
            (1, 1),
            "it was forgotten above"
        );
    }

    #[test]
    fn of_a_peer_that_is_new_here_both_keys_are_tried() {
        let (mut found, mut peers) = (Found::default(), Peers::new());
        let wanted = wish(vec![peer(1, Some(0), &["10.1.0.0/24"])]);
        set(&wanted, &mut found, &mut peers);
        assert_eq!((ranges(&found, 0).len(), ranges(&found, 1).len()), (0, 1));
        assert_eq!(
            found.peers[&KEY[0]].persistent_keepalive, 25,
            "so that a session begins"
        );
        found.peers.get_mut(&KEY[0]).unwrap().last_handshake = Some(Duration::from_secs(1));
        let (changes, lasts) = settle(&peers, &found);
        assert!(lasts);
        apply(
            &mut found,
            &Change {
                peers: changes,
                ..Change::default()
            },
        );
        assert_eq!((ranges(&found, 0).len(), ranges(&found, 1).len()), (1, 0));
        set(&wanted, &mut found, &mut peers);
    }
}
