//! The seam to the kernel: links, routes, rules.
//!
//! One whole [`DatapathConfig`] says what shall be there; [`Datapath::set`] brings the machine to it from any state, also
//! from what a killed process left half done, and removes everything of ours that is not in it. Repeating it changes
//! nothing. [`Datapath::clean_up`] removes all.

pub mod conntrack;
pub mod kernel;
pub mod lan;
pub mod link;
pub mod memory;
pub mod miss;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod permits;
pub mod rules;
pub mod ruleset;
pub mod sealed;
pub mod sockets;
pub mod sysctl;
pub mod tunnel;
pub mod walk;

use async_trait::async_trait;
use permits::Member;
use roble_core::hash::fnv1a;
use roble_core::ids::{ApplicationId, NodeId, ServiceId};
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{Allowed, Policy};
use roble_core::ports::{PortMapping, Protocol};
use roble_proto::local_net::Tenant;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Beginning of the name of every link of ours; no other program may use it.
pub const LINK_PREFIX: &str = "rbl-";

/// Hardware address of the node's side of every link.
pub const NODE_MAC: [u8; 6] = [0xee; 6];

/// Name of the node's side of a container's link: [`LINK_PREFIX`] and 11 hex digits of a hash of the container's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// The name that belongs to `container`.
    pub fn of(container: &str) -> Self {
        Self(format!("{LINK_PREFIX}{:011x}", mixed(container) >> 20))
    }

    /// The name of the tunnel's device.
    pub fn tunnel() -> Self {
        Self(tunnel::LINK.into())
    }

    /// The name of the encrypted tunnel's device.
    pub fn sealed() -> Self {
        Self(sealed::LINK.into())
    }

    /// The name of the device for packets to unknown services.
    pub fn miss() -> Self {
        Self(miss::LINK.into())
    }

    /// The name as text, at most 15 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// FNV-1a, finished by the mixer of MurmurHash3 so that the high bits are good.
fn mixed(text: &str) -> u64 {
    let hash = fnv1a(text.bytes());
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// One container's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The node's side of its link.
    pub link: LinkName,
    /// Its namespace.
    pub netns: PathBuf,
    /// Its address; the IPv6 one is [`Plan::endpoint_v6`] of it.
    pub address: Ipv4Addr,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
    /// Which instance it is, and whose; without one it has no part in services.
    pub tenant: Option<Tenant>,
}

impl Endpoint {
    /// Hardware address inside the container: locally administered, made from the endpoint address.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x72, a, b, c, d]
    }
}

impl Endpoint {
    /// The application it belongs to.
    pub fn application(&self) -> Option<ApplicationId> {
        self.tenant.as_ref().map(|tenant| tenant.application)
    }
}

/// A service that containers of this node may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Which.
    pub service: ServiceId,
    /// Its application: the one whose instances may call it.
    pub application: ApplicationId,
    /// What it is called at, all addresses of each policy; no address twice.
    pub addresses: BTreeMap<Policy, Vec<IpAddr>>,
    /// Its instances, in any order.
    pub backends: Vec<Backend>,
    /// Who of other applications may call it.
    pub allows: Vec<Allowed>,
}

/// An instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its number in the service.
    pub number: u32,
    /// Its endpoint address.
    pub v4: Ipv4Addr,
    /// Its endpoint address.
    pub v6: Ipv6Addr,
    /// It may get new flows, and keeps those it has.
    pub ready: bool,
    /// Addresses for the closest lead to it. If there is none that is ready, to all.
    pub near: bool,
    /// Addresses for the least used lead to it. If there is none that is ready, to all.
    pub idle: bool,
}

impl Service {
    /// Whether instances of this service of this application may call it, at some port at least.
    pub fn may_be_called_by(&self, application: ApplicationId, service: ServiceId) -> bool {
        self.application == application || self.allows.iter().any(|allowed| allowed.is_about(application, service))
    }

