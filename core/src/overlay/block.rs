//! A block of endpoint addresses, as one node or one cluster has it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Why a text is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a block of addresses: an IPv4 network such as 10.18.0.0/26, prefix 8 to 30, expected")]
pub struct ParseBlockError {
    /// What was refused, cut at 64 characters.
    pub text: String,
}

/// An IPv4 block: its first host is the node's side of every link, all others but the broadcast may be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Block {
    network: Ipv4Addr,
    prefix: u8,
}

impl Block {
    /// The block of 2^(32 - `prefix`) addresses around `address`.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX << (32 - prefix as u32);
        Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        }
    }

    /// Its first address.
    pub const fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// How many leading bits its addresses have in common.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its last address.
    pub const fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !(u32::MAX << (32 - self.prefix as u32)))
    }

    /// Whether `address` lies in it, be it given to containers or not.
    pub fn spans(&self, address: Ipv4Addr) -> bool {
        (self.network..=self.last()).contains(&address)
    }

    /// The blocks of `prefix` bits in it, lowest first; none if it is smaller.
    pub fn parts(&self, prefix: u8) -> impl Iterator<Item = Self> + use<> {
        let (first, last) = (u64::from(self.network.to_bits()), u64::from(self.last().to_bits()));
        let size = if prefix >= self.prefix && prefix <= 32 {
            1_u64 << (32 - prefix)
        } else {
            u64::MAX
        };
        (first..=last)
            .step_by(usize::try_from(size).unwrap_or(usize::MAX))
            .filter(move |_| size != u64::MAX)
            .map(move |network| Self::new(Ipv4Addr::from_bits(network as u32), prefix))
    }

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

impl FromStr for Block {
    type Err = ParseBlockError;

    fn from_str(text: &str) -> Result<Self, ParseBlockError> {
        let error = || ParseBlockError {
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

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl TryFrom<String> for Block {
    type Error = ParseBlockError;
    fn try_from(text: String) -> Result<Self, ParseBlockError> {
        text.parse()
    }
}

impl From<Block> for String {
    fn from(range: Block) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_gateway_and_broadcast_are_never_given() {
        let range: Block = "10.18.0.0/29".parse().unwrap();
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
            assert!(text.parse::<Block>().is_err(), "{text}");
        }
    }
}
