//! How often one address may ask.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Addresses remembered at a time.
const MOST: usize = 10_000;

/// A bucket of permissions per address (IPv6: per /64).
#[derive(Debug)]
pub struct RateLimit {
    burst: f64,
    per_second: f64,
    buckets: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl RateLimit {
    /// `burst` at once, then `per_second`.
    pub fn new(burst: u32, per_second: f64) -> Self {
        Self {
            burst: f64::from(burst),
            per_second,
            buckets: Mutex::default(),
        }
    }

    /// Whether `address` may ask now.
    pub fn allow(&self, address: IpAddr, now: Instant) -> bool {
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST && !buckets.contains_key(&address) {
            // Full buckets are as good as forgotten ones.
            let (burst, rate) = (self.burst, self.per_second);
            buckets.retain(|_, (left, at)| *left + now.saturating_duration_since(*at).as_secs_f64() * rate < burst);
            if buckets.len() >= MOST {
                return false;
            }
        }
        let (left, at) = buckets.entry(address).or_insert((self.burst, now));
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * self.per_second).min(self.burst);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_then_a_rate_each_address_by_itself() {
        let limit = RateLimit::new(2, 1.0);
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let now = Instant::now();
        assert!(limit.allow(one, now) && limit.allow(one, now) && !limit.allow(one, now));
        assert!(limit.allow(two, now));
        assert!(limit.allow(one, now + Duration::from_millis(1_100)));
        assert!(!limit.allow(one, now + Duration::from_millis(1_200)));
    }
}
