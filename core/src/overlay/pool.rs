//! Leases: who has which number of a range. Addresses and blocks are numbers here; their owners turn them into either.
//!
//! A number is given in this order: one that nobody had, then the one given back longest ago. One that was given back rests
//! first: others may still know it as its former holder's.

use crate::time::Timestamp;
use std::collections::BTreeMap;

/// How long a number rests before somebody else gets it, milliseconds.
pub const REST_MS: u64 = 600_000;

/// The leases of one range. Numbers are 0 to `size` - 1.
#[derive(Debug, Clone)]
pub struct Pool<H> {
    size: u32,
    holders: BTreeMap<u32, H>,
    /// Given back, and when.
    resting: BTreeMap<u32, Timestamp>,
    /// Every number below it was given at least once, or passed over.
    next: u32,
}

impl<H: Clone + Eq> Pool<H> {
    /// A range of `size` numbers, all free.
    pub const fn new(size: u32) -> Self {
        Self {
            size,
            holders: BTreeMap::new(),
            resting: BTreeMap::new(),
            next: 0,
        }
    }

    /// How many numbers there are.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Who has `number`.
    pub fn holder(&self, number: u32) -> Option<&H> {
        self.holders.get(&number)
    }

    /// What is leased, in order.
    pub fn leases(&self) -> impl Iterator<Item = (u32, &H)> {
        self.holders.iter().map(|(number, holder)| (*number, holder))
    }

    /// What was given back and not given again, and when.
    pub fn resting(&self) -> impl Iterator<Item = (u32, Timestamp)> + '_ {
        self.resting.iter().map(|(number, at)| (*number, *at))
    }

    /// Gives `holder` a number; `None` if none is free and rested.
    pub fn lease(&mut self, holder: H, now: Timestamp) -> Option<u32> {
        while self.next < self.size && (self.holders.contains_key(&self.next) || self.resting.contains_key(&self.next))
        {
            self.next += 1;
        }
        let number = if self.next < self.size {
            self.next
        } else {
            let longest = self.resting.iter().min_by_key(|(number, at)| (**at, **number));
            let (number, at) = longest?;
            if now.as_millis() < at.as_millis().saturating_add(REST_MS) {
                return None;
            }
            *number
        };
        self.resting.remove(&number);
        self.holders.insert(number, holder);
        Some(number)
    }

    /// Takes up that `holder` has `number`, as a record or the holder itself says. `false` if it is another's or does not
    /// exist. Resting does not matter: it is its own again.
    pub fn claim(&mut self, number: u32, holder: H) -> bool {
        if number >= self.size || self.holders.get(&number).is_some_and(|other| *other != holder) {
            return false;
        }
        self.resting.remove(&number);
        self.holders.insert(number, holder);
        true
    }

    /// Takes a number back. Returns whether it was leased.
    pub fn release(&mut self, number: u32, now: Timestamp) -> bool {
        let was = self.holders.remove(&number).is_some();
        if was {
            self.resting.insert(number, now);
        }
        was
    }

    /// Takes up from a record that a number was given back.
    pub fn restore_resting(&mut self, number: u32, since: Timestamp) {
        if number < self.size && !self.holders.contains_key(&number) {
            self.resting.insert(number, since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Step {
        Lease(u8),
        Claim(u32, u8),
        Release(u32),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u8>().prop_map(Step::Lease),
            1 => (0..12_u32, any::<u8>()).prop_map(|(number, holder)| Step::Claim(number, holder)),
            2 => (0..10_u32).prop_map(Step::Release),
            1 => (0..REST_MS).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn never_two_holders_and_never_too_soon(steps in proptest::collection::vec(step(), 0..200)) {
            let mut pool = Pool::new(10);
            // The model: who holds what, and when each number was given back last.
            let mut held: BTreeMap<u32, u8> = BTreeMap::new();
            let mut back: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 1_000_000;
            for step in steps {
                let at = Timestamp::from_millis(now);
                match step {
                    Step::Lease(holder) => match pool.lease(holder, at) {
                        Some(number) => {
                            prop_assert!(held.insert(number, holder).is_none());
                            prop_assert!(back.get(&number).is_none_or(|back| now - back >= REST_MS));
                        }
                        None => {
                            let free: BTreeSet<u32> = (0..10).filter(|number| !held.contains_key(number)).collect();
                            prop_assert!(free.iter().all(|number| back.get(number).is_some_and(|back| now - back < REST_MS)));
                        }
                    },
                    Step::Claim(number, holder) => {
                        let may = number < 10 && held.get(&number).is_none_or(|other| *other == holder);
                        prop_assert_eq!(pool.claim(number, holder), may);
                        if may {
                            held.insert(number, holder);
                        }
                    }
                    Step::Release(number) => {
                        let was = held.remove(&number).is_some();
                        prop_assert_eq!(pool.release(number, at), was);
                        if was {
                            back.insert(number, now);
                        }
                    }
                    Step::Wait(ms) => now += ms,
                }
                let leases: BTreeMap<u32, u8> = pool.leases().map(|(number, holder)| (number, *holder)).collect();
                prop_assert_eq!(&leases, &held);
            }
        }
    }

    #[test]
    fn what_nobody_had_comes_first_then_what_rested_longest() {
        let at = Timestamp::from_millis;
        let mut pool = Pool::new(3);
        assert_eq!((pool.lease('a', at(0)), pool.lease('b', at(0))), (Some(0), Some(1)));
        pool.release(1, at(5));
        pool.release(0, at(9));
        assert_eq!(pool.lease('c', at(10)), Some(2));
        assert_eq!(pool.lease('d', at(10)), None, "both rest");
        assert!(pool.claim(0, 'a'), "its former holder may have it back");
        assert_eq!(pool.lease('d', at(5 + REST_MS)), Some(1));
    }
}
