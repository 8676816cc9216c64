//! Which messages of a session have been seen: a window behind the newest, as in RFC 6479.

const WORDS: u64 = 128;
const BITS: u64 = u64::BITS as u64;

/// How far behind the newest a message may be.
pub const WINDOW: u64 = (WORDS - 1) * BITS;

/// The counters seen.
#[derive(Debug)]
pub struct Window {
    /// One above the newest seen; 0: none yet.
    next: u64,
    words: [u64; WORDS as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            next: 0,
            words: [0; WORDS as usize],
        }
    }
}

/// What a counter is to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// For the first time, newer than all before.
    Newest,
    /// For the first time, later than others.
    Late,
    /// Before, or too late to tell.
    Before,
}

impl Window {
    /// Takes note of the counter of an authentic message.
    pub fn see(&mut self, counter: u64) -> Seen {
        let (word, bit) = (counter / BITS, 1 << (counter % BITS));
        let is_newest = counter >= self.next;
        if is_newest {
            let top = self.next.saturating_sub(1) / BITS;
            for stale in (top + 1..=word).take(WORDS as usize) {
                self.words[(stale % WORDS) as usize] = 0;
            }
            self.next = counter.saturating_add(1);
        } else if counter + WINDOW < self.next {
            return Seen::Before;
        }
        let slot = &mut self.words[(word % WORDS) as usize];
        if *slot & bit != 0 {
            return Seen::Before;
        }
        *slot |= bit;
        if is_newest { Seen::Newest } else { Seen::Late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Steps forward and back, small and as large as the window.
    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![-3..4i64, -200..200i64, -9_000..9_000i64, Just(100_000)];
        proptest::collection::vec(step, 1..400).prop_map(|steps| {
            let mut at = 0_i64;
            let mut to = |step: i64| -> u64 {
                at = i64::max(at + step, 0);
                at.unsigned_abs()
            };
            steps.into_iter().map(&mut to).collect()
        })
    }

    proptest! {
        #[test]
        fn is_a_set_with_a_limit(counters in counters()) {
            let (mut window, mut seen) = (Window::default(), BTreeSet::new());
            for counter in counters {
                let newest = seen.last().copied();
                let expected = match newest {
                    Some(newest) if counter + WINDOW < newest + 1 => Seen::Before,
                    _ if !seen.insert(counter) => Seen::Before,
                    Some(newest) if counter < newest => Seen::Late,
                    _ => Seen::Newest,
                };
                prop_assert_eq!(window.see(counter), expected, "{}", counter);
            }
        }
    }
}
