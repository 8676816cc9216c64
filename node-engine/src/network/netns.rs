//! Network namespaces that outlive the process that made them: each is a file that the namespace is mounted on.
//!
//! A crash leaves either a plain file, which [`ensure`] uses and [`ensure_gone`] removes, or a whole namespace.

use super::NetworkError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;
use roble_daemon::failpoint;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Makes a network namespace at `path` (and its folder, 0700) unless there is one. Repeatable.
///
/// # Errors
/// [`NetworkError::Netns`], e.g. without the right to make one; a plain file may be left.
pub async fn ensure(path: &Path) -> Result<(), NetworkError> {
    if exists(path) {
        return Ok(());
    }
    let path = path.to_path_buf();
    let failed = |source| NetworkError::Netns {
        attempt: "make",
        path: path.clone(),
        source,
    };
    let target = path.clone();
    let make = move || {
        if let Some(folder) = target.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        File::options().write(true).create(true).truncate(false).open(&target)?;
        failpoint!("node.netns.file");
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        mount(Some("/proc/thread-self/ns/net"), &target, none, MsFlags::MS_BIND, none)?;
        failpoint!("node.netns.mounted");
        Ok(())
    };
    on_own_thread(make).await.map_err(failed)
}

/// Removes the namespace at `path` and the file; processes inside keep it until they end. Repeatable.
///
/// # Errors
/// [`NetworkError::Netns`].
pub async fn ensure_gone(path: &Path) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Netns {
        attempt: "remove",
        path: path.into(),
        source,
    };
    let target = path.to_path_buf();
    let remove = move || {
        // Two processes that made it at once have mounted twice.
        while exists(&target) {
            umount2(&target, MntFlags::MNT_DETACH)?;
            failpoint!("node.netns.unmounted");
        }
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    };
    on_own_thread(remove).await.map_err(failed)
}

/// Whether there is a namespace at `path`; a plain file is none.
pub fn exists(path: &Path) -> bool {
    #[allow(clippy::unnecessary_cast)] // The type differs between architectures.
    statfs(path).is_ok_and(|found| found.filesystem_type().0 as i64 == NSFS_MAGIC)
}

/// All namespaces and what crashes left of them directly in `folder`, ordered by path; a missing folder has none.
///
/// # Errors
/// [`NetworkError::Netns`].
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let failed = |source| NetworkError::Netns {
        attempt: "list",
        path: folder.into(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Runs `work` on a thread inside the namespace at `path`; processes it starts are inside too.
///
/// # Errors
/// [`NetworkError::Netns`] if it cannot be entered; else what `work` says.
pub async fn enter<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Netns {
        attempt: "work in",
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let inside = move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    on_own_thread(inside).await.map_err(failed)
}

/// The thread ends with the work: it is in another namespace then, and must not be used for anything else.
async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("roble-netns".into()).spawn(move || {
        let _ = sender.send(work());
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread ended"))?
}
