//! What a device shall be ([`DeviceConfig`]) and what it is ([`DeviceStatus`]): plain values, the same for every kind of
//! WireGuard device.

use crate::counters::Drops;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// A wish for a device, whole or in part: what is `None` or empty stays as it is.
///
/// Repeating one changes nothing and disturbs nothing: sessions, endpoints that were learned and counters stay, also with
/// [`replace_peers`](Self::replace_peers) and [`replace_allowed_ips`](PeerConfig::replace_allowed_ips). It is applied as a
/// whole or, if it is not valid, not at all.
///
/// # Rotation of keys
/// - Own key: set the new [`private_key`](Self::private_key). The device goes on understanding those who still use the old
///   one, for 10 minutes, and tries both towards a peer that does not answer; sessions that stand carry data until
///   their own end (180 s), long after the new ones, which begin at once.
/// - A peer's key: set the peer under its new public key with [`previous_public_key`](PeerConfig::previous_public_key). The
///   peer keeps its sessions, endpoint, allowed addresses and counters; handshakes of either key are its own, until that
///   field is no longer set.
///
/// Neither side needs to be first, and no packet is lost in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// This device's secret; all zeros: none.
    pub private_key: Option<PrivateKey>,
    /// UDP port, the same for IPv4 and IPv6; 0: one that is free.
    pub listen_port: Option<u16>,
    /// Mark of the encrypted datagrams, for policy routing; 0: none.
    pub fwmark: Option<u32>,
    /// Largest packet that the kernel puts into the device, in bytes. Peers behind a narrower path have their own.
    pub mtu: Option<u16>,
    /// Peers that are not in [`peers`](Self::peers) are removed.
    pub replace_peers: bool,
    /// Peers to add, change or remove, each at most once.
    pub peers: Vec<PeerConfig>,
}

/// A wish for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub public_key: PublicKey,
    /// Who it was: a peer of this key becomes this one. `None`: what was set so is forgotten.
    pub previous_public_key: Option<PublicKey>,
    /// Away with it.
    pub remove: bool,
    /// Only if it is there already.
    pub update_only: bool,
    /// Secret shared with it; all zeros: none.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is until it is heard from elsewhere. Setting the same again does not bring a peer back that has moved.
    pub endpoint: Option<SocketAddr>,
    /// That [`endpoint`](Self::endpoint) is a relay's: better than nothing, worse than every other way.
    pub endpoint_relayed: bool,
    /// Seconds between packets that keep a NAT open; 0: none.
    pub persistent_keepalive: Option<u16>,
    /// Allowed addresses that are not in [`allowed_ips`](Self::allowed_ips) are taken from it.
    pub replace_allowed_ips: bool,
    /// Packets to these go to it, packets from these are accepted from it. An address that another peer had is moved.
    pub allowed_ips: Vec<AllowedIp>,
    /// Candidates that are not in [`candidates`](Self::candidates) are forgotten.
    pub replace_candidates: bool,
    /// Addresses at which it may be reached too; they are tried until they answer. At most [`MAX_CANDIDATES`].
    pub candidates: Vec<SocketAddr>,
}

/// Most candidates of a peer; more are refused.
pub const MAX_CANDIDATES: usize = 16;

impl PeerConfig {
    /// No wish yet.
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            previous_public_key: None,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            endpoint_relayed: false,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
            replace_candidates: false,
            candidates: Vec::new(),
        }
    }
}

/// A range of inner addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowedIp {
    address: IpAddr,
    prefix: u8,
}

/// It is not `ADDRESS/PREFIX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range is an IPv4 or IPv6 address, a slash and the number of its fixed bits")]
pub struct AllowedIpError;

impl AllowedIp {
    /// `prefix` bits of `address` are fixed; the others are cleared.
    ///
    /// # Errors
    /// More bits than the address has.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, AllowedIpError> {
        let cleared = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return Err(AllowedIpError),
        };
        Ok(Self {
            address: cleared,
            prefix,
        })
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Number of its fixed bits.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self::new(address, self.prefix).is_ok_and(|range| range.address == self.address)
    }
}

impl From<IpAddr> for AllowedIp {
    /// That address alone.
    fn from(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }
}

impl FromStr for AllowedIp {
    type Err = AllowedIpError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| AllowedIpError);
        };
        let is_number = !prefix.is_empty() && prefix.bytes().all(|digit| digit.is_ascii_digit());
        let prefix = prefix.parse().map_err(|_| AllowedIpError)?;
        match address.parse() {
            Ok(address) if is_number => Self::new(address, prefix),
            _ => Err(AllowedIpError),
        }
    }
}

impl fmt::Display for AllowedIp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

/// A device as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its secret, if it has one.
    pub private_key: Option<PrivateKey>,
    /// UDP port; 0 if it has none yet.
    pub listen_port: u16,
    /// Mark of the encrypted datagrams.
    pub fwmark: u32,
    /// Largest packet that the kernel puts into it, in bytes.
    pub mtu: u16,
    /// What was dropped, by reason, since the worker's start.
    pub drops: Drops,
    /// Its peers, by public key.
    pub peers: Vec<PeerStatus>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Who it was, while that still counts.
    pub previous_public_key: Option<PublicKey>,
    /// Secret shared with it, if any.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets for it go now.
    pub endpoint: Option<SocketAddr>,
    /// That this is the relay.
    pub endpoint_relayed: bool,
    /// Where it may be reached too.
    pub candidates: Vec<SocketAddr>,
    /// Seconds between packets that keep a NAT open; 0: none.
    pub persistent_keepalive: u16,
    /// Its inner addresses, in order.
    pub allowed_ips: Vec<AllowedIp>,
    /// Largest inner packet that fits its path, in bytes.
    pub mtu: u16,
    /// Unix time of the newest session's handshake.
    pub last_handshake: Option<Duration>,
    /// Time from the last initiation of ours to its answer, smoothed (RFC 6298).
    pub handshake_rtt: Option<Duration>,
    /// Bytes of datagrams received from it and accepted, without their UDP and IP headers.
    pub rx_bytes: u64,
    /// Bytes of datagrams sent to it.
    pub tx_bytes: u64,
    /// Inner packets received from it.
    pub rx_packets: u64,
    /// Inner packets sent to it.
    pub tx_packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: AllowedIp = "10.18.7.9/20".parse().unwrap();
        assert_eq!(range.to_string(), "10.18.0.0/20");
        assert!(range.contains("10.18.15.255".parse().unwrap()));
        assert!(!range.contains("10.18.16.0".parse().unwrap()));
        assert!(!range.contains("::ffff:10.18.0.1".parse().unwrap()));
        let all: AllowedIp = "::1/0".parse().unwrap();
        assert_eq!(all.to_string(), "::/0");
        assert!(all.contains("fe80::1".parse().unwrap()) && !all.contains("10.0.0.1".parse().unwrap()));
        assert_eq!("10.0.0.1".parse::<AllowedIp>().unwrap().prefix(), 32);
        for bad in [
            "",
            "/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "x/8",
            "10.0.0.0/8/8",
        ] {
            assert_eq!(bad.parse::<AllowedIp>(), Err(AllowedIpError), "{bad}");
        }
    }
}
