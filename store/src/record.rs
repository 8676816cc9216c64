//! Bytes on disk: records and the state record, each with a checksum of its own.
//!
//! Record: schema (2), revision (8), checksum (8), payload. The checksum also covers the key, so that a record
//! found under another key is damage. Integers are little-endian.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::StoreError;
use crate::store::{Envelope, Versioned};

/// Newest store format this version reads, and the one it writes.
pub(crate) const FORMAT: u16 = 1;

const HEAD: usize = 18;
const STATE_BYTES: usize = 42;

/// First eight bytes of a SHA-256 over `parts`, each preceded by its length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    u64_at(&hash.finalize(), 0).unwrap_or_default()
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let slice = bytes.get(at..at + 8)?;
    slice.try_into().ok().map(u64::from_le_bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let slice = bytes.get(at..at + 2)?;
    slice.try_into().ok().map(u16::from_le_bytes)
}

/// A record ready to be written.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub bytes: Vec<u8>,
    pub revision: u64,
    pub checksum: u64,
}

pub(crate) fn encode(key: &str, revision: u64, envelope: &Envelope) -> Encoded {
    let (schema, revision_bytes) = (envelope.schema.to_le_bytes(), revision.to_le_bytes());
    let checksum = checksum(&[key.as_bytes(), &schema, &revision_bytes, &envelope.payload]);
    let mut bytes = Vec::with_capacity(HEAD + envelope.payload.len());
    bytes.extend_from_slice(&schema);
    bytes.extend_from_slice(&revision_bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&envelope.payload);
    Encoded {
        bytes,
        revision,
        checksum,
    }
}

/// The value and its checksum.
pub(crate) fn decode(key: &[u8], bytes: &[u8]) -> Result<(Versioned, u64), StoreError> {
    let damaged = || StoreError::Damaged {
        what: format!("record {} fails its checksum", String::from_utf8_lossy(key)),
    };
    let schema = u16_at(bytes, 0).ok_or_else(damaged)?;
    let revision = u64_at(bytes, 2).ok_or_else(damaged)?;
    let stored = u64_at(bytes, 10).ok_or_else(damaged)?;
    let payload = bytes.get(HEAD..).ok_or_else(damaged)?;
    if checksum(&[key, &schema.to_le_bytes(), &revision.to_le_bytes(), payload]) != stored {
        return Err(damaged());
    }
    let envelope = Envelope {
        schema,
        payload: Bytes::copy_from_slice(payload),
    };
    Ok((Versioned { envelope, revision }, stored))
}

/// What the store knows of itself; written in the same atomic step as the records it counts.
///
/// `count` and `digest` (wrapping sum of all records' checksums) tell at open whether records are missing,
/// even where the backend would open silently short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub format: u16,
    /// Revision the store was made with; equal to `revision` until the first commit.
    pub base: u64,
    pub revision: u64,
    pub count: u64,
    pub digest: u64,
}

impl State {
    pub fn new(base: u64) -> Self {
        Self {
            format: FORMAT,
            base,
            revision: base,
            count: 0,
            digest: 0,
        }
    }

    pub fn add(&mut self, checksum: u64) {
        self.count = self.count.wrapping_add(1);
        self.digest = self.digest.wrapping_add(checksum);
    }

    pub fn remove(&mut self, checksum: u64) {
        self.count = self.count.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(checksum);
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STATE_BYTES);
        bytes.extend_from_slice(&self.format.to_le_bytes());
        for number in [self.base, self.revision, self.count, self.digest] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&[b"state", &bytes]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the state; of a newer format only `format` means anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::Damaged {
            what: "format record fails its checksum".into(),
        };
        let body_len = bytes.len().checked_sub(8).ok_or_else(damaged)?;
        let (body, sum) = bytes.split_at_checked(body_len).ok_or_else(damaged)?;
        if u64_at(sum, 0) != Some(checksum(&[b"state", body])) {
            return Err(damaged());
        }
        let format = u16_at(body, 0).ok_or_else(damaged)?;
        if format > FORMAT {
            return Ok(Self { format, ..Self::new(0) });
        }
        let number = |index: usize| u64_at(body, 2 + 8 * index).ok_or_else(damaged);
        Ok(Self {
            format,
            base: number(0)?,
            revision: number(1)?,
            count: number(2)?,
            digest: number(3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let record = encode("s/k/i", 7, &Envelope::new(3, &b"payload"[..]));
        let (value, _) = decode(b"s/k/i", &record.bytes).unwrap();
        assert_eq!((value.revision, value.envelope.schema), (7, 3));
        assert!(decode(b"s/k/j", &record.bytes).is_err());
        for bit in 0..record.bytes.len() * 8 {
            let mut bytes = record.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"s/k/i", &bytes).is_err(), "bit {bit}");
        }
        for len in 0..record.bytes.len() {
            assert!(decode(b"s/k/i", &record.bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn state_survives_a_round_trip_and_notices_flips() {
        let mut state = State::new(5);
        state.revision = 9;
        state.add(11);
        let bytes = state.encode();
        assert_eq!(bytes.len(), STATE_BYTES);
        assert_eq!(State::decode(&bytes).unwrap(), state);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&bytes).is_err(), "bit {bit}");
        }
    }
}
