//! MQTT topics of the node link: `<node>/<branch>/<direction>`. A node may publish only to its own `u` (up) topics and
//! subscribe only to its own `d` (down) topics. `<node>` is the id's 12 bytes in URL-safe base64, 16 characters, because a
//! topic travels with every beat.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use roble_core::ids::{NodeId, RawId};

/// Who on the machine speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// The node engine.
    Engine,
    /// The net manager.
    Net,
}

impl Branch {
    const fn letter(self) -> &'static str {
        match self {
            Self::Engine => "e",
            Self::Net => "n",
        }
    }
}

/// Which way a topic leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Node to cluster.
    Up,
    /// Cluster to node.
    Down,
}

/// A topic of the node link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    /// The node it belongs to.
    pub node: NodeId,
    /// Node engine or net manager.
    pub branch: Branch,
    /// Up or down.
    pub direction: Direction,
}

/// Filter by which the cluster receives from all nodes.
pub const ALL_UP: &str = "+/+/u";
/// Filter of everything that the cluster sends.
pub const ALL_DOWN: &str = "+/+/d";

impl Topic {
    /// Parses a full topic name; wildcards and anything else are `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let node = read_node(parts.next()?)?;
        let branch = match parts.next()? {
            "e" => Branch::Engine,
            "n" => Branch::Net,
            _ => return None,
        };
        let direction = match parts.next()? {
            "u" => Direction::Up,
            "d" => Direction::Down,
            _ => return None,
        };
        parts.next().is_none().then_some(Self {
            node,
            branch,
            direction,
        })
    }
}

impl std::fmt::Display for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self.direction {
            Direction::Up => "u",
            Direction::Down => "d",
        };
        let node = BASE64_URL_SAFE_NO_PAD.encode(self.node.0.as_bytes());
        write!(f, "{node}/{}/{direction}", self.branch.letter())
    }
}

/// 12 bytes are exactly 16 characters, so each id has one spelling.
fn read_node(text: &str) -> Option<NodeId> {
    let mut bytes = [0; 12];
    let length = (text.len() == 16)
        .then(|| BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok())
        .flatten()?;
    (length == bytes.len()).then(|| NodeId(RawId::from_bytes(bytes)))
}

/// Whether a client of `node` may publish to (`Up`) or subscribe to (`Down`) `name`. Exact names only: no wildcard, no other
/// node, not the node's other client.
pub fn may_use(node: NodeId, branch: Branch, direction: Direction, name: &str) -> bool {
    let own = Topic {
        node,
        branch,
        direction,
    };
    Topic::parse(name) == Some(own)
}

/// MQTT client id of one of a node's two clients: `<node id>/<branch>`.
pub fn client_id(node: NodeId, branch: Branch) -> String {
    format!("{node}/{}", branch.letter())
}

/// Reads what [`client_id`] wrote; anything else is `None`.
pub fn parse_client_id(text: &str) -> Option<(NodeId, Branch)> {
    let (node, branch) = text.split_once('/')?;
    let branch = match branch {
        "e" => Branch::Engine,
        "n" => Branch::Net,
        _ => return None,
    };
    Some((node.parse().ok()?, branch))
}
