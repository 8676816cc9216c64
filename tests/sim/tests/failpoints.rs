//! A crash at every boundary between two steps of every tier. See `roble_sim::sweep`.

use roble_sim::points::Level;
use roble_sim::sweep::{Options, Scenario, Swept, run, sweep, table};

/// As many as the machine of CI has cores.
const THREADS: usize = 2;

fn failures(swept: &[Swept]) -> Vec<&String> {
    swept.iter().flat_map(|one| &one.failures).collect()
}

#[test]
fn a_crash_between_any_two_steps_loses_nothing() {
    let swept = sweep(&Scenario::ALL, Options::default(), THREADS);
    println!("{}", table(&swept));
    for one in &swept {
        // A net manager has no part in a renewal: the next connection shows the new certificate.
        let of_net = one.points[Level::Net as usize];
        assert!(
            one.points[..Level::Net as usize].iter().all(|count| *count > 5)
                && (of_net > 5 || one.scenario == Scenario::Renew),
            "{} has hardly any points: {:?}",
            one.scenario,
            one.points
        );
    }
    let failures = failures(&swept);
    assert!(
        failures.is_empty(),
        "{} failures; `ROBLE_SIM_TRACE=1 cargo run -p roble-sim -- --point SCENARIO/TIER/NUMBER` repeats one: {:#?}",
        failures.len(),
        &failures[..failures.len().min(10)]
    );
}

/// The sweep sees what it is for: a daemon that answers and sends before its writes are on disk.
#[test]
fn acts_before_their_writes_are_durable_are_found() {
    let options = Options {
        acts_first: true,
        ..Options::default()
    };
    assert!(
        run(Scenario::Deploy, None, options).problems.is_empty(),
        "only a crash shows it"
    );
    let swept = sweep(&[Scenario::Deploy], options, THREADS);
    assert!(!failures(&swept).is_empty(), "no crash shows it: {}", table(&swept));
}
