//! Users' API of the root: types and paths. JSON over HTTPS, versioned `/v1`, errors are [`ErrorBody`].
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | POST `/v1/login` | [`Login`] | [`Session`]; the credential is used up |
//! | GET `/v1/whoami` | | [`WhoAmI`] |
//! | POST `/v1/apply?dry_run=` | a descriptor, JSON or YAML | [`Applied`]; 422 with all mistakes |
//! | GET `/v1/applications` `/v1/applications/{ref}` | | [`ApplicationView`] (list or one) |
//! | DELETE `/v1/applications/{ref}` | | [`Deleted`] |
//! | GET `/v1/services` `/v1/services/{ref}` | | [`ServiceView`] |
//! | DELETE `/v1/services/{ref}` | | [`Deleted`] |
//! | PUT `/v1/services/{ref}/replicas` | [`Scale`] | [`ServiceView`] |
//! | GET `/v1/instances` `/v1/instances/{ref}` | | [`InstanceView`] |
//! | GET `/v1/instances/{ref}/logs?follow=&tail=` | | the log as it is, streamed |
//! | GET `/v1/explain/{ref}` | | [`Explained`] |
//! | GET `/v1/trace/{ref}?to=&policy=&port=` | | [`Trace`](crate::trace::Trace) |
//! | GET `/v1/clusters` `/v1/clusters/{ref}` | | [`ClusterView`] |
//! | POST `/v1/clusters/{ref}/approve` `/revoke` `/cordon` `/uncordon` | | [`ClusterView`] |
//! | GET `/v1/nodes?cluster=` | | [`Listed`] of [`NodeView`] |
//! | GET `/v1/nodes/{ref}` | | [`NodeView`] |
//! | POST `/v1/nodes/{ref}/approve` `/revoke` `/cordon` `/uncordon` | | [`NodeView`] |
//! | POST `/v1/tokens` | [`CreateToken`] | [`CreatedToken`] |
//! | GET `/v1/tokens` | | [`Listed`] of [`TokenView`] |
//! | DELETE `/v1/tokens/{id}` | | [`Deleted`] |
//! | GET `/v1/events?after=&ref=&follow=` | | [`EventView`] list, or server-sent events |
//! | GET `/v1/audit?before=&limit=` | | [`AuditView`] list, the newest, in order of time; 100 unless `limit` says up to 1,000 |
//! | POST `/v1/join` | [`JoinRequest`] | [`JoinGrant`]; also served by a cluster for nodes |
//! | POST `/v1/renew` | [`RenewRequest`] | [`JoinGrant`]; also served by a cluster for nodes |
//! | GET `/v1/members/{SHA-256 of a key}` | | [`MemberAnswer`]; also served by a cluster for nodes |
//!
//! A `{ref}` is an id or a name: application `shop`, service `shop/web`, instance `shop/web.0`, cluster and node by
//! name or id; the slash in a path is written `%2F`. Creations answer 200.

use roble_core::ids::{ApplicationId, ClusterId, EventId, NodeId, OrganizationId, ServiceId, TokenId, UserId};
use roble_core::overlay::row::Policy;
use roble_core::placement::{Explanation, Offer};
use roble_core::ports::PortMapping;
use roble_core::registry::{MemberState, TokenKind, TokenRecord};
use roble_core::resources::Resources;
use roble_core::status::{Phase, Reason};
use roble_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable, kebab-case; docs/errors.md has a paragraph for each.
    pub code: String,
    /// What is wrong and what to do, one sentence.
    pub message: String,
    /// For descriptors: every mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Finding>,
}

/// A mistake or a warning about one place in a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where, e.g. `services.web.memory`.
    pub path: String,
    /// Line in the text, from 1, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Stable code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
}

/// Exchanges the one-time credential for a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// As printed at the root's first start, or by `roble-root credential`.
    pub credential: String,
    /// Name shown in audit records, e.g. `anna@laptop`.
    #[serde(default)]
    pub client: String,
}

/// A session: send `token` as `Authorization: Bearer`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// Secret.
    pub token: String,
    /// Who it stands for.
    pub user: UserView,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// Id.
    pub id: UserId,
    /// Name.
    pub name: String,
    /// Whose objects it works with.
    pub organization: OrganizationId,
    /// The organization's name.
    pub organization_name: String,
    /// May act on clusters, nodes and tokens.
    pub is_admin: bool,
}

