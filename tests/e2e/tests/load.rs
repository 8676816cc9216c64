//! The client-server example under load while everything around it is scaled, killed and started again: every byte, reset, datagram
//! and call is counted. Callers are on both nodes, so half of all goes through the encrypted tunnel.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roble_e2e::{Tree, texts, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What makes the load.
const LOAD: &str = include_str!("../scripts/load.py");
/// Per caller.
const STREAMS: u16 = 4;
const FLOWS: u16 = 4;
const CALLS: u16 = 4;
/// Calls that must have ended before the next step.
const ENOUGH: usize = 60;
/// Nothing new goes to who is gone for longer than this: DESIGN.md section 8.
const LEFT_WITHIN: f64 = 1.0;
/// Of the datagrams to living instances: who gets no core in time, of all the programs on this machine, loses some.
const LOST: f64 = 0.01;
/// A datagram may have been under way, and a clock be read, so much earlier.
const UNDER_WAY: f64 = 0.3;

fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is right")
        .as_secs_f64()
}

/// Something that happened to the load.
#[derive(Debug, Clone)]
struct Happening {
    at: f64,
    what: String,
    rest: Vec<String>,
}

impl Happening {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            at: words.next()?.parse().ok()?,
            what: words.next()?.to_owned(),
            rest: words.map(str::to_owned).collect(),
        })
    }

    fn number(&self, place: usize) -> f64 {
        self.rest.get(place).and_then(|word| word.parse().ok()).unwrap_or(0.0)
    }

    fn instance(&self) -> Option<u32> {
        self.rest.first()?.parse().ok()
    }
}

/// All load of the test.
struct Load {
    seen: Arc<Mutex<Vec<Happening>>>,
    makers: Vec<(Child, std::thread::JoinHandle<()>)>,
    /// So that no port of a caller is used twice.
    port: u16,
}

impl Load {
    fn new() -> Self {
        Self {
            seen: Arc::default(),
            makers: Vec::new(),
            port: 20_000,
        }
    }

    /// More load from inside the network at `netns`.
    fn add(&mut self, netns: &str, addresses: &[String]) {
        let numbers = [STREAMS, FLOWS, CALLS, self.port].map(|number| number.to_string());
        self.port += FLOWS;
        let mut child = Command::new("nsenter")
            .arg(format!("--net={netns}"))
            .args(["python3", "-c", LOAD])
            .args(numbers)
            .args(addresses)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let seen = self.seen.clone();
        let reading = std::thread::spawn(move || {
            for happening in lines.map_while(Result::ok).filter_map(|line| Happening::parse(&line)) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(happening);
            }
        });
        self.makers.push((child, reading));
    }

    fn seen(&self) -> Vec<Happening> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for so many calls from now on that all of `instances` answer, nobody else, and nothing fails.
    fn calls_are_well(&self, instances: u32) {
        let wanted: BTreeSet<u32> = (0..instances).collect();
        let since = seconds();
        wait_for(&format!("{ENOUGH} calls answered by {instances} instances"), 90, || {
            let seen = self.seen();
            let failed = seen.iter().filter(|one| one.what == "failed").map(|one| one.at);
            let from = failed.fold(since, f64::max);
            let ends = seen
                .iter()
                .rev()
                .filter(|one| one.what == "answered" && one.number(1) > from);
            let last: Vec<u32> = ends.filter_map(Happening::instance).take(ENOUGH).collect();
            last.len() == ENOUGH && last.iter().copied().collect::<BTreeSet<_>>() == wanted
        });
    }

    /// Streams that are open: by instance.
    fn open(&self) -> BTreeMap<u32, i64> {
        let mut open = BTreeMap::new();
        for one in self.seen() {
            let change = match one.what.as_str() {
                "open" => 1,
                "broken" | "closed" => -1,
                _ => continue,
            };
            if let Some(instance) = one.instance() {
                *open.entry(instance).or_default() += change;
            }
        }
        open
    }

    /// Ends the load and waits for what is still under way.
    fn end(mut self) -> Vec<Happening> {
        for (maker, _) in &mut self.makers {
            drop(maker.stdin.take());
        }
        for (mut maker, reading) in std::mem::take(&mut self.makers) {
            let ended = maker.wait().expect("it ends");
            assert!(ended.success(), "a maker of load failed");
            reading.join().expect("its lines were read");
        }
        self.seen()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (maker, _) in &mut self.makers {
            let _ = maker.kill();
            let _ = maker.wait();
        }
    }
}

