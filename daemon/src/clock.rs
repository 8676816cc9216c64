//! Time as a seam, and the clock that certificates are checked against.
//!
//! Leases and timeouts use [`Clock::boot`], which nobody can set and which counts while the machine sleeps.
//! [`Clock::wall`] is for people and certificates only. A Raspberry Pi has no clock of its own and starts in 1970, so
//! certificates are checked with [`VerifierClock`], which never goes behind what this device has already seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::files::{self, FileError};

/// The two clocks of a machine, in milliseconds.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Milliseconds since 1970-01-01 UTC, as the machine believes; may jump either way.
    fn wall(&self) -> u64;
    /// Milliseconds of `CLOCK_BOOTTIME`: never goes back, counts during suspend, starts anew at boot.
    fn boot(&self) -> u64;
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> u64 {
        milliseconds(ClockId::CLOCK_REALTIME)
    }

    fn boot(&self) -> u64 {
        milliseconds(ClockId::CLOCK_BOOTTIME)
    }
}

fn milliseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("both clocks exist on every Linux since 2.6.39");
    // Before 1970 counts as 1970.
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicU64,
    boot: AtomicU64,
}

impl ManualClock {
    /// Starts at `wall_ms`, with `boot` at zero.
    pub fn new(wall_ms: u64) -> Self {
        Self {
            wall: AtomicU64::new(wall_ms),
            boot: AtomicU64::new(0),
        }
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.wall.fetch_add(by, Ordering::SeqCst);
        self.boot.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an operator or NTP would.
    pub fn set_wall(&self, wall_ms: u64) {
        self.wall.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn boot(&self) -> u64 {
        self.boot.load(Ordering::SeqCst)
    }
}

/// When this binary was built, in milliseconds since 1970.
pub fn build_date() -> u64 {
    env!("ROBLE_BUILD_EPOCH")
        .parse::<u64>()
        .unwrap_or(0)
        .saturating_mul(1000)
}

/// The latest of wall clock, last persisted time plus what has passed since start, and build date.
///
/// A wall clock that once ran far ahead and was persisted stays the lower bound until the file is removed.
#[derive(Debug)]
pub struct VerifierClock {
    clock: Arc<dyn Clock>,
    floor: u64,
    started: u64,
    file: Option<PathBuf>,
}

impl VerifierClock {
    /// Reads the last persisted time from `file`, if there is one. An unreadable time is ignored with a warning: the file
    /// is only a lower bound.
    pub fn open(clock: Arc<dyn Clock>, file: PathBuf) -> Self {
        Self::with_floor(clock, Some(file), build_date())
    }

    /// Without a file: the later of wall clock and build date.
    pub fn volatile(clock: Arc<dyn Clock>) -> Self {
        Self::with_floor(clock, None, build_date())
    }

    /// As [`open`](Self::open), with another build date; for tests and simulations.
    pub fn with_floor(clock: Arc<dyn Clock>, file: Option<PathBuf>, build_date: u64) -> Self {
        let persisted = file.as_deref().map_or(0, |path| match files::read_optional(path, 64) {
            Ok(Some(bytes)) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_else(|| {
                    tracing::warn!(path = %path.display(), "persisted time is damaged, ignored");
                    0
                }),
            Ok(None) => 0,
            Err(error) => {
                tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "persisted time is unreadable, ignored");
                0
            }
        });
        let started = clock.boot();
        Self {
            clock,
            floor: build_date.max(persisted),
            started,
            file,
        }
    }

    /// Milliseconds since 1970, never before anything this device has seen.
    pub fn now(&self) -> u64 {
        let passed = self.clock.boot().saturating_sub(self.started);
        self.clock.wall().max(self.floor.saturating_add(passed))
    }

    /// Writes the present time to the file; to be called now and then (every hour is plenty) and at shutdown.
    ///
    /// # Errors
    /// [`FileError`]; the older time stays.
    pub fn persist(&self) -> Result<(), FileError> {
        match &self.file {
            Some(path) => files::write_atomic(path, self.now().to_string().as_bytes(), 0o644),
            None => Ok(()),
        }
    }

    /// The clocks below.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl TimeProvider for VerifierClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_clock_never_goes_back() {
        let first = SystemClock.boot();
        assert!(first > 0 && SystemClock.boot() >= first);
        assert!(SystemClock.wall() > 1_700_000_000_000);
        assert!(build_date() > 1_700_000_000_000);
    }

    #[test]
    fn verifier_clock_takes_the_latest_and_survives_a_reset() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("time");
        let manual = Arc::new(ManualClock::new(5_000));
        let clock = VerifierClock::with_floor(manual.clone(), Some(file.clone()), 1_000);
        assert_eq!(clock.now(), 5_000);
        clock.persist().unwrap();

        let reset = Arc::new(ManualClock::new(0));
        let clock = VerifierClock::with_floor(reset.clone(), Some(file.clone()), 1_000);
        assert_eq!(clock.now(), 5_000);
        reset.advance(Duration::from_millis(10));
        assert_eq!(clock.now(), 5_010, "time passes although the wall clock is wrong");
        reset.set_wall(9_000);
        assert_eq!(clock.now(), 9_000);

        std::fs::write(&file, b"garbage").unwrap();
        assert_eq!(
            VerifierClock::with_floor(Arc::new(ManualClock::new(0)), Some(file), 1_000).now(),
            1_000
        );
    }
}
