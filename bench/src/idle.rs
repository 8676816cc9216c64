//! `idle`: memory and processor time of a tree with nothing to do, beside mosquitto and containerd.
//!
//! Memory is the proportional set size: shared pages count by the share of each process.

use crate::peer::Mosquitto;
use crate::process::{cpu_time, pss};
use crate::report::Row;
use crate::tree::Tree;
use std::time::{Duration, Instant};

/// Time for the daemons to settle.
const SETTLE: Duration = Duration::from_secs(20);
const MB: f64 = 1e6;

/// A daemon under measurement.
struct Subject {
    name: &'static str,
    pid: u32,
    /// Megabytes of 1,000,000 bytes.
    goal: Option<f64>,
    memory: Vec<f64>,
    cpu: Vec<f64>,
}

/// Looks `rounds` times, after so many seconds each.
///
/// # Errors
/// A daemon does not start or ends.
pub fn run(rounds: usize, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let tree = Tree::up(&[])?;
    let (mosquitto, _) = Mosquitto::new().and_then(|peer| peer.start_plain())?;
    let subject = |name, pid, goal| Subject {
        name,
        pid,
        goal,
        memory: Vec::new(),
        cpu: Vec::new(),
    };
    let mut subjects = [
        subject("roble-node", tree.pid("n1")?, Some(10.0)),
        subject("roble-net", tree.pid("n1-net")?, Some(10.0)),
        subject("roble-cluster with its broker", tree.pid("cluster")?, Some(20.0)),
        subject("roble-root", tree.pid("root")?, Some(25.0)),
        subject("mosquitto", mosquitto.pid(), None),
        subject("containerd", tree.pid("containerd")?, None),
    ];
    std::thread::sleep(SETTLE);
    let mut all = Vec::new();
    for round in 0..rounds {
        let before: Vec<_> = subjects
            .iter()
            .map(|subject| cpu_time(subject.pid))
            .collect::<Result<_, _>>()?;
        let started = Instant::now();
        std::thread::sleep(Duration::from_secs(seconds));
        let elapsed = started.elapsed();
        let mut sum = 0.0;
        for (subject, before) in subjects.iter_mut().zip(before) {
            let used = (cpu_time(subject.pid)? - before).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
            let (memory, anonymous) = pss(subject.pid)?;
            println!(
                "idle {}: {}: {:.2} MB ({:.2} anonymous), {used:.2} % of a core",
                round + 1,
                subject.name,
                memory as f64 / MB,
                anonymous as f64 / MB
            );
            subject.memory.push(memory as f64 / MB);
            subject.cpu.push(used);
            if subject.goal.is_some() {
                sum += used;
            }
        }
        all.push(sum);
    }
    let mut rows = Vec::new();
    for subject in &subjects {
        rows.extend(Row::of_figures(
            &format!("{}: PSS, MB", subject.name),
            &subject.memory,
            subject.goal,
            2,
        ));
    }
    for subject in &subjects {
        rows.extend(Row::of_figures(
            &format!("{}: % of a core", subject.name),
            &subject.cpu,
            None,
            2,
        ));
    }
    rows.extend(Row::of_figures(
        "root, cluster, node and net together: % of a core",
        &all,
        Some(1.0),
        2,
    ));
    Ok(rows)
}
