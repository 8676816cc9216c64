//! The handshake: Noise_IKpsk2 by the crate `snow`, in WireGuard's messages, with its two codes and its cookies.
//!
//! Source: the WireGuard paper, sections 5.4.2 to 5.4.7. Nothing here keeps time or decides; the caller does.

use crate::key::{KEY_LENGTH, PresharedKey, PrivateKey, PublicKey};
use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver as _, DefaultResolver};
use snow::{Builder, HandshakeState};
use std::net::{IpAddr, SocketAddr};
use zeroize::Zeroize as _;

/// Bytes of an initiation.
pub const INITIATION: usize = 148;
/// Bytes of a response.
pub const RESPONSE: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_REPLY: usize = 64;
/// Bytes of a TAI64N time stamp.
pub const TIMESTAMP: usize = 12;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// Place of the shared secret in the pattern.
const PSK: u8 = 2;
/// Bytes of each of the two codes that end a handshake message.
const MAC: usize = 16;

/// Bytes of a cookie reply's nonce.
pub const NONCE: usize = 24;

/// A cookie: proves that its holder receives at its address.
pub type Cookie = [u8; MAC];

/// It is not authentic, or not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake is not authentic")]
pub struct NotAuthentic;

impl From<snow::Error> for NotAuthentic {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// Keys of a session.
pub struct Keys {
    /// Seals what this side sends.
    pub send: [u8; KEY_LENGTH],
    /// Opens what it receives.
    pub receive: [u8; KEY_LENGTH],
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.send.zeroize();
        self.receive.zeroize();
    }
}

/// A device's own keys, and what follows from them.
pub struct Identity {
    private: PrivateKey,
    public: PublicKey,
    codes: Codes,
}

/// What the codes of messages to one device are keyed with.
pub struct Codes {
    mac1: [u8; KEY_LENGTH],
    cookie: [u8; KEY_LENGTH],
}

impl Codes {
    /// Of messages to the device of this key.
    pub fn of(key: PublicKey) -> Self {
        let hash = |label: &[u8]| {
            Blake2s256::new()
                .chain_update(label)
                .chain_update(key.0)
                .finalize()
                .into()
        };
        Self {
            mac1: hash(LABEL_MAC1),
            cookie: hash(LABEL_COOKIE),
        }
    }

    /// Writes both codes at the end of a handshake message; returns the first.
    pub fn sign(&self, message: &mut [u8], cookie: Option<&Cookie>) -> [u8; MAC] {
        let (body, codes) = message.split_at_mut(message.len().saturating_sub(2 * MAC));
        let mac1 = mac(&self.mac1, &[body]);
        if let Some((first, second)) = codes.split_at_mut_checked(MAC) {
            first.copy_from_slice(&mac1);
            let mac2 = cookie.map_or([0; MAC], |cookie| mac(cookie, &[body, &mac1]));
            second.copy_from_slice(&mac2);
        }
        mac1
    }

    /// Whether the first code of a handshake message is right.
    pub fn is_signed(&self, message: &[u8]) -> bool {
        let Some(end) = message.len().checked_sub(2 * MAC) else {
            return false;
        };
        same(&mac(&self.mac1, &[&message[..end]]), &message[end..end + MAC])
    }

    /// The cookie in a reply of that device to the message whose first code was `mac1`.
    ///
    /// # Errors
    /// [`NotAuthentic`].
    pub fn open_cookie(&self, reply: &[u8; COOKIE_REPLY], mac1: &[u8; MAC]) -> Result<Cookie, NotAuthentic> {
        let cipher = XChaCha20Poly1305::new((&self.cookie).into());
        let (nonce, sealed) = reply[8..].split_at(NONCE);
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| NotAuthentic)?;
        let mut cookie = [0; MAC];
        cookie.copy_from_slice(&sealed[..MAC]);
        let opened = cipher.decrypt_in_place_detached(&nonce.into(), mac1, &mut cookie, sealed[MAC..].into());
        opened.map(|()| cookie).map_err(|_| NotAuthentic)
    }
}

impl Identity {
    /// Of a secret.
    pub fn new(private: PrivateKey) -> Self {
        let public = private.public();
        Self {
            codes: Codes::of(public),
            private,
            public,
        }
    }

