//! The header before every frame of a TUN device with `IFF_VNET_HDR`: what is still to be done to it (virtio 1.2, 5.1.6).

/// Length of the header, in bytes.
pub const VNET: usize = 10;

/// Flag: the checksum is the pseudo header's, to be completed from `csum_start` on.
pub const NEEDS_CSUM: u8 = 1;
/// A frame that is one packet.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be cut.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6, to be cut.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams of one size, to be cut.
pub const GSO_UDP_L4: u8 = 5;
/// Beside TCP: the first packet has CWR, the others do not.
pub const GSO_ECN: u8 = 0x80;

/// The header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vnet {
    /// [`NEEDS_CSUM`] and others.
    pub flags: u8,
    /// `GSO_...`.
    pub gso_type: u8,
    /// Length of all headers; a hint.
    pub hdr_len: u16,
    /// Payload of each packet but the last.
    pub gso_size: u16,
    /// Where the transport header begins.
    pub csum_start: u16,
    /// Where its checksum is, from there.
    pub csum_offset: u16,
}

impl Vnet {
    /// From its bytes; this machine's byte order, as the kernel's default is.
    pub fn read(bytes: &[u8; VNET]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; VNET] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let halves = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (place, half) in bytes[2..].chunks_exact_mut(2).zip(halves) {
            place.copy_from_slice(&half.to_ne_bytes());
        }
        bytes
    }
}
