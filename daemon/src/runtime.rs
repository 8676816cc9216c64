//! The tokio runtime every daemon runs on.
//!
//! Memory: glibc gives every thread an arena of its own. Units set `MALLOC_ARENA_MAX=2` and
//! `MALLOC_TRIM_THRESHOLD_=131072`, which keeps an idle daemon small without code of ours.

use std::io;
use std::time::Duration;

/// Worker threads of a daemon that has no reason for another number.
pub const DEFAULT_WORKERS: usize = 2;

/// A multi-thread runtime with `workers` threads (at least one), small stacks and few blocking threads.
///
/// # Errors
/// If the threads cannot be started.
pub fn runtime(workers: usize) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        .max_blocking_threads(16)
        .thread_stack_size(1024 * 1024)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("roble")
        .enable_all()
        .build()
}
