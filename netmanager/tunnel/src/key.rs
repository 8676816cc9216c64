//! Keys of WireGuard: 32 bytes, as hex on the control socket and as base64 for people.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SecureRandom as _;
use std::fmt;
use zeroize::Zeroize as _;

/// Length of every key, in bytes.
pub const KEY_LENGTH: usize = 32;

/// Who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_LENGTH]);

/// A device's secret. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_LENGTH]);

/// A secret that two peers share besides their keys. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; KEY_LENGTH]);

/// It is not 32 bytes in hex or base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes: 64 hex digits, or base64")]
pub struct KeyError;

impl PublicKey {
    /// From 64 hex digits.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(Self)
    }

    /// From base64, as `wg` prints it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        from_base64(text).map(Self)
    }

    /// 64 hex digits.
    pub fn to_hex(self) -> String {
        to_hex(&self.0)
    }
}

impl PrivateKey {
    /// A new one from the system's generator.
    pub fn generate() -> Self {
        let mut bytes: [u8; KEY_LENGTH] = random();
        // So that what is printed is what is used; X25519 does the same to its input.
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// From 64 hex digits.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(Self)
    }

    /// From base64, as `wg genkey` prints it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        from_base64(text).map(Self)
    }

    /// 64 hex digits, for the control socket alone.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// All zeros: on the control socket, no key.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; KEY_LENGTH]
    }

    /// The key that others know this one by.
    pub fn public(&self) -> PublicKey {
        PublicKey(crate::noise::public_key(&self.0))
    }
}

impl PresharedKey {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// From 64 hex digits.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(Self)
    }

    /// 64 hex digits, for the control socket alone.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl Default for PresharedKey {
    /// All zeros: none.
    fn default() -> Self {
        Self([0; KEY_LENGTH])
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Drop for PresharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Bytes from the system's generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.expect("Linux has getrandom since 3.17, and it only waits while the machine boots");
    bytes
}

fn from_hex(text: &str) -> Result<[u8; KEY_LENGTH], KeyError> {
    let digits = text.as_bytes();
    let mut bytes = [0; KEY_LENGTH];
    if digits.len() != 2 * KEY_LENGTH {
        return Err(KeyError);
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(KeyError);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).map_err(|_| KeyError)?;
    }
    Ok(bytes)
}

fn from_base64(text: &str) -> Result<[u8; KEY_LENGTH], KeyError> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| KeyError)?;
    bytes.try_into().map_err(|_| KeyError)
}

fn to_hex(bytes: &[u8; KEY_LENGTH]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    digits.map(char::from).collect()
}

impl fmt::Display for PublicKey {
    /// Base64.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PresharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_secrets_are_not_printed() {
        let key = PrivateKey::generate();
        assert_eq!(PrivateKey::from_hex(&key.to_hex()), Ok(key.clone()));
        let public = key.public();
        assert_eq!(PublicKey::from_hex(&public.to_hex()), Ok(public));
        assert_eq!(PublicKey::from_base64(&public.to_string()), Ok(public));
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        for bad in ["", "0g", &"ab".repeat(31), &"ab".repeat(33), &"é".repeat(32)] {
            assert_eq!(PublicKey::from_hex(bad), Err(KeyError), "{bad}");
        }
    }
}
