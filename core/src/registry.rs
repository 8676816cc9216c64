//! Who belongs to a tier: join tokens, members, approval and revocation. The same for clusters below the root and nodes
//! below a cluster. Certificates are made outside; here it is decided who gets one.
//!
//! Invariants: a token admits one public key, ever; the same key may repeat the call while the token lives and gets the
//! same identity; a revoked member never comes back; a name belongs to one member that is not revoked.

mod token;

pub use token::{JoinToken, ParseTokenError, TokenKind, TokenOptions, TokenRecord};

use crate::ids::{ChildId, TokenId};
use crate::time::Timestamp;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Joined; a person must approve it.
    Pending,
    /// Takes part.
    Active,
    /// Put out for good.
    Revoked,
}

/// A member as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Given here, never by the member.
    pub id: ChildId,
    /// Unique among members that are not revoked.
    pub name: String,
    /// Where it stands.
    pub state: MemberState,
    /// SHA-256 of its public key, hex.
    pub key_sha256: String,
    /// The token it joined with; `None` if that was forgotten.
    pub token: Option<TokenId>,
    /// When it joined.
    pub joined_at: Timestamp,
    /// A person said: nothing new on it.
    #[serde(default)]
    pub cordoned: bool,
    /// Two living processes used its identity.
    #[serde(default)]
    pub cloned: bool,
}

/// A member that is not known here, as its certificate and its request say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Its id, from the certificate.
    pub id: ChildId,
    /// The name it had.
    pub name: String,
    /// It is not known that it was never put out.
    pub needs_approval: bool,
}

/// Why a join, an approval or a renewal is refused. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No such token, or a wrong secret; deliberately not told apart.
    #[error("the join token is not valid here: unknown, wrong, or for another authority")]
    BadToken,
    /// Too late.
    #[error("the join token expired at {0}; make a new one with `roble token create`")]
    Expired(Timestamp),
    /// Another key used it before.
    #[error("the join token was used before, by another machine; make a new one with `roble token create`")]
    Used,
    /// The token is for another name.
    #[error("the join token is for the name `{expected}`, not `{given}`")]
    WrongName {
        /// In the token.
        expected: String,
        /// In the request.
        given: String,
    },
    /// Not a name.
    #[error("`{0}` is not a name: 1 to 63 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit")]
    BadName(String),
    /// Somebody else has the name.
    #[error("the name `{0}` is taken; choose another with --name, or revoke the old one first")]
    NameTaken(String),
    /// Asked for a token that lives too long, or not at all.
    #[error("a join token lives from 1 ms to 7 days")]
    Lifetime,
    /// The key was put out.
    #[error("this identity was revoked")]
    Revoked,
    /// Nobody of that key or id.
    #[error("no such member")]
    Unknown,
}

impl RegistryError {
    /// Stable code for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadToken => "token-invalid",
            Self::Expired(_) => "token-expired",
            Self::Used => "token-used",
            Self::WrongName { .. } => "token-for-other-name",
            Self::BadName(_) => "name-invalid",
            Self::NameTaken(_) => "name-taken",
            Self::Lifetime => "ttl-out-of-range",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown-member",
        }
    }
}

/// Tokens and members of one tier.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    tokens: BTreeMap<TokenId, TokenRecord>,
    members: BTreeMap<ChildId, Member>,
}

/// SHA-256 as 64 hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Whether members and organizations may be called so: lower-case letters, digits, `-` and `.`, at most 63, a letter or digit at
/// both ends.
pub fn is_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-' || *b == b'.')
}

impl Registry {
    /// Takes up a stored token.
    pub fn restore_token(&mut self, token: TokenRecord) {
        self.tokens.insert(token.id, token);
    }

    /// Takes up a stored member.
    pub fn restore_member(&mut self, member: Member) {
        self.members.insert(member.id, member);
    }

    /// Makes a token. Returns its record, to be stored, and the secret, to be shown once.
    pub fn create_token(
        &mut self,
        options: TokenOptions,
        now: Timestamp,
        rng: &mut dyn RngCore,
    ) -> (TokenRecord, String) {
        let mut secret = [0_u8; 32];
        rng.fill_bytes(&mut secret);
        let secret = hex::encode(secret);
        let record = TokenRecord {
            id: TokenId::generate(now, rng),
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires_at: Timestamp::from_millis(now.as_millis().saturating_add(options.ttl_ms)),
            created_at: now,
            needs_approval: options.needs_approval,
            name: options.name,
            used_by: None,
            reuse_attempts: 0,
        };
        self.tokens.insert(record.id, record.clone());
        (record, secret)
    }

