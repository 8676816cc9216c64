//! Other nodes as this one reaches them, for people: what the tables say joined with what the tunnel's device says.

use crate::nearness::Nearness;
use crate::overlay::{self, Own};
use crate::sealing::device::Current;
use crate::tier::Told;
use roble_core::overlay::tunnel::PublicKey;
use roble_proto::local_net::{Finding, Peer, SealedBy, Way};
use roble_tunnel::{DeviceStatus, PeerStatus};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A session is renewed every two minutes while there is something to send: one that is older is none.
const STALE: Duration = Duration::from_secs(200);

/// A node that this one talks to.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    peer: Peer,
    /// Its key, if it is reached through the encrypted tunnel.
    key: Option<PublicKey>,
}

/// Everybody that this node talks to, without what only the device knows.
pub fn known(told: &Told, own: Own<'_>, nearness: &Nearness) -> Vec<Known> {
    let is_own = |node| own.home.is_some_and(|home| home.node == node);
    let others = told.nodes().filter(|row| !is_own(row.node));
    let known = others.map(|row| {
        let vxlan = overlay::vxlan_to(own, row);
        let key = row.tunnel.as_ref().map(|end| end.key).filter(|_| vxlan.is_none());
        Known {
            peer: Peer {
                node: row.node,
                cluster: row.cluster,
                block: row.block,
                way: if vxlan.is_some() { Way::Vxlan } else { Way::None },
                endpoint: vxlan.map(|address| (address, 0).into()),
                rtt_ms: nearness.rtt(row.node).map(|rtt| rtt.as_secs_f64() * 1e3),
                sealed_by: None,
                handshake_age_s: None,
                mtu: None,
                rx_bytes: 0,
                tx_bytes: 0,
                rx_packets: 0,
                tx_packets: 0,
                probes: nearness.probes(row.node).0,
                probes_lost: nearness.probes(row.node).1,
            },
            key,
        }
    });
    known.collect()
}

/// The tunnel's device: what it is, and how it is.
pub type Sealer = (SealedBy, DeviceStatus);

/// What the tunnel's device says now, if there is one.
pub async fn status(current: &Current) -> Option<Sealer> {
    let running = current.running()?;
    let asked = tokio::task::spawn_blocking(move || Some((running.by, running.device.get().ok()?)));
    asked.await.ok().flatten()
}

/// The same with what the tunnel's device says.
pub fn look(known: Vec<Known>, status: Option<&Sealer>) -> Vec<Peer> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let peers = known.into_iter().map(|known| {
        let by = status.map(|(by, _)| *by).filter(|_| known.key.is_some());
        Peer {
            sealed_by: by,
            ..join(known, status.map(|(_, status)| status), now)
        }
    });
    peers.collect()
}

fn join(known: Known, status: Option<&DeviceStatus>, now: Duration) -> Peer {
    let mut peer = known.peer;
    let of_key = |found: &&PeerStatus| known.key.is_some_and(|key| key.0 == found.public_key.0);
    let Some(found) = status.and_then(|status| status.peers.iter().find(of_key)) else {
        return peer;
    };
    let age = found.last_handshake.map(|at| now.saturating_sub(at));
    peer.way = match age {
        Some(age) if age < STALE && found.endpoint_relayed => Way::Relayed,
        Some(age) if age < STALE => Way::Direct,
        _ => Way::None,
    };
    peer.endpoint = found.endpoint;
    peer.handshake_age_s = age.map(|age| age.as_secs());
    peer.mtu = Some(found.mtu);
    (peer.rx_bytes, peer.tx_bytes) = (found.rx_bytes, found.tx_bytes);
    (peer.rx_packets, peer.tx_packets) = (found.rx_packets, found.tx_packets);
    peer
}

/// What is wrong with the ways to others.
pub fn findings(peers: &[Peer]) -> Vec<Finding> {
    let lost = peers.iter().filter(|peer| peer.way == Way::None);
    let found = lost.map(|peer| Finding {
        code: "no-handshake".to_owned(),
        message: format!("node {} of cluster {} does not answer", peer.node, peer.cluster),
        hint: "does its roble-net run? behind NATs: does a cluster have a relay (roble-cluster --relay-address), and does UDP to it \
               get out of both sites?"
            .to_owned(),
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::{ClusterId, NodeId, RawId};

    fn known_peer() -> Known {
        Known {
            peer: Peer {
                node: NodeId(RawId::MAX),
                cluster: ClusterId(RawId::MIN),
                block: "10.18.1.0/26".parse().unwrap(),
                way: Way::None,
                endpoint: None,
                rtt_ms: None,
                sealed_by: None,
                handshake_age_s: None,
                mtu: None,
                rx_bytes: 0,
                tx_bytes: 0,
                rx_packets: 0,
                tx_packets: 0,
                probes: 0,
                probes_lost: 0,
            },
            key: Some(PublicKey([1; 32])),
        }
    }

    #[test]
    fn a_way_is_what_the_worker_says_of_the_key() {
        let status = |key: u8, age: u64, relayed: bool| {
            let mut text = format!(
                "listen_port=1\nmtu=1420\npublic_key={}\nprotocol_version=1\nendpoint=192.0.2.1:9\n",
                hex(key)
            );
            if relayed {
                text.push_str("endpoint_relayed=true\n");
            }
            text.push_str(&format!(
                "last_handshake_time_sec={}\nlast_handshake_time_nsec=0\n",
                10_000 - age
            ));
            text.push_str("tx_bytes=5\nrx_bytes=7\nerrno=0\n\n");
            match roble_tunnel::uapi::decode_answer(&text).unwrap() {
                roble_tunnel::uapi::Answer::Status(status) => *status,
                other => panic!("{other:?}"),
            }
        };
        let now = Duration::from_secs(10_000);
        for (key, age, relayed, way) in [
            (1, 10, false, Way::Direct),
            (1, 10, true, Way::Relayed),
            (1, 300, false, Way::None),
            (2, 10, false, Way::None),
        ] {
            let status = status(key, age, relayed);
            let peer = join(known_peer(), Some(&status), now);
            assert_eq!(peer.way, way, "{key} {age} {relayed}");
            assert_eq!(findings(&[peer]).len(), usize::from(way == Way::None));
        }
        assert_eq!(join(known_peer(), None, now).way, Way::None);
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }
}
