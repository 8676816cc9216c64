//! What the root stores.

use roble_core::descriptor::ServiceDescriptor;
use roble_core::ids::{ApplicationId, OrganizationId, ServiceId, UserId};
use roble_core::orchestrator::PlacementRecord;
use roble_core::overlay::row::Policy;
use roble_core::spec::InstanceSpec;
use roble_core::tier::Write;
use roble_core::time::Timestamp;
use roble_proto::rest::Finding;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// An organization: owns everything that users make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// Id.
    pub id: OrganizationId,
    /// Name, unique.
    pub name: String,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Id.
    pub id: UserId,
    /// Name, unique in its organization.
    pub name: String,
    /// Whose objects it works with.
    pub organization: OrganizationId,
    /// May act on clusters, nodes and tokens.
    pub is_admin: bool,
    /// Somebody has used a credential of this user.
    #[serde(default)]
    pub has_logged_in: bool,
}

/// A session: of its token only the digest is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// SHA-256 of the token, hex.
    pub token_sha256: String,
    /// Whose it is.
    pub user: UserId,
    /// Shown in audit records.
    pub client: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A one-time credential: of it only the digest is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// SHA-256, hex.
    pub sha256: String,
    /// Whom it logs in.
    pub user: UserId,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Id.
    pub id: ApplicationId,
    /// Owner.
    pub organization: OrganizationId,
    /// Unique among the owner's.
    pub name: String,
    /// Free text.
    pub description: String,
    /// To be gone once its services are.
    pub deleting: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A service. While it is being deleted, this record is its tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Id.
    pub id: ServiceId,
    /// Owner.
    pub organization: OrganizationId,
    /// Where it belongs.
    pub application: ApplicationId,
    /// `app/service`, unique among the owner's that are not being deleted.
    pub path: String,
    /// As submitted.
    pub descriptor: ServiceDescriptor,
    /// Version of the spec.
    pub generation: u64,
    /// How many.
    pub replicas: u32,
    /// Specs of generations still in use, the newest among them.
    pub specs: BTreeMap<u64, Arc<InstanceSpec>>,
    /// Highest epoch of any instance that was removed: a number that comes back goes on from here.
    #[serde(default)]
    pub epoch_floor: u64,
    /// To be gone once every instance is.
    pub deleting: bool,
    /// Its IPv4 service addresses.
    #[serde(default)]
    pub addresses: BTreeMap<Policy, Ipv4Addr>,
    /// Policies that somebody has used, of those that get an IPv4 address only then.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub used: BTreeSet<Policy>,
    /// What the descriptor asked for that is not honoured.
    pub warnings: Vec<Finding>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the spec or the number last changed.
    pub updated_at: Timestamp,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The generation it is asked to run.
    pub generation: u64,
    /// It is to be gone.
    pub removed: bool,
    /// Where it is, and was.
    pub placement: PlacementRecord,
}

/// Something that happened, before it has an id.
#[derive(Debug, Clone)]
pub struct Event {
    /// What it is about.
    pub about: String,
    /// Stable code.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
}

/// A write of a record as JSON.
pub fn put(
    kind: &'static str,
    id: &impl ToString,
    organization: Option<OrganizationId>,
    value: &impl Serialize,
) -> Write {
    // Every record is made of maps with text keys, numbers and texts: this cannot fail.
    let value = serde_json::to_vec(value).expect("records serialise to JSON");
    Write {
        organization,
        ..Write::put(kind, id.to_string(), value)
    }
}

/// Reads a record of JSON.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}