    /// Instances that may get flows, by number.
    pub fn ready(&self) -> impl Iterator<Item = &Backend> {
        let mut ready: Vec<_> = self.backends.iter().filter(|backend| backend.ready).collect();
        ready.sort_by_key(|backend| (backend.number, backend.v4));
        ready.into_iter()
    }

    /// Its addresses under a policy.
    pub fn addresses_of(&self, policy: Policy) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.get(&policy).into_iter().flatten().copied()
    }
}

/// Another node, reached over the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    /// Which.
    pub node: NodeId,
    /// Where its end of the tunnel is.
    pub address: IpAddr,
    /// Its endpoint addresses.
    pub block: Block,
}

/// What containers reach beside the overlay and the internet; by default nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Egress {
    /// Private networks that the node is directly connected to.
    pub lan: bool,
    /// 169.254.0.0/16: services that tell a machine who it is, with keys in it.
    pub metadata: bool,
}

/// What becomes of packets to service addresses that are not known here: user space holds them, except those in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Misses {
    /// Addresses that are nobody's, or closed to an application.
    pub refused: BTreeSet<(ApplicationId, IpAddr)>,
}

/// What comes from the tables of the tree; without any of it, the node is on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The tree's ranges.
    pub plan: Plan,
    /// The node's block of endpoint addresses; nothing is attached before there is one.
    pub block: Option<Block>,
    /// Services of the applications that run here, and those of others that were asked for.
    pub services: Vec<Service>,
    /// All instances that are told of; those whom rules name are let in.
    pub members: Vec<Member>,
    /// Other nodes of the same trusted segment.
    pub nodes: Vec<RemoteNode>,
    /// This node's end of the tunnel.
    pub tunnel: Option<tunnel::Tunnel>,
    /// The encrypted tunnel, and who is behind it.
    pub sealed: Option<sealed::Sealed>,
    /// What is held until it is known; without it, unknown service addresses are refused.
    pub misses: Option<Misses>,
}

/// Everything that shall be in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatapathConfig {
    /// The tree's ranges.
    pub plan: Plan,
    /// The node's block of endpoint addresses.
    pub range: Block,
    /// Attached containers; links, namespaces, addresses and published ports are each unique.
    pub endpoints: Vec<Endpoint>,
    /// Addresses given up lately: tracked flows to them are forgotten.
    pub resting: BTreeSet<Ipv4Addr>,
    /// Services that the endpoints may call.
    pub services: Vec<Service>,
    /// Instances here and elsewhere; those whom rules of the services name are let in.
    pub members: Vec<Member>,
    /// Other nodes of the same trusted segment.
    pub nodes: Vec<RemoteNode>,
    /// This node's end of the tunnel; without it, they are not reached.
    pub tunnel: Option<tunnel::Tunnel>,
    /// The encrypted tunnel, and who is behind it.
    pub sealed: Option<sealed::Sealed>,
    /// What the endpoints reach beside all that.
    pub egress: Egress,
    /// What is held until it is known; [`miss::LINK`] must be there then.
    pub misses: Option<Misses>,
}

impl DatapathConfig {
    /// Nodes that the tunnel can reach: those with an address of its family, but this one.
    pub fn peers(&self) -> impl Iterator<Item = &RemoteNode> {
        self.nodes.iter().filter(|node| {
            self.tunnel.is_some_and(|tunnel| {
                node.address.is_ipv4() == tunnel.address.is_ipv4()
                    && node.address != tunnel.address
                    && node.block != self.range
            })
        })
    }
}

