use super::*;
use crate::ids::ServiceId;
use crate::placement::Refusal;
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
fn a_child_is_given_no_more_instances_than_it_has_addresses_for() {
    let mut orchestrator = two_nodes();
    for (number, addresses) in [(0, Some(2)), (1, Some(0))] {
        orchestrator.set_addresses(child(number), addresses);
    }
    for number in 0..3 {
        orchestrator.set_wish(wish(number, 1, 10, false));
    }
    orchestrator.reconcile(at(1));
    let placed = |orchestrator: &Orchestrator| (0..3).map(|n| orchestrator.holder(instance(n))).collect::<Vec<_>>();
    assert_eq!(placed(&orchestrator), [Some(child(0)), Some(child(0)), None]);
    let why = orchestrator.explain(instance(2)).unwrap();
    assert_eq!(
        why.refused,
        BTreeMap::from([(Refusal::NoBlock, 1), (Refusal::NoAddress, 1)])
    );
    // One ends for good: its address is free.
    orchestrator.remove_wish(instance(0));
    orchestrator.reconcile(at(2));
    orchestrator.hear_status_removed(child(0), instance(0));
    orchestrator.hear_settled(child(0));
    orchestrator.reconcile(at(3));
    assert_eq!(orchestrator.holder(instance(2)), Some(child(0)));
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
fn the_tier_above_may_try_again_once_a_child_that_refused_is_rid_of_what_nobody_knew() {
    let mut orchestrator = two_nodes();
    let stray = InstanceStatus::new(instance(9), Version::default(), Phase::Running);
    orchestrator.hear_status(child(0), stray, at(1));
    let before = orchestrator.revision();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(2));
    report(&mut orchestrator, 0, Phase::Refused, at(3));
    orchestrator.remove_wish(instance(0));
    orchestrator.reconcile(at(4));
    assert_eq!(orchestrator.revision(), before);
    orchestrator.take_effects();
    orchestrator.hear_status_removed(child(0), instance(9));
    assert_eq!(orchestrator.revision(), before + 1);
    assert!(orchestrator.take_effects().contains(&Effect::Capacity));
    orchestrator.hear_status_removed(child(0), instance(9));
    assert_eq!(orchestrator.revision(), before + 1, "once for what it refused");
}

/// A report of `child`, whatever it was ordered.
fn say(orchestrator: &mut Orchestrator, number: usize, epochs: &[u64], phase: Phase, now: Now) {
    let version = Version {
        generation: Generation(1),
        epochs: Epochs(epochs.to_vec()),
    };
    orchestrator.hear_status(child(number), InstanceStatus::new(instance(0), version, phase), now);
}

#[test]
fn what_a_lost_child_still_runs_on_its_return_stays_there_if_it_is_nowhere_else() {
    let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(0).boot);
    orchestrator.add_child(child(0), node(0, "a", 1_000, 100), false);
    orchestrator.hear_beat(child(0), at(0));
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    orchestrator.tick(at(60_000));
    orchestrator.reconcile(at(60_000));
    assert_eq!(
        orchestrator.holder(instance(0)),
        None,
        "it was given up, and there is no other"
    );
    orchestrator.hear_beat(child(0), at(61_000));
    orchestrator.reconcile(at(61_000));
    say(&mut orchestrator, 0, &[1, 1], Phase::Running, at(61_001));
    orchestrator.reconcile(at(61_001));
    assert_eq!(orchestrator.holder(instance(0)), Some(child(0)));
    let order = orchestrator.order(child(0), instance(0)).unwrap();
    assert_eq!(order.version.epochs, Epochs(vec![1, 2]), "under a new order");
    assert!(orchestrator.explain(instance(0)).unwrap().kept);
    assert!(orchestrator.record(instance(0)).unwrap().leaving.is_empty());
    assert!(orchestrator.plan(at(61_002)).is_empty());
}

#[test]
fn a_tier_that_lost_its_records_listens_and_keeps_what_its_children_run() {
    let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(0).boot);
    orchestrator.set_fresh();
    let mut renewed = wish(0, 1, 100, false);
    renewed.version.epochs = Epochs(vec![2]);
    orchestrator.set_wish(renewed);
    orchestrator.add_child(child(0), node(0, "a", 1_000, 100), false);
    orchestrator.hear_beat(child(0), at(1_000));
    orchestrator.tick(at(1_000));
    orchestrator.reconcile(at(1_000));
    assert_eq!(orchestrator.holder(instance(0)), None, "another node may have it");
    orchestrator.add_child(child(1), node(1, "a", 1_000, 100), false);
    orchestrator.hear_beat(child(1), at(2_000));
    say(&mut orchestrator, 1, &[1, 7], Phase::Running, at(2_000));
    orchestrator.reconcile(at(2_000));
    assert_eq!(orchestrator.holder(instance(0)), Some(child(1)));
    // What nobody has is placed once all had the time to come back; what was never ordered before, at once.
    let mut other = wish(1, 1, 100, false);
    other.version.epochs = Epochs(vec![2]);
    orchestrator.set_wish(other);
    orchestrator.set_wish(wish(2, 1, 100, false));
    orchestrator.reconcile(at(3_000));
    assert_eq!(
        orchestrator.holder(instance(2)),
        None,
        "what its children have is not known yet"
    );
    orchestrator.hear_all(child(1));
    orchestrator.reconcile(at(3_000));
    assert_eq!(orchestrator.holder(instance(1)), None);
    assert_eq!(orchestrator.holder(instance(2)), Some(child(1)));
    for number in 0..2 {
        orchestrator.hear_beat(child(number), at(8_000));
    }
    orchestrator.tick(at(8_000));
    orchestrator.reconcile(at(8_000));
    assert!(orchestrator.holder(instance(1)).is_some());
}

