//! How much work strangers may cause: handshakes per second, and cookies beyond that.

use crate::key::{KEY_LENGTH, random};
use crate::noise::{Cookie, cookie_for, has_cookie};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Handshakes that anybody may cause at once and per second: about a twentieth of a core.
const ANYBODY: f64 = 200.0;
/// Handshakes that one address with a cookie may cause at once and per second.
const ADDRESS: f64 = 20.0;
/// Addresses kept in mind; beyond this they are forgotten, all at once.
const MOST_ADDRESSES: usize = 4096;
/// How long a secret for cookies lasts, and the cookie of a peer.
pub const COOKIE_LIFE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    fn take(&mut self, rate: f64, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(rate);
        self.filled = now;
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }
}

/// What was used.
pub struct Limits {
    anybody: Bucket,
    addresses: HashMap<IpAddr, Bucket>,
    secret: [u8; KEY_LENGTH],
    changed: Option<Duration>,
}

/// What to do with a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Work on it.
    Work,
    /// Send this cookie instead.
    SendCookie(Cookie),
    /// Nothing.
    Ignore,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            anybody: Bucket {
                tokens: ANYBODY,
                filled: Duration::ZERO,
            },
            addresses: HashMap::new(),
            secret: [0; KEY_LENGTH],
            changed: None,
        }
    }
}

impl Limits {
    /// Whether a handshake message, whose first code is right, is worked on.
    pub fn admit(&mut self, message: &[u8], from: SocketAddr, now: Duration) -> Admission {
        if self.anybody.take(ANYBODY, now) {
            return Admission::Work;
        }
        if self.changed.is_none_or(|changed| now > changed + COOKIE_LIFE) {
            self.secret = random();
            self.changed = Some(now);
        }
        let cookie = cookie_for(&self.secret, from);
        if !has_cookie(message, &cookie) {
            return Admission::SendCookie(cookie);
        }
        if self.addresses.len() >= MOST_ADDRESSES {
            self.addresses.clear();
        }
        let full = Bucket {
            tokens: ADDRESS,
            filled: now,
        };
        match self.addresses.entry(from.ip()).or_insert(full).take(ADDRESS, now) {
            true => Admission::Work,
            false => Admission::Ignore,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;
    use crate::noise::Identity;

    #[test]
    fn a_flood_gets_cookies_and_who_has_one_is_heard() {
        let mut limits = Limits::default();
        let here = "10.0.0.1:7".parse().unwrap();
        let now = Duration::from_secs(5);
        let mut message = [0; 148];
        let codes = Identity::new(PrivateKey::generate());
        codes.codes().sign(&mut message, None);
        let mut answers: Vec<_> = (0..201).map(|_| limits.admit(&message, here, now)).collect();
        let Some(Admission::SendCookie(cookie)) = answers.pop() else {
            panic!()
        };
        assert!(answers.iter().all(|answer| *answer == Admission::Work));
        codes.codes().sign(&mut message, Some(&cookie));
        let answers: Vec<_> = (0..21).map(|_| limits.admit(&message, here, now)).collect();
        assert_eq!(answers.iter().filter(|answer| **answer == Admission::Work).count(), 20);
        let elsewhere = "10.0.0.2:7".parse().unwrap();
        assert!(matches!(limits.admit(&message, elsewhere, now), Admission::SendCookie(other) if other != cookie));
        assert_eq!(
            limits.admit(&message, elsewhere, now + Duration::from_secs(1)),
            Admission::Work
        );
    }
}
