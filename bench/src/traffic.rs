//! `traffic`: bytes between an idle node and its cluster, as the kernel counts them at the machine's IP layer: TLS, TCP and
//! IP headers counted, Ethernet's not. Measured over minutes and multiplied up to a day.
//!
//! Packets that the kernel hands over in one piece count one header; at this size only handshakes have such. A renewed
//! certificate and a broken connection cost a handshake: its bytes are measured apart and shown.

use crate::process::output;
use crate::report::Row;
use crate::tree::{NODE, Tree};
use anyhow::Context as _;
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

const TABLE: &str = "roble_bench";
const DAY: f64 = 86_400.0;

/// Counters of both directions; removed with this value.
struct Wire;

/// Packets and bytes, up (from the node) and down.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Count {
    up: (u64, u64),
    down: (u64, u64),
}

impl Count {
    fn bytes(self) -> u64 {
        self.up.1 + self.down.1
    }

    fn since(self, before: Self) -> Self {
        let less = |a: (u64, u64), b: (u64, u64)| (a.0 - b.0, a.1 - b.1);
        Self {
            up: less(self.up, before.up),
            down: less(self.down, before.down),
        }
    }
}

impl Wire {
    fn new() -> anyhow::Result<Self> {
        drop(Self);
        let rules = format!(
            "add table ip {TABLE}\n\
             add counter ip {TABLE} up\nadd counter ip {TABLE} down\n\
             add chain ip {TABLE} in {{ type filter hook prerouting priority -500; }}\n\
             add chain ip {TABLE} out {{ type filter hook postrouting priority 500; }}\n\
             add rule ip {TABLE} in ip saddr {NODE} counter name up\n\
             add rule ip {TABLE} out ip daddr {NODE} counter name down\n"
        );
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), rules)?;
        output(Command::new("nft").arg("-f").arg(file.path()))?;
        Ok(Self)
    }

    fn count(&self) -> anyhow::Result<Count> {
        read(&output(
            Command::new("nft").args(["-j", "list", "counters", "table", "ip", TABLE]),
        )?)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = output(Command::new("nft").args(["delete", "table", "ip", TABLE]));
    }
}

fn read(json: &str) -> anyhow::Result<Count> {
    let listed: Value = serde_json::from_str(json)?;
    let find = |name: &str| {
        let objects = listed["nftables"].as_array().into_iter().flatten();
        let counter = objects
            .map(|object| &object["counter"])
            .find(|counter| counter["name"] == name);
        let figures = counter.and_then(|counter| Some((counter["packets"].as_u64()?, counter["bytes"].as_u64()?)));
        figures.with_context(|| format!("find counter {name}"))
    };
    Ok(Count {
        up: find("up")?,
        down: find("down")?,
    })
}

/// Measures the normal profile for so many seconds, then `metered`.
///
/// # Errors
/// The tree does not start, or counters cannot be set.
pub fn run(seconds: u64, metered_seconds: u64) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, environment, seconds, goal) in [
        ("idle node, bytes a day, MB", &[][..], seconds, 8.0),
        (
            "the same, profile metered",
            &[("ROBLE_CLUSTER_PROFILE", "metered")][..],
            metered_seconds,
            1.0,
        ),
    ] {
        let tree = Tree::up(environment)?;
        let wire = Wire::new()?;
        // The join, the first profile and the look at the containers are over then.
        std::thread::sleep(Duration::from_secs(15));
        // In three parts, so that something that comes only now and then is seen.
        let mut parts = Vec::new();
        for _ in 0..3 {
            let (before, started) = (wire.count()?, Instant::now());
            std::thread::sleep(Duration::from_secs(seconds / 3));
            let (count, elapsed) = (wire.count()?.since(before), started.elapsed().as_secs_f64());
            println!(
                "{name}: in {elapsed:.1} s {} packets, {} bytes up; {} packets, {} bytes down",
                count.up.0, count.up.1, count.down.0, count.down.1
            );
            parts.push(count.bytes() as f64 / elapsed * DAY / 1e6);
        }
        // The mean of the whole time is the figure; the parts show how even it is.
        let mean = parts.iter().sum::<f64>() / parts.len() as f64;
        rows.extend(Row::of_figures(name, &parts, Some(goal), 2).map(|mut row| {
            row.ours.median = mean;
            row
        }));
        if goal > 1.0 {
            let before = wire.count()?;
            tree.stop("n1")?;
            let (node, _) = tree.start("n1")?;
            std::thread::sleep(Duration::from_secs(5));
            let count = wire.count()?.since(before);
            drop(node);
            println!("a restart of the node and 5 s: {count:?}");
            rows.extend(Row::of_figures(
                "one restart of the node with its new session, kB",
                &[count.bytes() as f64 / 1e3],
                None,
                1,
            ));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"counter": {"name": "up", "packets": 3, "bytes": 300}},
            {"counter": {"name": "down", "packets": 1, "bytes": 50}}]}"#;
        let count = read(json).unwrap();
        assert_eq!((count.up, count.down, count.bytes()), ((3, 300), (1, 50), 350));
        assert!(read(r#"{"nftables": []}"#).is_err());
    }
}
