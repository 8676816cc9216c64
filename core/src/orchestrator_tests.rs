use super::*;
use crate::ids::ServiceId;
use crate::placement::tests::{child, node, spec};
use crate::version::{Epochs, Generation};
use proptest::prelude::*;
use std::sync::Arc;

fn at(ms: u64) -> Now {
    Now {
        boot: Boottime::from_millis(ms),
        ..Now::default()
    }
}

fn instance(number: u32) -> InstanceId {
    let service: ServiceId = "0123456789abcdef01234567".parse().unwrap();
    InstanceId { service, number }
}

fn wish(number: u32, generation: u64, cpu_millis: u64, fenced: bool) -> Assignment {
    let mut spec = spec(cpu_millis, 1);
    if fenced {
        spec.when_cut_off = WhenCutOff::Stop;
    }
    Assignment {
        instance: instance(number),
        version: Version {
            generation: Generation(generation),
            epochs: Epochs(vec![1]),
        },
        spec: Arc::new(spec),
    }
}

fn two_nodes() -> Orchestrator {
    let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(0).boot);
    for number in 0..2 {
        orchestrator.add_child(child(number), node(number, "a", 1_000, 100), false);
        orchestrator.hear_beat(child(number), at(0));
    }
    orchestrator
}

fn report(orchestrator: &mut Orchestrator, number: u32, phase: Phase, now: Now) {
    let Some(holder) = orchestrator.holder(instance(number)) else {
        return;
    };
    let Some(order) = orchestrator.order(holder, instance(number)) else {
        return;
    };
    orchestrator.hear_status(holder, InstanceStatus::new(instance(number), order.version, phase), now);
}

#[test]
fn a_smaller_size_frees_room_only_once_it_runs() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 800, false));
    orchestrator.reconcile(at(1));
    let holder = orchestrator.holder(instance(0)).unwrap();
    orchestrator.set_wish(wish(0, 2, 100, false));
    orchestrator.reconcile(at(2));
    report(&mut orchestrator, 0, Phase::Starting, at(3));
    assert_eq!(
        orchestrator.reserved_on(holder).cpu_millis,
        800,
        "the old one may still run"
    );
    report(&mut orchestrator, 0, Phase::Running, at(4));
    assert_eq!(orchestrator.reserved_on(holder).cpu_millis, 100);
}

#[test]
fn an_at_most_one_copy_of_a_revoked_child_is_waited_for() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, true));
    orchestrator.reconcile(at(1));
    let holder = orchestrator.holder(instance(0)).unwrap();
    orchestrator.remove_child(holder);
    for second in 1..=50 {
        for number in (0..2).filter(|number| child(*number) != holder) {
            orchestrator.hear_beat(child(number), at(second * 1_000));
        }
        orchestrator.tick(at(second * 1_000));
        orchestrator.reconcile(at(second * 1_000));
        let placed = orchestrator.holder(instance(0)).is_some();
        assert!(!placed || second >= 45, "placed after {second} s");
    }
    assert!(orchestrator.holder(instance(0)).is_some());
}

#[test]
fn nothing_is_refused_before_every_child_was_heard_or_given_up() {
    let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(0).boot);
    orchestrator.add_child(child(0), node(0, "a", 1_000, 100), false);
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.tick(at(1));
    orchestrator.reconcile(at(1));
    assert_eq!(orchestrator.view(instance(0)).unwrap().phase, Phase::Pending);
    orchestrator.take_effects();
    orchestrator.tick(at(60_000));
    orchestrator.reconcile(at(60_000));
    assert_eq!(orchestrator.view(instance(0)).unwrap().phase, Phase::Refused);
    assert!(
        orchestrator.take_effects().contains(&Effect::Status(instance(0))),
        "and the parent is told"
    );
}

#[test]
fn a_report_that_skips_steps_counts() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    report(&mut orchestrator, 0, Phase::Pending, at(2));
    report(&mut orchestrator, 0, Phase::Running, at(3));
    assert_eq!(orchestrator.view(instance(0)).unwrap().phase, Phase::Running);
}

#[test]
fn a_stale_status_changes_nothing() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    let holder = orchestrator.holder(instance(0)).unwrap();
    let old = orchestrator.order(holder, instance(0)).unwrap().version;
    orchestrator.set_wish(wish(0, 2, 100, false));
    orchestrator.reconcile(at(2));
    orchestrator.hear_status(holder, InstanceStatus::new(instance(0), old, Phase::Running), at(3));
    let view = orchestrator.view(instance(0)).unwrap();
    assert_eq!((view.phase, view.version.generation), (Phase::Scheduled, Generation(2)));
}

#[test]
fn every_placement_has_an_epoch_of_its_own() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    report(&mut orchestrator, 0, Phase::Refused, at(2));
    orchestrator.reconcile(at(2));
    for number in 0..2 {
        orchestrator.hear_status_removed(child(number), instance(0));
        orchestrator.hear_settled(child(number));
    }
    orchestrator.reconcile(at(3));
    assert_eq!(
        orchestrator
            .record(instance(0))
            .unwrap()
            .placement
            .as_ref()
            .unwrap()
            .epoch,
        2
    );
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_skipped_epoch_and_a_stale_status_are_seen() {
    for (bug, test) in [
        (Bug::SkipEpoch, every_placement_has_an_epoch_of_its_own as fn()),
        (Bug::StaleStatus, a_stale_status_changes_nothing),
    ] {
        crate::planted::plant(Some(bug));
        let seen = std::panic::catch_unwind(test);
        crate::planted::plant(None);
        assert!(seen.is_err(), "{bug:?}");
    }
}

