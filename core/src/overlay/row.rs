//! What the tables say, and what is wanted of them.

use super::block::Block;
use super::plan::Plan;
use super::tunnel::{PublicKey, TunnelEnd};
use crate::hash::fnv1a;
use crate::ids::{ApplicationId, ClusterId, InstanceId, NodeId, OrganizationId, ParseIdError, ServiceId};
use crate::ports::PortRange;
use crate::status::{InstanceStatus, Phase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// How a service address chooses among the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// Each new flow of a caller goes to the next one.
    RoundRobin,
    /// The nearest by round-trip time.
    Closest,
    /// The one with the fewest flows.
    LeastUsed,
    /// Always this number, wherever it runs.
    Instance(u32),
}

impl Policy {
    /// What a label in front of a service's name asks for. A number is written in one way only.
    pub fn of_label(label: &str) -> Option<Self> {
        match label {
            "closest" => Some(Self::Closest),
            "least" => Some(Self::LeastUsed),
            number => {
                let instance: u32 = number.parse().ok()?;
                (instance.to_string() == number).then_some(Self::Instance(instance))
            }
        }
    }
}

/// A text is not a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a policy: round-robin, closest, least-used or the number of an instance expected")]
pub struct ParsePolicyError(pub String);

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => f.pad("round-robin"),
            Self::Closest => f.pad("closest"),
            Self::LeastUsed => f.pad("least-used"),
            Self::Instance(number) => fmt::Display::fmt(number, f),
        }
    }
}

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "closest" => Ok(Self::Closest),
            "least-used" => Ok(Self::LeastUsed),
            number => match number.parse() {
                Ok(instance) if !number.starts_with('+') => Ok(Self::Instance(instance)),
                _ => Err(ParsePolicyError(text.chars().take(64).collect())),
            },
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = ParsePolicyError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> String {
        policy.to_string()
    }
}

/// A service and its addresses. Written by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Which service.
    pub service: ServiceId,
    /// Owner.
    pub organization: OrganizationId,
    /// The application it belongs to.
    pub application: ApplicationId,
    /// `application/service`.
    pub path: String,
    /// IPv4 addresses given so far.
    pub v4: BTreeMap<Policy, Ipv4Addr>,
    /// IPv6 addresses that its owner asked for, beside those that follow from its id ([`Plan::service_v6`]).
    pub v6: BTreeMap<Policy, Ipv6Addr>,
    /// Who outside of its application may call it: its owner's rules, as far as those that they name are there.
    #[serde(default)]
    pub allows: Vec<Allowed>,
}

/// Somebody outside of an application who may call a service of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Allowed {
    /// The caller's application.
    pub application: ApplicationId,
    /// The only service of it that may; without it, all may.
    pub service: Option<ServiceId>,
    /// Which ports of the called service; none: all, and ICMP too.
    pub ports: Vec<PortRange>,
}

impl Allowed {
    /// Whether it is about an instance of this service of this application.
    pub fn is_about(&self, application: ApplicationId, service: ServiceId) -> bool {
        self.application == application && self.service.is_none_or(|only| only == service)
    }
}

impl ServiceRow {
    /// Every address of the service under `policy`.
    pub fn addresses(&self, plan: &Plan, policy: Policy) -> impl Iterator<Item = IpAddr> + '_ {
        let own = plan.service_v6(policy, self.service).map(IpAddr::V6);
        let v4 = self.v4.get(&policy).copied().map(IpAddr::V4);
        v4.into_iter()
            .chain(own)
            .chain(self.v6.get(&policy).copied().map(IpAddr::V6))
    }

    /// Whether anybody of an application may call it.
    pub fn is_open_to(&self, application: ApplicationId) -> bool {
        self.application == application || self.allows.iter().any(|allowed| allowed.application == application)
    }

    /// Its name below the domain, see [`name_of`].
    pub fn name(&self) -> String {
        name_of(&self.path)
    }
}

/// The labels of a service's name below the domain, e.g. `web.shop` for `shop/web`.
pub fn name_of(path: &str) -> String {
    match path.split_once('/') {
        Some((application, service)) => format!("{service}.{application}"),
        None => path.to_owned(),
    }
}