    /// The secret.
    pub const fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// Who others know it as.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Keys of the codes of messages to this device.
    pub const fn codes(&self) -> &Codes {
        &self.codes
    }

    /// Begins a handshake: the state that waits for the response, and the message, still without its codes.
    ///
    /// # Errors
    /// [`NotAuthentic`] if the peer's key is none.
    pub fn initiate(
        &self,
        peer: &PublicKey,
        shared: &PresharedKey,
        sender: u32,
        timestamp: &[u8; TIMESTAMP],
    ) -> Result<(HandshakeState, [u8; INITIATION]), NotAuthentic> {
        let builder = builder()?
            .local_private_key(self.private.bytes())?
            .remote_public_key(&peer.0)?
            .psk(PSK, shared.bytes())?;
        let mut state = builder.build_initiator()?;
        let mut message = [0; INITIATION];
        message[0] = 1;
        message[4..8].copy_from_slice(&sender.to_le_bytes());
        state.write_message(timestamp, &mut message[8..116])?;
        Ok((state, message))
    }

    /// Reads an initiation whose first code is right.
    ///
    /// # Errors
    /// [`NotAuthentic`].
    pub fn read_initiation(&self, message: &[u8; INITIATION]) -> Result<Initiation, NotAuthentic> {
        let mut state = builder()?.local_private_key(self.private.bytes())?.build_responder()?;
        let mut timestamp = [0; TIMESTAMP];
        state.read_message(&message[8..116], &mut timestamp)?;
        let peer = state.get_remote_static().and_then(|key| key.try_into().ok());
        Ok(Initiation {
            peer: PublicKey(peer.ok_or(NotAuthentic)?),
            timestamp,
            sender: index_at(message, 4),
            state,
        })
    }

    /// A reply with the cookie for who sent a message whose first code is right.
    pub fn cookie_reply(&self, message: &[u8], cookie: &Cookie, nonce: &[u8; NONCE]) -> [u8; COOKIE_REPLY] {
        let mac1 = &message[message.len() - 2 * MAC..message.len() - MAC];
        let mut reply = [0; COOKIE_REPLY];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&message[4..8]);
        reply[8..32].copy_from_slice(nonce);
        reply[32..48].copy_from_slice(cookie);
        let cipher = XChaCha20Poly1305::new((&self.codes.cookie).into());
        let sealed = cipher.encrypt_in_place_detached(&(*nonce).into(), mac1, &mut reply[32..48]);
        // It fails for texts of 256 GiB only.
        if let Ok(tag) = sealed {
            reply[48..].copy_from_slice(&tag);
        }
        reply
    }
}

/// An initiation that is authentic.
pub struct Initiation {
    /// Whose it is.
    pub peer: PublicKey,
    /// When it was sent, by the sender's clock; TAI64N, which compares by its bytes.
    pub timestamp: [u8; TIMESTAMP],
    /// The session's number at the sender.
    pub sender: u32,
    state: HandshakeState,
}

impl Initiation {
    /// The response, still without its codes, and the session's keys. `local`: the session's number here.
    ///
    /// # Errors
    /// [`NotAuthentic`] if the sender's keys are none.
    pub fn respond(mut self, shared: &PresharedKey, local: u32) -> Result<([u8; RESPONSE], Keys), NotAuthentic> {
        self.state.set_psk(PSK.into(), shared.bytes())?;
        let mut message = [0; RESPONSE];
        message[0] = 2;
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        self.state.write_message(&[], &mut message[12..60])?;
        let (receive, send) = self.state.dangerously_get_raw_split();
        Ok((message, Keys { send, receive }))
    }
}

/// Ends a handshake that [`Identity::initiate`] began. A response that is not authentic does it no harm.
///
/// # Errors
/// [`NotAuthentic`].
pub fn read_response(state: &mut HandshakeState, message: &[u8; RESPONSE]) -> Result<Keys, NotAuthentic> {
    state.read_message(&message[12..60], &mut [])?;
    let (send, receive) = state.dangerously_get_raw_split();
    Ok(Keys { send, receive })
}

