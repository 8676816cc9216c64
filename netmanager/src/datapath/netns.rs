//! Working inside another network namespace: a thread goes there, opens a netlink socket, and ends; the socket stays.

use super::DatapathError;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// `NSFS_MAGIC` of linux/magic.h: what tells a namespace from a plain file at its path.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A netlink connection; ends when dropped.
pub struct Connection {
    /// Requests go here.
    pub handle: rtnetlink::Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// A connection in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`DatapathError::OpenNetlink`].
    pub fn open() -> Result<Self, DatapathError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(DatapathError::OpenNetlink)?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A container's namespace, held open.
pub struct Netns {
    /// Where it was found.
    pub path: PathBuf,
    /// The open namespace.
    pub file: File,
    identity: (u64, u64),
}

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`DatapathError::NetnsMissing`] also for a file that is no namespace: a path that lost its mount;
    /// [`DatapathError::NetnsIsOurs`] for the namespace of this process.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let missing = || DatapathError::NetnsMissing { path: path.into() };
        let file = File::open(path).map_err(|_| missing())?;
        #[allow(clippy::unnecessary_cast)] // The type differs between architectures.
        let kind = fstatfs(&file).map_err(|_| missing())?.filesystem_type().0 as i64;
        if kind != NSFS_MAGIC {
            return Err(missing());
        }
        let identity = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let own = File::open("/proc/thread-self/ns/net").and_then(|own| identity(&own));
        match (own, identity(&file)) {
            (Ok(own), Ok(theirs)) if own == theirs => Err(DatapathError::NetnsIsOurs { path: path.into() }),
            (Ok(_), Ok(identity)) => Ok(Self {
                path: path.into(),
                file,
                identity,
            }),
            (Err(source), _) | (_, Err(source)) => Err(DatapathError::EnterNetns {
                path: path.into(),
                source,
            }),
        }
    }

    /// Device and inode: what tells it from every other namespace that exists.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// A netlink connection inside.
    ///
    /// # Errors
    /// [`DatapathError::EnterNetns`] also if it is a namespace of another kind.
    pub async fn connect(&self) -> Result<Connection, DatapathError> {
        let runtime = tokio::runtime::Handle::current();
        self.run(move || {
            let _context = runtime.enter();
            Connection::open()
        })
        .await?
    }

    /// What `work` returns, run inside by a thread of its own: it must never do anything else once it is there.
    ///
    /// # Errors
    /// [`DatapathError::EnterNetns`] also if it is a namespace of another kind.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, DatapathError> {
        let failed = |source: io::Error| DatapathError::EnterNetns {
            path: self.path.clone(),
            source,
        };
        let file = self.file.try_clone().map_err(failed)?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("roble-netns".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                let result = setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work());
                let _ = sender.send(result.map_err(io::Error::from));
            })
            .map_err(failed)?;
        receiver
            .await
            .map_err(|_| failed(io::Error::other("the thread ended")))?
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_files_nothing_and_ourselves_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        assert!(matches!(Netns::open(&plain), Err(DatapathError::NetnsMissing { .. })));
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(Netns::open(&plain), Err(DatapathError::NetnsMissing { .. })));
        let own = Path::new("/proc/self/ns/net");
        assert!(matches!(Netns::open(own), Err(DatapathError::NetnsIsOurs { .. })));
    }
}