/// Where an instance is. Written by the cluster that runs it; it is there while the instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Which instance.
    pub instance: InstanceId,
    /// The application it belongs to.
    pub application: ApplicationId,
    /// The node that runs it.
    pub node: NodeId,
    /// Its endpoint address.
    pub v4: Ipv4Addr,
    /// Its endpoint address.
    pub v6: Ipv6Addr,
    /// It may get new flows.
    pub ready: bool,
}

impl InstanceRow {
    /// The row of an instance as it was reported; `None` while it has no addresses.
    pub fn of(status: &InstanceStatus, application: ApplicationId) -> Option<Self> {
        let v4 = status.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = status.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        Some(Self {
            instance: status.instance,
            application,
            node: status.node?,
            v4: v4?,
            v6: v6?,
            ready: status.phase == Phase::Running,
        })
    }
}

/// How a node is reached by other nodes. Written by its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Which node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Address at which its tunnel is reached inside its site.
    pub address: Option<IpAddr>,
    /// Its endpoint addresses.
    pub block: Block,
    /// Its end of the encrypted tunnel, if it has one.
    pub tunnel: Option<TunnelEnd>,
}

/// Where sealed datagrams are passed on to nodes that cannot be reached directly. Written by the cluster that does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRow {
    /// The cluster.
    pub cluster: ClusterId,
    /// Where it listens, as everybody reaches it.
    pub address: SocketAddr,
    /// Its key: nodes prove to it who they are.
    pub key: PublicKey,
}

/// The address from which a node's tunnel comes, as a relay sees it. Written by the relay's cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRow {
    /// Which node.
    pub node: NodeId,
    /// Whose relay sees it.
    pub relay: ClusterId,
    /// The address.
    pub address: SocketAddr,
}

/// What somebody wants to know of the services of others, or of the addresses of a policy that has none yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// The labels below the domain, in lower case: `web.shop`, `closest.web.shop`.
    Name(String),
    /// An address of a service.
    Address(IpAddr),
}

/// Bytes of a wanted name at most.
pub const MAX_WANTED_NAME: usize = 253;

impl Wanted {
    /// What distinguishes it from the other wants of the same application: a digest (FNV-1a, 64 bits). Who makes two that are
    /// equal in this harms nobody but its own application.
    fn digest(&self) -> u64 {
        let text = match self {
            Self::Name(name) => format!("n{name}"),
            Self::Address(address) => format!("a{address}"),
        };
        fnv1a(text.bytes())
    }
}

/// Upwards: an application wants to know something. Downwards, under the same key: the answer, as long as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantRow {
    /// Who wants it.
    pub application: ApplicationId,
    /// What.
    pub wanted: Wanted,
    /// Downwards, the service that it is; `None`: there is none, or it is closed to the application.
    pub service: Option<ServiceId>,
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// The tree's ranges.
    Plan(Plan),
    /// The reader's own block of endpoint addresses.
    Block(Block),
    /// A service.
    Service(ServiceRow),
    /// An instance.
    Instance(InstanceRow),
    /// A node.
    Node(NodeRow),
    /// A relay.
    Relay(RelayRow),
    /// A node as a relay sees it.
    Seen(SeenRow),
    /// What an application wants to know, and the answer.
    Want(WantRow),
}

/// What a row is about: its key on the link and in the stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RowKey {
    /// The one plan.
    Plan,
    /// A block leased to the reader, by its first address.
    Block(Ipv4Addr),
    /// A service.
    Service(ServiceId),
    /// An instance.
    Instance(InstanceId),
    /// A node.
    Node(NodeId),
    /// The relay of a cluster.
    Relay(ClusterId),
    /// A node as the relay of a cluster sees it.
    Seen(NodeId, ClusterId),
    /// What an application wants to know: a digest of it.
    Want(ApplicationId, u64),
}

/// A text is not a [`RowKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the key of a row")]
pub struct ParseRowKeyError {
    /// What was given, cut at 64 characters.
    pub text: String,
    /// What is wrong with the id in it.
    #[source]
    pub source: Option<ParseIdError>,
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan => f.write_str("p"),
            Self::Block(first) => write!(f, "b-{first}"),
            Self::Service(id) => write!(f, "s-{id}"),
            Self::Instance(id) => write!(f, "i-{id}"),
            Self::Node(id) => write!(f, "n-{id}"),
            Self::Relay(id) => write!(f, "r-{id}"),
            Self::Seen(node, relay) => write!(f, "e-{node}.{relay}"),
            Self::Want(application, digest) => write!(f, "w-{application}-{digest:016x}"),
        }
    }
}

