//! A session: two keys, a counter, a window. What seals and opens every packet.

use crate::core::PeerId;
use crate::counters::{Reason, Traffic};
use crate::noise::Keys;
use crate::replay::{Seen, Window};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes before the sealed text: type, receiver's number, counter.
pub const HEADER: usize = 16;
/// Bytes after it.
pub const TAG: usize = 16;
/// What sealing adds.
pub const OVERHEAD: usize = HEADER + TAG;
/// The type byte of a message of a session.
pub const TYPE: u8 = 4;

/// Counters beyond this are not used (WireGuard paper, section 6.1).
const LAST_COUNTER: u64 = u64::MAX - (1 << 13);

/// A session with a peer. Shared by the threads that send and receive.
pub struct Session {
    /// Whose it is.
    pub peer: PeerId,
    /// Its number here.
    pub local: u32,
    /// Its number at the peer.
    pub remote: u32,
    /// When its keys were agreed on, since boot.
    pub born: Duration,
    /// This side asked for it.
    pub is_initiator: bool,
    /// Of the peer, over all its sessions.
    pub traffic: Arc<Traffic>,
    seal: LessSafeKey,
    open: LessSafeKey,
    next: AtomicU64,
    window: Mutex<Window>,
}

/// Numbers and owner of a session.
pub struct Parties {
    /// Whose it is.
    pub peer: PeerId,
    /// Its number here.
    pub local: u32,
    /// Its number at the peer.
    pub remote: u32,
    /// This side asked for it.
    pub is_initiator: bool,
}

impl Session {
    /// A session with these keys. `None` if they are none, which does not happen.
    pub fn new(keys: &Keys, parties: Parties, born: Duration, traffic: Arc<Traffic>) -> Option<Self> {
        let key = |bytes: &[u8]| UnboundKey::new(&CHACHA20_POLY1305, bytes).ok().map(LessSafeKey::new);
        Some(Self {
            peer: parties.peer,
            local: parties.local,
            remote: parties.remote,
            born,
            is_initiator: parties.is_initiator,
            traffic,
            seal: key(&keys.send)?,
            open: key(&keys.receive)?,
            next: AtomicU64::new(0),
            window: Mutex::default(),
        })
    }

    /// Seals in place. `message`: [`HEADER`] bytes of room, the text, [`TAG`] bytes of room. False if the session is used up.
    pub fn seal(&self, message: &mut [u8]) -> bool {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        if counter >= LAST_COUNTER || message.len() < OVERHEAD {
            return false;
        }
        let (header, rest) = message.split_at_mut(HEADER);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        header[..4].copy_from_slice(&[TYPE, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        match self.seal.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text) {
            Ok(sealed) => tag.copy_from_slice(sealed.as_ref()),
            Err(_) => return false,
        }
        true
    }

    /// How many messages were sealed.
    pub fn sealed(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Opens a whole message of this session in place: the text is `message[HEADER..HEADER + length]`.
    ///
    /// # Errors
    /// [`Reason::BadAuth`]; [`Reason::TooShort`]. What is in `message` is then undefined.
    pub fn open(&self, message: &mut [u8]) -> Result<Opened, Reason> {
        let Some((header, sealed)) = message.split_at_mut_checked(HEADER) else {
            return Err(Reason::TooShort);
        };
        let counter = header[8..].try_into().map_or(0, u64::from_le_bytes);
        if counter >= LAST_COUNTER {
            return Err(Reason::BadAuth);
        }
        let text = self.open.open_in_place(nonce(counter), Aad::empty(), sealed);
        let length = text.map_err(|_| Reason::BadAuth)?.len();
        Ok(Opened { counter, length })
    }

    /// Takes note of messages that were opened: says of each counter whether it was seen before. Locks once.
    pub fn see<'a>(&self, opened: impl Iterator<Item = (u64, &'a mut Seen)>) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, seen) in opened {
            *seen = window.see(counter);
        }
    }
}

/// A message that was authentic.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Its place in the session.
    pub counter: u64,
    /// Bytes of its text, with padding.
    pub length: usize,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
