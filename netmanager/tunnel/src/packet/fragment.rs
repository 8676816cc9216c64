//! IPv4 packets that may be cut and do not fit a peer's path (RFC 791, section 3.2).

use super::{Ip, V4_HEADER, finish_ip, half, put_half};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Whether the packet is IPv4 and its sender lets it be cut.
pub fn is_allowed(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4) && half(packet, 6) & DONT_FRAGMENT == 0
}

/// The fragments of a packet, none larger than `mtu`, one after another. Options are copied to all of them, which is more
/// than need be and does no harm. Nothing if it is not allowed or `mtu` is too small.
pub fn fragments(packet: &[u8], mtu: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let ip = Ip::parse(packet).filter(|_| is_allowed(packet));
    let header = ip.map_or(V4_HEADER, |ip| ip.header);
    let length = ip.map_or(0, |ip| ip.length);
    // Offsets count eights of bytes.
    let step = mtu.saturating_sub(header) / 8 * 8;
    let starts = (header..length).step_by(step.max(1)).filter(move |_| step > 0);
    starts.map(move |start| {
        let end = (start + step).min(length);
        let mut fragment = packet[..header].to_vec();
        fragment.extend_from_slice(&packet[start..end]);
        let before = half(packet, 6);
        let offset = (before & OFFSET) + ((start - header) / 8) as u16;
        let more = if end < length { MORE } else { before & MORE };
        put_half(&mut fragment, 6, offset & OFFSET | more);
        finish_ip(&mut fragment, None);
        fragment
    })
}
