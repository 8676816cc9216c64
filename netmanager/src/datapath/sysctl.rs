//! Kernel parameters: those of our own links go with them; those of other interfaces are noted on disk before they are
//! changed, and put back by `clean_up`.
//!
//! IPv4 forwards per interface. IPv6 does since Linux 6.17 (`force_forwarding`); before, only the whole node can, and then
//! its interfaces stop listening to router advertisements unless told not to (`accept_ra` = 2).

use super::{DatapathError, LINK_PREFIX};
use roble_daemon::files;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const NET: &str = "/proc/sys/net";
const ALL_V6: &str = "ipv6/conf/all/forwarding";

/// What forwards because of us, and shall do so for containers only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Interfaces that forward IPv4.
    pub v4: Vec<String>,
    /// What forwards IPv6.
    pub v6: OpenedV6,
    /// Parameters to be set once the rules are there: path below /proc/sys/net, value.
    pub parameters: Vec<(String, &'static str)>,
}

/// What forwards IPv6 because of us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OpenedV6 {
    /// Nothing: the node forwards anyway, or has no IPv6.
    #[default]
    Nothing,
    /// These interfaces.
    Interfaces(Vec<String>),
    /// All, also those to come.
    Everything,
}

/// Interfaces on which we turned forwarding on, with the file that remembers them.
#[derive(Debug)]
pub struct Forwarding {
    journal: PathBuf,
    /// The kernel can forward IPv6 per interface.
    is_v6_per_interface: bool,
}

impl Forwarding {
    /// Remembers in the file `journal`.
    pub fn new(journal: PathBuf) -> Self {
        Self {
            journal,
            is_v6_per_interface: Path::new(NET).join("ipv6/conf/all/force_forwarding").exists(),
        }
    }

    /// Notes every parameter that is not as it must be yet; returns all that is open because of us, nothing of a family
    /// that the whole node forwards anyway. Changes no parameter: [`open`](Self::open) does, once the rules are there.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`].
    pub fn plan(&self) -> Result<Opened, DatapathError> {
        let mut noted = self.read()?;
        let known = noted.len();
        let names = interfaces()?;
        let mut opened = Opened::default();
        for name in &names {
            note(&mut noted, forwarding(name), |value| value == "0");
        }
        if value_of("ipv4/conf/all/forwarding")? == "0" {
            let of_v4 = |key: &String| Some(key.strip_prefix("ipv4/conf/")?.strip_suffix("/forwarding")?.to_owned());
            opened.v4 = noted.keys().filter_map(of_v4).collect();
        }
        opened.parameters = opened.v4.iter().map(|name| (forwarding(name), "1")).collect();
        if has_v6() && (noted.contains_key(ALL_V6) || value_of(ALL_V6)? == "0") {
            if self.is_v6_per_interface {
                let force = |name: &str| format!("ipv6/conf/{name}/force_forwarding");
                for name in &names {
                    note(&mut noted, force(name), |value| value == "0");
                }
                let of_v6 = |key: &String| {
                    Some(
                        key.strip_prefix("ipv6/conf/")?
                            .strip_suffix("/force_forwarding")?
                            .to_owned(),
                    )
                };
                let names: Vec<_> = noted.keys().filter_map(of_v6).collect();
                opened.parameters.extend(names.iter().map(|name| (force(name), "1")));
                opened.v6 = OpenedV6::Interfaces(names);
            } else {
                for name in names.iter().map(String::as_str).chain(["default"]) {
                    note(&mut noted, format!("ipv6/conf/{name}/accept_ra"), |value| value == "1");
                    note(&mut noted, format!("ipv6/conf/{name}/forwarding"), |_| true);
                }
                note(&mut noted, ALL_V6.into(), |value| value == "0");
                let hears = noted.keys().filter(|key| key.ends_with("/accept_ra")).cloned();
                opened.parameters.extend(hears.map(|key| (key, "2")));
                opened.parameters.push((ALL_V6.into(), "1"));
                opened.v6 = OpenedV6::Everything;
            }
        }
        if noted.len() != known {
            let text = serde_json::to_vec(&noted).expect("a map of strings is JSON");
            files::write_atomic(&self.journal, &text, 0o600).map_err(|error| self.failed(io::Error::other(error)))?;
        }
        Ok(opened)
    }

