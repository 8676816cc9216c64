//! A daemon: a tier, its simulated disk, its clocks, and the order in which its acts may leave it.

use roble_core::ids::OrganizationId;
use roble_core::tier::{Record, Write};
use roble_core::time::{Boottime, Now, Timestamp};
use std::collections::{BTreeMap, VecDeque};

/// Wall clock at the start of every run, milliseconds since 1970.
const EPOCH_MS: u64 = 1_795_000_000_000;

/// A disk that loses on a crash what was not yet synced.
#[derive(Default)]
pub struct Disk {
    synced: BTreeMap<(Option<OrganizationId>, String, String), Vec<u8>>,
    pending: VecDeque<(u64, Vec<Write>)>,
}

impl Disk {
    /// A transaction that is durable at `at`.
    pub fn write(&mut self, at: u64, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.pending.push_back((at, writes));
        }
    }

    /// Everything due by `now` becomes durable; each transaction wholly or not at all.
    pub fn sync(&mut self, now: u64) {
        while self.pending.front().is_some_and(|(at, _)| *at <= now) {
            for write in self.pending.pop_front().into_iter().flat_map(|(_, writes)| writes) {
                let key = (write.organization, write.kind.to_owned(), write.id);
                match write.value {
                    Some(value) => drop(self.synced.insert(key, value)),
                    None => drop(self.synced.remove(&key)),
                }
            }
        }
    }

    /// The power or the process is gone: what was not durable is lost.
    pub fn crash(&mut self, now: u64) {
        self.sync(now);
        self.pending.clear();
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&mut self) {
        self.synced.clear();
        self.pending.clear();
    }

    /// What a start finds.
    pub fn records(&self) -> Vec<Record> {
        let record =
            |((organization, kind, id), value): (&(Option<OrganizationId>, String, String), &Vec<u8>)| Record {
                organization: *organization,
                kind: kind.clone(),
                id: id.clone(),
                value: value.clone(),
            };
        self.synced.iter().map(record).collect()
    }
}

/// One daemon on its machine.
pub struct Daemon<T> {
    /// The tier; `None` while the process is down.
    pub tier: Option<T>,
    /// Its disk.
    pub disk: Disk,
    /// Counts its processes: what was meant for an earlier one is dropped.
    pub life: u64,
    /// When everything it has written so far is durable.
    pub durable_at: u64,
    /// When it is ticked next.
    pub next_tick: u64,
    /// The disk is not known to have lost anything.
    pub complete: bool,
    booted_at: u64,
    skew_ms: i64,
}

impl<T> Default for Daemon<T> {
    /// A machine that was booted a while before the run.
    fn default() -> Self {
        Self {
            tier: None,
            disk: Disk::default(),
            life: 0,
            durable_at: 0,
            next_tick: 0,
            complete: true,
            booted_at: 0,
            skew_ms: 0,
        }
    }
}

impl<T> Daemon<T> {
    /// Its clocks at the virtual instant `at`.
    pub fn now(&self, at: u64) -> Now {
        Now {
            boot: Boottime::from_millis(50_000 + at - self.booted_at),
            wall: Timestamp::from_millis((EPOCH_MS + at).saturating_add_signed(self.skew_ms)),
        }
    }

    /// The virtual instant of one on its clock since boot.
    pub fn instant(&self, boot: Boottime) -> u64 {
        (boot.as_millis() + self.booted_at).saturating_sub(50_000)
    }

    /// The wall clock jumps.
    pub fn jump(&mut self, by_ms: i64) {
        self.skew_ms += by_ms;
    }

    /// The process ends without warning.
    pub fn crash(&mut self, at: u64) {
        self.tier = None;
        self.life += 1;
        self.disk.crash(at);
    }

    /// The machine starts anew.
    pub fn reboot(&mut self, at: u64) {
        self.booted_at = at;
    }
}
