//! Heartbeats, loss, and the brake that holds eviction when most children vanish at once.

use crate::backoff::Backoff;
use crate::time::Boottime;
use serde::{Deserialize, Serialize};

/// How long silence is tolerated. All in milliseconds of [`Boottime`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// How often a child beats.
    pub beat_ms: u64,
    /// Silence after which nothing new is placed on a child.
    pub unreachable_ms: u64,
    /// Silence after which a child's instances run elsewhere; `None`: never without a person.
    pub lost_ms: Option<u64>,
    /// Silence after which a child has stopped its own at-most-one copies.
    pub fence_ms: u64,
    /// Silence after which an at-most-one copy may be replaced; more than `fence_ms`.
    pub replace_fenced_ms: u64,
    /// Children that go silent within this time of each other count together for the brake.
    pub brake_window_ms: u64,
}

impl Clocks {
    /// Nodes below a cluster (DESIGN.md section 9).
    pub const NODES: Self = Self {
        beat_ms: 2_500,
        unreachable_ms: 6_000,
        lost_ms: Some(8_000),
        fence_ms: 30_000,
        replace_fenced_ms: 45_000,
        brake_window_ms: 15_000,
    };
    /// Nodes on a metered uplink.
    pub const METERED_NODES: Self = Self {
        beat_ms: 20_000,
        unreachable_ms: 45_000,
        lost_ms: Some(60_000),
        fence_ms: 90_000,
        replace_fenced_ms: 135_000,
        brake_window_ms: 90_000,
    };
    /// Clusters below the root: a site cut off goes on by itself, so nothing moves away from it unasked.
    pub const CLUSTERS: Self = Self {
        beat_ms: 2_500,
        unreachable_ms: 8_000,
        lost_ms: None,
        fence_ms: 30_000,
        replace_fenced_ms: 45_000,
        brake_window_ms: 15_000,
    };
}

/// How a child stands, judged by its silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Beats arrive.
    Ready,
    /// Silent; gets nothing new.
    Unreachable,
    /// Silent beyond its lease; its instances run elsewhere unless the brake holds.
    Lost,
}

impl Standing {
    /// The word used in the API and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
        }
    }
}

/// Judges one child. `last_beat` is `None` if it has not been heard since this process started at `started`: then it
/// has the whole lease from the start and the longest wait between two tries to connect, so that a restarted parent evicts
/// nobody before it listened.
pub fn judge(clocks: &Clocks, last_beat: Option<Boottime>, started: Boottime, now: Boottime) -> Standing {
    let silence = now.since(last_beat.unwrap_or(started));
    let wait = if last_beat.is_none() {
        Backoff::RECONNECT.cap_ms
    } else {
        0
    };
    if clocks.lost_ms.is_some_and(|lost| silence >= lost + wait) {
        Standing::Lost
    } else if silence >= clocks.unreachable_ms || last_beat.is_none() {
        Standing::Unreachable
    } else {
        Standing::Ready
    }
}

/// Holds eviction when three or more and over half of the children fell silent together: then the fault is more likely
/// here or in between than in each of them.
///
/// `silences`: for each child that is expected to beat, its last sign of life, and whether it is silent now.
/// `held`: whether the brake held before. It lets go once no more than half are silent.
pub fn brake(clocks: &Clocks, silences: &[(Boottime, bool)], held: bool, now: Boottime) -> bool {
    let silent = silences.iter().filter(|(_, silent)| *silent).count();
    if silent * 2 <= silences.len() {
        return false;
    }
    if held {
        return true;
    }
    let window = clocks.brake_window_ms + clocks.unreachable_ms.max(clocks.lost_ms.unwrap_or(0));
    let together = silences
        .iter()
        .filter(|(last, silent)| *silent && now.since(*last) <= window)
        .count();
    together >= 3 && together * 2 > silences.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Boottime = Boottime::from_millis;

    #[test]
    fn silence_is_judged_by_the_clocks() {
        let judge_at = |now| judge(&Clocks::NODES, Some(AT(0)), AT(0), AT(now));
        assert_eq!(judge_at(5_999), Standing::Ready);
        assert_eq!(judge_at(6_000), Standing::Unreachable);
        assert_eq!(judge_at(8_000), Standing::Lost);
        assert_eq!(
            judge(&Clocks::CLUSTERS, Some(AT(0)), AT(0), AT(9_999_999)),
            Standing::Unreachable
        );
    }

    #[test]
    fn a_restarted_parent_gives_everybody_a_whole_lease() {
        assert_eq!(
            judge(&Clocks::NODES, None, AT(100_000), AT(137_999)),
            Standing::Unreachable
        );
        assert_eq!(judge(&Clocks::NODES, None, AT(100_000), AT(138_000)), Standing::Lost);
    }

    #[test]
    fn the_brake_needs_three_and_over_half() {
        let gone = |n: usize, of: usize| {
            (0..of)
                .map(|i| (AT(if i < n { 0 } else { 8_000 }), i < n))
                .collect::<Vec<_>>()
        };
        assert!(!brake(&Clocks::NODES, &gone(2, 3), false, AT(8_000)));
        assert!(!brake(&Clocks::NODES, &gone(3, 6), false, AT(8_000)));
        assert!(brake(&Clocks::NODES, &gone(3, 5), false, AT(8_000)));
        assert!(
            brake(&Clocks::NODES, &gone(3, 5), true, AT(900_000)),
            "holds until they are back"
        );
        assert!(
            !brake(&Clocks::NODES, &gone(2, 5), true, AT(900_000)),
            "lets go when over half are back"
        );
        assert!(
            !brake(&Clocks::NODES, &gone(3, 5), false, AT(900_000)),
            "lost one after the other, long ago"
        );
    }
}
