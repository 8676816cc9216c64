//! Runs many seeds: `cargo run -p roble-sim --release -- --seeds 5000 [--from 0]`, or one: `--seed 7`.
//! `--points` crashes at every failpoint of every scenario, `--point deploy/cluster/17` at one; both take `--seed`.

use std::collections::BTreeMap;

use roble_sim::sweep;

/// Crashes at one point, or at all. Whether everything was well.
fn points(arguments: &[String], seed: Option<u64>, threads: usize) -> bool {
    let mut options = sweep::Options {
        trace: std::env::var_os("ROBLE_SIM_TRACE").is_some(),
        ..sweep::Options::default()
    };
    options.seed = seed.unwrap_or(options.seed);
    if let Some(at) = arguments.iter().position(|argument| argument == "--point") {
        let point: sweep::Point = match arguments.get(at + 1).map(|text| text.parse()) {
            Some(Ok(point)) => point,
            other => panic!("--point takes SCENARIO/TIER/NUMBER: {other:?}"),
        };
        let outcome = sweep::run(point.scenario, Some(point), options);
        println!("{point}: {outcome:#?}");
        return outcome.problems.is_empty() && outcome.crashed.is_some();
    }
    let swept = sweep::sweep(&sweep::Scenario::ALL, options, threads);
    print!("{}", sweep::table(&swept));
    let failures: Vec<&String> = swept.iter().flat_map(|one| &one.failures).collect();
    for failure in &failures {
        println!("{failure}");
    }
    failures.is_empty()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    if arguments
        .iter()
        .any(|argument| argument == "--points" || argument == "--point")
    {
        if !points(&arguments, number("--seed"), threads) {
            std::process::exit(1);
        }
        return;
    }
    let (from, count) = match number("--seed") {
        Some(seed) => (seed, 1),
        None => (number("--from").unwrap_or(0), number("--seeds").unwrap_or(200)),
    };
    let threads = threads as u64;
    let started = std::time::Instant::now();
    let runs: Vec<_> = (0..threads)
        .map(|thread| {
            std::thread::spawn(move || {
                let seeds = (from..from + count).filter(move |seed| seed % threads == thread);
                seeds.map(roble_sim::run).collect::<Vec<_>>()
            })
        })
        .collect();
    let (mut events, mut acknowledged, mut failed) = (0, 0, 0);
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    for report in runs.into_iter().flat_map(|run| run.join().expect("no run panics")) {
        events += report.events;
        acknowledged += report.acknowledged;
        failed += u64::from(!report.violations.is_empty());
        if let Some(first) = report.violations.first() {
            *kinds.entry(first.invariant).or_default() += 1;
        }
        for violation in report.violations.iter().take(3) {
            let at = violation.at as f64 / 1000.0;
            println!(
                "seed {}: {} at {at}: {}",
                report.seed, violation.invariant, violation.detail
            );
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {events} events, {acknowledged} acknowledged calls, {failed} seeds with violations {kinds:?}, {elapsed:.1} s"
    );
    if failed > 0 {
        std::process::exit(1);
    }
}
