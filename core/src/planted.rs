//! Bugs that can be planted to see whether the simulation finds them. Without the feature `planted-bugs`, which only the
//! simulation's own feature turns on, nothing can be planted and every question is answered `false` at compile time.

/// A bug that has been met elsewhere, and must be found here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A receiver takes orders of any generation and epoch.
    SkipGeneration,
    /// A placement does not raise the epoch.
    SkipEpoch,
    /// What is leaving a child no longer counts as reserved there, and the child takes whatever it is given.
    ForgetReservation,
    /// A query forgets whose objects it may see.
    DropOrganization,
    /// A status counts whatever order it answers.
    StaleStatus,
    /// What is to be deleted is forgotten before anybody has confirmed.
    ForgetTombstone,
    /// A child's silence counts as confirmation: a copy is replaced at once.
    SkipFence,
    /// A cluster that lost its store gives blocks of addresses without asking who has which.
    ForgetBlocks,
    /// That a row of the overlay's tables is gone is not passed on.
    ForgetWithdrawal,
    /// Rows are told to who has nothing of their application.
    TellStrangers,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local!(static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) });

    /// Plants a bug in this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether this bug is planted.
    pub fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{is_planted, plant};

/// Whether this bug is planted: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is_planted(_: Bug) -> bool {
    false
}