/// Who calls, and whom he talks to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// The user.
    pub user: UserView,
    /// Version of the root.
    pub root_version: String,
}

/// What an apply did to one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Created,
    /// Its spec or its number of replicas changed.
    Updated,
    /// It was so already.
    Unchanged,
}

/// Answer to an apply. Nothing was changed with `dry_run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Every service of the descriptor.
    pub services: Vec<AppliedService>,
    /// What was accepted but is not honoured (yet), or looks like a slip.
    pub warnings: Vec<Finding>,
    /// Nothing was stored.
    pub dry_run: bool,
}

/// One service of an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedService {
    /// `app/service`.
    pub path: String,
    /// Its application's id.
    pub application: ApplicationId,
    /// Its id.
    pub id: ServiceId,
    /// Its generation now.
    pub generation: u64,
    /// What happened.
    pub change: Change,
}

/// What a deletion started. It ends when every node has confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Paths or ids.
    pub deleted: Vec<String>,
    /// Instances that still have to be confirmed gone.
    pub remaining_instances: u32,
}

/// New number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// 0 to 1,000.
    pub replicas: u32,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationView {
    /// Id.
    pub id: ApplicationId,
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Its services.
    pub services: Vec<ServiceView>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Id.
    pub id: ServiceId,
    /// `app/service`.
    pub path: String,
    /// Generation of its spec.
    pub generation: u64,
    /// How many are asked for.
    pub replicas: u32,
    /// How many run the newest generation.
    pub up_to_date: u32,
    /// How many run, of any generation.
    pub running: u32,
    /// It is being deleted.
    pub deleting: bool,
    /// Image as written.
    pub image: String,
    /// Reserved by each instance.
    pub resources: Resources,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// The descriptor's service, as JSON of the native form.
    pub descriptor: serde_json::Value,
    /// Service addresses by policy.
    #[serde(default)]
    pub addresses: BTreeMap<Policy, Vec<IpAddr>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its spec last changed.
    pub updated_at: Timestamp,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// `app/service.N`.
    pub path: String,
    /// `<service id>.N`.
    pub id: String,
    /// Phase.
    pub phase: Phase,
    /// Why.
    pub reason: Option<Reason>,
    /// The generation that the phase is about.
    pub generation: u64,
    /// Placements, from the root down.
    pub epochs: Vec<u64>,
    /// Restarts under this generation.
    pub restarts: u32,
    /// Exit code of the last end.
    pub exit_code: Option<i32>,
    /// When its process started.
    pub started_at: Option<Timestamp>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// The cluster's id.
    pub cluster_id: Option<ClusterId>,
    /// The node's id.
    pub node: Option<NodeId>,
    /// Name of the node, if known.
    pub node_name: Option<String>,
    /// Address of the node's published ports.
    pub node_address: Option<String>,
    /// Ports really published.
    pub ports: Vec<PortMapping>,
    /// Digest that runs.
    pub image_digest: Option<String>,
    /// Endpoint addresses: its own while it is where it is.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Service addresses that always lead to this number.
    #[serde(default)]
    pub service_addresses: Vec<IpAddr>,
    /// Milliseconds since the cluster was heard last: the age of all this.
    pub age_ms: Option<u64>,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Id.
    pub id: ClusterId,
    /// Name.
    pub name: String,
    /// Membership.
    pub state: MemberState,
    /// `ready`, `unreachable`, `lost`.
    pub standing: String,
    /// Milliseconds since it was heard last.
    pub silent_ms: Option<u64>,
    /// Takes nothing new.
    pub cordoned: bool,
    /// Two machines use its identity.
    pub cloned: bool,
    /// Labels.
    pub labels: roble_core::labels::Labels,
    /// Capacity per class of nodes.
    pub offers: Vec<Offer>,
    /// Reserved by the root's placements.
    pub reserved: Resources,
    /// Instances placed on it.
    pub instances: u32,
    /// Software version.
    pub software: String,
    /// When it joined.
    pub joined_at: Timestamp,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Name of its cluster.
    #[serde(default)]
    pub cluster: String,
    /// Membership.
    pub state: MemberState,
    /// `ready`, `unreachable`, `lost`.
    pub standing: String,
    /// Milliseconds since it was heard last.
    pub silent_ms: Option<u64>,
    /// Takes nothing new.
    pub cordoned: bool,
    /// Two machines use its identity.
    pub cloned: bool,
    /// Labels.
    pub labels: roble_core::labels::Labels,
    /// May be reserved in all.
    pub allocatable: Resources,
    /// Reserved.
    pub reserved: Resources,
    /// Instances on it.
    pub instances: u32,
    /// Address of published ports.
    pub address: String,
    /// Software version.
    pub software: String,
    /// When it joined.
    pub joined_at: Timestamp,
}

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What may join with it.
    pub kind: TokenKind,
    /// For nodes: name or id of the cluster; may be left out if there is only one.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Milliseconds it lives; one hour if left out.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
    /// A person must approve who joins.
    #[serde(default)]
    pub needs_approval: bool,
    /// The only name that may join with it.
    #[serde(default)]
    pub name: Option<String>,
}

