//! The local API of `roble-net`: JSON over HTTP on a Unix socket, used by the node engine.
//!
//! `PUT /v1/attachments/{container}` with [`Attach`] answers [`Attached`] and may be repeated; `DELETE` of the same path
//! removes whatever is left of it and may be repeated; `GET /v1/attachments` lists [`Attached`]. `GET /v1/peers` lists
//! [`Peer`], `GET /v1/findings` lists [`Finding`], `POST /v1/trace` with a [`Question`] answers a [`Departure`] or an
//! [`Arrival`]. Errors are [`LocalError`].

use roble_core::ids::{ApplicationId, ClusterId, InstanceId, NodeId, OrganizationId};
use roble_core::overlay::block::Block;
use roble_core::ports::{PortMapping, PortRange};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
    /// Received from it, packets.
    #[serde(default)]
    pub rx_packets: u64,
    /// Sent to it, packets.
    #[serde(default)]
    pub tx_packets: u64,
    /// Echoes sent to it to measure the round-trip time.
    #[serde(default)]
    pub probes: u64,
    /// Those of them that it did not answer in time.
    #[serde(default)]
    pub probes_lost: u64,
}

/// What the root asks the net manager of a node, to trace a way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// An instance of this node.
    pub instance: InstanceId,
    /// What about it.
    pub about: About,
}

/// Which end of a way an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// It calls a service. Answered with a [`Departure`].
    Leaving {
        /// Addresses of the service, under one policy.
        addresses: Vec<IpAddr>,
        /// Endpoint addresses of its instances.
        endpoints: Vec<Ipv4Addr>,
        /// The port that is meant; without one, any.
        port: Option<PortRange>,
    },
    /// It is called. Answered with an [`Arrival`].
    Arriving {
        /// The caller's endpoint address.
        from: Ipv4Addr,
        /// The port that is meant; without one, any.
        port: Option<PortRange>,
    },
}

/// How an instance gets away from its node, by the rules and routes that are in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// Its address, if it is attached here.
    pub address: Option<Ipv4Addr>,
    /// What the kernel turns the addresses of the service into for this caller.
    pub turned: Vec<Turned>,
    /// Why that may be nothing.
    pub knowledge: Knowledge,
    /// The way to each endpoint asked for, in that order.
    pub ways: Vec<Leaving>,
    /// What gets into the way on this node.
    pub findings: Vec<Finding>,
}

/// An address of a service, and the endpoints that the kernel sends new flows to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// The service's address.
    pub address: IpAddr,
    /// Endpoints.
    pub to: Vec<IpAddr>,
}

/// What the node knows of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knowledge {
    /// All that the caller may know.
    Known,
    /// The cluster says that there is none, or that it is closed to the caller's application.
    Nothing,
    /// The cluster has not answered in time.
    Unanswered,
}

/// The way from a node to one endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leaving {
    /// The endpoint.
    pub to: Ipv4Addr,
    /// Whether the rules let the flow out.
    pub permit: Permit,
    /// How packets get there.
    pub path: Path,
}

/// What the rules of a node say to a flow between two endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permit {
    /// Both are of one application.
    SameApplication,
    /// A rule of the called service lets the caller in, at these ports; none: at all.
    Rule(Vec<PortRange>),
    /// Rules of the called service let the caller in, but not at the port that is meant.
    OtherPorts(Vec<PortRange>),
    /// Nothing lets it through.
    Refused,
}

/// Where packets to an endpoint go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// To a container of the same node.
    SameNode {
        /// Its link's MTU, bytes.
        mtu: Option<u32>,
    },
    /// Into a tunnel.
    Tunnel {
        /// The device.
        device: String,
        /// It is the kernel that seals packets, and not a process.
        by_kernel: bool,
        /// Whom it leads to, if that is known.
        peer: Option<Peer>,
    },
    /// The node has no route to it.
    NoRoute,
}

/// Whether an instance may be reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// It is attached here.
    pub attached: bool,
    /// Whether the rules let the flow in.
    pub permit: Permit,
    /// What gets into the way on this node.
    pub findings: Vec<Finding>,
}

/// Something on the node that gets into the overlay's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable code: `range-clash`, `conntrack-full`, `forward-drop`, `input-drop`, `output-drop`, `rules-unread`, `no-tunnel`, `no-handshake`, `rules-changed`.
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
