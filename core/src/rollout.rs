//! Which instances a service should have, and which of them may change now: a changed spec replaces them one by one.

use crate::status::Phase;
use crate::version::Generation;
use std::collections::BTreeMap;

/// One instance of the service as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Current {
    /// The generation it is asked to run.
    pub wished: Generation,
    /// The generation its last report answers.
    pub reported: Generation,
    /// Its phase in that report.
    pub phase: Phase,
}

impl Current {
    fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Completed)
    }
    /// Runs what it is asked to run.
    fn is_settled(&self) -> bool {
        self.reported == self.wished && self.is_up()
    }
}

/// One decision about one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Ask this number to run `generation` (new, or replaced).
    Set(u32, Generation),
    /// This number is one too many.
    Remove(u32),
}

/// Plans the instances of one service.
///
/// `current`: by number, without those already being removed. Missing numbers are started at once, surplus ones removed
/// at once. Of the outdated, those that are not up change at once (nothing is lost by it); the others one at a time,
/// lowest number first, each only when all others that were changed are up again.
pub fn plan(replicas: u32, newest: Generation, current: &BTreeMap<u32, Current>) -> Vec<Change> {
    let mut changes: Vec<Change> = current
        .keys()
        .filter(|number| **number >= replicas)
        .map(|number| Change::Remove(*number))
        .collect();
    let mut outdated_up = Vec::new();
    let mut unsettled = false;
    for number in 0..replicas {
        match current.get(&number) {
            None => {
                changes.push(Change::Set(number, newest));
            }
            Some(one) if one.wished < newest && !one.is_up() => changes.push(Change::Set(number, newest)),
            Some(one) if one.wished < newest => outdated_up.push(number),
            Some(one) => unsettled |= !one.is_settled(),
        }
    }
    // An instance changed in this very plan is on its way too.
    unsettled |= changes.iter().any(|change| matches!(change, Change::Set(..)));
    if !unsettled && let Some(number) = outdated_up.first() {
        changes.push(Change::Set(*number, newest));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(generation: u64, phase: Phase) -> Current {
        Current {
            wished: Generation(generation),
            reported: Generation(generation),
            phase,
        }
    }

    #[test]
    fn missing_start_together_and_surplus_go_together() {
        let none = BTreeMap::new();
        assert_eq!(
            plan(2, Generation(1), &none),
            [Change::Set(0, Generation(1)), Change::Set(1, Generation(1))]
        );
        let three = (0..3).map(|n| (n, at(1, Phase::Running))).collect();
        assert_eq!(plan(1, Generation(1), &three), [Change::Remove(1), Change::Remove(2)]);
    }

    #[test]
    fn an_update_goes_one_by_one_and_waits_for_each() {
        let mut all: BTreeMap<u32, Current> = (0..3).map(|n| (n, at(1, Phase::Running))).collect();
        for step in 0..3 {
            assert_eq!(plan(3, Generation(2), &all), [Change::Set(step, Generation(2))]);
            let one = all.get_mut(&step).unwrap();
            one.wished = Generation(2);
            assert_eq!(
                plan(3, Generation(2), &all),
                [],
                "waits while number {step} is replaced"
            );
            all.insert(step, at(2, Phase::Running));
        }
        assert_eq!(plan(3, Generation(2), &all), []);
    }

    #[test]
    fn a_bad_update_stops_at_the_first_and_a_newer_one_repairs_it() {
        let mut all: BTreeMap<u32, Current> = (0..2).map(|n| (n, at(1, Phase::Running))).collect();
        all.insert(0, at(2, Phase::BackingOff));
        assert_eq!(plan(2, Generation(2), &all), [], "number 1 stays as it is");
        assert_eq!(plan(2, Generation(3), &all), [Change::Set(0, Generation(3))]);
    }
}
