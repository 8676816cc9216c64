use super::*;
use crate::spec::{Constraints, SecurityProfile};
use crate::version::{Epochs, Generation};
use proptest::prelude::*;
use rand::SeedableRng;
use std::sync::Arc;

fn rng() -> rand::rngs::SmallRng {
    rand::rngs::SmallRng::seed_from_u64(9)
}

fn at(ms: u64) -> Now {
    Now {
        boot: Boottime::from_millis(ms),
        wall: Timestamp::from_millis(ms),
    }
}

fn instance(number: u32) -> InstanceId {
    InstanceId {
        service: "0123456789abcdef01234567".parse().unwrap(),
        number,
    }
}

fn version(generation: u64, epoch: u64) -> Version {
    Version {
        generation: Generation(generation),
        epochs: Epochs(vec![1, epoch]),
    }
}

fn order(number: u32, generation: u64, epoch: u64, cpu_millis: u64) -> Assignment {
    let spec = InstanceSpec {
        organization: "0123456789abcdef01234567".parse().unwrap(),
        application: "0123456789abcdef01234567".parse().unwrap(),
        path: "app/web".to_owned(),
        virtualization: "container".to_owned(),
        image: format!("image:{generation}"),
        image_digest: None,
        command: Vec::new(),
        args: Vec::new(),
        environment: Vec::new(),
        working_dir: None,
        user: None,
        resources: Resources {
            cpu_millis,
            memory_bytes: 1,
        },
        ports: Vec::new(),
        restart: RestartPolicy::Always,
        one_shot: false,
        stop_grace_ms: 10_000,
        when_cut_off: WhenCutOff::KeepRunning,
        security: SecurityProfile::Baseline,
        constraints: Constraints::default(),
    };
    Assignment {
        instance: instance(number),
        version: version(generation, epoch),
        spec: Arc::new(spec),
    }
}

fn engine() -> Engine {
    let facts = NodeFacts {
        allocatable: Resources {
            cpu_millis: 1_000,
            memory_bytes: 100,
        },
        labels: Labels::new(),
        virtualizations: vec!["container".to_owned()],
    };
    let mut engine = Engine::new(facts, true);
    engine.hear_list(&[], at(0), &mut rng());
    engine
}

fn observed(generation: u64, state: ObservedState) -> Observed {
    Observed {
        detached: false,
        addresses: Vec::new(),
        instance: instance(0),
        version: version(generation, 1),
        state,
    }
}

const INFO: StartedInfo = StartedInfo {
    addresses: Vec::new(),
    started_at: Timestamp::from_millis(1),
    image_digest: None,
};

const EXIT: Exit = Exit {
    code: 0,
    oom_killed: false,
};

#[test]
fn an_older_order_is_ignored() {
    let mut engine = engine();
    engine.order(order(0, 2, 5, 10));
    engine.order(order(0, 1, 9, 10));
    engine.order(order(0, 2, 4, 10));
    assert_eq!(engine.order_of(instance(0)).unwrap().version, version(2, 5));
    engine.withdraw(instance(0));
    engine.reconcile(at(1));
    engine.order(order(0, 1, 9, 10));
    assert_eq!(engine.order_of(instance(0)), None);
}

#[test]
fn a_start_refused_by_the_runtime_is_not_tried_again_at_once() {
    let mut engine = engine();
    engine.order(order(0, 1, 1, 10));
    assert_eq!(engine.reconcile(at(1)).len(), 1);
    let failure = StartFailure {
        reason: Reason::new("image-platform", "no image for this machine"),
        retryable: false,
        refuse: true,
    };
    engine.hear_started(instance(0), &version(1, 1), Err(failure), at(2), &mut rng());
    assert_eq!(engine.reconcile(at(2)), []);
    assert_eq!(engine.status(instance(0)).unwrap().phase, Phase::Refused);
    engine.order(order(0, 1, 2, 10));
    assert_eq!(engine.reconcile(at(3)).len(), 1);
}

