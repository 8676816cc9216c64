//! The one-time admin credential of the first start: printed once, kept in a file until somebody has logged in.

use roble_core::tier::Record;
use roble_daemon::files::{self, FileError, SECRET_MODE};
use std::fmt;
use std::path::{Path, PathBuf};

/// Name of the file in the state folder.
const FILE: &str = "credential";

/// How to log in, shown to the person at the root's machine.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Invitation {
    /// `https://HOST:PORT`.
    pub url: String,
    /// Works once.
    pub credential: String,
    /// The authority's pin.
    pub pin: String,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Invitation({})", self.url)
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, credential, pin } = self;
        writeln!(formatter, "One-time credential: {credential}")?;
        writeln!(formatter, "Log in with:")?;
        writeln!(formatter, "  roble login {url} --credential {credential} --pin {pin}")
    }
}

/// The file that holds the newest credential until it is used.
#[derive(Debug, Clone)]
pub struct CredentialFile(PathBuf);

impl CredentialFile {
    /// In this state folder.
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(FILE))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes it, readable by the daemon's user only.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(&self, credential: &str) -> Result<(), FileError> {
        files::write_atomic(&self.0, format!("{credential}\n").as_bytes(), SECRET_MODE)
    }

    /// Removes it: the credential is used up.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "used credential not removed");
        }
    }
}

/// Whether a credential that was not used yet is known.
pub fn has_credential(records: &[Record]) -> bool {
    records.iter().any(|record| record.kind == "credential")
}
