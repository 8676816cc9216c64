//! Which peer an inner address belongs to: the longest range that has it.

use crate::types::AllowedIp;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Ranges with their owners. A look costs one map per length of prefix in use, longest first; nodes have a block each, so
/// there is mostly one.
#[derive(Debug)]
pub struct Routes<T> {
    /// By family, then by number of fixed bits; the key is the range's first address.
    families: [BTreeMap<u8, HashMap<u128, T>>; 2],
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self {
            families: [BTreeMap::new(), BTreeMap::new()],
        }
    }
}

/// Family and address, its bits from the top.
fn bits(address: IpAddr) -> (usize, u128) {
    match address {
        IpAddr::V4(v4) => (0, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (1, v6.to_bits()),
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl<T: Copy + Eq> Routes<T> {
    /// Gives a range to an owner; who had it before.
    pub fn insert(&mut self, range: AllowedIp, owner: T) -> Option<T> {
        let (family, address) = bits(range.address());
        self.families[family]
            .entry(range.prefix())
            .or_default()
            .insert(address, owner)
    }

    /// Takes a range from its owner, if it is the owner.
    pub fn remove(&mut self, range: AllowedIp, owner: T) {
        let (family, address) = bits(range.address());
        let ranges = &mut self.families[family];
        let Some(map) = ranges.get_mut(&range.prefix()) else {
            return;
        };
        if map.get(&address) == Some(&owner) {
            map.remove(&address);
            if map.is_empty() {
                ranges.remove(&range.prefix());
            }
        }
    }

    /// Who has `address`.
    pub fn find(&self, address: IpAddr) -> Option<T> {
        let (family, address) = bits(address);
        let longest_first = self.families[family].iter().rev();
        longest_first
            .filter_map(|(prefix, map)| map.get(&(address & mask(*prefix))))
            .next()
            .copied()
    }

    /// Ranges of an owner, in order.
    pub fn of(&self, owner: T) -> Vec<AllowedIp> {
        let mut found = Vec::new();
        for (family, ranges) in self.families.iter().enumerate() {
            for (prefix, map) in ranges {
                for (bits, _) in map.iter().filter(|(_, other)| **other == owner) {
                    let address = match family {
                        0 => IpAddr::V4(u32::try_from(bits >> 96).unwrap_or(0).into()),
                        _ => IpAddr::V6((*bits).into()),
                    };
                    found.extend(AllowedIp::new(address, *prefix));
                }
            }
        }
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Few bits, so that ranges meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = (0..4u32).prop_map(|n| IpAddr::V4((n << 30 | n).into()));
        let v6 = (0..4u128).prop_map(|n| IpAddr::V6((n << 126 | n).into()));
        prop_oneof![v4, v6]
    }

    fn range() -> impl Strategy<Value = AllowedIp> {
        (address(), prop_oneof![0..4u8, 29..33u8, 126..129u8])
            .prop_map(|(address, prefix)| AllowedIp::new(address, prefix).unwrap_or(address.into()))
    }

    proptest! {
        #[test]
        fn finds_what_a_search_of_all_finds(
            steps in proptest::collection::vec((range(), 0..4u8, any::<bool>()), 0..40), asked in address(),
        ) {
            let (mut routes, mut model) = (Routes::default(), BTreeMap::new());
            for (range, owner, insert) in steps {
                if insert {
                    prop_assert_eq!(routes.insert(range, owner), model.insert(range, owner));
                } else {
                    routes.remove(range, owner);
                    if model.get(&range) == Some(&owner) {
                        model.remove(&range);
                    }
                }
            }
            let holders = model.iter().filter(|(range, _)| range.contains(asked));
            let expected = holders.max_by_key(|(range, _)| range.prefix()).map(|(_, owner)| *owner);
            prop_assert_eq!(routes.find(asked), expected);
            for owner in 0..4 {
                let mut ranges: Vec<_> = model.iter().filter(|(_, other)| **other == owner).map(|(range, _)| *range).collect();
                ranges.sort_unstable();
                prop_assert_eq!(routes.of(owner), ranges);
            }
        }
    }
}
