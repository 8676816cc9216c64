//! A real daemon dies between any two of its steps. Every failpoint that a step of the tree's life passes is armed in
//! turn, the step is taken again, the daemon dies there and is started again, and the step's result must come true, with
//! nothing lost, touched or left over, as containerd, the kernel and the file system show it.
//!
//! In CI every point is swept once, in one of the steps that pass it, and the programs of the tree die side by side.
//! `ROBLE_FAILPOINTS_ALL=1` sweeps each point in each step that passes it, one at a time;
//! `ROBLE_FAILPOINT=deploy/roble-node/node.create.task` only that one.

use nix::sys::signal::Signal;
use roble_e2e::points::{Place, declared};
use roble_e2e::{Loose, Tree, command, get, wait_for};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tree's daemons, and their programs as failpoints call them.
const DAEMONS: [(&str, &str); 6] = [
    ("root", "roble-root"),
    ("cluster", "roble-cluster"),
    ("n1", "roble-node"),
    ("n2", "roble-node"),
    ("n1-net", "roble-net"),
    ("n2-net", "roble-net"),
];
/// The nodes, and where their published port is.
const NODES: [(&str, &str); 2] = [("n1", "10.99.77.2:18081"), ("n2", "10.99.77.3:18081")];
/// Longest time until a result holds after a crash.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a point is tried that was passed before, but not when it was armed.
const TRIES: u32 = 4;

/// What is done to the tree. Those up to `Delete` come in turn, each from where the one before led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Deploy,
    ScaleDown,
    ScaleUp,
    Replace,
    Many,
    Delete,
    Restart,
    RenewNode,
    RenewCluster,
    JoinNode,
    JoinCluster,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Deploy,
        Self::ScaleDown,
        Self::ScaleUp,
        Self::Replace,
        Self::Many,
        Self::Delete,
        Self::Restart,
        Self::RenewNode,
        Self::RenewCluster,
        Self::JoinNode,
        Self::JoinCluster,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::ScaleDown => "scale-down",
            Self::ScaleUp => "scale-up",
            Self::Replace => "replace",
            Self::Many => "many",
            Self::Delete => "delete",
            Self::Restart => "restart",
            Self::RenewNode => "renew-node",
            Self::RenewCluster => "renew-cluster",
            Self::JoinNode => "join-node",
            Self::JoinCluster => "join-cluster",
        }
    }

    /// Whether a place that is passed in this step belongs to it. What every daemon passes at any time, such as the
    /// store's, belongs to the steps of deployments.
    fn owns(self, place: &Place) -> bool {
        let (program, point) = (place.program.as_str(), place.point.as_str());
        let any_time = point.starts_with("shell.") || point.starts_with("net.reconcile");
        match self {
            Self::Deploy | Self::ScaleDown | Self::ScaleUp | Self::Replace | Self::Delete | Self::Restart => {
                program.starts_with("roble-")
            }
            Self::Many => program == "roble-root",
            Self::RenewNode => matches!(program, "roble-node" | "roble-cluster") && !any_time,
            Self::RenewCluster => matches!(program, "roble-cluster" | "roble-root") && !any_time,
            Self::JoinNode => matches!(program, "joiner" | "roble-cluster") && !any_time,
            Self::JoinCluster => matches!(program, "joining-cluster" | "roble-root") && !any_time,
        }
    }
}

/// What shall run of the service under test.
#[derive(Debug, Clone, Default)]
struct Wish {
    image: String,
    greeting: String,
    replicas: usize,
}

struct Sweep {
    tree: Tree,
    /// Containers that nobody may touch: id, node, process.
    steady: BTreeMap<String, (String, u32)>,
    wish: Wish,
    /// Counts images, greetings and names, so that none comes twice.
    number: u32,
    program: Vec<u8>,
}