/// Something done to the tree under load.
struct Event {
    name: &'static str,
    from: f64,
    /// Instances that ended in it, and when.
    gone: BTreeMap<u32, f64>,
    /// Datagrams may be lost while the tunnel's worker is away.
    no_worker: bool,
}

/// What an event did.
#[derive(Debug, Default)]
struct Counts {
    streams: usize,
    broken_gone: usize,
    broken: Vec<Happening>,
    resets: usize,
    lost_bytes: f64,
    sent: f64,
    lost_gone: usize,
    lost: usize,
    moved: usize,
    silent: f64,
    answered: usize,
    failed: Vec<Happening>,
    /// The last of them began so long after the first end of an instance.
    last_failed: f64,
}

fn count(seen: &[Happening], event: &Event, until: f64) -> Counts {
    let mut counts = Counts::default();
    let first_end = event.gone.values().copied().fold(f64::INFINITY, f64::min);
    let is_gone = |one: &Happening| one.instance().is_some_and(|number| event.gone.contains_key(&number));
    for one in seen {
        let within = |at: f64| at >= event.from - UNDER_WAY && at < until - UNDER_WAY;
        match one.what.as_str() {
            "open" if one.at < until => counts.streams += 1,
            "closed" | "broken" if one.at < event.from && one.instance().is_some() => counts.streams -= 1,
            _ => {}
        }
        if !within(one.at) {
            continue;
        }
        match one.what.as_str() {
            "broken" if is_gone(one) || (one.instance().is_none() && !event.gone.is_empty()) => counts.broken_gone += 1,
            "broken" | "closed" => {
                let lost = one.number(2);
                counts.lost_bytes += lost;
                if one.what == "broken" {
                    counts.resets += usize::from(one.rest.get(1).is_some_and(|kind| kind == "reset"));
                    counts.broken.push(one.clone());
                }
            }
            "sent" => counts.sent += one.number(0),
            "lost" if is_gone(one) => counts.lost_gone += 1,
            "lost" => counts.lost += 1,
            "moved" if one.instance().is_some() && !is_gone(one) => counts.moved += 1,
            "silent" => counts.silent = counts.silent.max(one.number(1)),
            "answered" => counts.answered += 1,
            "failed" => {
                counts.last_failed = counts.last_failed.max(one.number(1) - first_end);
                counts.failed.push(one.clone());
            }
            _ => {}
        }
    }
    counts
}

/// Process of the tunnel's worker of a node.
fn worker(tree: &Tree, node: &str) -> Option<Pid> {
    let socket = tree.path(&format!("{node}/tunnel.sock"));
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = numbers.find(|number| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words[0].ends_with(b"roble-tunnel") && words.contains(&socket.as_bytes())
    })?;
    Some(Pid::from_raw(found))
}

/// The example, with an echo beside each server's page and a client on each node.
fn descriptor() -> String {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/client-server.yaml");
    let mut text = std::fs::read_to_string(example).expect("the example");
    for (before, after) in [
        (
            "    replicas: 2\n",
            "    replicas: 2\n    args: [\"--echo\", \"8081\"]\n",
        ),
        // Who waits for his share of a core loses datagrams.
        ("10.30.55.55\n    cpu: 50m\n", "10.30.55.55\n    cpu: 200m\n"),
        (
            "  client:\n",
            "  client:\n    replicas: 2\n    ports: [\"18094:8080\"]\n",
        ),
    ] {
        assert_eq!(text.matches(before).count(), 1, "the example has changed");
        text = text.replace(before, after);
    }
    assert!(text.contains("round_robin: 10.30.55.55"), "{text}");
    text
}

