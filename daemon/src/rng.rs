//! Randomness as a seam: state machines take a [`Seeded`] generator, so a simulation replays from its seed.

use rand::rngs::{OsRng, SmallRng};
use rand::{Rng as _, SeedableRng as _, TryRngCore as _};

/// The generator handed to state machines: fast, small, not for secrets.
pub type Seeded = SmallRng;

/// Where a component gets its generators from. Each call gives an independent one.
pub trait Randomness: Send + Sync {
    /// A new generator.
    fn generator(&self) -> Seeded;
}

/// Generators seeded by the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandomness;

impl Randomness for OsRandomness {
    fn generator(&self) -> Seeded {
        Seeded::from_os_rng()
    }
}

/// Generators derived from one seed: the n-th generator of equal seeds is equal.
#[derive(Debug)]
pub struct SeededRandomness(std::sync::Mutex<Seeded>);

impl SeededRandomness {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(std::sync::Mutex::new(seeded(seed)))
    }
}

impl Randomness for SeededRandomness {
    fn generator(&self) -> Seeded {
        let mut parent = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seeded(parent.random())
    }
}

/// The generator that belongs to `seed`.
pub fn seeded(seed: u64) -> Seeded {
    Seeded::seed_from_u64(seed)
}

/// `N` bytes of operating-system entropy, for keys, tokens and serial numbers.
///
/// # Panics
/// If the kernel's generator fails, which Linux does not do once it has booted; no secret may be made then.
pub fn secret_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .expect("getrandom(2) does not fail after boot");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences() {
        let (a, b) = (SeededRandomness::new(7), SeededRandomness::new(7));
        for _ in 0..3 {
            assert_eq!(a.generator().random::<u64>(), b.generator().random::<u64>());
        }
        assert_ne!(a.generator().random::<u64>(), a.generator().random::<u64>());
        assert_ne!(secret_bytes::<16>(), secret_bytes::<16>());
    }
}
