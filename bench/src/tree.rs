//! A tree of real daemons, mostly with one node, as `roble dev` starts it, and its daemons started alone.

use crate::process::{Owned, output, start_time, wait_for};
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The machine's own address in the tree's network.
pub const GATEWAY: &str = "10.99.77.1";
/// The address of the only node.
pub const NODE: &str = "10.99.77.2";
/// The image that the benchmarks run.
pub const IMAGE: &str = "docker.io/library/roble-hello:latest";
/// Environment that `roble dev` and the units give every daemon.
pub const ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "2")];
const BRIDGE: &str = "/sys/class/net/roble-dev0";

/// The tree; ends with this value.
pub struct Tree {
    folder: PathBuf,
    bin: PathBuf,
}

impl Tree {
    /// Starts a tree of one node. `environment`: for its daemons, e.g. other settings.
    ///
    /// # Errors
    /// Something is missing, another tree is up, or a daemon does not start.
    pub fn up(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::of_nodes(1, environment)
    }

    /// The same with so many nodes: `n1`, `n2`, ...
    ///
    /// # Errors
    /// As [`Tree::up`].
    pub fn of_nodes(nodes: u32, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let bin = binaries()?;
        if Path::new(BRIDGE).exists() {
            bail!("another tree is up on this machine; end it with `roble dev down` (and its --folder) first");
        }
        let folder = PathBuf::from(format!("/tmp/roble-bench-{}", std::process::id()));
        let tree = Self { folder, bin };
        let mut up = tree.command(&["dev", "up", "--nodes", &nodes.to_string(), "--folder", &tree.path("")]);
        output(up.envs(environment.iter().copied()))?;
        Ok(tree)
    }

    /// Gives the node the image.
    ///
    /// # Errors
    /// The image was not built, or cannot be imported.
    pub fn import(&self) -> anyhow::Result<()> {
        let image = self
            .bin
            .parent()
            .context("find the target folder")?
            .join("roble-hello.tar");
        if !image.is_file() {
            bail!("{} is missing; ./bench/run builds it", image.display());
        }
        self.roble(&["dev", "import", "--folder", &self.path(""), &image.to_string_lossy()])?;
        Ok(())
    }

    /// A path in the tree's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder
            .join(name)
            .to_string_lossy()
            .trim_end_matches('/')
            .to_owned()
    }

    /// `roble` with these arguments, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("roble"));
        command
            .args(args)
            .env("ROBLE_CONFIG", self.folder.with_extension("json"));
        command
    }

    /// Runs `roble`.
    ///
    /// # Errors
    /// It fails.
    pub fn roble(&self, args: &[&str]) -> anyhow::Result<String> {
        output(&mut self.command(args))
    }

    /// `ctr` in the node's containerd namespace, not started.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args([
            "--address",
            &self.path("containerd/containerd.sock"),
            "-n",
            "roble-dev-n1",
        ]);
        command.args(args);
        command
    }

    /// Process id of a daemon: `root`, `cluster`, `n1`, `n1-net`, `containerd`.
    ///
    /// # Errors
    /// It was never started.
    pub fn pid(&self, daemon: &str) -> anyhow::Result<u32> {
        let text = std::fs::read_to_string(self.path(&format!("{daemon}.pid")))?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    }

    /// Ends a daemon politely and waits until it is gone.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&self, daemon: &str) -> anyhow::Result<()> {
        let pid = self.pid(daemon)?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM).context("end a daemon")?;
        let file = format!("/proc/{pid}/stat");
        wait_for(&format!("end of {daemon}"), Duration::from_secs(15), || {
            let stat = std::fs::read_to_string(&file);
            stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
        })
    }

    /// Starts a daemon with the arguments of its last start, inside the network namespace it was started in, and gives it
    /// and the instant before.
    ///
    /// # Errors
    /// It was never started.
    pub fn start(&self, daemon: &str) -> anyhow::Result<(Owned, Instant)> {
        let text = std::fs::read_to_string(self.path(&format!("{daemon}.command")))?;
        let words: Vec<&str> = text.lines().collect();
        // A daemon of the node was started through nsenter, which is no part of it.
        let (netns, words) = match words.as_slice() {
            ["nsenter", netns, rest @ ..] => (netns.strip_prefix("--net="), rest),
            all => (None, all),
        };
        let (program, args) = words.split_first().context("read the command")?;
        let mut command = Command::new(program);
        command.args(args).envs(ENVIRONMENT);
        let (process, started) = match netns {
            Some(netns) => inside(netns, &mut command)?,
            None => {
                let started = Instant::now();
                (Owned::start(&mut command)?, started)
            }
        };
        let (pid, time) = (process.pid(), start_time(process.pid()).unwrap_or_default());
        std::fs::write(self.path(&format!("{daemon}.pid")), format!("{pid} {time}\n"))?;
        Ok((process, started))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(error) = self.roble(&["dev", "down", "--folder", &self.path("")]) {
            eprintln!("bench: {error:#}");
        }
        let _ = std::fs::remove_file(self.folder.with_extension("json"));
    }
}

/// Starts a command from a thread that has entered the network namespace.
fn inside(netns: &str, command: &mut Command) -> anyhow::Result<(Owned, Instant)> {
    let file = std::fs::File::open(netns)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let started = Instant::now();
            Ok((Owned::start(command)?, started))
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// The folder of the release binaries: where this program lies.
///
/// # Errors
/// One is missing.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let bin = own.parent().context("find the target folder")?;
    for binary in ["roble", "roble-root", "roble-cluster", "roble-node", "roble-net"] {
        if !bin.join(binary).is_file() {
            bail!("{binary} is not in {}; ./bench/run builds it", bin.display());
        }
    }
    Ok(bin.to_owned())
}
