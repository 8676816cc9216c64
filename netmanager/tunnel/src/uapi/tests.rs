use super::*;
use crate::counters::{REASONS, Reason};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::types::{AllowedIp, PeerConfig, PeerStatus};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn range() -> impl Strategy<Value = AllowedIp> {
    (any::<IpAddr>(), 0..=32u8).prop_map(|(address, prefix)| AllowedIp::new(address, prefix).unwrap())
}

fn peer_config() -> impl Strategy<Value = PeerConfig> {
    let keys = (any::<[u8; 32]>(), of(any::<[u8; 32]>()), of(any::<[u8; 32]>()));
    let flags = any::<[bool; 5]>();
    let rest = (
        of(address()),
        of(any::<u16>()),
        vec(range(), 0..4),
        vec(address(), 0..4),
    );
    (keys, flags, rest).prop_map(|(keys, flags, rest)| PeerConfig {
        public_key: PublicKey(keys.0),
        previous_public_key: keys.1.map(PublicKey),
        preshared_key: keys.2.map(PresharedKey::from_bytes),
        remove: flags[0],
        update_only: flags[1],
        endpoint_relayed: flags[2],
        replace_allowed_ips: flags[3],
        replace_candidates: flags[4],
        endpoint: rest.0,
        persistent_keepalive: rest.1,
        allowed_ips: rest.2,
        candidates: rest.3,
    })
}

prop_compose! {
    fn device_config()(
        private_key in of(any::<[u8; 32]>()), listen_port: Option<u16>, fwmark: Option<u32>, mtu: Option<u16>,
        replace_peers: bool, peers in vec(peer_config(), 0..4),
    ) -> DeviceConfig {
        let private_key = private_key.map(PrivateKey::from_bytes);
        DeviceConfig { private_key, listen_port, fwmark, mtu, replace_peers, peers }
    }
}

fn peer_status() -> impl Strategy<Value = PeerStatus> {
    let counts = any::<[u64; 4]>();
    let times = (of(1..u64::from(u32::MAX)), of(any::<u32>()));
    (peer_config(), counts, times, any::<u16>()).prop_map(|(config, counts, times, mtu)| PeerStatus {
        public_key: config.public_key,
        previous_public_key: config.previous_public_key,
        preshared_key: config.preshared_key.filter(|key| *key != PresharedKey::default()),
        endpoint: config.endpoint,
        endpoint_relayed: config.endpoint_relayed,
        candidates: config.candidates,
        persistent_keepalive: config.persistent_keepalive.unwrap_or(0),
        allowed_ips: config.allowed_ips,
        mtu,
        last_handshake: times.0.map(|seconds| Duration::new(seconds, 999_999_999)),
        handshake_rtt: times.1.map(|micros| Duration::from_micros(micros.into())),
        rx_bytes: counts[0],
        tx_bytes: counts[1],
        rx_packets: counts[2],
        tx_packets: counts[3],
    })
}

proptest! {
    #[test]
    fn requests_come_back(config in device_config()) {
        let request = Request::Set(Box::new(config));
        prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }

    #[test]
    fn answers_come_back(
        port: u16, fwmark: u32, mtu: u16, drops in vec(any::<u64>(), REASONS.len()), peers in vec(peer_status(), 0..4),
    ) {
        let mut status = DeviceStatus { listen_port: port, fwmark, mtu, peers, ..DeviceStatus::default() };
        for ((reason, _), count) in REASONS.into_iter().zip(drops) {
            status.drops.set(reason, count);
        }
        let answer = Answer::Status(Box::new(status));
        prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
    }

    #[test]
    fn nonsense_is_harmless(lines in vec("[a-z_]{0,12}=?[0-9a-f:./-]{0,12}", 0..8), first in "(get|set|stop)=1") {
        fuzz_uapi(format!("{first}\n{}\n\n", lines.join("\n")).as_bytes());
    }
}

#[test]
fn what_wg_says() {
    let key = "ab".repeat(32);
    let text = format!(
        "set=1\nprivate_key={key}\nfwmark=0x2a\nlisten_port=51820\nreplace_peers=true\npublic_key={key}\n\
         preshared_key={key}\nendpoint=[2001:db8::1]:7\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
         allowed_ip=10.0.0.0/8\nallowed_ip=::/0\n\n"
    );
    let Ok(Request::Set(config)) = decode_request(&text) else {
        panic!("{:?}", decode_request(&text));
    };
    assert_eq!((config.fwmark, config.listen_port), (Some(42), Some(51_820)));
    assert_eq!(config.peers[0].endpoint, Some("[2001:db8::1]:7".parse().unwrap()));
    assert_eq!(config.peers[0].allowed_ips.len(), 2);
}

#[test]
fn what_wireguard_go_answers() {
    let key = "ab".repeat(32);
    let zero = "00".repeat(32);
    let text = format!(
        "private_key={key}\nlisten_port=12912\nsomething_new=1\npublic_key={key}\npreshared_key={zero}\nprotocol_version=1\n\
         endpoint=127.0.0.1:1\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=38333\nrx_bytes=2224\n\
         persistent_keepalive_interval=0\nallowed_ip=192.168.4.4/32\nerrno=0\n\n"
    );
    let Ok(Answer::Status(status)) = decode_answer(&text) else {
        panic!("{:?}", decode_answer(&text));
    };
    let peer = &status.peers[0];
    assert_eq!(
        (peer.preshared_key.clone(), peer.last_handshake, peer.tx_bytes),
        (None, None, 38_333)
    );
}

#[test]
fn wrong_lines_are_named() {
    let key = "ab".repeat(32);
    let cases = [
        ("", "unknown request"),
        ("put=1", "unknown request"),
        ("get=2", "line 1: bad value of get"),
        ("get=1\nmtu=1", "line 2: key mtu is not known here"),
        ("set=1\nmtu", "line 2 is not key=value"),
        ("set=1\nlisten_port=65536", "line 2: bad value of listen_port"),
        ("set=1\nlisten_port=+1", "line 2: bad value of listen_port"),
        (
            "set=1\nallowed_ip=10.0.0.0/8",
            "line 2: key allowed_ip is not known here",
        ),
        ("set=1\nprivate_key=xyz", "line 2: bad value of private_key"),
        ("set=1\nreplace_peers=false", "line 2: bad value of replace_peers"),
    ];
    for (text, error) in cases {
        assert_eq!(decode_request(text).unwrap_err().to_string(), error, "{text}");
    }
    let many = "candidate=10.0.0.1:1\n".repeat(17);
    let many = format!("set=1\npublic_key={key}\n{many}");
    assert_eq!(
        decode_request(&many).unwrap_err().to_string(),
        "line 19: bad value of candidate"
    );
    assert_eq!(decode_answer("listen_port=1\n"), Err(UapiError::Incomplete));
    assert_eq!(decode_answer("errno=-22\n\n"), Ok(Answer::Done(-22)));
    assert_eq!(decode_answer("listen_port=1\nerrno=5\n\n"), Err(UapiError::Refused(5)));
    let mut status = DeviceStatus::default();
    status.drops.set(Reason::Replay, 7);
    assert!(encode_answer(&Answer::Status(Box::new(status))).contains("drops_replay=7\n"));
}
