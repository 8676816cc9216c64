//! Join tokens: as a person copies them, as they are asked for, and as they are stored.

use super::RegistryError;
use crate::ids::{ClusterId, TokenId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a token lets join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A cluster to the root.
    Cluster,
    /// A node to a cluster.
    Node,
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
        })
    }
}

/// A join token as text: `roble1.cluster.<id>.<secret>.<pin>` or `roble1.node@<cluster id>.<id>.<secret>.<pin>`. The pin
/// is the SHA-256 of the root authority's public key; with it and the cluster's id the joining side checks whom it talks
/// to before it says the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What it lets join.
    pub kind: TokenKind,
    /// For nodes: the cluster to join.
    pub cluster: Option<ClusterId>,
    /// Its public id.
    pub id: TokenId,
    /// 256 bits as 64 hex digits.
    pub secret: String,
    /// 64 hex digits.
    pub pin: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} {})", self.kind, self.id)
    }
}

impl JoinToken {
    /// The text that a person copies.
    pub fn reveal(&self) -> String {
        let cluster = self.cluster.map(|cluster| format!("@{cluster}")).unwrap_or_default();
        format!("roble1.{}{cluster}.{}.{}.{}", self.kind, self.id, self.secret, self.pin)
    }
}

/// Why a text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token, which begins with `roble1.` and has five parts; make one with `roble token create`")]
pub struct ParseTokenError;

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let hex =
            |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [tag, kind, id, secret, pin] = parts.as_slice() else {
            return Err(ParseTokenError);
        };
        let (kind, cluster) = match kind.split_once('@') {
            None if *kind == "cluster" => (TokenKind::Cluster, None),
            Some(("node", cluster)) => (TokenKind::Node, Some(cluster.parse().map_err(|_| ParseTokenError)?)),
            _ => return Err(ParseTokenError),
        };
        if *tag != "roble1" || !hex(secret) || !hex(pin) {
            return Err(ParseTokenError);
        }
        let id = id.parse().map_err(|_| ParseTokenError)?;
        Ok(Self {
            kind,
            cluster,
            id,
            secret: (*secret).to_owned(),
            pin: (*pin).to_owned(),
        })
    }
}

/// A token as stored: of the secret only its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public id.
    pub id: TokenId,
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// Not valid from here on.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// A person must approve who joins with it.
    pub needs_approval: bool,
    /// The only name that may join with it.
    pub name: Option<String>,
    /// Who used it: SHA-256 of the public key, hex.
    pub used_by: Option<String>,
    /// How often another key tried afterwards.
    pub reuse_attempts: u32,
}

/// What a new token should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// Milliseconds it lives.
    pub ttl_ms: u64,
    /// A person must approve.
    pub needs_approval: bool,
    /// The only name that may use it.
    pub name: Option<String>,
}

impl TokenOptions {
    /// As asked for; `ttl_ms`: an hour if left out, a week at most.
    ///
    /// # Errors
    /// [`RegistryError::Lifetime`].
    pub fn asked(ttl_ms: Option<u64>, needs_approval: bool, name: Option<String>) -> Result<Self, RegistryError> {
        const HOUR_MS: u64 = 3_600_000;
        let ttl_ms = ttl_ms.unwrap_or(HOUR_MS);
        if !(1..=7 * 24 * HOUR_MS).contains(&ttl_ms) {
            return Err(RegistryError::Lifetime);
        }
        Ok(Self {
            ttl_ms,
            needs_approval,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_live_an_hour_unless_asked_and_a_week_at_most() {
        let ttl = |asked| TokenOptions::asked(asked, false, None).map(|options| options.ttl_ms);
        assert_eq!(ttl(None), Ok(3_600_000));
        assert_eq!((ttl(Some(1)), ttl(Some(604_800_000))), (Ok(1), Ok(604_800_000)));
        for out in [0, 604_800_001, u64::MAX] {
            assert_eq!(ttl(Some(out)), Err(RegistryError::Lifetime));
        }
    }

    #[test]
    fn tokens_read_back_what_they_reveal() {
        let token = JoinToken {
            kind: TokenKind::Node,
            cluster: Some("89abcdef0123456789abcdef".parse().unwrap()),
            id: "0123456789abcdef01234567".parse().unwrap(),
            secret: "ab".repeat(32),
            pin: "cd".repeat(32),
        };
        assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        assert!("roble1.node.x.y.z".parse::<JoinToken>().is_err());
        assert!(!format!("{token:?}").contains("abab"));
    }
}