/// A list that clusters contribute to, as far as they answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed<T> {
    /// What is known.
    pub items: Vec<T>,
    /// Whose part is missing.
    #[serde(default)]
    pub unanswered: Vec<Unanswered>,
}

/// A cluster that did not contribute to a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// Its name.
    pub cluster: String,
    /// Stable code.
    pub code: String,
    /// Why, one sentence.
    pub message: String,
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Ordered by time.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// Name of the user.
    pub user: String,
    /// Stable word: `apply`, `create-token`.
    pub action: String,
    /// To what.
    pub object: String,
}

/// A new join token, shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// Public id.
    pub id: TokenId,
    /// The text to give to the joining side.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// What it lets join.
    pub kind: TokenKind,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Public id.
    pub id: TokenId,
    /// What it lets join.
    pub kind: TokenKind,
    /// For nodes: name of the cluster.
    #[serde(default)]
    pub cluster: Option<String>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// A person must approve who joins.
    pub needs_approval: bool,
    /// The only name that may join with it.
    pub name: Option<String>,
    /// It has been used.
    pub used: bool,
    /// How often another key tried it afterwards.
    pub reuse_attempts: u32,
}

impl TokenView {
    /// What is shown of a stored token. `cluster`: the name of the cluster that made it, for nodes.
    pub fn of(record: &TokenRecord, kind: TokenKind, cluster: Option<String>) -> Self {
        Self {
            id: record.id,
            kind,
            cluster,
            expires_at: record.expires_at,
            needs_approval: record.needs_approval,
            name: record.name.clone(),
            used: record.used_by.is_some(),
            reuse_attempts: record.reuse_attempts,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Ordered by time.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// What it is about: `shop/web.0`, `cluster/north`.
    pub about: String,
    /// Stable code, e.g. `placed`, `running`, `lost`.
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// Why an instance is where it is, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The instance.
    pub instance: InstanceView,
    /// One sentence for people.
    pub summary: String,
    /// The root's choice among clusters.
    pub root: Option<Explanation>,
    /// The cluster's choice among nodes, if it answered.
    pub cluster: Option<Explanation>,
    /// Why the cluster's part is missing.
    pub cluster_missing: Option<String>,
    /// What happened to it, newest last.
    pub events: Vec<EventView>,
    /// What its descriptor asked for that is not honoured.
    pub warnings: Vec<Finding>,
}

/// Asks to join, with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token's id.
    pub token: TokenId,
    /// The token's secret.
    pub secret: String,
    /// Wanted name.
    pub name: String,
    /// Certificate request (PEM), signed with the key that stays on the machine.
    pub csr: String,
}

/// Asks for a new certificate, over a connection authenticated with the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// Certificate request (PEM), signed with the same key.
    pub csr: String,
    /// For a node: its name, should the cluster have lost its records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the holder of a key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAnswer {
    /// Membership.
    pub state: MemberState,
}

/// Identity granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// Cluster or node id.
    pub id: String,
    /// The cluster's id (its own, or the one the node joined).
    pub cluster: ClusterId,
    /// Membership: `pending` waits for a person.
    pub state: MemberState,
    /// Certificate chain (PEM): the leaf, then issuers without the root. For a cluster the first certificate is its authority.
    pub certificates: String,
    /// The root authority's certificate (PEM).
    pub authority: String,
    /// Port of the link on the host that was asked.
    #[serde(default)]
    pub link_port: u16,
}
