//! Inner packets: their headers, and what is done to them. Pure functions of bytes.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod fragment;
pub mod icmp;
pub mod segment;
#[cfg(test)]
mod tests;
pub mod vnet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's number in IP headers.
pub const TCP: u8 = 6;
/// UDP's number in IP headers.
pub const UDP: u8 = 17;
/// Length of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Length of an IPv6 header.
pub const V6_HEADER: usize = 40;

/// What an IP header says, as far as we need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Length of the whole packet, in bytes; at most what was given.
    pub length: usize,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of the IP header, in bytes; IPv6 extension headers are not part of it.
    pub header: usize,
    /// Protocol, or next header, after it.
    pub protocol: u8,
}

impl Ip {
    /// Reads the header of a whole packet; there may be padding behind it. `None` if it is no IP packet.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<V4_HEADER>()?;
        let header = usize::from(fixed[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header < V4_HEADER || length < header || length > packet.len() {
            return None;
        }
        let address = |at| Ipv4Addr::from(word(fixed, at).to_be_bytes());
        Some(Self {
            source: address(12).into(),
            destination: address(16).into(),
            length,
            tos: fixed[1],
            header,
            protocol: fixed[9],
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<V6_HEADER>()?;
        let length = V6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if length > packet.len() {
            return None;
        }
        let address = |at: usize| {
            let bytes = fixed[at..at + 16].try_into().unwrap_or([0; 16]);
            Ipv6Addr::from(bytes)
        };
        Some(Self {
            source: address(8).into(),
            destination: address(24).into(),
            length,
            tos: (fixed[0] << 4) | (fixed[1] >> 4),
            header: V6_HEADER,
            protocol: fixed[6],
        })
    }

    /// Whether it is IPv6.
    pub const fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }
}

/// Two bytes in network order; 0 beyond the end.
pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    let pair = bytes.get(at..at + 2).and_then(|pair| pair.try_into().ok());
    pair.map_or(0, u16::from_be_bytes)
}

/// Four bytes in network order; 0 beyond the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_be_bytes)
}

/// Writes two bytes in network order.
pub(crate) fn put_half(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sets lengths (and IPv4's identification, if given) in the IP header of `packet`, and IPv4's checksum.
pub(crate) fn finish_ip(packet: &mut [u8], id: Option<u16>) {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    if packet[0] >> 4 == 6 {
        put_half(packet, 4, length - V6_HEADER as u16);
        return;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    put_half(packet, 2, length);
    if let Some(id) = id {
        put_half(packet, 4, id);
    }
    put_half(packet, 10, 0);
    let sum = checksum::finish(checksum::sum(&packet[..header], 0));
    put_half(packet, 10, sum);
}

/// Sum of the pseudo header: addresses, protocol, length of what follows the IP header.
pub(crate) fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 6 {
        &packet[8..40]
    } else {
        &packet[12..20]
    };
    let words = (protocol as u16).to_be().into();
    let length = u64::from((length as u32).to_be());
    checksum::sum(addresses, checksum::add(words, length))
}