impl FromStr for RowKey {
    type Err = ParseRowKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |source| ParseRowKeyError {
            text: text.chars().take(64).collect(),
            source,
        };
        if text == "p" {
            return Ok(Self::Plan);
        }
        let (kind, rest) = text.split_once('-').ok_or_else(|| error(None))?;
        match kind {
            "b" => rest.parse().map(Self::Block).map_err(|_| error(None)),
            "s" => rest.parse().map(Self::Service).map_err(|source| error(Some(source))),
            "i" => rest.parse().map(Self::Instance).map_err(|source| error(Some(source))),
            "n" => rest.parse().map(Self::Node).map_err(|source| error(Some(source))),
            "r" => rest.parse().map(Self::Relay).map_err(|source| error(Some(source))),
            "e" => {
                let (node, relay) = rest.split_once('.').ok_or_else(|| error(None))?;
                let node = node.parse().map_err(|source| error(Some(source)))?;
                let relay = relay.parse().map_err(|source| error(Some(source)))?;
                Ok(Self::Seen(node, relay))
            }
            "w" => {
                let (application, digest) = rest.split_once('-').ok_or_else(|| error(None))?;
                let application = application.parse().map_err(|source| error(Some(source)))?;
                let is_digest = digest.len() == 16 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let digest = u64::from_str_radix(digest, 16).ok().filter(|_| is_digest);
                Ok(Self::Want(application, digest.ok_or_else(|| error(None))?))
            }
            _ => Err(error(None)),
        }
    }
}

impl WantRow {
    /// Its key, the same in both directions.
    pub fn key(&self) -> RowKey {
        RowKey::Want(self.application, self.wanted.digest())
    }
}

impl TryFrom<String> for RowKey {
    type Error = ParseRowKeyError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RowKey> for String {
    fn from(key: RowKey) -> String {
        key.to_string()
    }
}

impl Row {
    /// Whether addresses are given away by what it says: who acts on it must not forget it.
    pub const fn gives_addresses(&self) -> bool {
        matches!(self, Self::Plan(_) | Self::Block(_))
    }

    /// What it is about.
    pub fn key(&self) -> RowKey {
        match self {
            Self::Plan(_) => RowKey::Plan,
            Self::Block(block) => RowKey::Block(block.network()),
            Self::Service(row) => RowKey::Service(row.service),
            Self::Instance(row) => RowKey::Instance(row.instance),
            Self::Node(row) => RowKey::Node(row.node),
            Self::Relay(row) => RowKey::Relay(row.cluster),
            Self::Seen(row) => RowKey::Seen(row.node, row.relay),
            Self::Want(row) => row.key(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_policies_read_back_what_they_wrote() {
        let service: ServiceId = "0123456789abcdef01234567".parse().unwrap();
        let keys = [
            RowKey::Plan,
            RowKey::Block([10, 18, 0, 64].into()),
            RowKey::Service(service),
            RowKey::Instance(InstanceId { service, number: 3 }),
            RowKey::Node(NodeId(service.0)),
            RowKey::Relay(ClusterId(service.0)),
            RowKey::Seen(NodeId(service.0), ClusterId(service.0)),
            RowKey::Want(ApplicationId(service.0), 7),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse::<RowKey>().unwrap(), key);
        }
        for bad in [
            "w-0123456789abcdef01234567-7",
            "w-0-0",
            "",
            "x-1",
            "s-",
            "i-0123456789abcdef01234567",
            "b-10.18.0",
            "p-",
            "e-0123456789abcdef01234567",
        ] {
            assert!(bad.parse::<RowKey>().is_err(), "{bad}");
        }
        for policy in [
            Policy::RoundRobin,
            Policy::Closest,
            Policy::LeastUsed,
            Policy::Instance(7),
        ] {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        for bad in ["", "rr", "+1", "-1", "4294967296"] {
            assert!(bad.parse::<Policy>().is_err(), "{bad}");
        }
    }
}
