//! The local API of `roble-net`: JSON over HTTP on a Unix socket, used by the node engine.
//!
//! `PUT /v1/attachments/{container}` with [`Attach`] answers [`Attached`] and may be repeated; `DELETE` of the same path
//! removes whatever is left of it and may be repeated; `GET /v1/attachments` lists [`Attached`]. `GET /v1/peers` lists
//! [`Peer`], `GET /v1/findings` lists [`Finding`]. Errors are [`LocalError`].

use roble_core::ids::{ApplicationId, ClusterId, InstanceId, NodeId, OrganizationId};
use roble_core::overlay::block::Block;
use roble_core::ports::PortMapping;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Asks for a network interface inside a namespace, with published ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Path of the network namespace, e.g. `/run/roble/n1/netns/ab12...`.
    pub netns: PathBuf,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
    /// Which instance it is; without one it has no part in services and names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Tenant>,
}

/// The instance that a container is, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Which instance.
    pub instance: InstanceId,
    /// Its application.
    pub application: ApplicationId,
    /// Its owner.
    pub organization: OrganizationId,
    /// `application/service`, for people and for the search domain.
    pub path: String,
}

/// An attached container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The container's id as given in the path.
    pub container: String,
    /// Its namespace.
    pub netns: PathBuf,
    /// Its endpoint address, reachable from the node.
    pub address: IpAddr,
    /// Its IPv6 endpoint address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<IpAddr>,
    /// Ports really published.
    pub ports: Vec<PortMapping>,
    /// What belongs into the container's `/etc/resolv.conf`, where names are served; in the answer to a request only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<String>,
}

/// How packets to another node travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// In the clear, within the cluster.
    Vxlan,
    /// Encrypted, straight to it.
    Direct,
    /// Encrypted, passed on by a relay.
    Relayed,
    /// Not at all, now.
    None,
}

/// What seals and opens the packets of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealedBy {
    /// The kernel's WireGuard.
    Kernel,
    /// The worker `roble-tunnel`.
    UserSpace,
}

/// Another node, as this one reaches it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Which.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its endpoint addresses.
    pub block: Block,
    /// How packets travel.
    pub way: Way,
    /// What seals them here, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_by: Option<SealedBy>,
    /// Where they are sent to.
    pub endpoint: Option<SocketAddr>,
    /// Round-trip time of echoes, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Since the last handshake, seconds.
    pub handshake_age_s: Option<u64>,
    /// Largest packet that fits the way, bytes.
    pub mtu: Option<u16>,
    /// Received from it, bytes.
    pub rx_bytes: u64,
    /// Sent to it, bytes.
    pub tx_bytes: u64,
}

/// Something on the node that gets into the overlay's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable code: `range-clash`, `conntrack-full`, `forward-drop`, `no-worker`, `no-handshake`.
    pub code: String,
    /// What is wrong, and where.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalError {
    /// Stable code: `port-taken`, `no-address`, `no-block`, `netns-missing`, `invalid`, `internal`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}
