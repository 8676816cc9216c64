//! `first-packet`: how long the first connection takes to a service of another application that nobody on the node has asked for:
//! its packet is held, the cluster asked, the rules set, the packet let go. Each service counts once. The same connection
//! a second time is shown beside.

use crate::placed::{self, APPLICATION, inside};
use crate::process::output;
use crate::report::Row;
use crate::tree::IMAGE;
use anyhow::Context as _;
use serde_json::Value;
use std::time::Duration;

/// Time for the services' rows to have reached the cluster: asking would be what is measured.
const SETTLE: Duration = Duration::from_secs(5);
/// Milliseconds of a connection to each address, twice.
const CONNECT: &str = "import socket,sys,time\nn=time.perf_counter_ns\nfor address in sys.argv[1:]:\n t=[]\n for _ in range(2):\n  \
                       a=n(); s=socket.create_connection((address,8080),10); t.append((n()-a)/1e6); s.close()\n \
                       print(*t, flush=True)\n time.sleep(.05)\n";

/// Measures so many services.
///
/// # Errors
/// The tree does not start, a service does not run, or is refused.
pub fn run(services: usize) -> anyhow::Result<Vec<Row>> {
    // What a node runs it knows.
    let (tree, callers) = placed::up(&[], &["n2"])?;
    let service = |number: usize| {
        format!(
            "  f{number}:\n    image: {IMAGE}\n    cpu: 10m\n    memory: 8MiB\n    placement: {{node: n1}}\n    allow: [{{from: {APPLICATION}}}]\n"
        )
    };
    let text: String = (0..services).map(service).collect();
    let file = tree.path("far.yaml");
    std::fs::write(&file, format!("application: far\nservices:\n{text}"))?;
    tree.roble(&["apply", "-f", &file])?;
    tree.roble(&["wait", "far", "--for", "running", "--timeout", "300s"])?;
    std::thread::sleep(SETTLE);
    let mut addresses = Vec::new();
    for number in 0..services {
        let view = tree.roble(&["get", "service", &format!("far/f{number}"), "-o", "json"])?;
        let view: Value = serde_json::from_str(&view)?;
        let address = view["addresses"]["round-robin"][0].as_str();
        addresses.push(address.context("an address")?.to_owned());
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for caller in &callers {
        let said = output(inside(&caller.netns, "python3").args(["-c", CONNECT]).args(&addresses))?;
        for line in said.lines() {
            let (one, other) = line.split_once(' ').context("two times")?;
            first.push(one.parse::<f64>()?);
            second.push(other.parse::<f64>()?);
        }
    }
    println!("first-packet: {} first connections, {first:.2?}", first.len());
    let late = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)]
    };
    let rows = [
        Row::of_figures("first connection to an unknown service, ms", &first, None, 2),
        Row::of_figures("the same, p99, ms", &[late(&first)], Some(5.0), 2),
        Row::of_figures("the second connection, ms", &second, None, 2),
        Row::of_figures("the same, p99, ms", &[late(&second)], None, 2),
    ];
    Ok(rows.into_iter().flatten().collect())
}
