//! Whom to refuse, and the connections to close when that changes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

use crate::pki::Identity;

/// The identity has been revoked.
#[derive(Debug, thiserror::Error)]
#[error("{0} is revoked")]
pub struct Revoked(
    /// Whose connection was refused.
    pub Identity,
);

/// The deny set of a daemon and its live connections by identity; one for all its listeners and dialers.
///
/// Revoking a cluster revokes its nodes. Membership and liveness share one lock, so no connection slips through between
/// being checked and being registered.
#[derive(Debug, Default)]
pub struct Revocations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    denied: HashSet<Identity>,
    live: HashMap<u64, (Identity, CancellationToken)>,
    next: u64,
}

impl State {
    fn is_denied(&self, identity: &Identity) -> bool {
        self.denied.contains(identity)
            || match identity {
                Identity::Node { cluster, .. } => self.denied.contains(&Identity::Cluster(cluster.clone())),
                _ => false,
            }
    }

    /// Cancels what is live and denied; returns how many.
    fn close_denied(&self) -> usize {
        let closed = self.live.values().filter(|(identity, _)| self.is_denied(identity));
        closed.inspect(|(_, token)| token.cancel()).count()
    }
}

impl Revocations {
    /// Nobody is refused.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Refuses `identity` from now on and closes its connections; returns how many. May be repeated.
    pub fn deny(&self, identity: Identity) -> usize {
        let mut state = self.state();
        state.denied.insert(identity);
        state.close_denied()
    }

    /// Lets `identity` in again.
    pub fn allow(&self, identity: &Identity) {
        self.state().denied.remove(identity);
    }

    /// Replaces the deny set, as pushed by the parent, and closes what is refused now; returns how many.
    pub fn replace(&self, denied: impl IntoIterator<Item = Identity>) -> usize {
        let mut state = self.state();
        state.denied = denied.into_iter().collect();
        state.close_denied()
    }

    /// Whether `identity`, or the cluster it belongs to, is refused.
    pub fn is_denied(&self, identity: &Identity) -> bool {
        self.state().is_denied(identity)
    }

    /// Whether `identity` has a live connection.
    pub fn is_connected(&self, identity: &Identity) -> bool {
        self.state().live.values().any(|(live, _)| live == identity)
    }

    /// Closes the connections of `identity` without refusing new ones; returns how many.
    pub fn disconnect(&self, identity: &Identity) -> usize {
        let state = self.state();
        let closed = state.live.values().filter(|(live, _)| live == identity);
        closed.inspect(|(_, token)| token.cancel()).count()
    }

    /// Registers a connection of `identity` until the guard is dropped.
    ///
    /// # Errors
    /// [`Revoked`].
    pub fn register(self: &Arc<Self>, identity: &Identity) -> Result<LiveConnection, Revoked> {
        let mut state = self.state();
        if state.is_denied(identity) {
            return Err(Revoked(identity.clone()));
        }
        let token = CancellationToken::new();
        let id = state.next;
        state.next += 1;
        state.live.insert(id, (identity.clone(), token.clone()));
        Ok(LiveConnection {
            of: self.clone(),
            id,
            token,
        })
    }
}

/// A registered connection; whoever serves it stops when [`closed`](Self::closed) resolves.
#[derive(Debug)]
pub struct LiveConnection {
    of: Arc<Revocations>,
    id: u64,
    token: CancellationToken,
}

impl LiveConnection {
    /// Resolves when the identity is revoked or disconnected.
    pub async fn closed(&self) {
        self.token.cancelled().await;
    }

    /// The token behind [`closed`](Self::closed).
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for LiveConnection {
    fn drop(&mut self) {
        self.of.state().live.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Identity {
        Identity::cluster(&"c".repeat(24)).unwrap()
    }

    fn node(digit: &str) -> Identity {
        Identity::node(&"c".repeat(24), &digit.repeat(24)).unwrap()
    }

    #[test]
    fn denying_closes_only_what_it_names() {
        let revocations = Revocations::new();
        let (one, two) = (
            revocations.register(&node("1")).unwrap(),
            revocations.register(&node("2")).unwrap(),
        );
        assert_eq!(revocations.deny(node("1")), 1);
        assert!(one.token().is_cancelled() && !two.token().is_cancelled());
        assert!(revocations.register(&node("1")).is_err());
        drop(one);
        assert!(!revocations.is_connected(&node("1")) && revocations.is_connected(&node("2")));
        revocations.allow(&node("1"));
        assert!(revocations.register(&node("1")).is_ok());
    }

    #[test]
    fn denying_a_cluster_denies_its_nodes() {
        let revocations = Revocations::new();
        let live = revocations.register(&node("1")).unwrap();
        assert_eq!(revocations.replace([cluster()]), 1);
        assert!(live.token().is_cancelled() && revocations.is_denied(&node("2")));
        assert_eq!(revocations.replace([]), 0);
        assert!(!revocations.is_denied(&node("2")));
    }
}
