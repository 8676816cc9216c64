//! Lines to values. Whatever comes, it is a value or an error.

use super::{Answer, Request, UapiError};
use crate::counters::REASONS;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::types::{DeviceConfig, DeviceStatus, MAX_CANDIDATES, PeerConfig, PeerStatus};
use std::str::FromStr;
use std::time::Duration;

/// One line, and where it is.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    key: &'a str,
    value: &'a str,
}

impl Line<'_> {
    fn bad(&self) -> UapiError {
        UapiError::BadValue {
            line: self.number,
            key: self.key.to_owned(),
        }
    }

    fn unknown(&self) -> UapiError {
        UapiError::UnknownKey {
            line: self.number,
            key: self.key.chars().take(40).collect(),
        }
    }

    fn parse<T: FromStr>(&self) -> Result<T, UapiError> {
        self.value.parse().map_err(|_| self.bad())
    }

    /// Digits only: `parse` also takes a sign.
    fn number<T: FromStr>(&self) -> Result<T, UapiError> {
        match self.value.bytes().all(|digit| digit.is_ascii_digit()) {
            true => self.parse(),
            false => Err(self.bad()),
        }
    }

    fn yes(&self) -> Result<bool, UapiError> {
        match self.value {
            "true" => Ok(true),
            _ => Err(self.bad()),
        }
    }

    fn one(&self) -> Result<(), UapiError> {
        if self.value == "1" { Ok(()) } else { Err(self.bad()) }
    }

    fn public_key(&self) -> Result<PublicKey, UapiError> {
        PublicKey::from_hex(self.value).map_err(|_| self.bad())
    }

    fn private_key(&self) -> Result<PrivateKey, UapiError> {
        PrivateKey::from_hex(self.value).map_err(|_| self.bad())
    }

    fn preshared_key(&self) -> Result<PresharedKey, UapiError> {
        PresharedKey::from_hex(self.value).map_err(|_| self.bad())
    }
}

/// Lines up to the empty one, or to the end.
fn lines(text: &str) -> impl Iterator<Item = Result<Line<'_>, UapiError>> {
    let lines = text.split('\n').take_while(|line| !line.is_empty()).zip(1..);
    lines.map(|(line, number)| {
        let (key, value) = line.split_once('=').ok_or(UapiError::NotAPair { line: number })?;
        Ok(Line { number, key, value })
    })
}

/// What a controller asks.
///
/// # Errors
/// The first line that is wrong.
pub fn decode_request(text: &str) -> Result<Request, UapiError> {
    let mut lines = lines(text);
    let first = lines.next().ok_or(UapiError::UnknownRequest)??;
    let request = match first.key {
        "get" => Request::Get,
        "stop" => Request::Stop,
        "set" => Request::Set(Box::default()),
        _ => return Err(UapiError::UnknownRequest),
    };
    first.one()?;
    let Request::Set(mut config) = request else {
        return lines.next().map_or(Ok(request), |line| Err(line?.unknown()));
    };
    for line in lines {
        let line = line?;
        if line.key == "public_key" {
            config.peers.push(PeerConfig::new(line.public_key()?));
        } else if let Some(peer) = config.peers.last_mut() {
            peer_line(peer, line)?;
        } else {
            device_line(&mut config, line)?;
        }
    }
    Ok(Request::Set(config))
}

fn device_line(config: &mut DeviceConfig, line: Line<'_>) -> Result<(), UapiError> {
    match line.key {
        "private_key" => config.private_key = Some(line.private_key()?),
        "listen_port" => config.listen_port = Some(line.number()?),
        "fwmark" => {
            let digits = line.value.strip_prefix("0x");
            let mark = digits.map_or_else(
                || line.number(),
                |hex| u32::from_str_radix(hex, 16).map_err(|_| line.bad()),
            );
            // An empty value clears it, as `wg` says.
            config.fwmark = Some(if line.value.is_empty() { 0 } else { mark? });
        }
        "mtu" => config.mtu = Some(line.number()?),
        "replace_peers" => config.replace_peers = line.yes()?,
        _ => return Err(line.unknown()),
    }
    Ok(())
}

