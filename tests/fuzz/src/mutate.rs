//! Changed inputs, the same for the same numbers.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Longest input that is made.
const MOST_BYTES: usize = 64 * 1024;
/// Numbers at which lengths and counters go wrong.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// The input of the number `case`: an entry of the corpus, changed in one to six places.
pub(crate) fn case(corpus: &[(String, Vec<u8>)], case: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(case);
    let any = |rng: &mut SmallRng| match corpus {
        [] => Vec::new(),
        _ => corpus[rng.random_range(0..corpus.len())].1.clone(),
    };
    let mut input = any(&mut rng);
    for _ in 0..rng.random_range(1..=6) {
        let other = any(&mut rng);
        change(&mut input, &other, &mut rng);
    }
    input.truncate(MOST_BYTES);
    input
}

fn change(input: &mut Vec<u8>, other: &[u8], rng: &mut SmallRng) {
    let at = rng.random_range(0..=input.len());
    let to = rng.random_range(at..=input.len());
    match rng.random_range(0..9) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 => drop(input.drain(at..to)),
        3 => input.truncate(at),
        4 => {
            // Again, and again: repeated fields, deep nesting.
            let piece = input[at..to.min(at + 64)].to_vec();
            for _ in 0..rng.random_range(1..40) {
                input.splice(at..at, piece.iter().copied());
            }
        }
        5 => {
            let (from, end) = (rng.random_range(0..=other.len()), other.len());
            input.splice(at..to, other[from..rng.random_range(from..=end)].iter().copied());
        }
        6 => {
            let edge = EDGES[rng.random_range(0..EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            input.splice(at..to.min(at + width), edge[..width].iter().copied());
        }
        7 => {
            // As protobuf and MQTT write numbers.
            let mut edge = EDGES[rng.random_range(0..EDGES.len())];
            let mut bytes = Vec::new();
            while edge >= 0x80 {
                bytes.push(edge as u8 | 0x80);
                edge >>= 7;
            }
            bytes.push(edge as u8);
            input.splice(at..to.min(at + 1), bytes);
        }
        _ => {
            let mut noise = vec![0; rng.random_range(1..32)];
            rng.fill_bytes(&mut noise);
            input.splice(at..at, noise);
        }
    }
}
