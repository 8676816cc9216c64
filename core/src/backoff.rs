//! How long to wait before the next try: saturating, capped, jittered, reset by success.

use rand::{Rng, RngCore};

/// The shape of a backoff. The wait before try `n` is drawn evenly between half and all of `min(base * 2^n, cap)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Milliseconds before the first new try.
    pub base_ms: u64,
    /// Milliseconds never exceeded.
    pub cap_ms: u64,
}

impl Backoff {
    /// Restarts of instances: 1 s, 2 s, ... 5 min (the values of reference/reliability-security.md 2.2).
    pub const RESTART: Self = Self {
        base_ms: 1_000,
        cap_ms: 300_000,
    };
    /// Reconnection of a link: 0.5 s, 1 s, ... 30 s.
    pub const RECONNECT: Self = Self {
        base_ms: 500,
        cap_ms: 30_000,
    };

    /// Milliseconds to wait after `failures` failures in a row (0 counts as the first).
    pub fn delay_ms(&self, failures: u32, rng: &mut dyn RngCore) -> u64 {
        let full = self
            .base_ms
            .saturating_mul(1_u64.checked_shl(failures).unwrap_or(u64::MAX))
            .min(self.cap_ms)
            .max(1);
        full / 2 + rng.random_range(0..=full - full / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn delays_grow_and_stay_below_the_cap() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
        for failures in 0..200 {
            let delay = Backoff::RESTART.delay_ms(failures, &mut rng);
            assert!((500..=300_000).contains(&delay), "{failures}: {delay}");
        }
        assert!(Backoff::RESTART.delay_ms(0, &mut rng) <= 1_000);
        assert!(Backoff::RESTART.delay_ms(40, &mut rng) >= 150_000);
    }
}