#[test]
fn a_list_does_not_cut_a_backoff_short() {
    let mut engine = engine();
    engine.order(order(0, 1, 1, 10));
    engine.reconcile(at(1));
    engine.hear_started(instance(0), &version(1, 1), Ok(INFO), at(2), &mut rng());
    engine.hear_exit(instance(0), &version(1, 1), EXIT, at(3), &mut rng());
    assert_eq!(engine.reconcile(at(3)), []);
    let list = [observed(1, ObservedState::Ended(Some(EXIT)))];
    engine.hear_list(&list, at(4), &mut rng());
    assert_eq!(engine.reconcile(at(4)), []);
}

#[test]
fn a_job_that_ended_while_the_engine_was_down_does_not_run_again() {
    let mut engine = engine();
    engine.observed = false;
    let mut job = order(0, 1, 1, 10);
    Arc::make_mut(&mut job.spec).one_shot = true;
    engine.restore(job, None);
    let list = [observed(1, ObservedState::Ended(Some(EXIT)))];
    engine.hear_list(&list, at(4), &mut rng());
    assert_eq!(engine.reconcile(at(4)), []);
    assert_eq!(engine.status(instance(0)).unwrap().phase, Phase::Completed);
    assert!(
        engine.take_effects().contains(&Effect::Store(instance(0))),
        "the outcome is stored"
    );
}

#[test]
fn a_container_without_an_order_is_reported_under_its_own_version() {
    let mut engine = Engine::new(engine().facts, false);
    let list = [observed(3, ObservedState::Running { started_at: None })];
    engine.hear_list(&list, at(1), &mut rng());
    assert_eq!(engine.reconcile(at(1)), [], "left alone until the orders are whole");
    assert_eq!(engine.status(instance(0)).unwrap().version, version(3, 1));
    engine.order(order(0, 2, 9, 10));
    assert_eq!(engine.order_of(instance(0)), None, "older than what was here");
}

#[test]
fn a_copy_without_a_lease_gets_a_short_farewell() {
    let mut engine = engine();
    engine.set_lease(Lease::Held);
    let mut fenced = order(0, 1, 1, 10);
    let spec = Arc::make_mut(&mut fenced.spec);
    spec.when_cut_off = WhenCutOff::Stop;
    spec.stop_grace_ms = 120_000;
    engine.order(fenced);
    engine.reconcile(at(1));
    engine.hear_started(instance(0), &version(1, 1), Ok(INFO), at(2), &mut rng());
    engine.set_lease(Lease::Lost);
    let commands = engine.reconcile(at(3));
    assert!(
        matches!(commands.as_slice(), [Command::Stop { grace_ms: ..=5_000, .. }]),
        "{commands:?}"
    );
}