fn descriptor(application: &str, wish: &Wish, port: bool) -> String {
    let ports = if port { "\n    ports: [\"18081:8080\"]" } else { "" };
    format!(
        "application: {application}\nservices:\n  work:\n    image: {}\n    replicas: {}\n    environment: {{GREETING: \"{}\"}}\n    \
         cpu: 50m\n    memory: 32MiB\n    stop_grace: 1s{ports}\n",
        wish.image, wish.replicas, wish.greeting
    )
}

fn files(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

impl Sweep {
    fn begin() -> Self {
        let tree = Tree::up_with_points("points");
        let program = hello_program(&tree);
        let steady = Wish {
            image: "docker.io/library/roble-hello:latest".to_owned(),
            greeting: "steady".to_owned(),
            replicas: 2,
        };
        assert!(tree.apply(&descriptor("steady", &steady, false)).ok);
        tree.must(&["wait", "steady/work", "--for", "running", "--timeout", "60s"]);
        let steady = tree.containers();
        assert_eq!(steady.len(), 2);
        Self {
            tree,
            steady,
            wish: Wish::default(),
            number: 0,
            program,
        }
    }

    /// An image that no node has unpacked yet, imported on both.
    fn fresh_image(&mut self) -> String {
        let name = format!("docker.io/library/roble-fresh:{}", self.number);
        let (binary, archive) = (self.tree.path("hello"), self.tree.path("fresh.tar"));
        // Bytes after the end of the program do not change what it does.
        let bytes = [self.program.as_slice(), self.number.to_string().as_bytes()].concat();
        std::fs::write(&binary, bytes).expect("the folder is writable");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/build-image.sh");
        let built = command("sh", &[script, &name, &binary, &archive]);
        assert!(built.ok, "{}", built.err);
        // Unpacking is left to the engine.
        for (node, _) in NODES {
            self.tree.ctr(node, &["images", "import", "--no-unpack", &archive]);
        }
        name
    }

    /// Takes a step, with these places armed, to its end.
    fn take(&mut self, step: Step, armed: &[Place]) -> Vec<Place> {
        self.number += 1;
        let what = format!(
            "{} with {}",
            step.name(),
            armed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
        match step {
            Step::Deploy => {
                self.wish = Wish {
                    image: self.fresh_image(),
                    greeting: format!("first-{}", self.number),
                    replicas: 2,
                };
            }
            Step::ScaleDown => self.wish.replicas = 1,
            Step::ScaleUp => self.wish.replicas = 2,
            Step::Replace => self.wish.greeting = format!("second-{}", self.number),
            Step::Delete => self.wish.replicas = 0,
            Step::Many | Step::Restart => {}
            Step::RenewNode => return self.renew(&what, &["n1", "n2"], armed),
            Step::RenewCluster => return self.renew(&what, &["cluster"], armed),
            Step::JoinNode | Step::JoinCluster => return self.join(&what, step, armed),
        }
        self.arm(armed);
        let mut is_done = self.ask(step);
        let mut crashes = Crashes::of(armed);
        let started = Instant::now();
        let mut held = None;
        loop {
            if crashes.mend(&self.tree) || !is_done {
                is_done = is_done || self.ask(step);
                held = None;
            }
            let wrong = if is_done {
                self.wrong()
            } else {
                "the call was not answered".to_owned()
            };
            if wrong.is_empty() {
                let since = *held.get_or_insert_with(Instant::now);
                // A place that was not passed by now will not be: everything is at rest.
                if crashes.all_happened() || since.elapsed() > Duration::from_secs(3) {
                    break;
                }
            } else {
                held = None;
                assert!(
                    started.elapsed() < DEADLINE,
                    "{what}: not right within {} s:\n{wrong}",
                    DEADLINE.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        if step == Step::Many {
            wait_for("the many to go", 60, || {
                self.tree.roble(&["delete", "app", "many", "--wait"]).ok
            });
        }
        crashes.left(&self.tree)
    }

    fn arm(&self, places: &[Place]) {
        for place in places {
            self.tree.points().arm(place);
        }
    }

    /// The user's call. Whether it was answered: else nobody knows what came of it.
    fn ask(&self, step: Step) -> bool {
        let tree = &self.tree;
        let file = tree.path("wish.yaml");
        let apply = |text: String| {
            std::fs::write(&file, text).expect("the folder is writable");
            tree.roble(&["apply", "-f", &file, "--request-timeout", "5s"]).ok
        };
        match step {
            // Every daemon is killed; those that are armed die once more while they take up what they find.
            Step::Restart => {
                for (daemon, _) in DAEMONS {
                    tree.kill(daemon);
                    tree.revive(daemon);
                }
                true
            }
            Step::ScaleDown | Step::ScaleUp => {
                let replicas = self.wish.replicas.to_string();
                tree.roble(&["scale", "wish/work", &replicas, "--request-timeout", "5s"]).ok
            }
            Step::Delete => {
                let gone = |text: &str| text.contains("not-found");
                let done = tree.roble(&["delete", "app", "wish", "--request-timeout", "5s"]);
                done.ok || gone(&done.err)
            }
            // More than one transaction, and room for none of them.
            Step::Many => apply(
                "application: many\nservices:\n  work:\n    image: docker.io/library/roble-hello:latest\n    replicas: 150\n    \
                 placement:\n      node_labels:\n        zone: nowhere\n"
                    .to_owned(),
            ),
            _ => apply(descriptor("wish", &self.wish, true)),
        }
    }

    /// What is not as it should be, from containerd, the kernel and the file system; and that the root knows it.
    fn wrong(&self) -> String {
        let mut wrong = String::new();
        let mut running = 0;
        for (node, port) in NODES {
            let containers = self.tree.containers_of(node);
            for (id, (at, pid)) in &self.steady {
                if at == node && containers.get(id) != Some(pid) {
                    let _ = writeln!(wrong, "{node}: {id} was touched: {containers:?}");
                }
            }
            let ids: BTreeSet<String> = containers.keys().cloned().collect();
            let own = ids.iter().filter(|id| !self.steady.contains_key(*id)).count();
            running += own;
            let mut compare = |what: &str, found: BTreeSet<String>| {
                if found != ids {
                    let _ = writeln!(wrong, "{node}: {what}: {found:?}, but {ids:?} run");
                }
            };
            let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
            compare("containers", words(self.tree.ctr(node, &["containers", "ls", "-q"])));
            compare("tasks", words(self.tree.ctr(node, &["tasks", "ls", "-q"])));
            let snapshots = self.tree.ctr(node, &["snapshots", "ls"]);
            let active = snapshots.lines().filter(|line| line.trim_end().ends_with("Active"));
            let active = active.filter_map(|line| line.split_whitespace().next());
            compare("file systems", active.map(str::to_owned).collect());
            compare(
                "folders",
                files(&self.tree.path(&format!("{node}/engine/containers/instances"))),
            );
            compare("namespaces", files(&self.tree.path(&format!("{node}/netns"))));
            let attachments =
                std::fs::read(self.tree.path(&format!("{node}/net/attachments.json"))).unwrap_or_default();
            let attachments: serde_json::Value = serde_json::from_slice(&attachments).unwrap_or_default();
            let attached = attachments["attachments"].as_object().into_iter().flatten();
            compare("attachments", attached.map(|(id, _)| id.clone()).collect());
            let netns = format!("roble-dev-{node}");
            let listed = command("ip", &["-n", &netns, "-o", "link"]).out;
            // One for each container, beside the node's tunnel.
            // Devices of tunnels and of misses are the node's own.
            let count = |name: &str| listed.matches(name).count();
            let links = count("rbl-") - ["rbl-vx", "rbl-wg", "rbl-miss"].into_iter().map(count).sum::<usize>();
            if links != ids.len() {
                let _ = writeln!(wrong, "{node}: {links} links, but {ids:?} run");
            }
            let leases = self.tree.ctr(node, &["leases", "ls", "-q"]);
            if !leases.trim().is_empty() {
                let _ = writeln!(wrong, "{node}: leases are left: {leases}");
            }
            let answer = get(port);
            let right = match own {
                0 => answer.is_none(),
                1 => answer
                    .as_ref()
                    .is_some_and(|body| body.starts_with(&self.wish.greeting)),
                _ => false,
            };
            if !right {
                let _ = writeln!(wrong, "{node}: {own} replicas, and the port answers {answer:?}");
            }
        }
        if running != self.wish.replicas {
            let _ = writeln!(wrong, "{running} replicas run, {} are wanted", self.wish.replicas);
        }
        for folder in ["root", "cluster", "n1/engine", "n2/engine", "n1/net", "n2/net"] {
            let left: Vec<String> = files(&self.tree.path(folder))
                .into_iter()
                .filter(|name| name.ends_with(".tmp"))
                .collect();
            if !left.is_empty() {
                let _ = writeln!(wrong, "{folder}: {left:?} is left");
            }
        }
        if wrong.is_empty() {
            wrong = self.wrong_at_the_root();
        }
        wrong
    }

    fn wrong_at_the_root(&self) -> String {
        let listed = self.tree.roble(&["ps", "-o", "json", "--request-timeout", "5s"]);
        let views: serde_json::Value = serde_json::from_str(&listed.out).unwrap_or_default();
        let views: Vec<(String, String)> = views
            .as_array()
            .into_iter()
            .flatten()
            .map(|view| {
                let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
                (text("path"), text("phase"))
            })
            .collect();
        let of = |name: &str| views.iter().filter(|(path, _)| path.starts_with(name)).count();
        let many = of("many/");
        let all_run = views
            .iter()
            .all(|(path, phase)| phase == "running" || path.starts_with("many/"));
        let right = listed.ok
            && all_run
            && of("wish/") == self.wish.replicas
            && of("steady/") == 2
            && (many == 0 || many == 150);
        if right {
            String::new()
        } else {
            format!("the root says {views:?} {}", listed.err)
        }
    }

    /// Has daemons renew their certificates, which must be new in the end and open a new connection.
    fn renew(&mut self, what: &str, daemons: &[&str], armed: &[Place]) -> Vec<Place> {
        let file = |daemon: &str| match daemon {
            "cluster" => self.tree.path("cluster/cluster.pem"),
            node => self.tree.path(&format!("{node}/engine/credential.pem")),
        };
        let authority = self.tree.path("cluster/membership.json");
        let read = |path: String| std::fs::read(path).unwrap_or_default();
        let before: Vec<_> = daemons.iter().map(|daemon| read(file(daemon))).collect();
        let authority_before = read(authority.clone());
        self.arm(armed);
        let mut crashes = Crashes::of(armed);
        let mut told = Instant::now() - DEADLINE;
        wait_for(what, DEADLINE.as_secs(), || {
            crashes.mend(&self.tree);
            let renewed = daemons.iter().zip(&before).all(|(daemon, before)| {
                let now = read(file(daemon));
                !now.is_empty() && now != *before
            });
            let renewed = renewed && (daemons != ["cluster"] || read(authority.clone()) != authority_before);
            if renewed && crashes.all_happened() {
                return true;
            }
            // A renewal that died with its daemon is not taken up by itself before it is due.
            if told.elapsed() > Duration::from_secs(2) && daemons.iter().all(|daemon| self.is_ready(daemon)) {
                if renewed {
                    return true;
                }
                told = Instant::now();
                for daemon in daemons {
                    self.tree.signal(daemon, Signal::SIGHUP);
                }
            }
            false
        });
        let left = crashes.left(&self.tree);
        for daemon in daemons {
            self.tree.kill(daemon);
            self.tree.revive(daemon);
        }
        self.wait_until_right(what);
        left
    }

    /// Whether a daemon serves and its parent hears it.
    fn is_ready(&self, daemon: &str) -> bool {
        let (list, name, socket) = match daemon {
            "cluster" => ("clusters", "dev", self.tree.path("cluster/cluster.sock")),
            node => ("nodes", node, self.tree.path(&format!("{node}/engine/node.sock"))),
        };
        std::os::unix::net::UnixStream::connect(socket).is_ok() && self.members(list, name) == ["active ready"]
    }

    /// State and standing of each member of this name.
    fn members(&self, list: &str, name: &str) -> Vec<String> {
        let done = self.tree.roble(&["get", list, "-o", "json", "--request-timeout", "5s"]);
        let members: serde_json::Value = serde_json::from_str(&done.out).unwrap_or_default();
        let members = members
            .as_array()
            .into_iter()
            .flatten()
            .filter(|member| member["name"] == name);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        members
            .map(|member| format!("{} {}", text(&member["state"]), text(&member["standing"])))
            .collect()
    }

    fn wait_until_right(&self, what: &str) {
        let started = Instant::now();
        loop {
            let wrong = self.wrong();
            if wrong.is_empty() && self.is_ready("cluster") && self.is_ready("n1") && self.is_ready("n2") {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{what}: not right afterwards:\n{wrong}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A new node or cluster joins, and is put out again.
    fn join(&mut self, what: &str, step: Step, armed: &[Place]) -> Vec<Place> {
        let (kind, list) = match step {
            Step::JoinNode => ("node", "nodes"),
            _ => ("cluster", "clusters"),
        };
        let name = format!("j{}", self.number);
        let mut token = vec!["token", "create", kind, "--name", &name];
        if step == Step::JoinNode {
            token.extend(["--cluster", "dev"]);
        }
        let token = self.tree.json(&token)["token"].as_str().expect("a token").to_owned();
        let spawn = || -> Loose {
            match step {
                Step::JoinNode => self.tree.spawn_node(&token, &name),
                _ => self.tree.spawn_cluster(&token, &name),
            }
        };
        self.arm(armed);
        let mut crashes = Crashes::of(armed);
        let mut joiner = spawn();
        let mut seen = Vec::new();
        let started = Instant::now();
        while !(crashes.all_happened() && seen == ["active ready"]) {
            crashes.mend(&self.tree);
            if joiner.is_dead() {
                crashes.note_loose(&self.tree);
                joiner = spawn();
            }
            seen = self.members(list, &name);
            if seen == ["active ready"] && started.elapsed() > Duration::from_secs(8) {
                break;
            }
            assert!(started.elapsed() < DEADLINE, "{what}: {kind} {name} is {seen:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = crashes.left(&self.tree);
        // What it has on disk is enough to come back with.
        drop(joiner);
        let again = spawn();
        let socket = self.tree.path(&format!("{name}/{kind}.sock"));
        wait_for(&format!("{what}: {name} to serve with what it has"), 30, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok() && self.members(list, &name) == ["active ready"]
        });
        wait_for(&format!("{what}: {name} to be put out"), 30, || {
            self.tree.roble(&["revoke", kind, &name, "--yes"]).ok
        });
        drop(again);
        left
    }
}

/// The crashes of one step: where, and which have happened.
struct Crashes {
    waiting: Vec<Place>,
}

impl Crashes {
    fn of(armed: &[Place]) -> Self {
        Self {
            waiting: armed.to_vec(),
        }
    }

    fn all_happened(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Starts daemons that died at their point. Whether there were any.
    fn mend(&mut self, tree: &Tree) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|place| {
            let daemons: Vec<&str> = DAEMONS
                .iter()
                .filter(|(_, program)| *program == place.program)
                .map(|(daemon, _)| *daemon)
                .collect();
            if daemons.is_empty() || !tree.points().has_died(&place.program) {
                return true;
            }
            // The file is renamed a moment before the process is gone; and a step that restarts daemons may have started
            // this one again already.
            let noted = Instant::now();
            while noted.elapsed() < Duration::from_secs(2) {
                if let Some(dead) = daemons.iter().find(|daemon| tree.is_dead(daemon)) {
                    tree.revive(dead);
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            false
        });
        self.waiting.len() < before
    }

    /// Processes that are not of the tree: whoever started them starts them again.
    fn note_loose(&mut self, tree: &Tree) {
        self.waiting
            .retain(|place| place.program.starts_with("roble-") || !tree.points().has_died(&place.program));
    }

    /// Disarms what was never passed, and names it. Whoever died at the last moment is started, too.
    fn left(mut self, tree: &Tree) -> Vec<Place> {
        let missed: Vec<Place> = self
            .waiting
            .iter()
            .filter(|place| tree.points().disarm(&place.program))
            .cloned()
            .collect();
        self.waiting.retain(|place| !missed.contains(place));
        wait_for("a daemon that died to be gone", 10, || {
            self.mend(tree);
            self.note_loose(tree);
            self.all_happened()
        });
        missed
    }
}

/// The program in the hello image.
fn hello_program(tree: &Tree) -> Vec<u8> {
    let archive = tree.binary("roble").with_file_name("").join("../roble-hello.tar");
    let folder = tree.path("unpacked");
    std::fs::create_dir_all(&folder).expect("the folder is writable");
    let tar = |archive: &Path| {
        let done = command("tar", &["-xf", &archive.to_string_lossy(), "-C", &folder]);
        assert!(done.ok, "{}", done.err);
    };
    tar(&archive);
    let blobs = std::fs::read_dir(format!("{folder}/blobs/sha256")).expect("an OCI layout");
    let layer = blobs
        .flatten()
        .max_by_key(|blob| blob.metadata().map_or(0, |data| data.len()));
    tar(&layer.expect("a layer").path());
    std::fs::read(format!("{folder}/hello")).expect("the program is in the layer")
}

/// Which places are armed in which step.
fn plan(passed: &BTreeMap<Step, BTreeSet<Place>>, all: bool) -> BTreeMap<Step, Vec<Place>> {
    let mut plan: BTreeMap<Step, Vec<Place>> = BTreeMap::new();
    if all {
        return passed
            .iter()
            .map(|(step, places)| (*step, places.iter().cloned().collect()))
            .collect();
    }
    let places: BTreeSet<&Place> = passed.values().flatten().collect();
    for place in places {
        let load = |step: &Step| {
            plan.get(step).map_or(0, |own| {
                own.iter().filter(|other| other.program == place.program).count()
            })
        };
        let steps = passed
            .iter()
            .filter(|(_, own)| own.contains(place))
            .map(|(step, _)| *step);
        if let Some(step) = steps.min_by_key(load) {
            plan.entry(step).or_default().push(place.clone());
        }
    }
    plan
}

#[test]
fn a_daemon_that_dies_between_any_two_steps_loses_nothing() {
    let only = std::env::var("ROBLE_FAILPOINT").ok();
    let all = std::env::var_os("ROBLE_FAILPOINTS_ALL").is_some();
    let mut sweep = Sweep::begin();
    let mut passed: BTreeMap<Step, BTreeSet<Place>> = BTreeMap::new();
    for step in Step::ALL {
        sweep.tree.points().forget();
        let begun = Instant::now();
        sweep.take(step, &[]);
        let own: BTreeSet<Place> = sweep
            .tree
            .points()
            .passed()
            .into_iter()
            .filter(|place| step.owns(place))
            .collect();
        println!(
            "{:<14} passes {:>3} places, {:.1} s",
            step.name(),
            own.len(),
            begun.elapsed().as_secs_f64()
        );
        passed.insert(step, own);
    }
    let points: BTreeSet<String> = passed.values().flatten().map(|place| place.point.clone()).collect();
    let missed: Vec<String> = declared().difference(&points).cloned().collect();
    assert!(missed.is_empty(), "no step passes {missed:?}");
    for program in ["roble-root", "roble-cluster", "roble-node"] {
        let place = |point: &str| Place {
            program: program.to_owned(),
            point: point.to_owned(),
        };
        for point in ["shell.decided", "shell.written", "shell.before-act", "shell.after-act"] {
            assert!(
                passed.values().any(|own| own.contains(&place(point))),
                "{program} never passes {point}"
            );
        }
    }

    let mut left = plan(&passed, all || only.is_some());
    if let Some(only) = &only {
        for (step, places) in &mut left {
            places.retain(|place| format!("{}/{place}", step.name()) == *only);
        }
        assert!(
            left.values().any(|places| !places.is_empty()),
            "there is no point {only}"
        );
    }
    let total: usize = left.values().map(Vec::len).sum();
    let mut queues: BTreeMap<Step, VecDeque<(Place, u32)>> = left
        .into_iter()
        .map(|(step, places)| (step, places.into_iter().map(|place| (place, TRIES)).collect()))
        .collect();
    let mut swept: BTreeMap<(Step, String), u32> = BTreeMap::new();
    while queues.values().any(|queue| !queue.is_empty()) {
        let middle = [Step::ScaleDown, Step::ScaleUp, Step::Replace];
        let has_middle = middle
            .iter()
            .any(|step| queues.get(step).is_some_and(|queue| !queue.is_empty()));
        for step in Step::ALL {
            let queue = queues.entry(step).or_default();
            // One place per program, or one place at all.
            let mut taken: Vec<(Place, u32)> = Vec::new();
            let mut rest = VecDeque::new();
            for (place, tries) in queue.drain(..) {
                let has_room = if all {
                    taken.is_empty()
                } else {
                    taken.iter().all(|(other, _)| other.program != place.program)
                };
                if has_room {
                    taken.push((place, tries));
                } else {
                    rest.push_back((place, tries));
                }
            }
            *queue = rest;
            let in_turn = match step {
                Step::Deploy | Step::Delete => true,
                // Together they lead back to where they began.
                Step::ScaleDown | Step::ScaleUp | Step::Replace => has_middle,
                _ => false,
            };
            if taken.is_empty() && !in_turn {
                continue;
            }
            let armed: Vec<Place> = taken.iter().map(|(place, _)| place.clone()).collect();
            let begun = Instant::now();
            let missed = sweep.take(step, &armed);
            let names: Vec<String> = armed.iter().map(ToString::to_string).collect();
            println!(
                "{:<14} {:.1} s {}",
                step.name(),
                begun.elapsed().as_secs_f64(),
                names.join(" ")
            );
            for (place, tries) in taken {
                if missed.contains(&place) {
                    assert!(
                        tries > 1,
                        "{place} was passed in {} once, but not when it was armed",
                        step.name()
                    );
                    queues.entry(step).or_default().push_back((place, tries - 1));
                } else {
                    *swept.entry((step, place.program)).or_default() += 1;
                }
            }
        }
    }
    let programs: BTreeSet<String> = swept.keys().map(|(_, program)| program.clone()).collect();
    println!(
        "\n{:<14} {}",
        "points",
        programs.iter().map(|name| format!("{name:>16}")).collect::<String>()
    );
    for step in Step::ALL {
        let cell = |program: &String| swept.get(&(step, program.clone())).copied().unwrap_or(0);
        println!(
            "{:<14} {}",
            step.name(),
            programs
                .iter()
                .map(|name| format!("{:>16}", cell(name)))
                .collect::<String>()
        );
    }
    println!("{} failpoints, {total} crashes, all of them swept", points.len());
    assert_eq!(swept.values().sum::<u32>() as usize, total);
    sweep.tree.must(&["delete", "app", "steady", "--wait"]);
    drop(sweep.tree.down());
}
