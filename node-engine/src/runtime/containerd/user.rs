//! Who the process of a container is: numbers from a user text and the image's `/etc/passwd` and `/etc/group`.
//!
//! The files are read from the unpacked layers themselves, without a mount, and never through a symbolic link: an image
//! could point one at a file of the node.

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Largest `/etc/passwd` or `/etc/group` that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Numbers of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Further groups the user is in, ascending.
    pub(super) groups: Vec<u32>,
}

/// The user of `text` (`uid[:gid]` or `name[:group]`; empty: root). `mounts` are those of the container's snapshot.
///
/// # Errors
/// One sentence: no such user or group, or the files cannot be read safely.
pub(super) fn resolve(text: &str, mounts: &[Mount]) -> Result<User, String> {
    if let Some(user) = without_files(text) {
        return Ok(user);
    }
    let (user, group) = split(text);
    let layers = layers(mounts);
    let passwd = read(&layers, "etc/passwd")?;
    let groups = read(&layers, "etc/group")?;
    look_up(user, group, &passwd, &groups)
}

/// The user of a text that says all by itself: root, or both numbers.
pub(super) fn without_files(text: &str) -> Option<User> {
    if matches!(text, "" | "0" | "root" | "0:0" | "root:root") {
        return Some(User::default());
    }
    let (user, group) = split(text);
    Some(User {
        uid: user.parse().ok()?,
        gid: group?.parse().ok()?,
        groups: Vec::new(),
    })
}

fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)))
}

fn look_up(user: &str, group: Option<&str>, passwd: &str, group_file: &str) -> Result<User, String> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().map(fields).find(|entry| {
        let same_number = || number.is_some() && entry.get(2).and_then(|uid| uid.parse().ok()) == number;
        entry.len() >= 4 && (entry[0] == user || same_number())
    });
    let known = entry.and_then(|entry| Some((entry[0].clone(), entry[2].parse().ok()?, entry[3].parse().ok()?)));
    let (name, uid, primary): (Option<String>, u32, u32) = match (known, number) {
        (Some((name, uid, gid)), _) => (Some(name), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(format!("no user `{user}` in the image's /etc/passwd")),
    };
    let groups: Vec<_> = group_file
        .lines()
        .map(fields)
        .filter(|entry| entry.len() >= 3)
        .collect();
    let gid = match group {
        None => primary,
        Some(group) => match (group.parse(), groups.iter().find(|entry| entry[0] == group)) {
            (Ok(gid), _) => gid,
            (_, Some(entry)) => entry[2]
                .parse()
                .map_err(|_| format!("group `{group}` has a bad number"))?,
            (_, None) => return Err(format!("no group `{group}` in the image's /etc/group")),
        },
    };
    let mut further = Vec::new();
    // Docker's rule: an explicit group replaces the further groups.
    if let (Some(name), None) = (name, group) {
        let member = |entry: &&Vec<String>| {
            entry
                .get(3)
                .is_some_and(|users| users.split(',').any(|user| user == name))
        };
        further = groups
            .iter()
            .filter(member)
            .filter_map(|entry| entry[2].parse().ok())
            .collect();
        further.retain(|further| *further != gid);
        further.sort_unstable();
        further.dedup();
    }
    Ok(User {
        uid,
        gid,
        groups: further,
    })
}

/// Directories of the layers below a snapshot's mount, topmost first.
fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else { return Vec::new() };
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or_default().split(':').map(PathBuf::from).collect()
}

/// The text of a file as an overlay of the layers shows it; empty if there is none.
fn read(layers: &[PathBuf], path: &str) -> Result<String, String> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for layer in layers {
        let fail = |detail: String| format!("/{path} of the image cannot be read: {detail}");
        let root = File::open(layer).map_err(|error| fail(error.to_string()))?;
        if hides_lower(layer, path) {
            return Ok(String::new());
        }
        let file = match openat2(&root, path, how.mode(Mode::empty())) {
            Ok(file) => File::from(file),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => continue,
            Err(nix::errno::Errno::ELOOP) => return Err(fail("a symbolic link is on its path".to_owned())),
            Err(error) => return Err(fail(error.to_string())),
        };
        let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(fail("it is not a file of at most 1 MiB".to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| fail(error.to_string()))?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(String::new())
}

/// Whether this layer deletes the file of the layers below: an overlay "whiteout", a character device 0/0.
fn hides_lower(layer: &Path, path: &str) -> bool {
    std::fs::symlink_metadata(layer.join(path))
        .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/:/bin/sh\napp:x:1000:1001:App:/home:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nwheel:x:10:app\n";

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn users_are_looked_up() {
        let table = [
            ("app", None, user(1000, 1001, &[10, 50])),
            ("1000", None, user(1000, 1001, &[10, 50])),
            ("app", Some("staff"), user(1000, 50, &[])),
            ("app", Some("7"), user(1000, 7, &[])),
            ("4242", None, user(4242, 0, &[])),
        ];
        for (name, group, expected) in table {
            assert_eq!(look_up(name, group, PASSWD, GROUP), Ok(expected), "{name} {group:?}");
        }
        assert!(look_up("nobody", None, PASSWD, GROUP).is_err());
        assert!(look_up("app", Some("none"), PASSWD, GROUP).is_err());
        assert_eq!(resolve("12:34", &[]), Ok(user(12, 34, &[])));
    }

    #[test]
    fn the_files_come_from_the_topmost_layer_and_never_through_a_link() {
        let folder = tempfile::tempdir().expect("folder");
        let layer = |name: &str| folder.path().join(name);
        for name in ["top", "low", "evil"] {
            std::fs::create_dir_all(layer(name).join("etc")).expect("layer");
        }
        std::fs::write(layer("low").join("etc/passwd"), PASSWD).expect("passwd");
        std::fs::write(layer("low").join("etc/group"), GROUP).expect("group");
        std::fs::write(layer("top").join("etc/group"), "app:x:1001:\n").expect("group");
        let overlay = |names: &[&str]| {
            let dirs: Vec<_> = names.iter().map(|name| layer(name).display().to_string()).collect();
            let options = vec!["workdir=/w".to_owned(), format!("lowerdir={}", dirs.join(":"))];
            vec![Mount {
                r#type: "overlay".to_owned(),
                options,
                ..Mount::default()
            }]
        };
        assert_eq!(resolve("app", &overlay(&["top", "low"])), Ok(user(1000, 1001, &[])));
        std::os::unix::fs::symlink("/etc/passwd", layer("evil").join("etc/passwd")).expect("link");
        let error = resolve("app", &overlay(&["evil", "low"])).expect_err("a link");
        assert!(error.contains("symbolic link"), "{error}");
    }
}
