//! What the kernel's control groups say about a container, on version 1 and 2.

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Whether this machine has the unified hierarchy only (version 2). With both, runc uses version 1.
pub(super) fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether swap can be limited; some kernels are built or started without.
pub(super) fn limits_swap() -> bool {
    is_unified() || Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists()
}

/// The folder of `group` (an absolute path inside the hierarchy) for a controller.
pub(super) fn folder(controller: &str, group: &str) -> PathBuf {
    let group = group.trim_start_matches('/');
    if is_unified() {
        Path::new(ROOT).join(group)
    } else {
        Path::new(ROOT).join(controller).join(group)
    }
}

/// Whether the kernel killed a process of `group` for want of memory. The group exists until its task is deleted.
pub(super) fn was_oom_killed(group: &str) -> bool {
    let file = if is_unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    std::fs::read_to_string(folder("memory", group).join(file)).is_ok_and(|text| oom_kills(&text) > 0)
}

/// Limits the processor time of `group`, which exists: so many microseconds in each period.
///
/// # Errors
/// The kernel's.
pub(super) fn set_cpu_quota(group: &str, quota: u64, period: u64) -> std::io::Result<()> {
    let folder = folder("cpu", group);
    if is_unified() {
        return std::fs::write(folder.join("cpu.max"), format!("{quota} {period}"));
    }
    std::fs::write(folder.join("cpu.cfs_period_us"), period.to_string())?;
    std::fs::write(folder.join("cpu.cfs_quota_us"), quota.to_string())
}

/// The count of `oom_kill` in `memory.events` (version 2) or `memory.oom_control` (version 1, Linux 4.13).
fn oom_kills(text: &str) -> u64 {
    let counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::oom_kills;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(
            oom_kills("low 0\nhigh 0\nmax 31\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"), 0);
    }
}