    /// Redeems a token for the holder of the public key `key_sha256`. Repeating it with the same key gives the same member.
    /// Token and member must be stored together before anything is answered.
    ///
    /// # Errors
    /// [`RegistryError`]; a try with another key is counted in the token, which must be stored too.
    pub fn redeem(
        &mut self,
        token: TokenId,
        secret: &str,
        key_sha256: &str,
        name: &str,
        now: Timestamp,
        rng: &mut dyn RngCore,
    ) -> Result<Member, RegistryError> {
        let record = self.tokens.get_mut(&token).ok_or(RegistryError::BadToken)?;
        if !equal_in_constant_time(&record.secret_sha256, &sha256_hex(secret.as_bytes())) {
            return Err(RegistryError::BadToken);
        }
        if record.used_by.as_deref().is_some_and(|used| used != key_sha256) {
            record.reuse_attempts = record.reuse_attempts.saturating_add(1);
            return Err(RegistryError::Used);
        }
        // Whoever used it in time may ask again later: a person may take a while to approve.
        if record.used_by.is_none() && now >= record.expires_at {
            return Err(RegistryError::Expired(record.expires_at));
        }
        if let Some(member) = self.members.values().find(|member| member.key_sha256 == key_sha256) {
            return match member.state {
                MemberState::Revoked => Err(RegistryError::Revoked),
                // Also a fresh token is spent on a known key: what it vouched for once it never vouches for again.
                _ => {
                    record.used_by = Some(key_sha256.to_owned());
                    Ok(member.clone())
                }
            };
        }
        if let Some(expected) = record.name.clone().filter(|expected| expected != name) {
            return Err(RegistryError::WrongName {
                expected,
                given: name.chars().take(64).collect(),
            });
        }
        if !is_name(name) {
            return Err(RegistryError::BadName(name.chars().take(64).collect()));
        }
        if self
            .members
            .values()
            .any(|member| member.name == name && member.state != MemberState::Revoked)
        {
            return Err(RegistryError::NameTaken(name.to_owned()));
        }
        record.used_by = Some(key_sha256.to_owned());
        let member = Member {
            id: ChildId::generate(now, rng),
            name: name.to_owned(),
            state: if record.needs_approval {
                MemberState::Pending
            } else {
                MemberState::Active
            },
            key_sha256: key_sha256.to_owned(),
            token: Some(token),
            joined_at: now,
            cordoned: false,
            cloned: false,
        };
        self.members.insert(member.id, member.clone());
        Ok(member)
    }

    /// Takes up a member that this tier let in before it lost its records. Its certificate proves id and key; that it was
    /// not put out since must be known from elsewhere, or a person approves.
    ///
    /// # Errors
    /// [`RegistryError`]; the member that is known under this id counts.
    pub fn readmit(&mut self, forgotten: Forgotten, key_sha256: &str, now: Timestamp) -> Result<Member, RegistryError> {
        if let Some(known) = self.members.get(&forgotten.id) {
            let is_same = known.key_sha256 == key_sha256 && known.state != MemberState::Revoked;
            return if is_same {
                Ok(known.clone())
            } else {
                Err(RegistryError::Revoked)
            };
        }
        if !is_name(&forgotten.name) {
            return Err(RegistryError::BadName(forgotten.name.chars().take(64).collect()));
        }
        if self.member_named(&forgotten.name).is_some() {
            return Err(RegistryError::NameTaken(forgotten.name));
        }
        let member = Member {
            id: forgotten.id,
            name: forgotten.name,
            state: if forgotten.needs_approval {
                MemberState::Pending
            } else {
                MemberState::Active
            },
            key_sha256: key_sha256.to_owned(),
            token: None,
            joined_at: now,
            cordoned: false,
            cloned: false,
        };
        self.members.insert(member.id, member.clone());
        Ok(member)
    }

