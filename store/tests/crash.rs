//! kill -9, and failing disks, at every system call that touches the store.
//!
//! The test runs itself again under strace, which kills the child at the N-th call of one kind, or makes that
//! call fail. Then the store is opened: nothing acknowledged may be missing and no transaction may be torn.
//! Without `ROBLE_SWEEP=full` only an even spread of the points is visited.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use roble_store::{BackendKind, Envelope, Key, OpenOptions, Prefix, Store, StoreError, Transaction, open};
use tempfile::TempDir;

const CHILD: &str = "ROBLE_CRASH_CHILD";
const CALLS: [&str; 10] = [
    "pwrite64",
    "write",
    "fdatasync",
    "fsync",
    "ftruncate",
    "sync_file_range",
    "rename",
    "mkdir",
    "unlink",
    "flock",
];
/// Points per backend in the short sweep.
const POINTS: usize = 160;
/// The child opens the store twice and commits this often in each life.
const LIVES: [u64; 2] = [4, 8];

fn key(id: &str) -> Key {
    Key::new(&format!("s/test/{id}")).expect("a key")
}

fn value(number: u64) -> Envelope {
    Envelope::new(1, number.to_string().repeat(1500).into_bytes())
}

/// Writes two keys, replaces one and removes an old one.
fn transaction(number: u64) -> Transaction {
    let written = Transaction::new()
        .put(key(&format!("a/{number:03}")), value(number))
        .put(key(&format!("b/{number:03}")), value(number))
        .put(key("last"), value(number));
    match number.checked_sub(3) {
        Some(old) if old > 0 => written.delete(key(&format!("a/{old:03}"))),
        _ => written,
    }
}

/// What the store holds after transaction `number`.
fn expected(number: u64) -> BTreeMap<Key, Envelope> {
    let mut records = BTreeMap::new();
    for id in 1..=number {
        records.insert(key(&format!("b/{id:03}")), value(id));
        if id + 3 > number {
            records.insert(key(&format!("a/{id:03}")), value(id));
        }
        records.insert(key("last"), value(number));
    }
    records
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .expect("the parent listens");
}

/// Does nothing unless started by the other tests: then it is the process that dies.
#[tokio::test]
async fn crash_child() {
    let Ok(task) = std::env::var(CHILD) else {
        return;
    };
    let (kind, path) = task.split_once(':').expect("kind and path");
    let kind: BackendKind = kind.parse().expect("a backend");
    let mut number = 0;
    for commits in LIVES {
        let opened = match open(kind, Path::new(path), &OpenOptions::default()).await {
            Ok(opened) => opened,
            Err(error) => return say(&format!("refused to open: {error:?}")),
        };
        let store = opened.store;
        for _ in 0..commits {
            number += 1;
            match store.commit(transaction(number)).await {
                Ok(_) => say(&format!("ack {number}")),
                Err(error) => {
                    say(&format!("refused: {error:?}"));
                    let later = store.commit(transaction(number)).await;
                    assert!(matches!(later, Err(StoreError::Stopped { .. })), "{later:?}");
                    assert!(store.get(&key("last")).await.is_err());
                    say("stopped");
                    return;
                }
            }
        }
        store.close().await.expect("close");
    }
    say("done");
}

fn strace(kind: BackendKind, path: &Path, arguments: &[String]) -> Output {
    let program = std::env::current_exe().expect("this test");
    let mut command = Command::new("strace");
    command.arg("-f").args(arguments).arg(program);
    command.args(["--exact", "crash_child", "--nocapture", "--test-threads=1"]);
    command
        .env(CHILD, format!("{kind}:{}", path.display()))
        .env("RUST_BACKTRACE", "0");
    command
        .output()
        .unwrap_or_else(|error| panic!("strace does not start ({error}); scripts/install-dev-tools.sh installs it"))
}

/// The last acknowledged transaction; what the child printed may be cut anywhere.
fn last_ack(output: &Output) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    // The first line starts with what the test harness says.
    let acks = whole.lines().filter_map(|line| line.split_once("ack ")?.1.parse().ok());
    acks.max().unwrap_or(0)
}

fn says(output: &Output, word: &str) -> bool {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.contains(word))
}

async fn check(kind: BackendKind, path: &Path, acked: u64, point: &str) {
    let opened = open(kind, path, &OpenOptions::default()).await;
    let opened = opened.unwrap_or_else(|error| panic!("{kind} {point}: does not open: {error:?}"));
    assert_eq!(opened.damage, None, "{kind} {point}");
    let page = opened.store.list(&Prefix::all(), None, 1000).await.expect("list");
    let found: BTreeMap<Key, Envelope> = page
        .entries
        .into_iter()
        .map(|(key, value)| (key, value.envelope))
        .collect();
    // The transaction under way may have become durable without its caller hearing of it.
    let fits = found == expected(acked) || found == expected(acked + 1);
    assert!(fits, "{kind} {point}: {acked} acknowledged, found {:?}", found.keys());
    let next = Transaction::new().put(key("after"), value(1));
    opened.store.commit(next).await.expect("the store works again");
}