/// Why something could not be set.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// There is no namespace at this path.
    #[error("no network namespace at {path}")]
    NetnsMissing {
        /// As asked for.
        path: PathBuf,
    },
    /// The namespace is the node's own.
    #[error("{path} is the namespace of the node itself")]
    NetnsIsOurs {
        /// As asked for.
        path: PathBuf,
    },
    /// A thread could not work inside a namespace.
    #[error("enter network namespace {path}")]
    EnterNetns {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The container already has an `eth0` that is not ours.
    #[error("{path} already has an interface eth0 that is not of this node")]
    InterfaceTaken {
        /// Its namespace.
        path: PathBuf,
    },
    /// A request to the kernel about links, addresses or routes failed.
    #[error("{attempt}")]
    Netlink {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
    /// No channel to the kernel.
    #[error("open netlink socket")]
    OpenNetlink(#[source] std::io::Error),
    /// The program `nft` could not be run.
    #[error("run nft (is it installed? scripts/install-deps.sh does that)")]
    RunNft(#[source] std::io::Error),
    /// `nft` refused the rules; those before are still in force.
    #[error("nft refused the rules: {message}")]
    NftRefused {
        /// What it said.
        message: String,
    },
    /// No interface of the node has the address that the tunnel shall have.
    #[error("no interface has {address}, the tunnel's address")]
    TunnelAddress {
        /// As asked for.
        address: IpAddr,
    },
    /// The encrypted tunnel's device is not there.
    #[error("{} is not there yet: nobody seals packets to other nodes", sealed::LINK)]
    NoDevice,
    /// A kernel parameter could not be read, written or noted for later.
    #[error("set kernel parameter {path}")]
    Sysctl {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Told to fail (in-memory implementation).
    #[error("told to fail")]
    Told,
}

/// One endpoint, or the tunnel, that is not as it should be; all others are.
#[derive(Debug)]
pub struct EndpointFailure {
    /// Whose link.
    pub link: LinkName,
    /// What is wrong.
    pub error: DatapathError,
}

/// What one counter has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; of a counter of flows their first ones.
    pub packets: u64,
    /// Their bytes, headers from that of IP on.
    pub bytes: u64,
}

/// What the kernel has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// By the names of the counters.
    pub counters: BTreeMap<String, Count>,
    /// Tracked flows: what they were sent to, where they went.
    pub flows: BTreeMap<(IpAddr, IpAddr), u64>,
}

/// What is in the kernel now.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The rules that were loaded.
    pub rules: Arc<ruleset::Ruleset>,
    /// The kernel has them as they were loaded: nobody else has changed them.
    pub is_whole: bool,
    /// All interfaces.
    pub links: Vec<link::Link>,
}

/// Links, routes and rules of one node.
#[async_trait]
pub trait Datapath: Send + Sync {
    /// Brings everything to `config`. May be repeated; calls must not overlap. Endpoints that fail do not keep the others
    /// from being set; nothing leads to them afterwards.
    ///
    /// # Errors
    /// If nothing could be set, or the rules could not; what was in force before may be partly replaced.
    async fn set(&self, config: &DatapathConfig) -> Result<Vec<EndpointFailure>, DatapathError>;

    /// Removes every link, route, rule and kernel parameter of ours. May be repeated.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest was still tried.
    async fn clean_up(&self) -> Result<(), DatapathError>;

    /// Flows that are tracked now and whose destination was translated: who began them, and what they were sent to.
    async fn translated(&self) -> BTreeSet<(IpAddr, IpAddr)>;

    /// What is counted: new flows by the names of the counters, and tracked flows to service addresses by what they were sent to
    /// and where they went. Empty where the kernel does not tell.
    async fn counted(&self, plan: Plan) -> Counted;

    /// What is there, to be looked at; `None` before the first [`set`](Self::set), or if the kernel does not tell.
    async fn in_force(&self) -> Option<InForce>;

    /// The program that listens on a port of the node itself, described for people; `None` if the port is free.
    async fn listener(&self, protocol: Protocol, port: u16) -> Option<String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_differ() {
        let names: BTreeSet<_> = (0..10_000)
            .map(|n| LinkName::of(&format!("0123456789abcdef{n}")))
            .collect();
        assert_eq!(names.len(), 10_000);
        assert!(
            names
                .iter()
                .all(|name| name.as_str().len() == 15 && name.as_str().starts_with(LINK_PREFIX))
        );
    }
}
