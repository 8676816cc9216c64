//! The one table of instance states. Every tier moves an instance only along it.

use crate::status::Phase;

/// Whether a report that moves an instance from `from` to `to` under one and the same version is legal.
///
/// A new version starts again at [`Phase::Pending`], whatever went before. Repeating a phase is always legal: reports are
/// level-triggered. A parent that sees an illegal move keeps the newer report and counts it; only final phases are sticky.
pub const fn is_legal(from: Phase, to: Phase) -> bool {
    use Phase::*;
    match (from, to) {
        // Final phases are left only towards the end: being stopped, refused after a cold start, or lost from view.
        (Completed, Completed | Stopping | Lost) | (Failed, Failed | Stopping | Lost) => true,
        (Completed | Failed, _) => false,
        // Lost is the parent's word; the child comes back with whatever is true.
        (Lost, _) => true,
        // A child may have done several steps before it is heard again: only what was said last is sent.
        (Pending | Scheduled | Stopping | Refused, _) => true,
        (Starting, Pending) | (Running, Pending) | (BackingOff, Pending) => true,
        // A child that started again itself knows less than what it said before.
        (Starting | Running | BackingOff, Scheduled) => false,
        (Starting | Running | BackingOff, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeating_is_always_legal_and_final_is_sticky() {
        for phase in Phase::ALL {
            assert!(is_legal(phase, phase), "{phase}");
        }
        for ended in [Phase::Completed, Phase::Failed] {
            for to in [
                Phase::Pending,
                Phase::Scheduled,
                Phase::Starting,
                Phase::Running,
                Phase::BackingOff,
                Phase::Refused,
            ] {
                assert!(!is_legal(ended, to), "{ended} -> {to}");
            }
        }
    }

    /// The whole table, so that a change to it shows in review.
    #[test]
    fn the_table() {
        let rows: Vec<String> = Phase::ALL
            .iter()
            .map(|from| {
                let cells: String = Phase::ALL
                    .iter()
                    .map(|to| if is_legal(*from, *to) { 'x' } else { '.' })
                    .collect();
                format!("{:<11} {cells}", from.as_str())
            })
            .collect();
        let expected = [
            "pending     xxxxxxxxxx",
            "scheduled   xxxxxxxxxx",
            "starting    x.xxxxxxxx",
            "running     x.xxxxxxxx",
            "backing-off x.xxxxxxxx",
            "stopping    xxxxxxxxxx",
            "completed   .....xx..x",
            "failed      .....x.x.x",
            "refused     xxxxxxxxxx",
            "lost        xxxxxxxxxx",
        ];
        assert_eq!(rows, expected);
    }
}
