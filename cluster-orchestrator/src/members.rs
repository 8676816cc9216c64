//! Which keys belong to members and which nodes are put out, for whoever decides in a handshake. A copy of what the tier
//! knows, kept by [`crate::hands`].
//!
//! Who was put out also stands in a file of its own, `revoked.json`: with a lost store, nodes are taken up again by their
//! certificates, and those must not be among them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roble_core::ids::NodeId;
use roble_core::registry::{Member, MemberState};
use roble_daemon::files::{self, FileError, SECRET_MODE};
use roble_daemon::pki::Pin;
use roble_daemon::tls::KnownKeys;
use serde::{Deserialize, Serialize};

/// Longest file that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// See the module's text.
#[derive(Debug)]
pub struct Members {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<NodeId, (String, MemberState)>,
    file: Revoked,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Revoked {
    schema: u32,
    /// Nobody is missing in it.
    whole: bool,
    /// Nodes that were put out, with the SHA-256 of their keys.
    revoked: BTreeMap<NodeId, String>,
}

impl Members {
    /// Takes up who was put out. `lost`: the store was lost, so that without the file nobody knows.
    ///
    /// # Errors
    /// [`FileError`]. A damaged file counts as none.
    pub fn open(folder: &Path, lost: bool) -> Result<Self, FileError> {
        let path = folder.join("revoked.json");
        let bytes = files::read_optional(&path, MAX_BYTES)?;
        let stored = bytes.as_deref().map(serde_json::from_slice::<Revoked>);
        if let Some(Err(error)) = &stored {
            tracing::error!(%error, path = %path.display(), "the list of revoked nodes is damaged and made anew");
        }
        let damaged = matches!(stored, Some(Err(_)));
        let is_stored = matches!(stored, Some(Ok(_)));
        let file = stored.and_then(Result::ok).unwrap_or(Revoked {
            schema: 1,
            whole: !lost && !damaged,
            revoked: BTreeMap::new(),
        });
        let members = file
            .revoked
            .iter()
            .map(|(node, key)| (*node, (key.clone(), MemberState::Revoked)));
        let opened = Self {
            path,
            state: Mutex::new(State {
                members: members.collect(),
                file,
            }),
        };
        if !is_stored {
            opened.write(&opened.state());
        }
        Ok(opened)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State) {
        let written = serde_json::to_vec(&state.file)
            .map_err(|error| error.to_string())
            .and_then(|bytes| files::write_atomic(&self.path, &bytes, SECRET_MODE).map_err(|error| error.to_string()));
        if let Err(error) = written {
            // The store has it; it is written again at the next start.
            tracing::error!(error, path = %self.path.display(), "the list of revoked nodes was not written");
        }
    }

    /// Takes up a member as it is now.
    pub fn put(&self, member: &Member) {
        let node = NodeId(member.id.0);
        let mut state = self.state();
        state.members.insert(node, (member.key_sha256.clone(), member.state));
        if member.state == MemberState::Revoked && !state.file.revoked.contains_key(&node) {
            state.file.revoked.insert(node, member.key_sha256.clone());
            self.write(&state);
        }
    }

    /// The node is put out.
    pub fn revoke(&self, node: NodeId) {
        let mut state = self.state();
        let key = state.members.get(&node).map(|(key, _)| key.clone()).unwrap_or_default();
        state.members.insert(node, (key.clone(), MemberState::Revoked));
        if state.file.revoked.insert(node, key).is_none() {
            self.write(&state);
        }
    }

    /// Whether the node is put out.
    pub fn is_revoked(&self, node: NodeId) -> bool {
        self.state()
            .members
            .get(&node)
            .is_some_and(|(_, state)| *state == MemberState::Revoked)
    }

    /// All nodes that are put out.
    pub fn revoked(&self) -> Vec<NodeId> {
        self.state().file.revoked.keys().copied().collect()
    }

    /// What the holder of a key, by its SHA-256 in hex, is here.
    pub fn state_of(&self, key_sha256: &str) -> Option<MemberState> {
        let state = self.state();
        let mut members = state.members.values();
        members.find(|(key, _)| key == key_sha256).map(|(_, state)| *state)
    }

    /// Whether it is known of everybody who was put out that he was.
    pub fn is_whole(&self) -> bool {
        self.state().file.whole
    }
}

impl KnownKeys for Members {
    fn is_known_key(&self, key: &Pin) -> bool {
        let state = self.state_of(&key.to_string());
        state.is_some_and(|state| state != MemberState::Revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::ChildId;

    fn member(digit: &str, state: MemberState) -> Member {
        Member {
            id: ChildId(digit.repeat(24).parse::<NodeId>().unwrap().0),
            name: format!("n{digit}"),
            state,
            key_sha256: digit.repeat(64),
            token: None,
            joined_at: Default::default(),
            cordoned: false,
            cloned: false,
        }
    }

    #[test]
    fn who_was_put_out_is_known_after_the_store_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let members = Members::open(folder.path(), false).unwrap();
        members.put(&member("1", MemberState::Active));
        members.put(&member("2", MemberState::Active));
        members.revoke("1".repeat(24).parse().unwrap());
        let after = Members::open(folder.path(), true).unwrap();
        assert!(after.is_whole() && after.is_revoked("1".repeat(24).parse().unwrap()));
        assert_eq!(after.state_of(&"1".repeat(64)), Some(MemberState::Revoked));
        assert_eq!(after.state_of(&"2".repeat(64)), None);
    }

    #[test]
    fn without_the_file_a_lost_store_leaves_doubt_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Members::open(folder.path(), true).unwrap().is_whole());
        assert!(!Members::open(folder.path(), false).unwrap().is_whole());
        std::fs::write(folder.path().join("revoked.json"), b"{").unwrap();
        assert!(!Members::open(folder.path(), false).unwrap().is_whole());
    }
}
