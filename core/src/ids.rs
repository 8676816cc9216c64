//! Ids: 24 lowercase hex digits, time-ordered (48 bits of milliseconds, 48 random), the shape Oakestra clients expect.

use crate::time::Timestamp;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: 24 lowercase hex digits expected")]
pub struct ParseIdError {
    /// What was given, cut at 64 characters.
    pub text: String,
}

/// The bare 12 bytes of an id; wrapped by a newtype for each kind of object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawId([u8; 12]);

impl RawId {
    /// A new id: 48 bits of `now` in milliseconds, then 48 random bits.
    pub fn generate(now: Timestamp, rng: &mut dyn RngCore) -> Self {
        let mut bytes = [0_u8; 12];
        bytes[..6].copy_from_slice(&now.as_millis().to_be_bytes()[2..]);
        rng.fill_bytes(&mut bytes[6..]);
        Self(bytes)
    }

    /// The least of all.
    pub const MIN: Self = Self([0; 12]);
    /// The greatest of all.
    pub const MAX: Self = Self([u8::MAX; 12]);

    /// The id with exactly these bytes.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// When it was made, if it was made by [`generate`](Self::generate).
    pub fn made_at(&self) -> Timestamp {
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(&self.0[..6]);
        Timestamp::from_millis(u64::from_be_bytes(millis))
    }

    /// The 12 bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }
}

impl fmt::Display for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RawId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError {
            text: text.chars().take(64).collect(),
        };
        if text.len() != 24 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(error());
        }
        let mut bytes = [0_u8; 12];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| error())?;
        Ok(Self(bytes))
    }
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub RawId);

        impl $name {
            /// A new id, ordered by `now`.
            pub fn generate(now: Timestamp, rng: &mut dyn RngCore) -> Self {
                Self(RawId::generate(now, rng))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(&self.0, f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(&self.0, f) }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> { text.parse().map(Self) }
        }
        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> { text.parse() }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String { id.to_string() }
        }
    )+};
}

id_types! {
    /// An organization: the owner of everything a user makes.
    OrganizationId,
    /// A user of the root's API.
    UserId,
    /// An application: a named group of services.
    ApplicationId,
    /// A service: one replicated part of an application.
    ServiceId,
    /// A cluster of nodes.
    ClusterId,
    /// A machine.
    NodeId,
    /// A join token or an API key.
    TokenId,
    /// An event shown to users.
    EventId,
    /// A child in the tree, whatever its tier: a cluster to the root, a node to a cluster.
    ChildId,
}

impl From<ClusterId> for ChildId {
    fn from(id: ClusterId) -> Self {
        Self(id.0)
    }
}

impl From<NodeId> for ChildId {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

/// One running copy: the service and its number, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    /// The service this is a copy of.
    pub service: ServiceId,
    /// Which copy.
    pub number: u32,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.number)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InstanceId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError {
            text: text.chars().take(64).collect(),
        };
        let (service, number) = text.split_once('.').ok_or_else(error)?;
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        Ok(Self {
            service: service.parse()?,
            number: number.parse().map_err(|_| error())?,
        })
    }
}

impl TryFrom<String> for InstanceId {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn ids_are_24_hex_digits_and_time_ordered() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
        let early = NodeId::generate(Timestamp::from_millis(1_000), &mut rng);
        let late = NodeId::generate(Timestamp::from_millis(1_001), &mut rng);
        assert!(early < late);
        assert_eq!(early.to_string().len(), 24);
        assert_eq!(early.to_string().parse::<NodeId>().unwrap(), early);
    }

    #[test]
    fn only_the_exact_shape_is_an_id() {
        for bad in [
            "",
            "abc",
            "0123456789ABCDEF01234567",
            "0123456789abcdef0123456z",
            "0123456789abcdef012345678",
        ] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
        assert!("0123456789abcdef01234567.-1".parse::<InstanceId>().is_err());
        assert!("0123456789abcdef01234567.+1".parse::<InstanceId>().is_err());
        assert_eq!("0123456789abcdef01234567.3".parse::<InstanceId>().unwrap().number, 3);
    }
}
