//! The whole tree in one thread and in virtual time: the real tiers of root, clusters and nodes, with simulated links,
//! disks, runtimes, clocks and users, and faults in all of them. One seed decides everything; the same seed gives the same
//! hash of all events.
//!
//! A run: the tree is installed, users work while faults happen, all faults end, time passes, and the invariants of
//! reference/reliability-security.md section 3 are checked. Some are watched at every instant: I3 for at-most-one
//! services, I5, I7, I8, I22. `ROBLE_SIM_TRACE=1 cargo run -p roble-sim -- --seed 7` prints every event.
//!
//! Limits of at-most-one, which the faults keep to: an engine that died is up again 8 s later and stays up for a while,
//! for nobody else can stop its containers; a start takes at most 3 s.
//!
//! - [`world`]: the queue, the daemons, how a tree is installed; [`drive`]: events in, acts out
//! - [`daemon`]: disk and clocks; [`net`]: links; [`node`]: the runtime, the truth about what runs
//! - [`net_manager`]: addresses of containers; [`tables`], [`needs`]: the invariants of addresses and tables
//! - [`points`]: boundaries between steps, and a crash at one; [`sweep`]: a crash at each; [`identity`]: joining, renewing
//! - [`work`]: the users; [`faults`]: what breaks; [`check`]: the invariants; [`log`]: the trace and its hash

pub mod check;
pub mod daemon;
pub mod drive;
pub mod faults;
pub mod identity;
pub mod log;
pub mod needs;
pub mod net;
pub mod net_manager;
pub mod node;
pub mod points;
pub mod sweep;
pub mod tables;
pub mod work;
pub mod world;

use world::{Plan, Violation, World};

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Hash of all events.
    pub hash: String,
    /// How many there were.
    pub events: u64,
    /// Calls that were acknowledged.
    pub acknowledged: u64,
    /// What was found wrong.
    pub violations: Vec<Violation>,
}

/// Runs one seed.
pub fn run(seed: u64) -> Report {
    let trace = std::env::var_os("ROBLE_SIM_TRACE").is_some();
    run_plan(Plan::of(seed, trace))
}

/// Runs a plan.
pub fn run_plan(plan: Plan) -> Report {
    let (seed, end) = (plan.seed, plan.end_at);
    let mut world = World::new(plan);
    world.plan_faults();
    world.plan_work();
    world.run_until(end);
    world.check();
    let (events, hash) = world.log.finish();
    Report {
        seed,
        hash,
        events,
        acknowledged: world.users.acknowledged,
        violations: world.violations,
    }
}