#[test]
fn what_ended_for_good_does_not_run_again_elsewhere() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    report(&mut orchestrator, 0, Phase::Completed, at(2));
    let holder = orchestrator.holder(instance(0)).unwrap();
    let record = orchestrator.record(instance(0)).unwrap().clone();
    orchestrator.remove_child(holder);
    orchestrator.reconcile(at(3));
    assert_eq!(orchestrator.holder(instance(0)), None);
    assert_eq!(orchestrator.view(instance(0)).unwrap().phase, Phase::Completed);
    // Nor after a restart of this tier, whose child stays away.
    let mut orchestrator = Orchestrator::new(Level::Nodes, Clocks::NODES, at(10).boot);
    orchestrator.add_child(holder, node(0, "a", 1_000, 100), false);
    orchestrator.restore(instance(0), Some(wish(0, 1, 100, false)), record);
    orchestrator.tick(at(60_000));
    orchestrator.reconcile(at(60_000));
    assert_eq!(orchestrator.view(instance(0)).unwrap().phase, Phase::Completed);
    assert!(orchestrator.record(instance(0)).unwrap().leaving.is_empty());
    // A new generation runs.
    orchestrator.add_child(child(2), node(2, "a", 1_000, 100), false);
    orchestrator.hear_beat(child(2), at(60_001));
    orchestrator.set_wish(wish(0, 2, 100, false));
    orchestrator.tick(at(60_001));
    orchestrator.reconcile(at(60_001));
    assert_eq!(orchestrator.holder(instance(0)), Some(child(2)));
}

#[test]
fn only_what_is_as_wished_is_kept() {
    let mut orchestrator = two_nodes();
    say(&mut orchestrator, 0, &[1, 1], Phase::Running, at(1));
    orchestrator.set_wish(wish(0, 2, 100, false));
    orchestrator.reconcile(at(2));
    assert_eq!(
        orchestrator.holder(instance(0)),
        None,
        "the old generation must go first"
    );
    let mut orchestrator = two_nodes();
    say(&mut orchestrator, 0, &[1, 1], Phase::Stopping, at(1));
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(2));
    assert_eq!(orchestrator.holder(instance(0)), None, "what stops is not kept");
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

#[test]
fn a_child_that_has_nothing_left_of_an_application_is_looked_at_again() {
    let mut orchestrator = two_nodes();
    orchestrator.set_wish(wish(0, 1, 100, false));
    orchestrator.reconcile(at(1));
    let former = orchestrator.holder(instance(0)).unwrap();
    let other = (0..2).map(child).find(|child| *child != former).unwrap();
    orchestrator.hear_beat(other, at(30_000));
    orchestrator.tick(at(30_000));
    orchestrator.reconcile(at(30_000));
    assert_eq!(orchestrator.holder(instance(0)), Some(other));
    assert_eq!(orchestrator.applications_on(former).len(), 1, "it may still run there");
    orchestrator.take_effects();
    orchestrator.hear_settled(former);
    assert!(
        orchestrator
            .take_effects()
            .contains(&Effect::Order(former, instance(0)))
    );
    assert!(orchestrator.applications_on(former).is_empty());
    // What is no longer wished needs its application until it has ended, also over a restart.
    orchestrator.remove_wish(instance(0));
    orchestrator.reconcile(at(30_001));
    assert_eq!(orchestrator.applications_on(other).len(), 1);
    let record = orchestrator.record(instance(0)).unwrap().clone();
    let mut again = two_nodes();
    again.restore(instance(0), None, record);
    assert_eq!(again.applications_on(other).len(), 1);
}

#[test]
fn everything_is_known_once_each_child_was_heard_or_is_lost() {
    let mut orchestrator = two_nodes();
    let knows = |orchestrator: &Orchestrator| orchestrator.has_heard_all(|_| true);
    orchestrator.hear_all(child(0));
    orchestrator.tick(at(1_000));
    assert!(!knows(&orchestrator));
    orchestrator.hear_beat(child(0), at(20_000));
    orchestrator.tick(at(20_000));
    assert!(knows(&orchestrator), "the other is lost");
    assert!(!orchestrator.has_heard_all(|_| false));
    orchestrator.set_fresh();
    assert!(!knows(&orchestrator), "there may be others");
    orchestrator.tick(at(Clocks::NODES.replace_fenced_ms));
    assert!(knows(&orchestrator), "long enough");
}
