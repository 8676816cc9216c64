//! Keys are paths, and scopes build them, so that everything stored names its organisation.

use std::fmt;
use std::sync::Arc;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// Why a text is not a key, a prefix or a segment of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A segment between two `/` is empty.
    #[error("{text:?} has an empty segment")]
    EmptySegment {
        /// The offending text.
        text: String,
    },
    /// A segment has a `/` or a control character.
    #[error("{text:?} has a character that a key segment may not have")]
    BadCharacter {
        /// The offending text.
        text: String,
    },
    /// The key is longer than [`MAX_KEY_BYTES`].
    #[error("key has {bytes} bytes, the limit is {limit}", limit = MAX_KEY_BYTES)]
    TooLong {
        /// Length in bytes.
        bytes: usize,
    },
    /// A prefix does not end in `/`, so it could match half a segment.
    #[error("prefix {text:?} does not end in \"/\"")]
    OpenPrefix {
        /// The offending text.
        text: String,
    },
}

fn check_segment(segment: &str) -> Result<(), KeyError> {
    if segment.is_empty() {
        return Err(KeyError::EmptySegment { text: segment.into() });
    }
    if segment.chars().any(|c| c == '/' || c.is_control()) {
        return Err(KeyError::BadCharacter { text: segment.into() });
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), KeyError> {
    if path.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { bytes: path.len() });
    }
    path.split('/').try_for_each(check_segment)
}

/// Path of one record: segments joined by `/`, none empty, no control characters, at most [`MAX_KEY_BYTES`].
///
/// Ordered by bytes, which is the order of [`crate::Store::list`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks `path` and makes it a key. Prefer [`Scope`], which cannot forget the organisation.
    ///
    /// # Errors
    /// [`KeyError`] names what a key may not have.
    pub fn new(path: &str) -> Result<Self, KeyError> {
        check_path(path)?;
        Ok(Self(path.into()))
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment, which [`Scope::key`] was given as `id`.
    pub fn id(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All keys below one path: empty (everything) or ending in `/`, so `o/a/` never matches `o/ab/x`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// Every key of the store.
    pub fn all() -> Self {
        Self("".into())
    }

    /// Checks `path` and makes it a prefix.
    ///
    /// # Errors
    /// [`KeyError::OpenPrefix`] without a final `/`; otherwise as [`Key::new`].
    pub fn new(path: &str) -> Result<Self, KeyError> {
        match path.strip_suffix('/') {
            Some(body) => check_path(body)?,
            None => return Err(KeyError::OpenPrefix { text: path.into() }),
        }
        Ok(Self(path.into()))
    }

    /// The text that matching keys start with.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `key` is below this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.as_str().starts_with(self.as_str())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose records: an organisation's (`o/<organisation>/`) or the system's own (`s/`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope(Prefix);

impl Scope {
    /// Records of the organisation `id`: keys `o/<id>/<kind>/<id of the record>`.
    ///
    /// # Errors
    /// [`KeyError`] if `id` is not one segment of a key.
    pub fn organization(id: &str) -> Result<Self, KeyError> {
        check_segment(id)?;
        Prefix::new(&format!("o/{id}/")).map(Self)
    }

    /// Records that belong to no organisation: keys `s/<kind>/<id of the record>`.
    pub fn system() -> Self {
        Self(Prefix("s/".into()))
    }

    /// Key of one record.
    ///
    /// # Errors
    /// [`KeyError`] if `kind` or `id` is not one segment of a key.
    pub fn key(&self, kind: &str, id: &str) -> Result<Key, KeyError> {
        self.nested_key(kind, &[id])
    }

    /// Key of a record below other records, such as an instance (last of `ids`) of a service (first of `ids`).
    ///
    /// # Errors
    /// [`KeyError`] if `kind` or one of `ids` is not one segment of a key, or `ids` is empty.
    pub fn nested_key(&self, kind: &str, ids: &[&str]) -> Result<Key, KeyError> {
        check_segment(kind)?;
        ids.iter().try_for_each(|id| check_segment(id))?;
        Key::new(&format!("{}{kind}/{}", self.0, ids.join("/")))
    }

    /// All records of one kind.
    ///
    /// # Errors
    /// [`KeyError`] if `kind` is not one segment of a key.
    pub fn kind(&self, kind: &str) -> Result<Prefix, KeyError> {
        check_segment(kind)?;
        Prefix::new(&format!("{}{kind}/", self.0))
    }

    /// All records below one record, as made by [`Scope::nested_key`].
    ///
    /// # Errors
    /// [`KeyError`] if `kind` or `parent` is not one segment of a key.
    pub fn below(&self, kind: &str, parent: &str) -> Result<Prefix, KeyError> {
        Prefix::new(&format!("{}/", self.key(kind, parent)?))
    }

    /// All records of the scope.
    pub fn prefix(&self) -> &Prefix {
        &self.0
    }

    /// Whether `key` belongs to this scope.
    pub fn contains(&self, key: &Key) -> bool {
        self.0.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_build_the_documented_keys() {
        let org = Scope::organization("acme").unwrap();
        assert_eq!(org.key("service", "web").unwrap().as_str(), "o/acme/service/web");
        assert_eq!(
            org.nested_key("instance", &["web", "3"]).unwrap().as_str(),
            "o/acme/instance/web/3"
        );
        assert_eq!(Scope::system().key("cluster", "c1").unwrap().as_str(), "s/cluster/c1");
        assert_eq!(org.below("instance", "web").unwrap().as_str(), "o/acme/instance/web/");
        assert_eq!(org.key("service", "web").unwrap().id(), "web");
    }

    #[test]
    fn nothing_climbs_out_of_a_scope() {
        for id in ["", "a/b", "../x", "x\n", "\0", "/"] {
            assert!(Scope::organization(id).is_err(), "{id:?}");
            assert!(Scope::system().key("kind", id).is_err(), "{id:?}");
            assert!(Scope::system().key(id, "id").is_err(), "{id:?}");
        }
        assert!(Scope::system().nested_key("kind", &[]).is_err());
        let acme = Scope::organization("acme").unwrap();
        let acme2 = Scope::organization("acme2").unwrap();
        assert!(!acme.contains(&acme2.key("k", "i").unwrap()));
        assert!(Key::new(&"x".repeat(MAX_KEY_BYTES + 1)).is_err());
        assert!(Prefix::new("o/acme").is_err());
        assert!(Prefix::new("o//").is_err());
    }
}
