//! From an instance's spec to the OCI runtime specification: what it may do, see and use.

use super::cgroup;
use super::image::Image;
use super::user::User;
use crate::runtime::RunOrder;
use oci_spec::runtime::Spec;
use roble_core::spec::SecurityProfile;
use serde_json::{Value, json};
use std::path::Path;

/// System calls that are allowed (everything else fails with EPERM), in the JSON of the OCI runtime specification.
const SECCOMP: &str = include_str!("seccomp.json");

/// Capabilities of the profile `baseline`.
const BASELINE: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// Capabilities of the profile `restricted`.
const RESTRICTED: &[&str] = &["CAP_NET_BIND_SERVICE"];

/// Kernel files no container sees.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Kernel files no container writes.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Limits that are the same for every container of a node.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) pids: i64,
    pub(super) open_files: u64,
}

/// Where things of one container are.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// Control group, absolute in its hierarchy.
    pub(super) cgroup: &'a str,
    /// Folder with `hosts`, `hostname`, `resolv.conf`.
    pub(super) files: &'a Path,
    pub(super) hostname: &'a str,
}

/// The user a container asks for, as text.
pub(super) fn user_text<'a>(order: &'a RunOrder, image: &'a Image) -> &'a str {
    let of_image = || {
        image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.user().as_deref())
    };
    order.spec.user.as_deref().or_else(of_image).unwrap_or_default()
}

/// The runtime specification of a container.
///
/// # Errors
/// One sentence: nothing to run, or the specification would not be valid.
pub(super) fn build(
    order: &RunOrder,
    image: &Image,
    user: &User,
    places: &Places<'_>,
    limits: &Limits,
) -> Result<Spec, String> {
    let restricted = order.spec.security == SecurityProfile::Restricted;
    let capabilities = if restricted { RESTRICTED } else { BASELINE };
    // The kernel drops the permitted set when a process becomes a user other than root; only the ambient set stays.
    let ambient: &[&str] = if user.uid == 0 { &[] } else { RESTRICTED };
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    namespaces.push(match &order.netns {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    });
    if Path::new("/proc/self/ns/cgroup").exists() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut seccomp: Value = serde_json::from_str(SECCOMP).map_err(|error| format!("seccomp profile: {error}"))?;
    seccomp["architectures"] = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        // The native one is always included.
        _ => json!([]),
    };
    let spec = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": restricted},
        "hostname": places.hostname,
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": arguments(order, image)?,
            "env": environment(order, image, places.hostname),
            "cwd": working_dir(order, image),
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": ambient, "ambient": ambient,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": limits.open_files, "hard": limits.open_files}],
        },
        "mounts": mounts(places.files, restricted),
        "linux": {
            "cgroupsPath": places.cgroup,
            "namespaces": namespaces,
            "resources": resources(order, limits),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp,
        },
    });
    serde_json::from_value(spec).map_err(|error| format!("runtime specification: {error}"))
}

/// `command` replaces the image's entry point and, alone, its arguments too; `args` replaces the arguments.
fn arguments(order: &RunOrder, image: &Image) -> Result<Vec<String>, String> {
    let config = image.config.config().as_ref();
    let of_image = |part: Option<&Option<Vec<String>>>| part.and_then(Clone::clone).unwrap_or_default();
    let spec = &order.spec;
    let mut arguments = spec.command.clone();
    if arguments.is_empty() {
        arguments = of_image(config.map(|config| config.entrypoint()));
    }
    if !spec.args.is_empty() {
        arguments.extend(spec.args.iter().cloned());
    } else if spec.command.is_empty() {
        arguments.extend(of_image(config.map(|config| config.cmd())));
    }
    if arguments.is_empty() {
        return Err("neither the image nor the service names a command".to_owned());
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err("an argument contains a zero byte".to_owned());
    }
    Ok(arguments)
}

/// The image's variables, then the service's; of two with one name the later wins.
fn environment(order: &RunOrder, image: &Image, hostname: &str) -> Vec<String> {
    let defaults = [
        (
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
    ];
    let of_image = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.env().clone())
        .unwrap_or_default();
    let of_image = of_image.iter().filter_map(|entry| entry.split_once('='));
    let of_image = of_image.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut variables: Vec<(String, String)> = Vec::new();
    for (key, value) in defaults
        .into_iter()
        .chain(of_image)
        .chain(order.spec.environment.iter().cloned())
    {
        match variables.iter_mut().find(|(known, _)| *known == key) {
            Some(known) => known.1 = value,
            None => variables.push((key, value)),
        }
    }
    variables
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect()
}

fn working_dir(order: &RunOrder, image: &Image) -> String {
    let of_image = || {
        image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.working_dir().clone())
    };
    let given = order.spec.working_dir.clone().or_else(of_image);
    given
        .filter(|path| path.starts_with('/'))
        .unwrap_or_else(|| "/".to_owned())
}

/// Microseconds of processor time in each period, and the period. Not part of the specification: the runtime's own start-up
/// runs in the container's group too and would be held to it, which for a twentieth of a core takes 0.3 s.
pub(super) fn cpu_quota(order: &RunOrder) -> Option<(u64, u64)> {
    const PERIOD_MICROS: u64 = 100_000;
    let millis = order.spec.resources.cpu_millis;
    // The kernel takes a quota of at least 1 ms.
    let quota = (millis.saturating_mul(PERIOD_MICROS) / 1_000).max(1_000);
    (millis > 0).then_some((quota, PERIOD_MICROS))
}

fn resources(order: &RunOrder, limits: &Limits) -> Value {
    let wanted = order.spec.resources;
    let mut resources = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "pids": {"limit": limits.pids},
    });
    if wanted.cpu_millis > 0 {
        // The kernel takes shares of at least 2. The limit itself: `cpu_quota`.
        let shares = (wanted.cpu_millis.saturating_mul(1_024) / 1_000).clamp(2, 262_144);
        resources["cpu"] = json!({"shares": shares});
    }
    if wanted.memory_bytes > 0 {
        resources["memory"] = json!({"limit": wanted.memory_bytes});
        if cgroup::limits_swap() {
            // The limit of memory and swap together: so no swap.
            resources["memory"]["swap"] = json!(wanted.memory_bytes);
        }
    }
    resources
}

fn mounts(files: &Path, restricted: bool) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    if restricted {
        mounts.push(mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ));
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = files.join(name).display().to_string();
        // Read-only: writes would land in the node's state directory.
        mounts.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source,
            &["bind", "ro", "nosuid", "nodev", "noexec"],
        ));
    }
    mounts
}
