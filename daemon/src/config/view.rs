//! The configuration as a daemon reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::Spec;
use super::value::Value;
use crate::files::{self, FileError};

/// Longest secret file that is read.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Where a value, or a mistake, came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Env(String),
    /// This flag, with dashes.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(path) => write!(formatter, "file:{}", path.display()),
            Self::Env(name) => write!(formatter, "env:{name}"),
            Self::Flag(name) => write!(formatter, "flag:{name}"),
        }
    }
}

/// A setting's text as it was given, its value, and who gave it.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) value: Option<Value>,
    pub(super) source: Source,
}

/// The merged configuration. Getters panic only for a key that is not in the daemon's own table, or is of another kind:
/// a mistake in our code that any start of the daemon shows.
///
/// Getters without `try_` are for settings with a default or that are required.
#[derive(Clone)]
pub struct Config {
    pub(super) spec: Spec,
    pub(super) entries: BTreeMap<&'static str, Entry>,
    pub(super) flags: BTreeSet<&'static str>,
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.print())
    }
}

macro_rules! getters {
    ($($(#[$doc:meta])* $get:ident, $try_get:ident: $variant:ident -> $type:ty, $convert:expr;)*) => {$(
        $(#[$doc])*
        pub fn $get(&self, key: &str) -> $type {
            self.$try_get(key).unwrap_or_else(|| panic!("{key} may be unset, ask with {}", stringify!($try_get)))
        }

        $(#[$doc])*
        /// `None` if unset.
        pub fn $try_get(&self, key: &str) -> Option<$type> {
            match self.value(key) {
                None => None,
                Some(Value::$variant(value)) => Some($convert(value)),
                Some(_) => panic!("{key} is not of the kind {}", stringify!($variant)),
            }
        }
    )*};
}

impl Config {
    getters! {
        /// A text, choice or endpoint.
        string, try_string: Text -> &str, String::as_str;
        /// A boolean.
        bool, try_bool: Bool -> bool, |value: &bool| *value;
        /// A whole number.
        integer, try_integer: Integer -> u64, |value: &u64| *value;
        /// A duration.
        duration, try_duration: Duration -> Duration, |value: &Duration| *value;
        /// A size in bytes.
        size, try_size: Size -> u64, |value: &u64| *value;
        /// An address to listen on.
        address, try_address: Address -> SocketAddr, |value: &SocketAddr| *value;
        /// A path.
        path, try_path: Path -> &Path, PathBuf::as_path;
        /// A list.
        list, try_list: List -> &[String], Vec::as_slice;
    }

    /// The content of a secret file, without the line end; `None` if unset.
    ///
    /// # Errors
    /// [`FileError`] if it is set and cannot be read.
    pub fn secret(&self, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        let Some(path) = self.try_path(key) else {
            return Ok(None);
        };
        let content = files::read_optional(path, MAX_SECRET_BYTES)?.ok_or_else(|| FileError::Read {
            path: path.into(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut content = Zeroizing::new(content);
        while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            content.pop();
        }
        Ok(Some(content))
    }

    /// Whether an [`ExtraFlag`](super::ExtraFlag) was given.
    pub fn flag(&self, name: &str) -> bool {
        assert!(
            self.spec.flags.iter().any(|flag| flag.name == name),
            "--{name} is not in the table"
        );
        self.flags.contains(name)
    }

    /// Where a setting's value came from.
    pub fn source(&self, key: &str) -> &Source {
        &self.entry(key).source
    }

    fn entry(&self, key: &str) -> &Entry {
        self.entries
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not in the table of {}", self.spec.daemon))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.entry(key).value.as_ref()
    }
}
