//! Processes under measurement: started, looked at through /proc, ended by their id.

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that ends with this value.
pub struct Owned(Child);

impl Owned {
    /// Starts a command, silent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self(child.with_context(|| {
            format!("start {}", command.get_program().display())
        })?))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        if !self.has_ended() {
            let _ = kill(pid, Signal::SIGTERM);
            let started = Instant::now();
            while !self.has_ended() && started.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// It cannot be started or fails; with what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `condition` gives something.
///
/// # Errors
/// It does not within `deadline`.
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() > deadline {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Proportional set size in bytes: whole, and the anonymous part of it.
///
/// # Errors
/// The process is gone.
pub fn pss(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read smaps_rollup")?;
    Ok((field(&text, "Pss:")?, field(&text, "Pss_Anon:")?))
}

fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .context("find PSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("read PSS")?;
    Ok(kib * 1024)
}

/// Processor time that a process has used, user and system, of all its threads.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read stat")?;
    let ticks = ticks(&stat).context("read processor time")?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn ticks(stat: &str) -> Option<u64> {
    // The name may hold spaces and brackets: what counts begins after the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Start time of a process in ticks since boot, as `roble dev` records it.
pub fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    fields.get(19).map(|&field| field.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        assert_eq!(
            field("Rss: 9 kB\nPss:       12 kB\nPss_Anon: 4 kB\n", "Pss:").unwrap(),
            12 * 1024
        );
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 130 0 0 0 25 17 0 0 20 0 1 0 11122 2 3";
        assert_eq!(ticks(stat), Some(42));
        assert!(pss(std::process::id()).unwrap().0 > 0);
    }
}