/// How often one thread of the child makes each call at most.
fn count_calls(kind: BackendKind) -> Vec<(&'static str, usize)> {
    let folder = TempDir::new().expect("a temporary folder");
    let log = folder.path().join("strace.log");
    let arguments = [
        "-o".into(),
        log.display().to_string(),
        "-e".into(),
        format!("trace={}", CALLS.join(",")),
    ];
    let output = strace(kind, &folder.path().join("state"), &arguments);
    assert!(output.status.success() && says(&output, "done"), "{output:?}");
    let text = std::fs::read_to_string(log).expect("strace wrote its log");
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some((name, _)) = call.split_once('(') {
            *counts.entry((name, thread)).or_default() += 1;
        }
    }
    let most = |call: &str| {
        let of_call = counts.iter().filter(|((name, _), _)| *name == call);
        of_call.map(|(_, count)| *count).max().unwrap_or(0)
    };
    CALLS.iter().map(|call| (*call, most(call))).collect()
}

fn sweep(kind: BackendKind) {
    let calls = count_calls(kind);
    let all: Vec<(&str, usize)> = calls
        .iter()
        .flat_map(|(call, most)| (1..=*most).map(move |n| (*call, n)))
        .collect();
    let full = std::env::var("ROBLE_SWEEP").is_ok_and(|sweep| sweep == "full");
    let step = if full {
        1.0
    } else {
        (all.len() as f64 / POINTS as f64).max(1.0)
    };
    let points: Vec<_> = (0..)
        .map(|i| (i as f64 * step) as usize)
        .take_while(|i| *i < all.len())
        .collect();
    let (next, killed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Runtime::new().expect("a runtime");
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (call, n) = all[*point];
                    let folder = TempDir::new().expect("a temporary folder");
                    let path = folder.path().join("state");
                    let inject = format!("inject={call}:signal=SIGKILL:when={n}");
                    let trace = format!("trace={call}");
                    let log = folder.path().join("strace.log").display().to_string();
                    let arguments = ["-o", &log, "-e", &trace, "-e", &inject].map(String::from);
                    let output = strace(kind, &path, &arguments);
                    killed.fetch_add(usize::from(!says(&output, "done")), Ordering::Relaxed);
                    runtime.block_on(check(kind, &path, last_ack(&output), &inject));
                }
            });
        }
    });
    let killed = killed.into_inner();
    println!("{kind}: {killed} kills at {} of {} points", points.len(), all.len());
    assert!(
        killed * 2 > points.len(),
        "{kind}: only {killed} of {} runs died",
        points.len()
    );
}

#[test]
fn redb_survives_a_kill_at_every_call() {
    sweep(BackendKind::Redb);
}

#[test]
fn sled_survives_a_kill_at_every_call() {
    sweep(BackendKind::Sled);
}

/// Makes the N-th call fail; what was acknowledged before stays, and nothing is acknowledged after.
fn fail_calls(kind: BackendKind, faults: &[(&str, usize)]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut stopped = 0;
    for (call, n) in faults {
        for errno in ["EIO", "ENOSPC"] {
            let folder = TempDir::new().expect("a temporary folder");
            let path = folder.path().join("state");
            let inject = format!("inject={call}:error={errno}:when={n}+");
            let trace = format!("trace={call}");
            let log = folder.path().join("strace.log").display().to_string();
            let arguments = ["-o", &log, "-e", &trace, "-e", &inject].map(String::from);
            let output = strace(kind, &path, &arguments);
            stopped += usize::from(says(&output, "stopped"));
            assert!(output.status.success(), "{kind} {inject}: {output:?}");
            assert!(!says(&output, "done"), "{kind} {inject}: nobody noticed");
            runtime.block_on(check(kind, &path, last_ack(&output), &inject));
        }
    }
    assert!(stopped > 0, "{kind}: no fault met a commit");
}

#[test]
fn redb_reports_a_failing_disk() {
    fail_calls(
        BackendKind::Redb,
        &[("fdatasync", 6), ("fdatasync", 9), ("pwrite64", 30)],
    );
}

#[test]
fn sled_reports_a_failing_disk() {
    fail_calls(BackendKind::Sled, &[("fdatasync", 4), ("fdatasync", 6)]);
}
