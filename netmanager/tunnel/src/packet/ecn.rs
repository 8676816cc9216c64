//! Congestion marks across the tunnel (RFC 6040). DSCP is copied to the outer header; the inner one stays as it is.

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;
const ECN: u8 = 3;

/// The inner ECN after a packet with `inner` arrived in a datagram with `outer`; `None`: it is to be dropped.
///
/// Source: RFC 6040, figure 4.
pub const fn combine(inner: u8, outer: u8) -> Option<u8> {
    match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (2, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Sets the ECN of an IP packet, and the checksum of its header.
pub fn set(packet: &mut [u8], ecn: u8) {
    if packet[0] >> 4 == 6 {
        packet[1] = (packet[1] & !0x30) | (ecn << 4);
        return;
    }
    packet[1] = (packet[1] & !ECN) | ecn;
    super::put_half(packet, 10, 0);
    let header = usize::from(packet[0] & 0x0f) * 4;
    let sum = super::checksum::finish(super::checksum::sum(&packet[..header], 0));
    super::put_half(packet, 10, sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let (ect_0, drop) = (Some(2), None);
        let table = [
            (0, [Some(0), Some(0), Some(0), drop]),
            (2, [ect_0, ect_0, Some(1), Some(3)]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (inner, row) in table {
            for (outer, result) in [0, 2, 1, 3].into_iter().zip(row) {
                assert_eq!(combine(inner, outer), result, "{inner} in {outer}");
                assert_eq!(combine(inner | 0xb8, outer | 0xb8), result);
            }
        }
    }
}
