//! The seam to the kernel: links, routes, rules.
//!
//! One whole [`DatapathConfig`] says what shall be there; [`Datapath::set`] brings the machine to it from any state, also
//! from what a killed process left half done, and removes everything of ours that is not in it. Repeating it changes
//! nothing. [`Datapath::clean_up`] removes all.

pub mod conntrack;
pub mod kernel;
pub mod link;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod sockets;
pub mod sysctl;

use async_trait::async_trait;
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::ports::{PortMapping, Protocol};
use roble_proto::local_net::Tenant;
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

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
        Self(format!("{LINK_PREFIX}{:011x}", fnv1a(container) >> 20))
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

/// FNV-1a with 64 bits (draft-eastlake-fnv), finished by the mixer of MurmurHash3 so that the high bits are good.
fn fnv1a(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
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

/// One endpoint that is not as it should be; all others are.
#[derive(Debug)]
pub struct EndpointFailure {
    /// Whose link.
    pub link: LinkName,
    /// What is wrong.
    pub error: DatapathError,
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
