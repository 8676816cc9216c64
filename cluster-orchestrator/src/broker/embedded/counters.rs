//! What the broker counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::BrokerStats;
use super::connection::Close;

/// One counter that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(super) fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) connects: Counter,
    pub(super) refused: Counter,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) queue_full: Counter,
    pub(super) forbidden_publish: Counter,
    pub(super) forbidden_subscribe: Counter,
    pub(super) protocol_errors: Counter,
    pub(super) stalled: Counter,
    pub(super) silent: Counter,
    pub(super) duplicates: Counter,
    pub(super) revoked: Counter,
}

impl Counters {
    /// Counts the end of a connection.
    pub(super) fn closed(&self, reason: Close) {
        match reason {
            Close::Left | Close::Lost | Close::Replaced => {}
            Close::Revoked => self.revoked.add(),
            Close::TooMany | Close::NoConnect | Close::Refused => self.refused.add(),
            Close::Silent => self.silent.add(),
            Close::Stalled => self.stalled.add(),
            Close::Protocol => self.protocol_errors.add(),
            Close::ForbiddenPublish => self.forbidden_publish.add(),
        }
    }

    pub(super) fn read(&self) -> BrokerStats {
        let get = |counter: &Counter| counter.0.load(Relaxed);
        BrokerStats {
            connects: get(&self.connects),
            refused: get(&self.refused),
            received: get(&self.received),
            sent: get(&self.sent),
            queue_full: get(&self.queue_full),
            forbidden_publish: get(&self.forbidden_publish),
            forbidden_subscribe: get(&self.forbidden_subscribe),
            protocol_errors: get(&self.protocol_errors),
            stalled: get(&self.stalled),
            silent: get(&self.silent),
            duplicates: get(&self.duplicates),
            revoked: get(&self.revoked),
            ..BrokerStats::default()
        }
    }
}
