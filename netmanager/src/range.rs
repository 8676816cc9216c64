//! The block of endpoint addresses that belongs to this node.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Why a text is not an endpoint range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an endpoint range: an IPv4 network such as 10.18.0.0/26, prefix 8 to 30, expected")]
pub struct ParseRangeError {
    /// What was refused, cut at 64 characters.
    pub text: String,
}

/// An IPv4 block: its first host is the node's side of every link, all others but the broadcast may be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointRange {
    network: Ipv4Addr,
    prefix: u8,
}

impl EndpointRange {
    /// The node's own address in the block: the gateway of all containers.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// Addresses that containers may get, lowest first.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = u32::from(self.network);
        let size = 1_u32 << (32 - self.prefix);
        (first + 2..first + size - 1).map(Ipv4Addr::from)
    }

    /// Whether a container may have `address`.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let size = 1_u32 << (32 - self.prefix);
        u32::from(address)
            .checked_sub(u32::from(self.network))
            .is_some_and(|offset| (2..size - 1).contains(&offset))
    }

    /// How many addresses containers may get.
    pub fn capacity(&self) -> usize {
        (1_usize << (32 - self.prefix)) - 3
    }
}

impl FromStr for EndpointRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let error = || ParseRangeError {
            text: text.chars().take(64).collect(),
        };
        let (network, prefix) = text.split_once('/').ok_or_else(error)?;
        let network: Ipv4Addr = network.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let is_host =
            network.is_loopback() || network.is_multicast() || network.is_link_local() || network.octets()[0] == 0;
        if !(8..=30).contains(&prefix) || is_host || u32::from(network) << prefix != 0 {
            return Err(error());
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for EndpointRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl TryFrom<String> for EndpointRange {
    type Error = ParseRangeError;
    fn try_from(text: String) -> Result<Self, ParseRangeError> {
        text.parse()
    }
}

impl From<EndpointRange> for String {
    fn from(range: EndpointRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_gateway_and_broadcast_are_never_given() {
        let range: EndpointRange = "10.18.0.0/29".parse().unwrap();
        assert_eq!(range.gateway(), Ipv4Addr::new(10, 18, 0, 1));
        let all: Vec<_> = range.addresses().map(|address| address.octets()[3]).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        assert_eq!(range.capacity(), all.len());
        for last in 0..=8 {
            assert_eq!(range.contains(Ipv4Addr::new(10, 18, 0, last)), all.contains(&last));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "10.18.0.0",
            "10.18.0.1/26",
            "10.18.0.0/31",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "224.0.0.0/24",
            "::/64",
        ] {
            assert!(text.parse::<EndpointRange>().is_err(), "{text}");
        }
    }
}
