//! A set of items kept equal on two sides of a link.
//!
//! One side writes, the other reads. Changes are sent as they happen; the writer's digest travels with every beat, and
//! only when it differs from the reader's are buckets compared and what differs exchanged. Items are told apart by a
//! digest of key and value; the values live in the tiers.

use roble_core::hash::fnv1a;
use roble_proto::wire;
use std::collections::{BTreeMap, BTreeSet};

/// Items per bucket aimed at when digests are compared.
const BUCKET_ITEMS: usize = 16;
/// Most bits of a bucket number: 4,096 buckets.
const MAX_BITS: u32 = 12;

/// What one side knows of the set: a digest per key, and their sum.
#[derive(Debug, Clone, Default)]
pub struct SetIndex {
    items: BTreeMap<String, u64>,
    sum: u64,
}

/// A 64-bit digest of key and value: FNV-1a with a final mix. Not a security measure: the link is authenticated.
pub fn digest(key: &str, value: &[u8]) -> u64 {
    let length = (key.len() as u32).to_be_bytes().into_iter();
    let mut hash = fnv1a(length.chain(key.bytes()).chain(value.iter().copied()));
    // The finaliser of splitmix64, so that sums of digests are as good as the digests.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn fold(sum: u64) -> u32 {
    (sum ^ (sum >> 32)) as u32
}

fn bucket(key: &str, bits: u32) -> u32 {
    if bits == 0 {
        0
    } else {
        (digest(key, &[]) >> (64 - bits)) as u32
    }
}

impl SetIndex {
    /// Sets an item. Returns whether it is new or changed.
    pub fn put(&mut self, key: &str, value: &[u8]) -> bool {
        let new = digest(key, value);
        match self.items.get_mut(key) {
            Some(old) if *old == new => false,
            Some(old) => {
                self.sum = self.sum.wrapping_sub(*old).wrapping_add(new);
                *old = new;
                true
            }
            None => {
                self.items.insert(key.to_owned(), new);
                self.sum = self.sum.wrapping_add(new);
                true
            }
        }
    }

    /// Removes an item. Returns whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        match self.items.remove(key) {
            Some(old) => {
                self.sum = self.sum.wrapping_sub(old);
                true
            }
            None => false,
        }
    }

    /// Digest of the whole set; 0 means empty.
    pub fn digest(&self) -> u32 {
        if self.items.is_empty() {
            0
        } else {
            fold(self.sum).max(1)
        }
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.items.keys().map(String::as_str)
    }

    /// The reader's question: digests of its buckets.
    pub fn fetch(&self, set: wire::SetKind) -> wire::SetFetch {
        let bits = (self.items.len() / BUCKET_ITEMS).max(1).ilog2().min(MAX_BITS);
        wire::SetFetch {
            set: set.into(),
            bits,
            digests: self.bucket_digests(bits),
        }
    }

    fn bucket_digests(&self, bits: u32) -> Vec<u32> {
        let mut sums = vec![0_u64; 1 << bits];
        for (key, item) in &self.items {
            let sum = &mut sums[bucket(key, bits) as usize];
            *sum = sum.wrapping_add(*item);
        }
        sums.into_iter().map(fold).collect()
    }

    /// The writer's answer: all keys of the buckets that differ, and those keys again as the list of items to send.
    /// `None` if the question makes no sense.
    pub fn answer(&self, fetch: &wire::SetFetch) -> Option<(wire::SetBuckets, Vec<String>)> {
        let bits = fetch.bits;
        if bits > MAX_BITS || fetch.digests.len() != 1 << bits {
            return None;
        }
        let own = self.bucket_digests(bits);
        let differing: BTreeSet<u32> = (0..own.len())
            .filter(|i| own[*i] != fetch.digests[*i])
            .map(|i| i as u32)
            .collect();
        let mut buckets: BTreeMap<u32, Vec<String>> = differing.iter().map(|index| (*index, Vec::new())).collect();
        let mut send = Vec::new();
        for key in self.items.keys() {
            if let Some(keys) = buckets.get_mut(&bucket(key, bits)) {
                keys.push(key.clone());
                send.push(key.clone());
            }
        }
        let buckets = buckets
            .into_iter()
            .map(|(index, keys)| wire::SetBucket { index, keys })
            .collect();
        Some((
            wire::SetBuckets {
                set: fetch.set,
                bits,
                buckets,
            },
            send,
        ))
    }

    /// The reader learns all keys of some buckets: returns (and removes) those of its own that the writer does not have.
    pub fn apply_buckets(&mut self, answer: &wire::SetBuckets) -> Vec<String> {
        if answer.bits > MAX_BITS {
            return Vec::new();
        }
        let listed: BTreeSet<u32> = answer.buckets.iter().map(|b| b.index).collect();
        let keys: BTreeSet<&String> = answer.buckets.iter().flat_map(|b| &b.keys).collect();
        let surplus: Vec<String> = self
            .items
            .keys()
            .filter(|key| listed.contains(&bucket(key, answer.bits)) && !keys.contains(key))
            .cloned()
            .collect();
        for key in &surplus {
            self.remove(key);
        }
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn any_two_sets_are_equal_after_one_exchange() {
        for seed in 0..200 {
            let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
            let mut writer = SetIndex::default();
            let mut reader = SetIndex::default();
            let n = rng.random_range(0..300);
            for i in 0..n {
                let key = format!("k{i}");
                if rng.random_bool(0.8) {
                    writer.put(&key, &[rng.random_range(0..3)]);
                }
                if rng.random_bool(0.8) {
                    reader.put(&key, &[rng.random_range(0..3)]);
                }
            }
            let (buckets, send) = writer.answer(&reader.fetch(wire::SetKind::Orders)).unwrap();
            reader.apply_buckets(&buckets);
            for key in send {
                let item = writer.items[&key];
                let old = reader.items.insert(key, item).unwrap_or(0);
                reader.sum = reader.sum.wrapping_sub(old).wrapping_add(item);
            }
            assert_eq!(writer.digest(), reader.digest(), "seed {seed}");
            assert_eq!(writer.items, reader.items, "seed {seed}");
        }
    }

    #[test]
    fn nonsense_questions_are_refused() {
        let set = SetIndex::default();
        let ask = |bits, n| wire::SetFetch {
            set: 1,
            bits,
            digests: vec![0; n],
        };
        assert!(set.answer(&ask(40, 1)).is_none());
        assert!(set.answer(&ask(2, 3)).is_none());
        assert!(set.answer(&ask(2, 4)).is_some());
    }

    #[test]
    fn the_digest_follows_every_change_and_returns() {
        let mut set = SetIndex::default();
        assert_eq!(set.digest(), 0);
        assert!(set.put("a", b"1"));
        let one = set.digest();
        assert!(!set.put("a", b"1"));
        assert!(set.put("b", b"1"));
        assert_ne!(set.digest(), one);
        assert!(set.remove("b"));
        assert_eq!(set.digest(), one);
    }
}
