//! WireGuard's cross-platform user-space protocol (wireguard.com/xplatform): lines `key=value`, ended by an empty one. The
//! program `wg` speaks it too; what it does not know it skips.
//!
//! Ours beside it: `stop=1` as a request; `mtu` of a device; `candidate`, `replace_candidates`, `endpoint_relayed`,
//! `previous_public_key` of a peer; in answers also `drops_WORD`, `rx_packets`, `tx_packets`, `handshake_rtt_us` and `mtu` of a
//! peer. docs/tunnel.md has the table.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use crate::types::{DeviceConfig, DeviceStatus};
pub use decode::{decode_answer, decode_request};
pub use encode::{encode_answer, encode_request};

/// Longest request or answer, in bytes; longer ones are refused. 10,000 peers with candidates take a third of it.
pub const MAX_MESSAGE: usize = 16 << 20;

/// What a controller asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How the device is.
    Get,
    /// The device shall be so.
    Set(Box<DeviceConfig>),
    /// Remove the device and end.
    Stop,
}

/// What the worker answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, or refused with an errno of Linux; to [`Request::Set`] and [`Request::Stop`].
    Done(i32),
    /// To [`Request::Get`].
    Status(Box<DeviceStatus>),
}

/// A line that is wrong, and why. Secrets are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// Neither `get=1`, `set=1` nor `stop=1`.
    #[error("unknown request")]
    UnknownRequest,
    /// No `=`, not UTF-8, or too long.
    #[error("line {line} is not key=value")]
    NotAPair {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A key that is not known, or not here.
    #[error("line {line}: key {key} is not known here")]
    UnknownKey {
        /// Number of the line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A value that its key does not take.
    #[error("line {line}: bad value of {key}")]
    BadValue {
        /// Number of the line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// The answer ended early.
    #[error("the answer is not complete")]
    Incomplete,
    /// The worker refused to answer.
    #[error("refused with errno {0}")]
    Refused(i32),
}

/// For fuzzing: what is read is written so that it reads back.
///
/// # Panics
/// If it does not.
pub fn fuzz_uapi(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(request) = decode_request(text) {
        assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }
    if let Ok(status) = decode_answer(text) {
        assert_eq!(decode_answer(&encode_answer(&status)), Ok(status));
    }
}
