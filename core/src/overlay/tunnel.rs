//! Ends of encrypted tunnels, as nodes and relays tell of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Most addresses that a node tells of itself.
pub const MAX_ENDPOINTS: usize = 8;

/// The public key of one end: Curve25519, 32 bytes; in texts base64, as WireGuard writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// A text is not a [`PublicKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a public key: 32 bytes in base64 expected, as `wg pubkey` prints them")]
pub struct ParsePublicKeyError(pub String);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParsePublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| ParsePublicKeyError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = ParsePublicKeyError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A node's end of the encrypted tunnel. Written by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelEnd {
    /// The key that it has now.
    pub key: PublicKey,
    /// The one before, which it still answers to.
    pub previous: Option<PublicKey>,
    /// Where it may be reached, best first; not what others see of it behind a NAT. At most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_they_wrote() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        assert_eq!(key.to_string().len(), 44);
        for bad in ["", "AAAA", "not base64!", &"A".repeat(44)] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
