//! Blocks of endpoint addresses that a tier gives to its children: the root to clusters, a cluster to nodes.

use super::block::Block;
use super::pool::Pool;
use crate::ids::ChildId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Bits of a cluster's block: 64 nodes.
pub const CLUSTER_PREFIX: u8 = 20;
/// Bits of a node's block: 61 containers.
pub const NODE_PREFIX: u8 = 26;

/// What is stored of a block that was given at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Which block.
    pub block: Block,
    /// Who has it; `None` once it was given back.
    pub holder: Option<ChildId>,
    /// When that became so.
    pub since: Timestamp,
}

/// The leases of all ranges that a tier has. See the module's text.
#[derive(Debug, Clone)]
pub struct Blocks {
    prefix: u8,
    ranges: BTreeMap<Ipv4Addr, Pool<ChildId>>,
}

impl Blocks {
    /// Gives away blocks of `prefix` bits; has none yet.
    pub const fn new(prefix: u8) -> Self {
        Self {
            prefix,
            ranges: BTreeMap::new(),
        }
    }

    /// The addresses from `first` to `last` may be given away from now on. Parts smaller than a block are left out.
    pub fn add_range(&mut self, first: Ipv4Addr, last: Ipv4Addr) {
        let size = 1_u64 << (32 - self.prefix);
        let start = u64::from(first.to_bits()).div_ceil(size) * size;
        let count = (u64::from(last.to_bits()) + 1).saturating_sub(start) / size;
        if count > 0 {
            let start = Ipv4Addr::from_bits(start as u32);
            self.ranges.entry(start).or_insert_with(|| Pool::new(count as u32));
        }
    }

    /// Takes up a record.
    pub fn restore(&mut self, record: &BlockRecord) {
        match record.holder {
            Some(holder) => drop(self.claim(record.block, holder)),
            None => {
                let since = record.since;
                self.with(record.block, |pool, number| pool.restore_resting(number, since));
            }
        }
    }

    /// Gives a child a block; `None` if none is free.
    pub fn lease(&mut self, child: ChildId, now: Timestamp) -> Option<Block> {
        let prefix = self.prefix;
        self.ranges
            .iter_mut()
            .find_map(|(first, pool)| Some(nth(*first, prefix, pool.lease(child, now)?)))
    }

    /// Takes up that a child has a block. `false` if it is not of these ranges, or another's.
    pub fn claim(&mut self, block: Block, child: ChildId) -> bool {
        block.prefix() == self.prefix && self.with(block, |pool, number| pool.claim(number, child)) == Some(true)
    }

    /// Takes all blocks of a child back. Returns them.
    pub fn release(&mut self, child: ChildId, now: Timestamp) -> Vec<Block> {
        let blocks = self.of(child);
        for block in &blocks {
            self.with(*block, |pool, number| pool.release(number, now));
        }
        blocks
    }

    /// The blocks of a child.
    pub fn of(&self, child: ChildId) -> Vec<Block> {
        self.ranges
            .iter()
            .flat_map(|(first, pool)| {
                let own = pool.leases().filter(move |(_, holder)| **holder == child);
                own.map(|(number, _)| nth(*first, self.prefix, number))
            })
            .collect()
    }

    /// How many blocks there are, and how many of them are leased.
    pub fn count(&self) -> (usize, usize) {
        let all = self.ranges.values().map(|pool| pool.size() as usize).sum();
        let leased = self.ranges.values().map(|pool| pool.leases().count()).sum();
        (all, leased)
    }

    fn with<T>(&mut self, block: Block, work: impl FnOnce(&mut Pool<ChildId>, u32) -> T) -> Option<T> {
        let (first, pool) = self.ranges.range_mut(..=block.network()).next_back()?;
        let number = (block.network().to_bits() - first.to_bits()) >> (32 - self.prefix);
        (number < pool.size()).then(|| work(pool, number))
    }
}

const fn nth(first: Ipv4Addr, prefix: u8, number: u32) -> Block {
    Block::new(Ipv4Addr::from_bits(first.to_bits() + (number << (32 - prefix))), prefix)
}

#[cfg(test)]
mod tests {
    use super::super::pool::REST_MS;
    use super::*;
    use crate::ids::RawId;

    fn child(number: u8) -> ChildId {
        ChildId(RawId::from_bytes([number; 12]))
    }

    const AT: fn(u64) -> Timestamp = Timestamp::from_millis;

    #[test]
    fn blocks_are_cut_from_the_ranges_in_order_and_given_once() {
        let mut blocks = Blocks::new(NODE_PREFIX);
        assert_eq!(blocks.lease(child(1), AT(0)), None);
        blocks.add_range([10, 18, 0, 1].into(), [10, 18, 0, 200].into());
        assert_eq!(blocks.count(), (2, 0), "only whole blocks");
        blocks.add_range([10, 19, 0, 0].into(), [10, 19, 0, 63].into());
        let given: Vec<String> = (1..5)
            .filter_map(|number| blocks.lease(child(number), AT(0)))
            .map(|block| block.to_string())
            .collect();
        assert_eq!(given, ["10.18.0.64/26", "10.18.0.128/26", "10.19.0.0/26"]);
        assert_eq!(blocks.of(child(2)), ["10.18.0.128/26".parse().unwrap()]);
    }

    #[test]
    fn a_child_gets_its_block_back_and_others_get_it_after_a_rest() {
        let mut blocks = Blocks::new(NODE_PREFIX);
        blocks.add_range([10, 18, 0, 0].into(), [10, 18, 0, 63].into());
        let block = blocks.lease(child(1), AT(0)).unwrap();
        assert!(!blocks.claim(block, child(2)));
        assert_eq!(blocks.release(child(1), AT(5)), [block]);
        assert_eq!(blocks.lease(child(2), AT(6)), None, "it rests");
        assert!(blocks.claim(block, child(1)));
        blocks.release(child(1), AT(10));
        assert_eq!(blocks.lease(child(2), AT(10 + REST_MS)), Some(block));
        assert!(!blocks.claim("10.18.0.0/25".parse().unwrap(), child(2)));
        assert!(!blocks.claim("10.20.0.0/26".parse().unwrap(), child(2)));
    }

    #[test]
    fn the_whole_default_range_is_12288_nodes() {
        let plan = super::super::plan::Plan::default();
        let mut root = Blocks::new(CLUSTER_PREFIX);
        root.add_range(plan.endpoints.0, plan.endpoints.1);
        assert_eq!(root.count().0, 192);
        let cluster = root.lease(child(1), AT(0)).unwrap();
        let mut nodes = Blocks::new(NODE_PREFIX);
        nodes.add_range(cluster.network(), cluster.last());
        assert_eq!(nodes.count().0 * 192, 12_288);
    }
}
