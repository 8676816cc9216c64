//! Which root is talked to, and as whom: a file of contexts, overridden by the environment.
//!
//! `~/.config/roble/config.json` (mode 0600) holds named contexts and which of them is current. `ROBLE_CONFIG` names
//! another file; `ROBLE_URL`, `ROBLE_TOKEN` and `ROBLE_CA` (a PEM file) override one field each, so that a job needs no
//! file at all. A token goes only to a server under the trusted authority, whatever the URL says.

use crate::failure::Failure;
use anyhow::Context as _;
use roble_core::time::Timestamp;
use roble_daemon::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const MAX_FILE_BYTES: u64 = 1 << 20;

/// The process environment as a map, so that tests never touch the real one.
#[derive(Debug, Clone, Default)]
pub struct Environment(
    /// Variables by name.
    pub BTreeMap<String, String>,
);

impl Environment {
    /// Of this process; what is not UTF-8 is left out.
    pub fn of_process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn config_file(&self) -> Result<PathBuf, Failure> {
        if let Some(file) = self.get("ROBLE_CONFIG") {
            return Ok(file.into());
        }
        let base = match (self.get("XDG_CONFIG_HOME"), self.get("HOME")) {
            (Some(base), _) if Path::new(base).is_absolute() => PathBuf::from(base),
            (_, Some(home)) => Path::new(home).join(".config"),
            _ => {
                return Err(Failure::Usage(
                    "neither ROBLE_CONFIG nor HOME is set: where is the configuration?".into(),
                ));
            }
        };
        Ok(base.join("roble/config.json"))
    }
}

/// One root, and who we are there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// `https://host:port`.
    pub url: String,
    /// Certificate of the pinned authority, PEM.
    pub authority: String,
    /// Bearer token; secret.
    pub token: String,
    /// Who it stands for, for people.
    pub user: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({} as {})", self.url, self.user)
    }
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Contexts {
    /// Schema of this file.
    pub version: u32,
    /// Name of the context that is used unless told otherwise.
    pub current: String,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
}

const VERSION: u32 = 1;

impl Contexts {
    /// Reads the file; no file is no contexts.
    ///
    /// # Errors
    /// It is unreadable, damaged, newer than this command, or open to others.
    pub fn load(environment: &Environment) -> Result<Self, Failure> {
        let path = environment.config_file()?;
        let shown = path.display();
        let Some(bytes) = files::read_optional(&path, MAX_FILE_BYTES).context("configuration")? else {
            return Ok(Self::default());
        };
        let mode = std::fs::metadata(&path).map(|meta| meta.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o077 != 0) {
            return Err(Failure::Refused {
                what: format!("{shown} holds secrets and is open to other users"),
                help: format!("chmod 600 {shown}"),
            });
        }
        let contexts: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("{shown} is damaged; remove it and log in again"))?;
        if contexts.version > VERSION {
            return Err(Failure::other(format!(
                "{shown} was written by a newer roble; update this one"
            )));
        }
        Ok(contexts)
    }

    /// Writes the file with mode 0600, whole or not at all.
    ///
    /// # Errors
    /// As writing.
    pub fn save(&mut self, environment: &Environment) -> Result<PathBuf, Failure> {
        let path = environment.config_file()?;
        self.version = VERSION;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // Only a folder of our own making gets our mode: ROBLE_CONFIG may point into any.
            if !folder.exists() {
                files::ensure_private_dir(folder).context("configuration")?;
            }
        }
        let text = serde_json::to_vec_pretty(self).context("write the configuration as JSON")?;
        files::write_atomic(&path, &text, files::SECRET_MODE).context("configuration")?;
        Ok(path)
    }

    /// The context called `name`, else the current one, if there is one.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a name that is not there.
    pub fn choose(&self, name: Option<&str>) -> Result<Option<&Context>, Failure> {
        let Some(name) = name else {
            return Ok(self.contexts.get(&self.current));
        };
        let known = || self.contexts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let missing = || Failure::Usage(format!("there is no context `{name}`; known: {}", known()));
        self.contexts.get(name).map(Some).ok_or_else(missing)
    }
}

/// Everything needed to talk to a root.
#[derive(Clone)]
pub struct Target {
    /// `https://host:port`.
    pub url: String,
    /// PEM of the authorities to trust.
    pub authority: Vec<u8>,
    /// Bearer token; secret.
    pub token: String,
}

/// Resolves file and environment, the latter winning.
///
/// # Errors
/// [`Failure::Refused`] if there is no login, or no authority.
pub fn resolve(environment: &Environment, context: Option<&str>) -> Result<Target, Failure> {
    let contexts = match environment.get("ROBLE_CA").is_some() && environment.get("ROBLE_TOKEN").is_some() {
        true if environment.get("ROBLE_URL").is_some() => Contexts::default(),
        _ => Contexts::load(environment)?,
    };
    let named = context.or_else(|| environment.get("ROBLE_CONTEXT"));
    let stored = contexts.choose(named)?;
    let missing = |what: &str, variable: &str| Failure::Refused {
        what: format!("not logged in: {what} is not known"),
        help: format!(
            "roble login URL --credential X --pin SHA256 (the root prints it at its first start), or set {variable}"
        ),
    };
    let url = match environment.get("ROBLE_URL") {
        Some(url) => crate::trust::normal_url(url)?,
        None => stored.ok_or_else(|| missing("the root", "ROBLE_URL"))?.url.clone(),
    };
    let authority = match environment.get("ROBLE_CA") {
        Some(file) => std::fs::read(file).with_context(|| format!("ROBLE_CA: read {file}"))?,
        None => stored
            .ok_or_else(|| missing("the authority to trust", "ROBLE_CA"))?
            .authority
            .clone()
            .into_bytes(),
    };
    let token = match environment.get("ROBLE_TOKEN") {
        Some(token) => token.trim().to_owned(),
        None => stored
            .ok_or_else(|| missing("the session", "ROBLE_TOKEN"))?
            .token
            .clone(),
    };
    Ok(Target { url, authority, token })
}