/// The cookie of an address under a secret that changes every two minutes.
pub fn cookie_for(secret: &[u8; KEY_LENGTH], address: SocketAddr) -> Cookie {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(v4) => mac(secret, &[&v4.octets(), &port]),
        IpAddr::V6(v6) => mac(secret, &[&v6.octets(), &port]),
    }
}

/// Whether the second code of a handshake message was made with `cookie`.
pub fn has_cookie(message: &[u8], cookie: &Cookie) -> bool {
    let Some(end) = message.len().checked_sub(MAC) else {
        return false;
    };
    same(&mac(cookie, &[&message[..end]]), &message[end..])
}

/// The public key of a secret.
pub(crate) fn public_key(private: &[u8; KEY_LENGTH]) -> [u8; KEY_LENGTH] {
    let mut public = [0; KEY_LENGTH];
    if let Some(mut dh) = DefaultResolver.resolve_dh(&DHChoice::Curve25519) {
        dh.set(private);
        public.copy_from_slice(dh.pubkey());
    }
    public
}

/// Four bytes of a message as the number of a session; 0 if it is too short.
pub fn index_at(message: &[u8], at: usize) -> u32 {
    let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

fn builder<'a>() -> Result<Builder<'a>, NotAuthentic> {
    Ok(Builder::new(PATTERN.parse()?).prologue(PROLOGUE)?)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    let Ok(mut mac) = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(key) else {
        // Keys are 16 or 32 bytes, both of which BLAKE2s takes.
        return [0; MAC];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// In a time that does not depend on where they differ.
fn same(one: &[u8; MAC], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |bits, (a, b)| bits | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_the_same_keys() {
        let (alice, bob) = (
            Identity::new(PrivateKey::generate()),
            Identity::new(PrivateKey::generate()),
        );
        let shared = PresharedKey::from_bytes([7; 32]);
        let (mut waiting, mut first) = alice.initiate(&bob.public(), &shared, 5, &[9; 12]).unwrap();
        Codes::of(bob.public()).sign(&mut first, None);
        assert!(bob.codes().is_signed(&first) && !alice.codes().is_signed(&first));
        assert!(alice.read_initiation(&first).is_err());
        let read = bob.read_initiation(&first).unwrap();
        assert_eq!((read.peer, read.timestamp, read.sender), (alice.public(), [9; 12], 5));
        let (second, theirs) = read.respond(&shared, 6).unwrap();
        let mut forged = second;
        forged[20] ^= 1;
        assert!(read_response(&mut waiting, &forged).is_err());
        let ours = read_response(&mut waiting, &second).unwrap();
        assert_eq!((ours.send, ours.receive), (theirs.receive, theirs.send));
        assert_ne!(ours.send, ours.receive);
    }

    #[test]
    fn another_shared_secret_is_noticed() {
        let (alice, bob) = (
            Identity::new(PrivateKey::generate()),
            Identity::new(PrivateKey::generate()),
        );
        let (mut waiting, first) = alice
            .initiate(&bob.public(), &PresharedKey::default(), 5, &[9; 12])
            .unwrap();
        let read = bob.read_initiation(&first).unwrap();
        let (second, _) = read.respond(&PresharedKey::from_bytes([1; 32]), 6).unwrap();
        assert!(read_response(&mut waiting, &second).is_err());
    }

    #[test]
    fn cookies_are_for_one_address() {
        let bob = Identity::new(PrivateKey::generate());
        let (here, there) = ("10.0.0.1:7".parse().unwrap(), "10.0.0.1:8".parse().unwrap());
        let mut message = [3; INITIATION];
        let mac1 = bob.codes().sign(&mut message, None);
        let cookie = cookie_for(&[8; 32], here);
        assert!(!has_cookie(&message, &cookie));
        let reply = bob.cookie_reply(&message, &cookie, &[1; 24]);
        let codes = Codes::of(bob.public());
        assert_eq!(codes.open_cookie(&reply, &[0; 16]), Err(NotAuthentic));
        assert_eq!(codes.open_cookie(&reply, &mac1), Ok(cookie));
        codes.sign(&mut message, Some(&cookie));
        assert!(has_cookie(&message, &cookie) && !has_cookie(&message, &cookie_for(&[8; 32], there)));
    }
}