fn peer_line(peer: &mut PeerConfig, line: Line<'_>) -> Result<(), UapiError> {
    match line.key {
        "previous_public_key" => peer.previous_public_key = Some(line.public_key()?),
        "remove" => peer.remove = line.yes()?,
        "update_only" => peer.update_only = line.yes()?,
        "preshared_key" => peer.preshared_key = Some(line.preshared_key()?),
        "endpoint" => peer.endpoint = Some(line.parse()?),
        "endpoint_relayed" => peer.endpoint_relayed = line.yes()?,
        "persistent_keepalive_interval" => peer.persistent_keepalive = Some(line.number()?),
        "replace_candidates" => peer.replace_candidates = line.yes()?,
        "candidate" if peer.candidates.len() < MAX_CANDIDATES => peer.candidates.push(line.parse()?),
        "candidate" => return Err(line.bad()),
        "replace_allowed_ips" => peer.replace_allowed_ips = line.yes()?,
        "allowed_ip" => peer.allowed_ips.push(line.parse()?),
        "protocol_version" => line.one()?,
        _ => return Err(line.unknown()),
    }
    Ok(())
}

/// What the worker answers. Keys that are not known are skipped: a newer worker may say more.
///
/// # Errors
/// The first line that is wrong.
pub fn decode_answer(text: &str) -> Result<Answer, UapiError> {
    let (mut status, mut errno, mut is_status) = (DeviceStatus::default(), None, false);
    for line in lines(text) {
        let line = line?;
        match line.key {
            "errno" => {
                errno = Some(line.parse::<i32>()?);
                break;
            }
            "public_key" => {
                let key = line.public_key()?;
                status.peers.push(new_peer(key));
            }
            _ => match status.peers.last_mut() {
                Some(peer) => peer_status(peer, line)?,
                None => device_status(&mut status, line)?,
            },
        }
        is_status = true;
    }
    match errno.ok_or(UapiError::Incomplete)? {
        0 if is_status => Ok(Answer::Status(Box::new(status))),
        other if is_status => Err(UapiError::Refused(other)),
        done => Ok(Answer::Done(done)),
    }
}

const fn new_peer(public_key: PublicKey) -> PeerStatus {
    PeerStatus {
        public_key,
        previous_public_key: None,
        preshared_key: None,
        endpoint: None,
        endpoint_relayed: false,
        candidates: Vec::new(),
        persistent_keepalive: 0,
        allowed_ips: Vec::new(),
        mtu: 0,
        last_handshake: None,
        handshake_rtt: None,
        rx_bytes: 0,
        tx_bytes: 0,
        rx_packets: 0,
        tx_packets: 0,
    }
}

fn device_status(status: &mut DeviceStatus, line: Line<'_>) -> Result<(), UapiError> {
    match line.key {
        "private_key" => status.private_key = Some(line.private_key()?),
        "listen_port" => status.listen_port = line.number()?,
        "fwmark" => status.fwmark = line.number()?,
        "mtu" => status.mtu = line.number()?,
        key => {
            let word = key.strip_prefix("drops_");
            if let Some((reason, _)) = REASONS.into_iter().find(|(_, known)| word == Some(*known)) {
                status.drops.set(reason, line.number()?);
            }
        }
    }
    Ok(())
}

fn peer_status(peer: &mut PeerStatus, line: Line<'_>) -> Result<(), UapiError> {
    match line.key {
        "previous_public_key" => peer.previous_public_key = Some(line.public_key()?),
        "preshared_key" => {
            let key = line.preshared_key()?;
            // Others say "none" with zeros.
            peer.preshared_key = (key != PresharedKey::default()).then_some(key);
        }
        "endpoint" => peer.endpoint = Some(line.parse()?),
        "endpoint_relayed" => peer.endpoint_relayed = line.yes()?,
        "candidate" => peer.candidates.push(line.parse()?),
        "persistent_keepalive_interval" => peer.persistent_keepalive = line.number()?,
        "allowed_ip" => peer.allowed_ips.push(line.parse()?),
        "mtu" => peer.mtu = line.number()?,
        "last_handshake_time_sec" => {
            let nanos = peer.last_handshake.unwrap_or_default().subsec_nanos();
            peer.last_handshake = moment(line.number()?, nanos);
        }
        "last_handshake_time_nsec" => {
            let nanos = line.number()?;
            let seconds = peer.last_handshake.unwrap_or_default().as_secs();
            if nanos >= 1_000_000_000 {
                return Err(line.bad());
            }
            peer.last_handshake = moment(seconds, nanos);
        }
        "handshake_rtt_us" => peer.handshake_rtt = Some(Duration::from_micros(line.number()?)),
        "rx_bytes" => peer.rx_bytes = line.number()?,
        "tx_bytes" => peer.tx_bytes = line.number()?,
        "rx_packets" => peer.rx_packets = line.number()?,
        "tx_packets" => peer.tx_packets = line.number()?,
        _ => {}
    }
    Ok(())
}

/// Zero is never.
fn moment(seconds: u64, nanos: u32) -> Option<Duration> {
    let moment = Duration::new(seconds, nanos);
    (!moment.is_zero()).then_some(moment)
}
