//! Runs many seeds: `cargo run -p roble-sim --release -- --seeds 5000 [--from 0]`, or one: `--seed 7`.

use std::collections::BTreeMap;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let (from, count) = match number("--seed") {
        Some(seed) => (seed, 1),
        None => (number("--from").unwrap_or(0), number("--seeds").unwrap_or(200)),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
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