proptest! {
    /// Whatever comes in any order: one command at a time, never an older version, never more than there is, and asking
    /// again gives nothing.
    #[test]
    fn the_model_holds(steps in proptest::collection::vec((0..9_u8, 0..3_u32, 1..4_u64, 1..4_u64), 1..120)) {
        let mut engine = engine();
        let mut rng = rng();
        let mut under_way: BTreeMap<InstanceId, Option<Version>> = BTreeMap::new();
        let mut started: BTreeMap<InstanceId, Version> = BTreeMap::new();
        for (time, (what, number, generation, epoch)) in steps.into_iter().enumerate() {
            let now = at(time as u64 * 700);
            let one = instance(number);
            match what {
                0..=2 => engine.order(order(number, generation, epoch, 200 * generation)),
                3 => engine.withdraw(one),
                4 | 5 => match under_way.remove(&one) {
                    Some(Some(version)) => {
                        let ok = epoch > 1;
                        let failure = StartFailure { reason: Reason::new("x", "x"), retryable: generation > 1, refuse: false };
                        engine.hear_started(one, &version, if ok { Ok(INFO) } else { Err(failure) }, now, &mut rng);
                    }
                    Some(None) => {
                        let result = if epoch > 1 { Ok(()) } else { Err(Reason::new("x", "x")) };
                        engine.hear_gone(one, result, now, &mut rng);
                    }
                    None => {}
                },
                6 => {
                    if let Some(version) = started.get(&one).filter(|_| !under_way.contains_key(&one)) {
                        engine.hear_exit(one, version, EXIT, now, &mut rng);
                    }
                }
                _ => engine.tick(now),
            }
            for command in engine.reconcile(now) {
                let (of, what) = match command {
                    Command::Start(order) => {
                        if let Some(before) = started.insert(order.instance, order.version.clone()) {
                            prop_assert!(order.version >= before, "{} after {before}", order.version);
                        }
                        (order.instance, Some(order.version))
                    }
                    Command::Stop { instance, .. } => (instance, None),
                    // Nothing is listed here, so nothing is missed.
                    Command::Attach(_) => continue,
                };
                prop_assert!(under_way.insert(of, what).is_none(), "two commands under way for {of}");
            }
            prop_assert_eq!(engine.reconcile(now), []);
            prop_assert!(engine.facts().allocatable.covers(&engine.reserved()));
        }
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_skipped_generation_check_is_seen() {
    crate::planted::plant(Some(Bug::SkipGeneration));
    let seen = std::panic::catch_unwind(an_older_order_is_ignored);
    crate::planted::plant(None);
    assert!(seen.is_err());
}

#[test]
fn what_ended_under_a_lost_order_has_ended_when_the_order_comes_again() {
    let exit = |code| {
        ObservedState::Ended(Some(Exit {
            code,
            oom_killed: false,
        }))
    };
    for (code, restart, phase) in [
        (0, RestartPolicy::OnFailure, Phase::Completed),
        (3, RestartPolicy::Never, Phase::Failed),
        (3, RestartPolicy::OnFailure, Phase::BackingOff),
    ] {
        let mut engine = Engine::new(engine().facts().clone(), false);
        engine.hear_list(&[observed(1, exit(code))], at(0), &mut rng());
        assert_eq!(engine.reconcile(at(1)), [], "the store was lost: nothing is touched");
        let mut order = order(0, 1, 2, 100);
        Arc::make_mut(&mut order.spec).restart = restart;
        engine.order(order);
        engine.set_complete();
        let commands = engine.reconcile(at(2));
        assert_eq!(
            engine.status(instance(0)).unwrap().phase,
            if commands.is_empty() { phase } else { Phase::Starting }
        );
        assert_eq!(commands.is_empty(), phase.is_final(), "{commands:?}");
        let outcome = engine
            .stored(instance(0))
            .unwrap()
            .outcome
            .map(|outcome| outcome.exit_code);
        assert_eq!(outcome, phase.is_final().then_some(code));
    }
}

#[test]
fn nothing_starts_beside_what_a_lost_store_leaves_of_unknown_size() {
    let mut engine = Engine::new(engine().facts().clone(), false);
    engine.hear_list(
        &[observed(1, ObservedState::Running { started_at: None })],
        at(0),
        &mut rng(),
    );
    engine.order(order(1, 1, 1, 600));
    assert_eq!(engine.reconcile(at(1)), []);
    engine.set_complete();
    assert!(matches!(engine.reconcile(at(2))[..], [Command::Stop { instance: stopped, .. }] if stopped == instance(0)));
    engine.hear_gone(instance(0), Ok(()), at(3), &mut rng());
    assert!(matches!(&engine.reconcile(at(4))[..], [Command::Start(started)] if started.instance == instance(1)));
}

#[test]
fn a_container_that_lost_its_network_is_attached_again_and_not_restarted() {
    let mut engine = engine();
    engine.order(order(0, 1, 1, 10));
    engine.reconcile(at(1));
    engine.hear_started(instance(0), &version(1, 1), Ok(INFO), at(2), &mut rng());
    assert_eq!(engine.reconcile(at(2)), []);
    let mut shown = observed(1, ObservedState::Running { started_at: None });
    for detached in [true, true, false] {
        shown.detached = detached;
        engine.hear_list(std::slice::from_ref(&shown), at(3), &mut rng());
        let asked = engine.reconcile(at(3));
        let wanted = detached.then(|| Command::Attach(order(0, 1, 1, 10)));
        assert_eq!(asked, wanted.into_iter().collect::<Vec<_>>());
        assert_eq!(engine.reconcile(at(3)), [], "once per look");
    }
}
