//! The way from an instance to a service, hop by hop: what GET `/v1/trace/{ref}` answers.

use crate::local_net::{Finding, Path, Permit, Turned};
use roble_core::overlay::row::Policy;
use roble_core::ports::PortRange;
use roble_core::status::Phase;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The way from an instance to a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The caller.
    pub from: Stop,
    /// `app/service`, or `app/service.N`.
    pub to: String,
    /// Its name, as containers use it.
    pub name: String,
    /// How its addresses choose among the instances.
    pub policy: Policy,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The port that is meant; without one, any.
    pub port: Option<PortRange>,
    /// What the kernel of the caller's node makes of the addresses.
    pub turned: Vec<Turned>,
    /// The rules of the called service's descriptor that name the caller, e.g. `services.db.allow[0]`.
    pub rules: Vec<Rule>,
    /// Whether new flows reach it: the worst of the ways that are taken.
    pub verdict: Verdict,
    /// One sentence for people, and what to change.
    pub summary: String,
    /// To its instances: those that are taken first.
    pub ways: Vec<TracedWay>,
    /// Instances beyond those.
    pub more: usize,
    /// What gets into the way on the nodes, and where.
    pub findings: Vec<FoundOn>,
}

/// An instance, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// `app/service.N`.
    pub instance: String,
    /// Phase.
    pub phase: Phase,
    /// Name of its cluster.
    pub cluster: Option<String>,
    /// Name of its node.
    pub node: Option<String>,
    /// Its endpoint addresses.
    pub addresses: Vec<IpAddr>,
}

/// A rule of a descriptor that names the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Where it is in the descriptor.
    pub path: String,
    /// The ports it opens; none: all.
    pub ports: Vec<PortRange>,
}

/// The way to one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TracedWay {
    /// The instance.
    pub to: Stop,
    /// The kernel of the caller's node sends new flows to it.
    pub taken: bool,
    /// What the rules of the caller's node say.
    pub leaves: Option<Permit>,
    /// How packets get there.
    pub path: Option<Path>,
    /// Who passes them on.
    pub relay: Option<Relay>,
    /// What the rules of its own node say.
    pub arrives: Option<Permit>,
    /// Whether a new flow reaches it.
    pub verdict: Verdict,
    /// What is in the way; empty if nothing is.
    pub reason: String,
}

/// A relay that passes on what is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Its address.
    pub address: SocketAddr,
    /// Name of its cluster, if it is known.
    pub cluster: Option<String>,
}

/// What was found on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundOn {
    /// The node's name.
    pub node: String,
    /// What.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Whether a new flow reaches its destination, and what keeps it from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It does, on the same node.
    SameNode,
    /// It does, in the clear within the cluster.
    Vxlan,
    /// It does, encrypted, straight to the other node.
    Direct,
    /// It does, encrypted, passed on by a relay.
    Relayed,
    /// Not known: a node was not to be asked.
    Unanswered,
    /// The caller is nowhere.
    NotPlaced,
    /// The caller has no network.
    NotAttached,
    /// The instance does not get new flows now.
    NotReady,
    /// No instance of the service gets new flows.
    NoBackend,
    /// The caller's node knows nothing of the service.
    UnknownService,
    /// The caller's node does not let it out.
    DeniedAtCaller,
    /// The other node does not let it in.
    DeniedAtDestination,
    /// There is no way between the nodes now.
    NoPath,
}

impl Verdict {
    /// Whether the flow reaches its destination.
    pub const fn reaches(self) -> bool {
        matches!(self, Self::SameNode | Self::Vxlan | Self::Direct | Self::Relayed)
    }

    /// The word used in the API and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::Vxlan => "vxlan",
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Unanswered => "unanswered",
            Self::NotPlaced => "not-placed",
            Self::NotAttached => "not-attached",
            Self::NotReady => "not-ready",
            Self::NoBackend => "no-backend",
            Self::UnknownService => "unknown-service",
            Self::DeniedAtCaller => "denied-at-caller",
            Self::DeniedAtDestination => "denied-at-destination",
            Self::NoPath => "no-path",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
