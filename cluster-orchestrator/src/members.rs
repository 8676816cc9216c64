//! Which keys belong to members and which nodes are put out, for whoever decides in a handshake. A copy of what the tier
//! knows, kept by [`crate::hands`].

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roble_core::ids::NodeId;
use roble_core::registry::{Member, MemberState};
use roble_daemon::pki::Pin;
use roble_daemon::tls::KnownKeys;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Members(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    keys: HashMap<NodeId, Pin>,
    revoked: HashSet<NodeId>,
}

impl Members {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a member as it is now.
    pub fn put(&self, member: &Member) {
        let node = NodeId(member.id.0);
        match (member.state, member.key_sha256.parse()) {
            (MemberState::Pending | MemberState::Active, Ok(key)) => {
                self.state().keys.insert(node, key);
            }
            _ => self.revoke(node),
        }
    }

    /// The node is put out.
    pub fn revoke(&self, node: NodeId) {
        let mut state = self.state();
        state.keys.remove(&node);
        state.revoked.insert(node);
    }

    /// Whether the node is put out.
    pub fn is_revoked(&self, node: NodeId) -> bool {
        self.state().revoked.contains(&node)
    }
}

impl KnownKeys for Members {
    fn is_known_key(&self, key: &Pin) -> bool {
        self.state().keys.values().any(|known| known == key)
    }
}
