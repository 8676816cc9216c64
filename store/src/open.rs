//! Opening a store by the name of its backend, and what happens when it is damaged.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use tracing::{error, info};

use crate::embedded::Embedded;
use crate::engine::{Engine, guard, verify};
use crate::error::StoreError;
use crate::folder::{Folder, make_private_folder, open_private, remove, restrict_file};
use crate::key::Key;
use crate::memory::MemoryStore;
use crate::record::{FORMAT, State};
use crate::redb::RedbEngine;
use crate::sled::SledEngine;
use crate::store::{Store, Versioned};

/// The backends that [`open`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BackendKind {
    /// Nothing survives the process; for tests, simulations and demonstrations.
    Memory,
    /// One file, safe against kill -9 and power loss. The default.
    #[default]
    Redb,
    /// Log-structured folder, guarded against kill -9, not safe against power loss.
    Sled,
}

/// The one table of backends and their names.
const BACKENDS: [(BackendKind, &str); 3] = [
    (BackendKind::Memory, "memory"),
    (BackendKind::Redb, "redb"),
    (BackendKind::Sled, "sled"),
];

impl BackendKind {
    /// Every backend, in the order in which they are shown to users.
    pub fn all() -> impl Iterator<Item = Self> {
        BACKENDS.iter().map(|(kind, _)| *kind)
    }

    /// The name used in configuration.
    pub fn name(self) -> &'static str {
        BACKENDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("unknown", |(_, name)| name)
    }

    fn file_name(self) -> String {
        format!("store.{}", self.name())
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No backend has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown store backend {name:?}, known are: {known}", known = known_names())]
pub struct UnknownBackend {
    /// The name asked for.
    pub name: String,
}

fn known_names() -> String {
    BACKENDS.map(|(_, name)| name).join(", ")
}

impl FromStr for BackendKind {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = BACKENDS.iter().find(|(_, known)| *known == name);
        found
            .map(|(kind, _)| *kind)
            .ok_or_else(|| UnknownBackend { name: name.into() })
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Memory for cached pages, in bytes.
    pub cache_bytes: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 1024 * 1024,
        }
    }
}

/// A store, and what the caller must know about how it came up.
pub struct Opened {
    /// The store, ready for use.
    pub store: Arc<dyn Store>,
    /// No commit was made since the store was created, so the caller has to fill it: for the first time, or
    /// again (see `set_aside`).
    pub fresh: bool,
    /// The damaged store that this fresh one replaces. Stays set until the first commit, so that a crash
    /// before it does not turn lost data into a first start.
    pub set_aside: Option<PathBuf>,
    /// Why the earlier store was given up, if that happened in this very call.
    pub damage: Option<String>,
    /// All that the store holds, in key order: opening has read and checked it anyway.
    pub records: Vec<(Key, Versioned)>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("fresh", &self.fresh)
            .field("set_aside", &self.set_aside)
            .field("damage", &self.damage)
            .field("records", &self.records.len())
            .finish_non_exhaustive()
    }
}

/// Opens the store in the folder `path`, making it if there is none. `memory` ignores `path`.
///
/// Reads, checks and hands out every record. A damaged store is moved to `<name>.damaged-<seconds since 1970>` inside the
/// folder and replaced by an empty one; [`Opened`] tells. Blocking work happens on a thread of its own.
///
/// # Errors
/// [`StoreError::Locked`], [`StoreError::OtherBackend`], [`StoreError::NewerFormat`], [`StoreError::Io`] or
/// [`StoreError::Full`]. Nothing is moved or changed then.
pub async fn open(kind: BackendKind, path: &Path, options: &OpenOptions) -> Result<Opened, StoreError> {
    if kind == BackendKind::Memory {
        let store = Arc::new(MemoryStore::new());
        return Ok(Opened {
            store,
            fresh: true,
            set_aside: None,
            damage: None,
            records: Vec::new(),
        });
    }
    let (path, options) = (path.to_owned(), options.clone());
    let (store, report) = Embedded::start(move || open_folder(kind, &path, &options)).await?;
    Ok(Opened {
        store: Arc::new(store),
        fresh: report.fresh,
        set_aside: report.set_aside,
        damage: report.damage,
        records: report.records,
    })
}

/// What [`Opened`] tells besides the store.
pub(crate) struct Report {
    pub fresh: bool,
    pub set_aside: Option<PathBuf>,
    pub damage: Option<String>,
    pub records: Vec<(Key, Versioned)>,
}

/// An engine whose content was checked, in its locked folder.
pub(crate) struct Ready {
    pub engine: Box<dyn Engine>,
    pub folder: Folder,
    pub state: State,
    pub report: Report,
}

/// What [`open_checked`] found.
struct Checked {
    engine: Box<dyn Engine>,
    state: State,
    records: Vec<(Key, Versioned)>,
}

