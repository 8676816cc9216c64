//! One wait for the disk while a database opens, instead of one for each step of redb's check.
//!
//! The check rewrites the header several times with a sync after each, and as a rule nothing else. The header lies in one
//! sector: what power loss leaves of such writes is one of its versions, old or new, beside the same pages, and redb opens
//! from each of them. So these syncs are owed until the database is open, or until something else than the header is
//! written, which must come after them on disk. What an earlier process left unsynced is synced first: the header must
//! not vouch for pages that may still be lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

/// The smallest unit that a disk writes whole.
const SECTOR: u64 = 512;

/// A backend whose syncs wait until [`Opening::finish`]. Does not lock the file: the store's folder is locked.
#[derive(Debug)]
pub(super) struct Opening<B>(Arc<Inner<B>>);

#[derive(Debug)]
struct Inner<B> {
    backend: B,
    is_open: AtomicBool,
    owes_sync: AtomicBool,
}

impl<B> Clone for Opening<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: StorageBackend> Opening<B> {
    pub fn new(backend: B) -> io::Result<Self> {
        backend.sync_data()?;
        Ok(Self(Arc::new(Inner {
            backend,
            is_open: AtomicBool::new(false),
            owes_sync: AtomicBool::new(false),
        })))
    }

    /// Does the sync that is owed; from now on, each is done when it is asked for.
    pub fn finish(&self) -> io::Result<()> {
        self.0.is_open.store(true, Ordering::Release);
        match self.0.owes_sync.swap(false, Ordering::AcqRel) {
            true => self.0.backend.sync_data(),
            false => Ok(()),
        }
    }
}

impl<B: StorageBackend> StorageBackend for Opening<B> {
    fn len(&self) -> io::Result<u64> {
        self.0.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.finish()?;
        self.0.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.is_open.load(Ordering::Acquire) {
            return self.0.backend.sync_data();
        }
        self.0.owes_sync.store(true, Ordering::Release);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset + data.len() as u64 > SECTOR {
            self.finish()?;
        }
        self.0.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }
}
