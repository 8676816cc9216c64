//! Values to lines.

use super::{Answer, Request};
use crate::counters::REASONS;
use crate::types::{DeviceConfig, DeviceStatus, PeerConfig, PeerStatus};
use std::fmt::{Display, Write as _};

struct Lines(String);

impl Lines {
    fn put(&mut self, key: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{key}={value}");
    }

    fn put_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_if(&mut self, key: &str, is_so: bool) {
        if is_so {
            self.put(key, "true");
        }
    }
}

/// A request as it travels, with the empty line that ends it.
pub fn encode_request(request: &Request) -> String {
    let mut lines = Lines(String::new());
    match request {
        Request::Get => lines.put("get", 1),
        Request::Stop => lines.put("stop", 1),
        Request::Set(config) => {
            lines.put("set", 1);
            device(&mut lines, config);
        }
    }
    lines.0.push('\n');
    lines.0
}

fn device(lines: &mut Lines, config: &DeviceConfig) {
    lines.put_some("private_key", config.private_key.as_ref().map(|key| key.to_hex()));
    lines.put_some("listen_port", config.listen_port);
    lines.put_some("fwmark", config.fwmark);
    lines.put_some("mtu", config.mtu);
    lines.put_if("replace_peers", config.replace_peers);
    for one in &config.peers {
        peer(lines, one);
    }
}

fn peer(lines: &mut Lines, config: &PeerConfig) {
    lines.put("public_key", config.public_key.to_hex());
    lines.put_some(
        "previous_public_key",
        config.previous_public_key.map(|key| key.to_hex()),
    );
    lines.put_if("remove", config.remove);
    lines.put_if("update_only", config.update_only);
    lines.put_some("preshared_key", config.preshared_key.as_ref().map(|key| key.to_hex()));
    lines.put_some("endpoint", config.endpoint);
    lines.put_if("endpoint_relayed", config.endpoint_relayed);
    lines.put_some("persistent_keepalive_interval", config.persistent_keepalive);
    lines.put_if("replace_candidates", config.replace_candidates);
    for candidate in &config.candidates {
        lines.put("candidate", candidate);
    }
    lines.put_if("replace_allowed_ips", config.replace_allowed_ips);
    for range in &config.allowed_ips {
        lines.put("allowed_ip", range);
    }
}

/// An answer as it travels, with the empty line that ends it.
pub fn encode_answer(answer: &Answer) -> String {
    let mut lines = Lines(String::new());
    let errno = match answer {
        Answer::Done(errno) => *errno,
        Answer::Status(status) => {
            device_status(&mut lines, status);
            0
        }
    };
    lines.put("errno", errno);
    lines.0.push('\n');
    lines.0
}

fn device_status(lines: &mut Lines, status: &DeviceStatus) {
    lines.put_some("private_key", status.private_key.as_ref().map(|key| key.to_hex()));
    lines.put("listen_port", status.listen_port);
    if status.fwmark != 0 {
        lines.put("fwmark", status.fwmark);
    }
    lines.put("mtu", status.mtu);
    for (reason, word) in REASONS {
        if status.drops.of(reason) != 0 {
            lines.put(&format!("drops_{word}"), status.drops.of(reason));
        }
    }
    for one in &status.peers {
        peer_status(lines, one);
    }
}

fn peer_status(lines: &mut Lines, status: &PeerStatus) {
    lines.put("public_key", status.public_key.to_hex());
    lines.put_some(
        "previous_public_key",
        status.previous_public_key.map(|key| key.to_hex()),
    );
    lines.put_some("preshared_key", status.preshared_key.as_ref().map(|key| key.to_hex()));
    lines.put("protocol_version", 1);
    lines.put_some("endpoint", status.endpoint);
    lines.put_if("endpoint_relayed", status.endpoint_relayed);
    for candidate in &status.candidates {
        lines.put("candidate", candidate);
    }
    let handshake = status.last_handshake.unwrap_or_default();
    lines.put("last_handshake_time_sec", handshake.as_secs());
    lines.put("last_handshake_time_nsec", handshake.subsec_nanos());
    lines.put_some("handshake_rtt_us", status.handshake_rtt.map(|rtt| rtt.as_micros()));
    lines.put("mtu", status.mtu);
    lines.put("tx_bytes", status.tx_bytes);
    lines.put("rx_bytes", status.rx_bytes);
    lines.put("tx_packets", status.tx_packets);
    lines.put("rx_packets", status.rx_packets);
    lines.put("persistent_keepalive_interval", status.persistent_keepalive);
    for range in &status.allowed_ips {
        lines.put("allowed_ip", range);
    }
}
