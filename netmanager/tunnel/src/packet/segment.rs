//! A frame from the TUN device, cut into the packets that go over the wire, checksums completed.

use super::checksum::{finish, sum};
use super::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};
use super::{Ip, TCP, UDP, finish_ip, half, pseudo_header, put_half, word};
use crate::counters::Reason;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Place of the flags in a TCP header.
const FLAGS: usize = 13;

/// The packets of one frame, in order.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    ip: Ip,
    /// Where the transport header begins.
    transport: usize,
    /// Length of all headers; the whole frame if it is not cut.
    headers: usize,
    /// Payload of each packet but the last.
    size: usize,
    /// Payload that is already in a packet.
    done: usize,
    count: u16,
    protocol: u8,
}

impl<'a> Segments<'a> {
    /// Reads a frame without its header. Completes its checksum, if it is not to be cut.
    ///
    /// # Errors
    /// [`Reason::BadFrame`] if header and frame contradict each other.
    pub fn new(vnet: Vnet, frame: &'a mut [u8]) -> Result<Self, Reason> {
        let transport = usize::from(vnet.csum_start);
        let gso = vnet.gso_type & !GSO_ECN;
        if gso == GSO_NONE {
            return Self::whole(vnet, frame);
        }
        // The length in the header of a frame that is to be cut is not trusted: it need not fit 16 bits.
        let ip = parse_large(frame).ok_or(Reason::BadFrame)?;
        let (protocol, headers) = match gso {
            GSO_TCPV4 | GSO_TCPV6 if ip.is_v6() == (gso == GSO_TCPV6) => {
                let offset = frame.get(transport + 12).ok_or(Reason::BadFrame)?;
                (TCP, transport + usize::from(offset >> 4) * 4)
            }
            GSO_UDP_L4 => (UDP, transport + 8),
            _ => return Err(Reason::BadFrame),
        };
        let size = usize::from(vnet.gso_size);
        let least = if protocol == TCP { 20 } else { 8 };
        let is_right = vnet.flags & NEEDS_CSUM != 0
            && size > 0
            && transport >= ip.header
            && headers >= transport + least
            && headers < frame.len()
            && headers + size <= usize::from(u16::MAX);
        if !is_right {
            return Err(Reason::BadFrame);
        }
        Ok(Self {
            frame,
            ip,
            transport,
            headers,
            size,
            done: 0,
            count: 0,
            protocol,
        })
    }

    fn whole(vnet: Vnet, frame: &'a mut [u8]) -> Result<Self, Reason> {
        let ip = Ip::parse(frame).ok_or(Reason::BadFrame)?;
        let frame = &mut frame[..ip.length];
        if vnet.flags & NEEDS_CSUM != 0 {
            let start = usize::from(vnet.csum_start);
            let place = start + usize::from(vnet.csum_offset);
            if start < ip.header || place + 2 > frame.len() {
                return Err(Reason::BadFrame);
            }
            // What is there now is the pseudo header's sum: it is summed with the rest.
            let checksum = finish(sum(&frame[start..], 0));
            let is_udp = vnet.csum_offset == 6;
            put_half(frame, place, if is_udp && checksum == 0 { 0xffff } else { checksum });
        }
        Ok(Self {
            headers: frame.len(),
            frame,
            ip,
            transport: 0,
            size: 0,
            done: 0,
            count: 0,
            protocol: ip.protocol,
        })
    }

    /// What the IP header says; the length is the frame's.
    pub const fn ip(&self) -> &Ip {
        &self.ip
    }

    /// The frame as it is.
    pub const fn frame(&self) -> &[u8] {
        self.frame
    }

    /// Length of the largest packet, in bytes.
    pub fn largest(&self) -> usize {
        self.headers + self.size.min(self.frame.len() - self.headers)
    }

    /// Length of the next packet, in bytes; `None` after the last.
    pub fn next_length(&self) -> Option<usize> {
        let left = self.frame.len() - self.headers - self.done;
        if self.size == 0 {
            return (self.count == 0).then_some(self.headers);
        }
        (left > 0).then(|| self.headers + left.min(self.size))
    }

    /// Writes the next packet into `out`, which is as long as [`Segments::next_length`] says.
    pub fn write_next(&mut self, out: &mut [u8]) {
        if self.size == 0 {
            self.count = 1;
            out.copy_from_slice(self.frame);
            return;
        }
        let (headers, payload) = out.split_at_mut(self.headers);
        headers.copy_from_slice(&self.frame[..self.headers]);
        let from = self.headers + self.done;
        payload.copy_from_slice(&self.frame[from..from + payload.len()]);
        let is_first = self.done == 0;
        self.done += payload.len();
        let is_last = self.headers + self.done == self.frame.len();
        let id = (!self.ip.is_v6()).then(|| half(self.frame, 4).wrapping_add(self.count));
        self.count = self.count.wrapping_add(1);
        finish_ip(out, id);
        let length = out.len() - self.transport;
        if self.protocol == TCP {
            let sequence =
                word(self.frame, self.transport + 4).wrapping_add((self.done - (out.len() - self.headers)) as u32);
            out[self.transport + 4..self.transport + 8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                out[self.transport + FLAGS] &= !(FIN | PSH);
            }
            if !is_first {
                out[self.transport + FLAGS] &= !CWR;
            }
            put_half(out, self.transport + 16, 0);
        } else {
            put_half(out, self.transport + 4, length as u16);
            put_half(out, self.transport + 6, 0);
        }
        let pseudo = pseudo_header(out, self.protocol, length);
        let checksum = finish(sum(&out[self.transport..], pseudo));
        match self.protocol {
            TCP => put_half(out, self.transport + 16, checksum),
            _ => put_half(out, self.transport + 6, if checksum == 0 { 0xffff } else { checksum }),
        }
    }
}

/// The header of a frame whose own length field may be too small for it.
fn parse_large(frame: &[u8]) -> Option<Ip> {
    let mut head = [0; 60];
    let length = frame.len().min(head.len());
    head[..length].copy_from_slice(&frame[..length]);
    match head[0] >> 4 {
        4 => put_half(&mut head, 2, u16::try_from(length).ok()?),
        _ => put_half(&mut head, 4, u16::try_from(length.checked_sub(super::V6_HEADER)?).ok()?),
    }
    let mut ip = Ip::parse(&head[..length])?;
    ip.length = frame.len();
    Some(ip)
}
