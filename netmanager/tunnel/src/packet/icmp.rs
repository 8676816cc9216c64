//! "Too big": what a router says to the sender of a packet that does not fit (RFC 792, RFC 1191, RFC 4443).

use super::checksum::{finish, sum};
use super::{Ip, V4_HEADER, V6_HEADER, finish_ip, pseudo_header, put_half};
use std::net::IpAddr;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// How much of the packet is told: all that the least MTU of IPv6 has room for; of IPv4, as much as routers do.
const TOLD: [usize; 2] = [548, 1280 - V6_HEADER - 8];

/// The message that `packet`, which is larger than `mtu`, calls for; `None` if it must not be answered: it is an error
/// message itself, a fragment but the first, or not to one host.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let ip = Ip::parse(packet)?;
    let is_one = |address: IpAddr| !address.is_multicast() && !address.is_unspecified();
    if !is_one(ip.source) || !is_one(ip.destination) {
        return None;
    }
    if ip.is_v6() {
        too_big_v6(packet, ip, mtu)
    } else {
        too_big_v4(packet, ip, mtu)
    }
}

fn too_big_v4(packet: &[u8], ip: Ip, mtu: u16) -> Option<Vec<u8>> {
    let is_later_fragment = super::half(packet, 6) & 0x1fff != 0;
    // Echo and its answer may be answered, errors not.
    let is_error = ip.protocol == ICMP && !matches!(packet.get(ip.header), Some(0 | 8 | 13 | 14));
    if is_later_fragment || is_error {
        return None;
    }
    let told = &packet[..ip.length.min(TOLD[0])];
    let mut message = vec![0; V4_HEADER + 8];
    message[0] = 0x45;
    // Internetwork control (RFC 1812, 4.3.2.5).
    message[1] = 0xc0;
    (message[8], message[9]) = (64, ICMP);
    // From the destination, as the tunnel itself may have no address that the sender believes in.
    message[12..16].copy_from_slice(&packet[16..20]);
    message[16..20].copy_from_slice(&packet[12..16]);
    (message[20], message[21]) = (3, 4);
    put_half(&mut message, 26, mtu);
    message.extend_from_slice(told);
    let checksum = finish(sum(&message[V4_HEADER..], 0));
    put_half(&mut message, 22, checksum);
    finish_ip(&mut message, None);
    Some(message)
}

fn too_big_v6(packet: &[u8], ip: Ip, mtu: u16) -> Option<Vec<u8>> {
    if ip.protocol == ICMP_V6 && packet.get(V6_HEADER).is_none_or(|kind| kind & 0x80 == 0) {
        return None;
    }
    let told = &packet[..ip.length.min(TOLD[1])];
    let mut message = vec![0; V6_HEADER + 8];
    message[0] = 0x60;
    (message[6], message[7]) = (ICMP_V6, 64);
    message[8..24].copy_from_slice(&packet[24..40]);
    message[24..40].copy_from_slice(&packet[8..24]);
    message[40] = 2;
    message[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
    message.extend_from_slice(told);
    finish_ip(&mut message, None);
    let length = message.len() - V6_HEADER;
    let pseudo = pseudo_header(&message, ICMP_V6, length);
    let checksum = finish(sum(&message[V6_HEADER..], pseudo));
    put_half(&mut message, 42, checksum);
    Some(message)
}
