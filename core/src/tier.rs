//! What every tier is to the shell around it: a machine without I/O. Events go in; writes and acts come out, and the
//! shell performs no act before the writes are on disk, but for what others tell again.

use crate::ids::OrganizationId;
use crate::time::{Boottime, Now};
use rand::RngCore;

/// One change of the store. Everything that belongs to somebody is kept below its organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The owner; `None` for what belongs to the system.
    pub organization: Option<OrganizationId>,
    /// Kind of record, e.g. `service`.
    pub kind: &'static str,
    /// Its id within the kind.
    pub id: String,
    /// The new value; `None` deletes.
    pub value: Option<Vec<u8>>,
    /// No act waits for it; see [`Write::retold`].
    pub is_retold: bool,
}

impl Write {
    /// Puts a record of the system.
    pub fn put(kind: &'static str, id: impl ToString, value: Vec<u8>) -> Self {
        Self {
            organization: None,
            kind,
            id: id.to_string(),
            value: Some(value),
            is_retold: false,
        }
    }

    /// Deletes a record of the system.
    pub fn delete(kind: &'static str, id: impl ToString) -> Self {
        Self {
            organization: None,
            kind,
            id: id.to_string(),
            value: None,
            is_retold: false,
        }
    }

    /// The same change; `is_retold`: of what others know, who tell it again if it is lost, so that acts need not wait for the disk.
    #[must_use]
    pub const fn retold(mut self, is_retold: bool) -> Self {
        self.is_retold = is_retold;
        self
    }

    /// The same change below an organization.
    #[must_use]
    pub fn of(mut self, organization: OrganizationId) -> Self {
        self.organization = Some(organization);
        self
    }
}

/// A record found in the store at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The owner; `None` for what belongs to the system.
    pub organization: Option<OrganizationId>,
    /// Kind of record.
    pub kind: String,
    /// Its id within the kind.
    pub id: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// What one event led to.
#[derive(Debug)]
pub struct Output<A> {
    /// To be on disk before any of `acts` is performed, unless all of them [`are_retold`](Self::are_retold).
    pub writes: Vec<Write>,
    /// To be performed in this order.
    pub acts: Vec<A>,
}

impl<A> Default for Output<A> {
    fn default() -> Self {
        Self {
            writes: Vec::new(),
            acts: Vec::new(),
        }
    }
}

impl<A> Output<A> {
    /// Whether the acts need not wait for the writes. If one of them must be on disk, all must: the order of acts is kept.
    pub fn are_retold(&self) -> bool {
        self.writes.iter().all(|write| write.is_retold)
    }

    /// Adds what another step led to.
    pub fn append(&mut self, mut other: Self) {
        self.writes.append(&mut other.writes);
        self.acts.append(&mut other.acts);
    }
}

/// A tier as the shell drives it.
pub trait Tier {
    /// What happens to it: messages, completions, users' commands.
    type Event;
    /// What it asks of the shell.
    type Act;

    /// Takes one event. `now` was read just before; `rng` is the only source of randomness.
    fn on(&mut self, event: Self::Event, now: Now, rng: &mut dyn RngCore) -> Output<Self::Act>;

    /// Time passed. Called when [`Self::next_due`] says so, and at least once a second.
    fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Output<Self::Act>;

    /// When [`Self::tick`] is needed next, if before the next second.
    fn next_due(&self) -> Option<Boottime>;
}