fn open_folder(kind: BackendKind, path: &Path, options: &OpenOptions) -> Result<Ready, StoreError> {
    let io = |source| StoreError::io("open the store's folder", source);
    let folder = Folder::open(path)?;
    for other in BackendKind::all().filter(|other| *other != kind) {
        if folder.path().join(other.file_name()).try_exists().map_err(io)? {
            let path = folder.path().to_owned();
            return Err(StoreError::OtherBackend {
                path,
                found: other,
                wanted: kind,
            });
        }
    }
    let mark = folder.read_mark();
    if let Some((found, _)) = mark {
        check_format(&folder, found)?;
    }
    let marked = mark.map_or(0, |(_, revision)| revision);
    let name = kind.file_name();
    let file = folder.path().join(&name);
    let new = folder.path().join(format!("{name}.new"));
    remove(&new).map_err(io)?;

    let mut damage = None;
    if file.try_exists().map_err(io)? {
        match guard("open the store", || open_checked(kind, &folder, &file, marked, options)) {
            Ok(checked) => return ready(kind, checked, folder, mark, None),
            Err(StoreError::Damaged { what }) => {
                let target = folder.set_aside(&name)?;
                error!(path = %target.display(), reason = %what, "damaged store set aside");
                damage = Some(what);
            }
            Err(other) => return Err(other),
        }
    } else if marked > 0 {
        error!(path = %file.display(), revision = marked, "store file is missing");
        damage = Some(format!("{name} is missing, it had revision {marked}"));
    }

    // Made under another name, so that a crash while making it cannot look like damage. Revisions go on where
    // the lost store stopped, as far as that is known.
    guard("make the store", || create(kind, &new, options, &State::new(marked)))?;
    std::fs::rename(&new, &file).map_err(|e| StoreError::io("put the new store in place", e))?;
    folder.sync()?;
    info!(path = %file.display(), "new store made");
    let checked = guard("open the store", || open_checked(kind, &folder, &file, marked, options))?;
    ready(kind, checked, folder, mark, damage)
}

fn check_format(folder: &Folder, found: u16) -> Result<(), StoreError> {
    if found > FORMAT {
        let path = folder.path().to_owned();
        return Err(StoreError::NewerFormat {
            path,
            found,
            known: FORMAT,
        });
    }
    Ok(())
}

fn create(kind: BackendKind, path: &Path, options: &OpenOptions, state: &State) -> Result<(), StoreError> {
    let io = |source| StoreError::io("make the store", source);
    match kind {
        BackendKind::Sled => {
            make_private_folder(path).map_err(io)?;
            drop(SledEngine::create(path, options.cache_bytes, state)?);
        }
        _ => {
            let file = open_private(path).map_err(io)?;
            let backend = redb::backends::FileBackend::new(file).map_err(|e| StoreError::Backend {
                attempt: "make the store",
                reason: e.to_string(),
            })?;
            drop(RedbEngine::create(backend, options.cache_bytes, state)?);
        }
    }
    Ok(())
}

fn open_checked(
    kind: BackendKind,
    folder: &Folder,
    file: &Path,
    marked: u64,
    options: &OpenOptions,
) -> Result<Checked, StoreError> {
    let engine: Box<dyn Engine> = match kind {
        BackendKind::Sled => Box::new(SledEngine::open(file, options.cache_bytes)?),
        _ => {
            restrict_file(file).map_err(|e| StoreError::io("open the store", e))?;
            // redb takes an empty file for a new database.
            if std::fs::metadata(file).is_ok_and(|meta| meta.len() == 0) {
                return Err(StoreError::Damaged {
                    what: "file is empty".into(),
                });
            }
            Box::new(RedbEngine::open(file, options.cache_bytes)?)
        }
    };
    let state = engine.state()?.ok_or_else(|| StoreError::Damaged {
        what: "format record is missing".into(),
    })?;
    check_format(folder, state.format)?;
    if state.revision < marked {
        return Err(StoreError::Damaged {
            what: format!("revision {} found, {marked} was acknowledged", state.revision),
        });
    }
    let records = verify(&*engine, &state)?;
    Ok(Checked { engine, state, records })
}

/// `mark`: what the folder's mark says now.
fn ready(
    kind: BackendKind,
    checked: Checked,
    folder: Folder,
    mark: Option<(u16, u64)>,
    damage: Option<String>,
) -> Result<Ready, StoreError> {
    let Checked { engine, state, records } = checked;
    let io = |source| StoreError::io("write the store's mark", source);
    // Written again, it would have to reach the disk again.
    if mark != Some((state.format, state.revision)) {
        folder.write_mark(state.format, state.revision).map_err(io)?;
    }
    folder.sync_mark().map_err(io)?;
    let fresh = state.revision == state.base;
    let set_aside = if fresh {
        folder.last_set_aside(&kind.file_name())?
    } else {
        None
    };
    Ok(Ready {
        engine,
        folder,
        state,
        report: Report {
            fresh,
            set_aside,
            damage,
            records,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        for kind in BackendKind::all() {
            assert_eq!(kind.name().parse::<BackendKind>().unwrap(), kind);
        }
        let error = "rocks".parse::<BackendKind>().unwrap_err().to_string();
        assert_eq!(error, "unknown store backend \"rocks\", known are: memory, redb, sled");
    }

    #[tokio::test]
    async fn a_newer_store_format_is_refused_and_left_alone() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("store.redb");
        let backend = redb::backends::FileBackend::new(open_private(&file).unwrap()).unwrap();
        let newer = State {
            format: FORMAT + 1,
            ..State::new(0)
        };
        drop(RedbEngine::create(backend, 1 << 20, &newer).unwrap());
        let before = std::fs::metadata(&file).unwrap().len();
        let error = open(BackendKind::Redb, folder.path(), &OpenOptions::default()).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, StoreError::NewerFormat { found, .. } if found == FORMAT + 1),
            "{error}"
        );
        assert!(error.to_string().contains("update the program"));
        assert_eq!(std::fs::metadata(&file).unwrap().len(), before);
    }
}
