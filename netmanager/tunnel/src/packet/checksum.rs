//! The Internet checksum (RFC 1071).
//!
//! Sums are of native-order 64-bit words with the carry added back, which is the same sum: byte order and word size do not
//! matter to it (RFC 1071 section 2). Four chains of additions, as one alone waits for itself.

/// One's complement addition.
pub const fn add(one: u64, other: u64) -> u64 {
    let (sum, carry) = one.overflowing_add(other);
    sum + carry as u64
}

/// Adds `bytes` to a sum. Only the last part of what is summed may have an odd length.
pub fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut chains = [start, 0, 0, 0];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (chain, word) in chains.iter_mut().zip(block.chunks_exact(8)) {
            *chain = add(*chain, word.try_into().map_or(0, u64::from_ne_bytes));
        }
    }
    let mut total = chains.into_iter().fold(0, add);
    let mut words = blocks.remainder().chunks_exact(8);
    for word in &mut words {
        total = add(total, word.try_into().map_or(0, u64::from_ne_bytes));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    add(total, u64::from_ne_bytes(last))
}

/// A sum as 16 bits, to be written in network order, not inverted.
pub const fn fold(sum: u64) -> u16 {
    let half = (sum >> 32) + (sum & 0xffff_ffff);
    let quarter = (half >> 16) + (half & 0xffff);
    let quarter = (quarter >> 16) + (quarter & 0xffff);
    let quarter = (quarter >> 16) + (quarter & 0xffff);
    u16::from_be(quarter as u16)
}

/// The checksum of a sum.
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As RFC 1071 says it, with nothing clever.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn is_the_plain_one(bytes in proptest::collection::vec(any::<u8>(), 0..3_000), at in 0..1_500usize) {
            prop_assert_eq!(finish(sum(&bytes, 0)), plain(&bytes));
            let at = (2 * at).min(bytes.len() & !1);
            prop_assert_eq!(finish(sum(&bytes[at..], sum(&bytes[..at], 0))), plain(&bytes));
        }

        #[test]
        fn carries_are_not_lost(length in 0..200usize) {
            let ones = vec![0xff; length];
            prop_assert_eq!(finish(sum(&ones, 0)), plain(&ones));
        }
    }
}