/// The process of `client-server/server.N`.
fn server(tree: &Tree, number: u32) -> (String, Pid) {
    let view = tree.json(&["get", "instance", &format!("client-server/server.{number}")]);
    let id = view["id"].as_str().expect("an id").to_owned();
    let (_, process) = tree.containers()[&id].clone();
    (id, Pid::from_raw(process.try_into().expect("a process id")))
}

#[test]
fn nothing_is_lost_of_what_lives() {
    let tree = Tree::up("load");
    let applied = tree.apply(&descriptor());
    assert!(applied.ok, "{}", applied.err);
    for service in ["server", "client"] {
        let service = format!("client-server/{service}");
        tree.must(&["wait", &service, "--for", "running", "--timeout", "90s"]);
    }
    let clients = [0, 1].map(|number| {
        let view = tree.json(&["get", "instance", &format!("client-server/client.{number}")]);
        let (node, id) = (view["node_name"].as_str(), view["id"].as_str());
        tree.path(&format!("{}/netns/{}", node.expect("a node"), id.expect("an id")))
    });
    let service = tree.json(&["get", "service", "client-server/server"]);
    let addresses = texts(&service["addresses"]["round-robin"]);
    assert_eq!(addresses[0], "10.30.55.55");

    let mut load = Load::new();
    for client in &clients {
        load.add(client, &addresses);
    }
    load.calls_are_well(2);
    let mut events = Vec::new();
    let mut event = |name, gone: BTreeMap<u32, f64>, no_worker| {
        let from = gone.values().copied().fold(seconds(), f64::min);
        events.push(Event {
            name,
            from,
            gone,
            no_worker,
        });
    };

    event("nothing", BTreeMap::new(), false);
    load.calls_are_well(2);

    event("scaled from 2 to 4", BTreeMap::new(), false);
    tree.must(&["scale", "client-server/server", "4"]);
    load.calls_are_well(4);

    // More streams and flows, until the new instances have some: calls take turns too.
    event("more callers", BTreeMap::new(), false);
    wait_for("streams to all four", 120, || {
        for client in &clients {
            load.add(client, &addresses);
        }
        load.calls_are_well(4);
        load.open().values().filter(|open| **open > 0).count() == 4
    });

    // Who is to go is seen to end in the processes of the machine.
    let going = [2, 3].map(|number| (number, server(&tree, number).1));
    let asked = seconds();
    event("scaled from 4 to 2", BTreeMap::from([(2, asked), (3, asked)]), false);
    tree.must(&["scale", "client-server/server", "2"]);
    let mut ends = BTreeMap::new();
    wait_for("two instances to end", 60, || {
        for (number, process) in going {
            if kill(process, None).is_err() {
                ends.entry(number).or_insert_with(seconds);
            }
        }
        ends.len() == 2
    });
    load.calls_are_well(2);

    let (_, process) = server(&tree, 0);
    event("instance killed", BTreeMap::from([(0, seconds())]), false);
    kill(process, Signal::SIGKILL).expect("it runs");
    load.calls_are_well(2);

    for (name, daemon) in [
        ("node engine killed", "n1"),
        ("roble-net killed", "n1-net"),
        ("tunnel worker killed", "worker"),
        ("cluster killed", "cluster"),
        ("root killed", "root"),
    ] {
        let before = tree.containers();
        event(name, BTreeMap::new(), daemon == "worker");
        if daemon == "worker" {
            let process = worker(&tree, "n1").expect("a worker runs");
            kill(process, Signal::SIGKILL).expect("it runs");
            wait_for("another worker", 20, || {
                worker(&tree, "n1").is_some_and(|now| now != process)
            });
        } else {
            tree.kill(daemon);
        }
        // While it is away, and after it is back.
        load.calls_are_well(2);
        tree.start_all();
        load.calls_are_well(2);
        assert_eq!(tree.containers(), before, "{name}: a container was touched");
    }

    event("end", BTreeMap::new(), false);
    let open: i64 = load.open().values().sum();
    let seen = load.end();
    // Kept if the test fails.
    let lines = seen
        .iter()
        .map(|one| format!("{:.3} {} {}\n", one.at, one.what, one.rest.join(" ")));
    let steps = events.iter().map(|one| format!("{:.3} event {}\n", one.from, one.name));
    let mut record: Vec<String> = lines.chain(steps).collect();
    record.sort();
    std::fs::write(tree.path("logs/load.txt"), record.concat()).expect("the folder is writable");
    report(&tree, &events, &seen, &ends, open);
    tree.must(&["delete", "app", "client-server", "--wait"]);
    drop(tree.down());
}

