//! The folder of one instance in the node's state directory: the files it sees, its log, and notes about its last run.
//!
//! The notes survive a reboot, which containerd's knowledge of exits does not: `started` is written before a process is
//! started, `exit.json` when its end is seen first.

use crate::runtime::{ExitReason, RunOrder, RuntimeError, SandboxFiles};
use roble_core::ids::InstanceId;
use roble_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The code of a process whose end nobody saw, such as after a power cut.
const UNSEEN_CODE: i32 = 255;

/// The folder of one instance; it need not exist.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct ExitNote {
    pid: u32,
    code: i32,
    oom_killed: bool,
    at: Timestamp,
}

impl Folder {
    pub(super) fn new(state_dir: &Path, instance: InstanceId) -> Self {
        Self {
            path: state_dir.join("instances").join(instance.to_string()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The log that is written now.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The log by another path.
    pub(super) fn log_again(&self) -> PathBuf {
        self.path.join(".").join("log")
    }

    /// The log before the last rotation.
    pub(super) fn old_log(&self) -> PathBuf {
        self.path.join("log.1")
    }

    /// Prepares a fresh run: writes the files, forgets the notes, keeps the log.
    pub(super) fn prepare(&self, order: &RunOrder, hostname: &str) -> Result<(), RuntimeError> {
        let written = || -> io::Result<()> {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.path)?;
            for note in ["started", "exit.json"] {
                ignore_missing(std::fs::remove_file(self.path.join(note)))?;
            }
            let SandboxFiles { hosts, resolv_conf, .. } = &order.files;
            let default_hosts = || format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n");
            std::fs::write(self.path.join("hostname"), format!("{hostname}\n"))?;
            std::fs::write(self.path.join("hosts"), hosts.clone().unwrap_or_else(default_hosts))?;
            std::fs::write(self.path.join("resolv.conf"), resolv_conf.clone().unwrap_or_default())?;
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(self.log())?;
            Ok(())
        };
        written().map_err(|error| self.error("write", &error))
    }

    /// Notes that a process is about to be started.
    pub(super) fn mark_started(&self) -> Result<(), RuntimeError> {
        std::fs::write(self.path.join("started"), b"").map_err(|error| self.error("write", &error))
    }

    /// Notes an end; does nothing if the folder is gone.
    pub(super) fn save_exit(&self, pid: u32, reason: &ExitReason) {
        let note = ExitNote {
            pid,
            code: reason.code,
            oom_killed: reason.oom_killed,
            at: reason.at,
        };
        let text = serde_json::to_vec(&note).expect("plain numbers serialise");
        let (path, fresh) = (self.path.join("exit.json"), self.path.join("exit.json.new"));
        let saved = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(error) = ignore_missing(saved) {
            tracing::warn!(path = %path.display(), %error, "end of a container not noted");
        }
    }

    /// The noted end of process `pid`; of any process if none is given.
    pub(super) fn exit(&self, pid: Option<u32>) -> Option<ExitReason> {
        let note: ExitNote = serde_json::from_slice(&std::fs::read(self.path.join("exit.json")).ok()?).ok()?;
        let same = pid.is_none_or(|pid| pid == note.pid);
        same.then(|| ExitReason::from_code(note.code, note.oom_killed, note.at))
    }

    /// The end of a run that containerd knows nothing of: as noted, or unseen; `None` if nothing was ever started.
    pub(super) fn past_exit(&self) -> Option<ExitReason> {
        let started = std::fs::metadata(self.path.join("started")).ok()?;
        let at = started
            .modified()
            .ok()
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let at = at.and_then(|at| u64::try_from(at.as_millis()).ok()).unwrap_or_default();
        let unseen = ExitReason {
            code: UNSEEN_CODE,
            signal: None,
            oom_killed: false,
            at: Timestamp::from_millis(at),
        };
        Some(self.exit(None).unwrap_or(unseen))
    }

    /// Removes everything; `Ok` if there is nothing.
    pub(super) fn remove(&self) -> Result<(), RuntimeError> {
        ignore_missing(std::fs::remove_dir_all(&self.path)).map_err(|error| self.error("remove", &error))
    }

    fn error(&self, what: &str, error: &io::Error) -> RuntimeError {
        RuntimeError::State {
            what: format!("{what} {}", self.path.display()),
            detail: error.to_string(),
        }
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