    /// Turns forwarding on; interfaces that are gone meanwhile are left out.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`].
    pub fn open(&self, opened: &Opened) -> Result<(), DatapathError> {
        let mut parameters = opened.parameters.iter();
        parameters.try_for_each(|(key, value)| write_if_present(&Path::new(NET).join(key), value))
    }

    /// Puts everything back, unless the node has become a router of IPv4 meanwhile, and forgets it.
    ///
    /// # Errors
    /// [`DatapathError::Sysctl`]; may be repeated.
    pub fn restore(&self) -> Result<(), DatapathError> {
        let mut noted = self.read()?;
        let is_router = value_of("ipv4/conf/all/forwarding")? != "0";
        noted.retain(|key, _| !is_router || key.starts_with("ipv6/"));
        // First: it changes those of all interfaces.
        if let Some(value) = noted.remove(ALL_V6) {
            write_if_present(&Path::new(NET).join(ALL_V6), &value)?;
        }
        for (key, value) in noted {
            write_if_present(&Path::new(NET).join(key), &value)?;
        }
        match std::fs::remove_file(&self.journal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Paths below /proc/sys/net and what was there; the first release wrote the names of interfaces that forward IPv4.
    fn read(&self) -> Result<BTreeMap<String, String>, DatapathError> {
        let bytes =
            files::read_optional(&self.journal, 1 << 20).map_err(|error| self.failed(io::Error::other(error)))?;
        let Some(bytes) = bytes else {
            return Ok(BTreeMap::new());
        };
        let noted: BTreeMap<String, String> =
            serde_json::from_slice(&bytes).map_err(|error| self.failed(error.into()))?;
        let path = |key: String| if key.contains('/') { key } else { forwarding(&key) };
        Ok(noted.into_iter().map(|(key, value)| (path(key), value)).collect())
    }

    fn failed(&self, source: io::Error) -> DatapathError {
        DatapathError::Sysctl {
            path: self.journal.clone(),
            source,
        }
    }
}

/// Notes the value of a parameter that is there and `is_changed` by us, unless it is noted already.
fn note(noted: &mut BTreeMap<String, String>, key: String, is_changed: impl Fn(&str) -> bool) {
    // An interface may vanish between the listing and here.
    if let Ok(value) = std::fs::read_to_string(Path::new(NET).join(&key))
        && is_changed(value.trim())
    {
        noted.entry(key).or_insert_with(|| value.trim().to_owned());
    }
}

/// Whether the node has IPv6 at all.
pub fn has_v6() -> bool {
    Path::new(NET).join("ipv6").exists()
}

/// Sets what one of our links needs; to be called before it is up.
///
/// # Errors
/// [`DatapathError::Sysctl`].
pub fn prepare_link(name: &str, has_v6: bool) -> Result<(), DatapathError> {
    let ipv4 = |key: &str| Path::new(NET).join("ipv4/conf").join(name).join(key);
    write(&ipv4("forwarding"), "1")?;
    // For 127.0.0.1:PORT on the node. The rules keep containers away from 127.0.0.0/8.
    write(&ipv4("route_localnet"), "1")?;
    // A container that calls itself by a published port goes out and in by the same link; that is no detour.
    write(&ipv4("send_redirects"), "0")?;
    if has_v6 { forward_v6(name) } else { Ok(()) }
}

fn forward_v6(name: &str) -> Result<(), DatapathError> {
    prepare_v6(name)?;
    write_if_present(
        &Path::new(NET).join("ipv6/conf").join(name).join("force_forwarding"),
        "1",
    )
}

/// Sets what a tunnel's device needs; to be called before it is up.
///
/// # Errors
/// [`DatapathError::Sysctl`].
pub fn prepare_tunnel(name: &str, has_v6: bool) -> Result<(), DatapathError> {
    write(&Path::new(NET).join("ipv4/conf").join(name).join("forwarding"), "1")?;
    if has_v6 { forward_v6(name) } else { Ok(()) }
}

/// Sets what the device for misses needs; to be called before it is up.
///
/// # Errors
/// [`DatapathError::Sysctl`].
pub fn prepare_miss(name: &str, has_v6: bool) -> Result<(), DatapathError> {
    // What comes back has the address of a container, which is reached by another link.
    write(&Path::new(NET).join("ipv4/conf").join(name).join("rp_filter"), "2")?;
    prepare_tunnel(name, has_v6)
}

/// Sets what a container's side needs; to be called inside its namespace before the link is up.
///
/// # Errors
/// [`DatapathError::Sysctl`].
pub fn prepare_container() -> Result<(), DatapathError> {
    prepare_v6(super::link::CONTAINER_INTERFACE)
}

/// No addresses but those that we give: neighbours are known for good and there is nothing to be found on the link, so
/// nobody needs a link-local address, and nobody has to wait for one.
fn prepare_v6(name: &str) -> Result<(), DatapathError> {
    let ipv6 = |key: &str| Path::new(NET).join("ipv6/conf").join(name).join(key);
    for (key, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("disable_ipv6", "0"),
    ] {
        write_if_present(&ipv6(key), value)?;
    }
    Ok(())
}

/// Names of other programs' interfaces.
fn interfaces() -> Result<Vec<String>, DatapathError> {
    let path = Path::new(NET).join("ipv4/conf");
    let failed = |source| DatapathError::Sysctl {
        path: path.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // A name may hold almost anything; what cannot be written in a rule is left alone.
        let is_plain = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'*' | b'\\'));
        if is_plain && !matches!(name.as_str(), "all" | "default" | "lo") && !name.starts_with(LINK_PREFIX) {
            found.push(name);
        }
    }
    Ok(found)
}

