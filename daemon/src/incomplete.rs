//! The mark of a store that may lack what its daemon knew before.

use crate::files::{self, FileError};
use roble_store::Opened;
use std::path::{Path, PathBuf};

/// Name of the mark in the state folder.
const MARK: &str = "incomplete";

/// Whether the store is known to hold all that it should. A store that is new, or replaces a damaged one, stays incomplete
/// over restarts, until its tier says that it has heard everything.
#[derive(Debug)]
pub struct Incomplete {
    mark: PathBuf,
    is_marked: bool,
}

impl Incomplete {
    /// Call before the first write to `opened`: from then on the mark alone tells.
    ///
    /// # Errors
    /// [`FileError`] if the mark cannot be written or looked for.
    pub fn open(folder: &Path, opened: &Opened) -> Result<Self, FileError> {
        let mark = folder.join(MARK);
        let is_marked = if opened.fresh || opened.set_aside.is_some() {
            files::write_atomic(&mark, b"not all that is wished of this machine is known yet\n", 0o600)?;
            true
        } else {
            mark.try_exists().map_err(|source| FileError::Read {
                path: mark.clone(),
                source,
            })?
        };
        Ok(Self { mark, is_marked })
    }

    /// Whether nothing is known to be missing.
    pub const fn is_complete(&self) -> bool {
        !self.is_marked
    }

    /// Forgets the mark once everything is known and stored. May be called often.
    pub fn end_if(&mut self, is_whole: bool) {
        if !self.is_marked || !is_whole {
            return;
        }
        self.is_marked = false;
        match std::fs::remove_file(&self.mark) {
            Ok(()) => tracing::info!("all that is wished of this machine is known"),
            Err(error) => tracing::warn!(%error, path = %self.mark.display(), "mark not removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_store::{BackendKind, Envelope, Key, OpenOptions, Transaction, open};

    async fn opened(folder: &Path) -> Opened {
        open(BackendKind::Redb, &folder.join("store"), &OpenOptions::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_was_lost_stays_lost_over_restarts_until_all_was_heard() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = opened(folder.path()).await;
        let mut incomplete = Incomplete::open(folder.path(), &store).unwrap();
        assert!(!incomplete.is_complete());
        let key = Key::new("s/kind/id").unwrap();
        store
            .store
            .commit(Transaction::new().put(key, Envelope::new(1, vec![1])))
            .await
            .unwrap();
        incomplete.end_if(false);
        store.store.close().await.unwrap();

        let store = opened(folder.path()).await;
        assert!(!store.fresh, "it holds a part");
        let mut incomplete = Incomplete::open(folder.path(), &store).unwrap();
        assert!(!incomplete.is_complete());
        incomplete.end_if(true);
        assert!(incomplete.is_complete());
        assert!(Incomplete::open(folder.path(), &store).unwrap().is_complete());
    }
}
