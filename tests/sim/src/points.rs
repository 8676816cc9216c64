//! Failpoints: every boundary between two steps of a daemon, counted, and a crash at one of them.
//!
//! A daemon's steps are: an event comes in (`before it`), the tier has decided and nothing is written yet (`decided`), the
//! writes are durable and `n` of the acts are performed (`acts`), and, while it has no tier yet or renews, each step of
//! getting an identity (`identity`). A crash loses the process, what was not durable, and the rest of the acts; the
//! daemon is started again a little later.

use crate::world::{Ev, Who, World};
use std::fmt;
use std::str::FromStr;

/// How long a daemon that crashed at a point is down, milliseconds: as systemd starts it again.
const DOWN_MS: u64 = 1_200;

/// A kind of daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The root.
    Root,
    /// The cluster orchestrators.
    Cluster,
    /// The node engines.
    Node,
    /// The net managers.
    Net,
}

impl Level {
    /// All of them, in the order of [`Points::reached`].
    pub const ALL: [Self; 4] = [Self::Root, Self::Cluster, Self::Node, Self::Net];

    const fn of(who: Who) -> Self {
        match who {
            Who::Root => Self::Root,
            Who::Cluster(_) => Self::Cluster,
            Who::Node(_) => Self::Node,
            Who::Net(_) => Self::Net,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Net => "net",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is not one of root, cluster, node, net"))
    }
}

/// Between which steps a daemon is.
#[derive(Debug, Clone, Copy)]
pub enum Boundary {
    /// An event has arrived and was not looked at.
    Before,
    /// The tier has decided on so many writes, and none of them is on disk.
    Decided(usize),
    /// The writes are durable, or need not be, and so many of so many acts were performed.
    Acts(usize, usize),
    /// A step of getting or renewing an identity was taken.
    Identity(&'static str),
}

/// The points of a run.
#[derive(Debug, Default)]
pub struct Points {
    /// Whether points are counted now.
    pub counting: bool,
    /// How many were reached, by [`Level::ALL`].
    pub reached: [u64; 4],
    /// Crash at this one, counted from 0.
    pub armed: Option<(Level, u64)>,
    /// Where the crash was.
    pub crashed: Option<String>,
}

impl World {
    /// A boundary between two steps of `who`. `true`: the daemon crashed here, and whatever it was about to do is not done.
    pub fn point(&mut self, who: Who, boundary: Boundary) -> bool {
        if !self.points.counting {
            return false;
        }
        let level = Level::of(who);
        let reached = &mut self.points.reached[level as usize];
        let number = *reached;
        *reached += 1;
        if self.points.armed != Some((level, number)) {
            return false;
        }
        let text = format!("{who:?} at {:.3} s, {boundary:?}", self.t as f64 / 1000.0);
        self.log
            .line(self.t, format_args!("crash at point {level}/{number}: {text}"));
        self.points.crashed = Some(text);
        if self.is_up(who) {
            self.crash(who);
        }
        self.forget_request(who);
        self.push(self.t + DOWN_MS, Ev::Start(who));
        true
    }
}
