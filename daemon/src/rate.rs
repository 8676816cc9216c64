//! Attempts per address: a bucket of permissions for each, filled evenly. Guards login and joining.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Addresses remembered.
const ADDRESSES: usize = 4_096;

/// The buckets. Clones share them.
#[derive(Debug, Clone)]
pub struct RateLimit {
    burst: f64,
    per_second: f64,
    buckets: Arc<Mutex<HashMap<IpAddr, Bucket>>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    /// Each address: `burst` at once after a rest, then `per_second`.
    pub fn new(burst: u32, per_second: f64) -> Self {
        Self {
            burst: f64::from(burst),
            per_second,
            buckets: Arc::default(),
        }
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        passed.mul_add(self.per_second, bucket.left).min(self.burst)
    }

    /// Whether `address` (IPv6: its /64) may try once more at `now`.
    pub fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut key = subnet(address);
        if buckets.len() >= ADDRESSES && !buckets.contains_key(&key) {
            // Full buckets are as good as forgotten ones.
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
            if buckets.len() >= ADDRESSES {
                // Under attack from everywhere: newcomers share one bucket.
                key = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let full = Bucket {
            left: self.burst,
            at: now,
        };
        let bucket = buckets.entry(key).or_insert(full);
        let left = self.filled(*bucket, now);
        let admitted = left >= 1.0;
        *bucket = Bucket {
            left: if admitted { left - 1.0 } else { left },
            at: now,
        };
        admitted
    }
}

fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_others_are_untouched() {
        let (limit, start) = (RateLimit::new(10, 5.0), Instant::now());
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!((0..50).filter(|_| limit.admit(one, start)).count(), 10);
        assert!(limit.admit("192.0.2.2".parse().unwrap(), start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..50).filter(|_| limit.admit(one, later)).count(), 5);
    }

    #[test]
    fn a_subnet_shares_a_bucket_and_memory_is_bounded() {
        let (limit, now) = (RateLimit::new(10, 5.0), Instant::now());
        let admitted =
            (0..50_u16).filter(|host| limit.admit(IpAddr::V6(Ipv6Addr::new(1, 2, 3, 4, 0, 0, 0, *host)), now));
        assert_eq!(admitted.count(), 10);
        for index in 0..10_000_u32 {
            limit.admit(IpAddr::from(index.to_be_bytes()), now);
        }
        assert!(limit.buckets.lock().unwrap().len() <= ADDRESSES + 1);
    }
}