#[test]
fn a_child_that_forgot_is_ordered_anew_under_a_higher_epoch() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    let holder = orchestrator.holder(instance(0)).unwrap();
    let before = orchestrator.order(holder, instance(0)).unwrap().version;
    orchestrator.renew_orders(holder, at(2));
    let after = orchestrator.order(holder, instance(0)).unwrap().version;
    assert!(after > before);
    assert_eq!(orchestrator.record(instance(0)).unwrap().epoch, after.epochs.last());
}

#[test]
fn an_update_of_the_same_size_stays_on_a_full_cluster() {
    let mut orchestrator = Orchestrator::new(Level::Clusters, Clocks::CLUSTERS, at(0).boot);
    let mut full = node(0, "a", 2_000, 100);
    full.offers[0].count = 2;
    orchestrator.add_child(child(0), full.clone(), false);
    orchestrator.hear_beat(child(0), at(0));
    orchestrator.set_wish(wish(0, 1, 1_000, false));
    orchestrator.reconcile(at(1));
    report(&mut orchestrator, 0, Phase::Running, at(2));
    full.offers[0].largest_free = vec![
        Resources {
            cpu_millis: 100,
            memory_bytes: 10
        };
        2
    ];
    orchestrator.hear_profile(child(0), full);
    orchestrator.set_wish(wish(0, 2, 1_000, false));
    assert!(matches!(orchestrator.reconcile(at(3)).as_slice(), [Step::Keep(_)]));
}

#[test]
fn two_replicas_with_the_same_node_port_are_updated_where_they_are() {
    let ported = |number, generation| {
        let mut assignment = wish(number, generation, 100, false);
        let spec = std::sync::Arc::make_mut(&mut assignment.spec);
        spec.ports = vec!["18080:8080".parse().unwrap()];
        assignment
    };
    let mut root = Orchestrator::new(Level::Clusters, Clocks::CLUSTERS, at(0).boot);
    let mut cluster = node(0, "a", 1_000, 100);
    cluster.offers[0].count = 2;
    cluster.offers[0].largest_free = vec![cluster.offers[0].allocatable; 2];
    root.add_child(child(0), cluster, false);
    root.hear_beat(child(0), at(1));
    root.set_wish(ported(0, 1));
    root.set_wish(ported(1, 1));
    assert_eq!(root.reconcile(at(1)).len(), 2);
    root.set_wish(ported(0, 2));
    assert!(matches!(root.reconcile(at(2)).as_slice(), [Step::Keep(_)]));
}

proptest! {
    /// Whatever is heard in any order: planning again changes nothing, no node gives away more than it has, epochs rise
    /// with every placement, and nobody but the holder is ordered to run an instance.
    #[test]
    fn the_model_holds(steps in proptest::collection::vec((0..12_u8, 0..4_u32, 0..3_usize, 1..6_u64), 1..150)) {
        let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(0).boot);
        for number in 0..3 {
            orchestrator.add_child(child(number), node(number, "a", 1_000, 100), false);
        }
        let mut highest: BTreeMap<InstanceId, u64> = BTreeMap::new();
        let mut generations = 0;
        for (time, (what, number, node, amount)) in steps.into_iter().enumerate() {
            let now = at(time as u64 * 900);
            let id = child(node);
            match what {
                0..=2 => {
                    generations += 1;
                    orchestrator.set_wish(wish(number, generations, amount * 150, number == 3));
                }
                3 => orchestrator.remove_wish(instance(number)),
                4..=6 => orchestrator.hear_beat(id, now),
                7 => report(&mut orchestrator, number, Phase::ALL[2 + amount as usize], now),
                8 => report(&mut orchestrator, number, Phase::Refused, now),
                9 => orchestrator.hear_status_removed(id, instance(number)),
                10 => orchestrator.hear_settled(id),
                _ => orchestrator.set_cordoned(id, amount % 2 == 0),
            }
            orchestrator.tick(now);
            for step in orchestrator.reconcile(now) {
                if let Step::Forget(gone) = step {
                    highest.remove(&gone);
                }
            }
            prop_assert_eq!(orchestrator.plan(now), []);
            for number in 0..3 {
                prop_assert!(orchestrator.reserved_on(child(number)).cpu_millis <= 1_000);
            }
            for one in orchestrator.instances().collect::<Vec<_>>() {
                let holder = orchestrator.holder(one);
                for number in 0..3 {
                    let is_ordered = orchestrator.order(child(number), one).is_some();
                    prop_assert!(!is_ordered || holder == Some(child(number)));
                }
                let record = orchestrator.record(one).unwrap();
                let before = highest.insert(one, record.epoch).unwrap_or(0);
                prop_assert!(record.epoch >= before);
                prop_assert!(record.leaving.iter().all(|left| left.epoch < record.epoch || record.placement.is_none()));
            }
            let forgotten = orchestrator.take_effects();
            drop(forgotten);
        }
    }
}
