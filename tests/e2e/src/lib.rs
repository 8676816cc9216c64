//! End to end: the real daemons as `roble dev` starts them, each node in a network namespace of its own, real containerd,
//! real TLS, real MQTT. What runs is read from containerd, never from Roble's own reports.
//!
//! One tree at a time per machine: [`Tree::up`] waits for its turn. A failed test keeps the folder and names it.

pub mod points;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use points::Points;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());

/// The right to have the machine's only tree.
pub type Turn = MutexGuard<'static, ()>;

/// Waits for the turn.
pub fn turn() -> Turn {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tree of one root, one cluster and two nodes.
pub struct Tree {
    folder: PathBuf,
    bin: PathBuf,
    turn: Option<Turn>,
    environment: Vec<(String, String)>,
    points: Option<Points>,
    children: Mutex<Vec<Child>>,
}

/// A command's end.
#[derive(Debug)]
pub struct Done {
    /// It ended with 0.
    pub ok: bool,
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Tree {
    /// Starts a tree and imports the hello image.
    pub fn up(name: &str) -> Self {
        Self::up_on(turn(), name, "embedded")
    }

    /// The same, with more in the environment of its daemons. `{folder}` in a value: the tree's folder, which is made later,
    /// with what stands behind it beside the folder.
    pub fn up_with(name: &str, environment: &[(&str, &str)]) -> Self {
        Self::start(turn(), name, "embedded", environment)
    }

    /// The same with this broker.
    pub fn up_on(turn: Turn, name: &str, broker: &str) -> Self {
        Self::start(turn, name, broker, &[])
    }

    /// The same with failpoints; see `daemon/src/failpoint.rs`.
    pub fn up_with_points(name: &str) -> Self {
        let folder = PathBuf::from(format!("/tmp/roble-e2e-{name}-{}.points", std::process::id()));
        let points = Points::new(&folder);
        let environment = [("ROBLE_FAILPOINTS", &*folder.to_string_lossy())];
        let mut tree = Self::start(turn(), name, "embedded", &environment);
        tree.points = Some(points);
        tree
    }

    fn start(turn: Turn, name: &str, broker: &str, environment: &[(&str, &str)]) -> Self {
        let own = std::env::current_exe().expect("the test knows its own path");
        let bin = own
            .parent()
            .and_then(Path::parent)
            .expect("tests lie in target/debug/deps")
            .to_owned();
        let folder = PathBuf::from(format!("/tmp/roble-e2e-{name}-{}", std::process::id()));
        let beside = folder.to_string_lossy().into_owned();
        let environment = environment
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.replace("{folder}", &beside)));
        let tree = Self {
            environment: environment.collect(),
            folder,
            bin,
            turn: Some(turn),
            points: None,
            children: Mutex::default(),
        };
        for binary in ["roble", "roble-root", "roble-cluster", "roble-node", "roble-net"] {
            assert!(
                tree.bin.join(binary).is_file(),
                "{binary} is missing: run scripts/test.sh, which builds it"
            );
        }
        tree.must(&["dev", "up", "--broker", broker, "--folder", &tree.path("")]);
        let image = tree.hello_image();
        assert!(
            image.is_file(),
            "{} is missing: run scripts/build-hello.sh",
            image.display()
        );
        tree.must(&["dev", "import", "--folder", &tree.path(""), &image.to_string_lossy()]);
        tree
    }

    /// Starts whatever does not run.
    pub fn start_all(&self) {
        self.must(&["dev", "up", "--folder", &self.path("")]);
    }

    /// A path in the tree's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder
            .join(name)
            .to_string_lossy()
            .trim_end_matches('/')
            .to_owned()
    }

    /// Path of one of the built binaries.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Runs `roble`.
    pub fn roble(&self, args: &[&str]) -> Done {
        let mut command = Command::new(self.bin.join("roble"));
        command
            .args(args)
            .env("ROBLE_CONFIG", self.folder.with_extension("json"))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        done(command.output().expect("roble starts"))
    }

    /// Makes an organization, unless there is one of this name, and logs its owner in.
    pub fn organization(&self, name: &str) {
        let done = command(
            &self.bin.join("roble-root").to_string_lossy(),
            &["organization", name, "--state-dir", &self.path("root")],
        );
        let login = done.out.lines().find_map(|line| line.trim().strip_prefix("roble "));
        let words: Vec<&str> = login.unwrap_or_else(|| panic!("{}", done.err)).split(' ').collect();
        let logged_in = self.roble_of(name, &words);
        assert!(logged_in.ok, "{}", logged_in.err);
    }

    /// Runs `roble` as the owner of an organization.
    pub fn roble_of(&self, organization: &str, args: &[&str]) -> Done {
        let mut command = Command::new(self.bin.join("roble"));
        command
            .args(args)
            .env("ROBLE_CONFIG", self.path(&format!("{organization}.json")))
            .stdin(Stdio::null());
        done(command.output().expect("roble starts"))
    }

    /// The failpoints of the tree's daemons.
    pub fn points(&self) -> &Points {
        self.points.as_ref().expect("the tree was started with failpoints")
    }

    /// Whether a daemon's recorded process has ended.
    pub fn is_dead(&self, daemon: &str) -> bool {
        let Some(pid) = self.pid(daemon) else { return true };
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        is_gone(pid)
    }

    /// Starts a daemon that died as it was started before, as part of the tree again.
    pub fn revive(&self, daemon: &str) {
        let commands = std::fs::read_to_string(self.path(&format!("{daemon}.command"))).expect("it was started");
        let log = std::fs::File::options()
            .append(true)
            .open(self.path(&format!("logs/{daemon}.log")))
            .expect("it has a log");
        let mut args = commands.lines();
        let mut command = Command::new(args.next().expect("a program"));
        command.args(args).stdin(Stdio::null()).process_group(0);
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.envs(self.environment.iter().cloned());
        let child = command.spawn().expect("it starts");
        let pid = child.id();
        // As `roble dev` records it: the process and when it started.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let started = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(19))
            .unwrap_or_default();
        std::fs::write(self.path(&format!("{daemon}.pid")), format!("{pid} {started}\n"))
            .expect("the folder is writable");
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }

    /// Sends a signal to a daemon.
    pub fn signal(&self, daemon: &str, signal: Signal) {
        let pid = self.pid(daemon).expect("it was started");
        let _ = kill(pid, signal);
    }

    /// Runs `roble`, which must succeed.
    pub fn must(&self, args: &[&str]) -> String {
        let done = self.roble(args);
        assert!(
            done.ok,
            "roble {}: {} (logs in {})",
            args.join(" "),
            done.err,
            self.folder.display()
        );
        done.out
    }

    /// Runs `roble` with JSON output, which must succeed.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.must(&all)).expect("roble prints JSON")
    }

    /// Applies a descriptor.
    pub fn apply(&self, text: &str) -> Done {
        let file = self.path("descriptor.yaml");
        std::fs::write(&file, text).expect("the folder is writable");
        self.roble(&["apply", "-f", &file])
    }

    /// Applies a file of the source tree, as `examples/hello.yaml`.
    pub fn apply_file(&self, file: &str) -> Done {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        self.roble(&["apply", "-f", &path.to_string_lossy()])
    }

    /// The archive of the hello image.
    pub fn hello_image(&self) -> PathBuf {
        self.bin.parent().expect("target").join("roble-hello.tar")
    }

    /// Gives every node the image of `examples/video.yaml`.
    pub fn import_ffmpeg(&self) {
        let image = self.bin.parent().expect("target").join("roble-ffmpeg.tar");
        assert!(
            image.is_file(),
            "{} is missing: run scripts/build-ffmpeg.sh",
            image.display()
        );
        self.must(&["dev", "import", "--folder", &self.path(""), &image.to_string_lossy()]);
    }

    /// The log of a daemon.
    pub fn log(&self, daemon: &str) -> String {
        std::fs::read_to_string(self.path(&format!("logs/{daemon}.log"))).unwrap_or_default()
    }

    /// A path beside the tree's folder; whoever makes it removes it.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.with_extension(suffix)
    }

    /// The running processes of all containers, by `service id.number`, as containerd of each node sees them.
    pub fn containers(&self) -> BTreeMap<String, (String, u32)> {
        let mut all = BTreeMap::new();
        for node in ["n1", "n2"] {
            for line in self.ctr(node, &["tasks", "ls"]).lines().skip(1) {
                let mut words = line.split_whitespace();
                if let (Some(id), Some(pid), Some("RUNNING")) = (words.next(), words.next(), words.next()) {
                    let before = all.insert(id.to_owned(), (node.to_owned(), pid.parse().expect("a process id")));
                    assert!(before.is_none(), "two copies of {id} run");
                }
            }
        }
        all
    }

    /// The running containers of one node: id and process.
    pub fn containers_of(&self, node: &str) -> BTreeMap<String, u32> {
        let listed = self.ctr(node, &["tasks", "ls"]);
        let words = listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .filter(|w| w.get(2) == Some(&"RUNNING"))
            .map(|w| (w[0].to_owned(), w[1].parse().unwrap_or(0)))
            .collect()
    }

    /// Runs `ctr` in a node's containerd namespace; an unreachable containerd gives nothing.
    pub fn ctr(&self, node: &str, args: &[&str]) -> String {
        let socket = self.path("containerd/containerd.sock");
        let namespace = format!("roble-dev-{node}");
        let output = Command::new("ctr")
            .args(["--address", &socket, "-n", &namespace])
            .args(args)
            .output();
        String::from_utf8_lossy(&output.expect("ctr is installed by scripts/install-deps.sh").stdout).into_owned()
    }

    /// The recorded process of a daemon: `root`, `cluster`, `n1`, `n1-net`, `containerd`, ...
    pub fn pid(&self, daemon: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.path(&format!("{daemon}.pid"))).ok()?;
        Some(Pid::from_raw(text.split(' ').next()?.parse().ok()?))
    }

    /// Kills a daemon with -9 and waits until it is gone.
    pub fn kill(&self, daemon: &str) {
        let pid = self.pid(daemon).expect("it was started");
        let _ = kill(pid, Signal::SIGKILL);
        wait_for(&format!("{daemon} to die"), 10, || is_gone(pid));
    }

    /// Kills a daemon and starts it again with the same arguments, and nothing else.
    pub fn restart_alone(&self, daemon: &str) -> Loose {
        self.kill(daemon);
        self.start_alone(daemon)
    }

    /// Starts a daemon of a node as it was started last, and nothing else.
    pub fn start_alone(&self, daemon: &str) -> Loose {
        let commands = std::fs::read_to_string(self.path(&format!("{daemon}.command"))).expect("it was started");
        let mut args = commands.lines();
        let mut command = Command::new(args.next().expect("a program"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Loose(command.spawn().expect("it starts"))
    }

    /// Starts one more node engine, in no namespace of its own. To failpoints it is `joiner`.
    pub fn spawn_node(&self, token: &str, name: &str) -> Loose {
        let state = self.path(name);
        let mut command = Command::new(self.binary("roble-node"));
        command.env("ROBLE_FAILPOINTS_AS", "joiner");
        command.envs(self.environment.iter().cloned());
        command.args([
            "--state-dir",
            &state,
            "--cluster",
            "10.99.77.1:10100",
            "--name",
            name,
            "--join",
            token,
        ]);
        command.args([
            "--containerd-socket",
            &self.path("containerd/containerd.sock"),
            "--containerd-namespace",
            name,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Loose(command.spawn().expect("it starts"))
    }

    /// Starts one more cluster, on free ports of this machine. To failpoints it is `joining-cluster`.
    pub fn spawn_cluster(&self, token: &str, name: &str) -> Loose {
        let state = self.path(name);
        let mut command = Command::new(self.binary("roble-cluster"));
        command.env("ROBLE_FAILPOINTS_AS", "joining-cluster");
        command.envs(self.environment.iter().cloned());
        command.args(["--state-dir", &state, "--root", "10.99.77.1:10000", "--name", name]);
        command.args([
            "--listen-mqtt",
            "127.0.0.1:0",
            "--listen-api",
            "127.0.0.1:0",
            "--join",
            token,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Loose(command.spawn().expect("it starts"))
    }

    /// Stops everything; nothing may be left. Gives the turn back, to whoever wants to look before the next tree.
    pub fn down(mut self) -> Option<Turn> {
        assert!(self.folder.exists());
        self.must(&["dev", "down", "--folder", &self.path("")]);
        let _ = std::fs::remove_file(self.folder.with_extension("json"));
        assert!(!self.folder.exists(), "{} is left", self.folder.display());
        self.turn.take()
    }
}

/// Whether a process has ended with all its threads: until then it holds its locks, even when its first thread is gone.
fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.map_or(true, |stat| stat.contains(") Z ") && threads <= 1)
}

fn done(output: Output) -> Done {
    Done {
        ok: output.status.success(),
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program of the machine and gives what it printed.
pub fn command(program: &str, args: &[&str]) -> Done {
    done(
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}")),
    )
}

/// Waits until `condition` holds; fails after so many seconds.
pub fn wait_for(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(seconds),
            "{what}: not within {seconds} s"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The texts of a list in what `roble` printed.
pub fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// `scripts/probe.py`: calls and answers of every protocol, family and kind of address.
pub const PROBE: &str = include_str!("../scripts/probe.py");

/// Answers the probe's calls in an instance's network; it listens when this returns.
pub fn serve(netns: &str) -> Loose {
    let mut server = Command::new("nsenter")
        .arg(format!("--net={netns}"))
        .args(["python3", "-c", PROBE, "serve"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut ready = [0; 6];
    let said = server.stdout.as_mut().expect("piped").read_exact(&mut ready);
    said.expect("it listens");
    Loose(server)
}

/// The body of `GET /` of an HTTP server, if it answers.
pub fn get(address: &str) -> Option<String> {
    let address = address.parse().expect("an address and a port");
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

impl Drop for Tree {
    /// A test that failed stops its tree and keeps its logs.
    fn drop(&mut self) {
        if self.folder.exists() {
            let _ = self.roble(&["dev", "down", "--keep", "--folder", &self.path("")]);
        }
    }
}

/// A process started beside the tree; it ends with this value.
pub struct Loose(Child);

impl Loose {
    /// Whether it has ended.
    pub fn is_dead(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Loose {
    /// Takes a process that the test started.
    pub fn of(child: std::process::Child) -> Self {
        Self(child)
    }
}

impl Drop for Loose {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