    /// Lets a pending member take part; repeating it changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn approve(&mut self, id: ChildId) -> Result<Member, RegistryError> {
        self.change(id, |member| {
            member.state = MemberState::Active;
            // A clone was cordoned without being asked; a cordon of a person stays.
            member.cordoned &= !member.cloned;
            member.cloned = false;
        })
    }

    /// Puts a member out for good; repeating it changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn revoke(&mut self, id: ChildId) -> Result<Member, RegistryError> {
        let member = self.members.get_mut(&id).ok_or(RegistryError::Unknown)?;
        member.state = MemberState::Revoked;
        Ok(member.clone())
    }

    /// Marks a member as taking nothing new, or again.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn set_cordoned(&mut self, id: ChildId, cordoned: bool) -> Result<Member, RegistryError> {
        self.change(id, |member| member.cordoned = cordoned)
    }

    /// Marks a member whose identity two machines use.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn set_cloned(&mut self, id: ChildId) -> Result<Member, RegistryError> {
        self.change(id, |member| member.cloned = true)
    }

    fn change(&mut self, id: ChildId, change: impl FnOnce(&mut Member)) -> Result<Member, RegistryError> {
        let member = self.members.get_mut(&id).ok_or(RegistryError::Unknown)?;
        if member.state == MemberState::Revoked {
            return Err(RegistryError::Revoked);
        }
        change(member);
        Ok(member.clone())
    }

    /// The member that holds this key, if it may have a new certificate.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Revoked`].
    pub fn renew(&self, key_sha256: &str) -> Result<&Member, RegistryError> {
        let member = self
            .members
            .values()
            .find(|member| member.key_sha256 == key_sha256)
            .ok_or(RegistryError::Unknown)?;
        if member.state == MemberState::Revoked {
            Err(RegistryError::Revoked)
        } else {
            Ok(member)
        }
    }

    /// A member by id.
    pub fn member(&self, id: ChildId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// A member that is not revoked, by name.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members
            .values()
            .find(|member| member.name == name && member.state != MemberState::Revoked)
    }

    /// All members, revoked ones too.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// All tokens, used ones too.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// A token by id.
    pub fn token(&self, id: TokenId) -> Option<&TokenRecord> {
        self.tokens.get(&id)
    }

    /// Deletes a token. Returns whether it was there.
    pub fn delete_token(&mut self, id: TokenId) -> bool {
        self.tokens.remove(&id).is_some()
    }

    /// Forgets tokens that ended a day ago, unless who used one still waits for approval. Returns them, to be deleted from the store.
    pub fn prune(&mut self, now: Timestamp) -> Vec<TokenId> {
        const DAY_MS: u64 = 86_400_000;
        let old = |token: &TokenRecord| token.expires_at.as_millis().saturating_add(DAY_MS) < now.as_millis();
        let waits = |id: TokenId| {
            let mut members = self.members.values();
            members.any(|member| member.token == Some(id) && member.state == MemberState::Pending)
        };
        let pruned: Vec<TokenId> = self
            .tokens
            .values()
            .filter(|t| old(t) && !waits(t.id))
            .map(|t| t.id)
            .collect();
        for id in &pruned {
            self.tokens.remove(id);
        }
        pruned
    }
}

fn equal_in_constant_time(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn setup(needs_approval: bool) -> (Registry, TokenRecord, String, rand::rngs::SmallRng) {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(3);
        let mut registry = Registry::default();
        let options = TokenOptions {
            ttl_ms: 1_000,
            needs_approval,
            name: None,
        };
        let (token, secret) = registry.create_token(options, Timestamp::from_millis(10), &mut rng);
        (registry, token, secret, rng)
    }

    const NOW: Timestamp = Timestamp::from_millis(20);

    #[test]
    fn a_token_admits_one_key_and_that_key_may_repeat() {
        let (mut registry, token, secret, mut rng) = setup(false);
        let first = registry.redeem(token.id, &secret, "k1", "pi-1", NOW, &mut rng).unwrap();
        let again = registry.redeem(token.id, &secret, "k1", "pi-1", NOW, &mut rng).unwrap();
        assert_eq!(first, again);
        assert_eq!(
            registry.redeem(token.id, &secret, "k2", "pi-2", NOW, &mut rng),
            Err(RegistryError::Used)
        );
        assert_eq!(registry.token(token.id).unwrap().reuse_attempts, 1);
    }

    #[test]
    fn wrong_late_and_misnamed_are_refused() {
        let (mut registry, token, secret, mut rng) = setup(false);
        let mut redeem = |secret: &str, name: &str, at| {
            registry
                .redeem(token.id, secret, "k", name, Timestamp::from_millis(at), &mut rng)
                .unwrap_err()
                .code()
        };
        assert_eq!(redeem("00", "a", 20), "token-invalid");
        assert_eq!(redeem(&secret, "a", 1_010), "token-expired");
        assert_eq!(redeem(&secret, "A b", 20), "name-invalid");
    }

    #[test]
    fn names_are_unique_until_revoked_and_the_revoked_never_return() {
        let (mut registry, token, secret, mut rng) = setup(true);
        let member = registry.redeem(token.id, &secret, "k1", "pi", NOW, &mut rng).unwrap();
        assert_eq!(member.state, MemberState::Pending);
        let late = Timestamp::from_millis(900_000_000);
        assert!(registry.prune(late).is_empty(), "somebody waits for approval with it");
        assert_eq!(registry.approve(member.id).unwrap().state, MemberState::Active);
        assert!(
            registry.redeem(token.id, &secret, "k1", "pi", late, &mut rng).is_ok(),
            "approved late"
        );
        let options = TokenOptions {
            ttl_ms: 1_000,
            needs_approval: false,
            name: None,
        };
        let (second, secret2) = registry.create_token(options, NOW, &mut rng);
        let taken = registry.redeem(second.id, &secret2, "k2", "pi", NOW, &mut rng);
        assert_eq!(taken, Err(RegistryError::NameTaken("pi".to_owned())));
        registry.revoke(member.id).unwrap();
        assert_eq!(registry.approve(member.id), Err(RegistryError::Revoked));
        assert_eq!(
            registry.redeem(token.id, &secret, "k1", "pi", NOW, &mut rng),
            Err(RegistryError::Revoked)
        );
        assert!(registry.redeem(second.id, &secret2, "k2", "pi", NOW, &mut rng).is_ok());
    }
}