fn value_of(key: &str) -> Result<String, DatapathError> {
    let path = Path::new(NET).join(key);
    match std::fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(source) => Err(DatapathError::Sysctl { path, source }),
    }
}

fn forwarding(interface: &str) -> String {
    format!("ipv4/conf/{interface}/forwarding")
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    /// As on kernels before 6.17: the whole node forwards IPv6, and goes on listening to router advertisements.
    #[test]
    fn a_node_that_can_only_forward_as_a_whole_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("forwarding.json");
        let test = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let link = ["link", "add", "up0", "type", "veth", "peer", "name", "up1"];
            assert!(std::process::Command::new("ip").args(link).status().unwrap().success());
            std::fs::write("/proc/sys/net/ipv6/conf/up1/forwarding", "1").unwrap();
            let keys = [
                "all/forwarding",
                "up0/forwarding",
                "up0/accept_ra",
                "up1/forwarding",
                "default/forwarding",
            ];
            let values = || keys.map(|key| value_of(&format!("ipv6/conf/{key}")).unwrap());
            assert_eq!(values(), ["0", "0", "1", "1", "0"]);
            let mut forwarding = Forwarding::new(journal);
            forwarding.is_v6_per_interface = false;
            for _ in 0..2 {
                let opened = forwarding.plan().unwrap();
                assert_eq!(opened.v6, OpenedV6::Everything);
                forwarding.open(&opened).unwrap();
                assert_eq!(values(), ["1", "1", "2", "1", "1"]);
            }
            forwarding.restore().unwrap();
            assert_eq!(values(), ["0", "0", "1", "1", "0"]);
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn the_journal_of_the_first_release_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("forwarding.json");
        std::fs::write(&journal, r#"{"eth7":"0"}"#).unwrap();
        let noted = Forwarding::new(journal).read().unwrap();
        assert_eq!(
            noted,
            BTreeMap::from([("ipv4/conf/eth7/forwarding".into(), "0".into())])
        );
    }
}
