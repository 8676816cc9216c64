//! Kernel parameters: those of our own links go with them; those of other interfaces are noted on disk before they are
//! changed, and put back by `clean_up`.

use super::{DatapathError, LINK_PREFIX};
use roble_daemon::files;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const IPV4: &str = "/proc/sys/net/ipv4/conf";

/// Interfaces on which we turned forwarding on, with the file that remembers them.
#[derive(Debug)]
pub struct Forwarding {
    journal: PathBuf,
}

impl Forwarding {
    /// Remembers in the file `journal`.
    pub fn new(journal: PathBuf) -> Self {
        Self { journal }
    }

    /// Notes every interface that does not forward yet; returns all that forward because of us, nothing if the whole
    /// node forwards anyway. Changes no parameter: [`open`](Self::open) does, once the rules are there.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`].
    pub fn plan(&self) -> Result<Vec<String>, DatapathError> {
        let mut noted = self.read()?;
        let known = noted.len();
        for (name, value) in interfaces()? {
            if value == "0" {
                noted.entry(name).or_insert(value);
            }
        }
        if noted.len() != known {
            let text = serde_json::to_vec(&noted).expect("a map of strings is JSON");
            files::write_atomic(&self.journal, &text, 0o600).map_err(|error| self.failed(io::Error::other(error)))?;
        }
        Ok(if is_router()? {
            Vec::new()
        } else {
            noted.into_keys().collect()
        })
    }

    /// Turns forwarding on for `names`; interfaces that are gone meanwhile are left out.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`].
    pub fn open(&self, names: &[String]) -> Result<(), DatapathError> {
        names
            .iter()
            .try_for_each(|name| write_if_present(&forwarding(name), "1"))
    }

    /// Puts everything back, unless the node has become a router meanwhile, and forgets it.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`]; may be repeated.
    pub fn restore(&self) -> Result<(), DatapathError> {
        if !is_router()? {
            for (name, value) in self.read()? {
                write_if_present(&forwarding(&name), &value)?;
            }
        }
        match std::fs::remove_file(&self.journal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<BTreeMap<String, String>, DatapathError> {
        let bytes =
            files::read_optional(&self.journal, 1 << 20).map_err(|error| self.failed(io::Error::other(error)))?;
        match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| self.failed(error.into())),
            None => Ok(BTreeMap::new()),
        }
    }

    fn failed(&self, source: io::Error) -> DatapathError {
        DatapathError::Sysctl {
            path: self.journal.clone(),
            source,
        }
    }
}

/// Sets what one of our links needs; to be called before it is up.
///
/// # Errors
/// [`DatapathError::Sysctl`].
pub fn prepare_link(name: &str) -> Result<(), DatapathError> {
    let ipv4 = |key: &str| Path::new(IPV4).join(name).join(key);
    write(&ipv4("forwarding"), "1")?;
    // For 127.0.0.1:PORT on the node. The rules keep containers away from 127.0.0.0/8.
    write(&ipv4("route_localnet"), "1")?;
    // A container that calls itself by a published port goes out and in by the same link; that is no detour.
    write(&ipv4("send_redirects"), "0")?;
    write_if_present(
        &Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6"),
        "1",
    )
}

/// Other programs' interfaces and their forwarding flag.
fn interfaces() -> Result<Vec<(String, String)>, DatapathError> {
    let failed = |source| DatapathError::Sysctl {
        path: IPV4.into(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(IPV4).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // A name may hold almost anything; what cannot be written in a rule is left alone.
        let is_plain = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'*' | b'\\'));
        if !is_plain || matches!(name.as_str(), "all" | "default" | "lo") || name.starts_with(LINK_PREFIX) {
            continue;
        }
        // An interface may vanish between the listing and here.
        if let Ok(value) = std::fs::read_to_string(forwarding(&name)) {
            found.push((name, value.trim().to_owned()));
        }
    }
    Ok(found)
}

fn is_router() -> Result<bool, DatapathError> {
    let path = forwarding("all");
    let value = std::fs::read_to_string(&path).map_err(|source| DatapathError::Sysctl { path, source })?;
    Ok(value.trim() != "0")
}

fn forwarding(interface: &str) -> PathBuf {
    Path::new(IPV4).join(interface).join("forwarding")
}

fn write(path: &Path, value: &str) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Sysctl {
        path: path.into(),
        source,
    };
    // Writing forwarding flushes the route cache even if nothing changes.
    if std::fs::read_to_string(path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    std::fs::write(path, value).map_err(failed)
}

fn write_if_present(path: &Path, value: &str) -> Result<(), DatapathError> {
    match write(path, value) {
        Err(DatapathError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