/// Prints the table and asserts what is promised.
fn report(tree: &Tree, events: &[Event], seen: &[Happening], ends: &BTreeMap<u32, f64>, open: i64) {
    println!(
        "{:22} {:>7} {:>16} {:>10} {:>6} {:>9} {:>14} {:>7} {:>8} {:>14}",
        "event",
        "streams",
        "broken gone/live",
        "bytes lost",
        "resets",
        "datagrams",
        "lost gone/live",
        "silence",
        "calls",
        "failed (last)"
    );
    let mut wrong = Vec::new();
    for (event, next) in events.iter().zip(&events[1..]) {
        let counts = count(seen, event, next.from);
        println!(
            "{:22} {:>7} {:>16} {:>10} {:>6} {:>9} {:>14} {:>7.2} {:>8} {:>14}",
            event.name,
            counts.streams,
            format!("{}/{}", counts.broken_gone, counts.broken.len()),
            counts.lost_bytes,
            counts.resets,
            counts.sent,
            format!("{}/{}", counts.lost_gone, counts.lost),
            counts.silent,
            counts.answered,
            match counts.failed.len() {
                0 => "0".to_owned(),
                failed => format!("{failed} ({:.2} s)", counts.last_failed),
            }
        );
        let mut promise = |kept: bool, what: String| {
            if !kept {
                wrong.push(format!("{}: {what}", event.name));
            }
        };
        let gone = !event.gone.is_empty();
        promise(counts.answered > 0, "no calls".to_owned());
        promise(counts.sent > 0.0, "no datagrams".to_owned());
        promise(
            counts.broken.is_empty() && counts.lost_bytes == 0.0,
            format!("streams to living instances broke: {:?}", counts.broken),
        );
        promise(
            counts.moved == 0,
            format!("{} flows left a living instance", counts.moved),
        );
        promise(
            counts.failed.is_empty() || gone,
            format!("calls failed: {:?}", counts.failed),
        );
        promise(
            (counts.lost as f64) <= LOST * counts.sent || event.no_worker,
            format!("{} datagrams to living instances were lost", counts.lost),
        );
        // From when an instance is surely gone.
        let last_end = event
            .gone
            .keys()
            .map(|number| ends.get(number).copied().unwrap_or(event.from));
        let surely = last_end.fold(f64::NEG_INFINITY, f64::max) + LEFT_WITHIN;
        let late: Vec<_> = counts.failed.iter().filter(|one| one.number(1) > surely).collect();
        promise(!gone || late.is_empty(), format!("still called: {late:?}"));
        let dead = seen.iter().filter(|one| {
            let of = one.instance().and_then(|number| {
                event
                    .gone
                    .get(&number)
                    .map(|_| ends.get(&number).copied().unwrap_or(event.from))
            });
            one.what == "lost" && one.at < next.from && of.is_some_and(|end| one.at > end + LEFT_WITHIN)
        });
        let dead = dead.count();
        promise(dead == 0, format!("{dead} datagrams to the dead"));
    }
    let lost = seen
        .iter()
        .filter(|one| one.what == "closed" && one.number(2) > 0.0)
        .count();
    println!("{open} streams were open at the end, {lost} of them had lost something");
    assert!(wrong.is_empty(), "{wrong:#?}\nlogs in {}", tree.path("logs"));
    assert_eq!(lost, 0);
    assert!(open >= i64::from(2 * STREAMS), "{open} streams at the end");
}
