//! Daemons as processes of their own: started once, found again by their recorded process id, stopped for good.

use super::plan::Plan;
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time between the polite signal and the kill.
const GRACE: Duration = Duration::from_secs(10);

/// The processes of a tree.
pub struct Processes<'a> {
    plan: &'a Plan,
}

impl<'a> Processes<'a> {
    /// The processes of this tree.
    pub const fn of(plan: &'a Plan) -> Self {
        Self { plan }
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.plan.folder.join(format!("{name}.pid"))
    }

    /// The process, if it runs: the id and the start time must be those recorded, as ids are used again.
    fn running(&self, name: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.pid_file(name)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid: i32 = pid.parse().ok()?;
        (start_time(pid)? == started).then(|| Pid::from_raw(pid))
    }

    /// Starts a daemon unless it runs. Its output goes to `logs/NAME.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ensure(&mut self, name: &str, program: &str, args: &[&str]) -> anyhow::Result<()> {
        if self.running(name).is_some() {
            return Ok(());
        }
        let path = self.plan.folder.join("logs").join(format!("{name}.log"));
        let log: File = OpenOptions::new().create(true).append(true).open(&path)?;
        let child = Command::new(program)
            .args(args)
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let pid = i32::try_from(child.id())?;
        let started = start_time(pid).unwrap_or_default();
        // How it was started, one word a line, for people and tests who start it alone; a used token is no secret.
        std::fs::write(
            self.plan.folder.join(format!("{name}.command")),
            format!("{program}\n{}\n", args.join("\n")),
        )?;
        std::fs::write(self.pid_file(name), format!("{pid} {started}\n"))?;
        Ok(())
    }

    /// Stops a daemon, politely first.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(pid) = self.running(name) {
            let _ = kill(pid, Signal::SIGTERM);
            let gone = wait_for(name, GRACE, || self.running(name).is_none()).await;
            if gone.is_err() {
                let _ = kill(pid, Signal::SIGKILL);
                wait_for(name, GRACE, || self.running(name).is_none()).await?;
            }
        }
        let _ = std::fs::remove_file(self.pid_file(name));
        Ok(())
    }

    /// Every daemon of the tree and whether it runs.
    pub fn states(&self) -> Vec<(String, String)> {
        let nodes = self
            .plan
            .nodes
            .iter()
            .flat_map(|node| [format!("{}-net", node.name), node.name.clone()]);
        let names = ["containerd", "root", "cluster"]
            .into_iter()
            .map(str::to_owned)
            .chain(nodes);
        let state = |name: &str| match self.running(name) {
            Some(pid) => format!("running, process {pid}"),
            None => format!("not running; see {}", self.plan.file(&format!("logs/{name}.log"))),
        };
        names
            .map(|name| {
                let state = state(&name);
                (name, state)
            })
            .collect()
    }
}

/// Start time of a process that is not a zombie, in clock ticks since boot, as text.
fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets: what counts begins after the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (*fields.first()? != "Z")
        .then(|| fields.get(19).map(|&field| field.to_owned()))
        .flatten()
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// It cannot be started or fails; with what it said.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {program}; scripts/install-deps.sh installs what is missing"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within `deadline`.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}; `roble dev status` names the logs");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
