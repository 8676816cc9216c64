//! The thread that sleeps until the core's next timer, and looks how large datagrams may be on the way to each peer.

use super::{Worker, nanos};
use crate::session::OVERHEAD;
use crate::sys::{boot_time, udp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long what the kernel said of a path is believed.
const PATH_LIFE: Duration = Duration::from_secs(30);

pub(super) fn run(worker: &Worker) {
    // What is known of each path, and since when.
    let mut paths: HashMap<SocketAddr, (u16, Duration)> = HashMap::new();
    while !worker.has_ended.load(Ordering::Relaxed) {
        let mut core = worker.lock();
        core.tick(Worker::now());
        let endpoints = core.endpoints();
        let wake_at = core.wake_at().map_or(u64::MAX, nanos);
        worker.timer_at.store(wake_at, Ordering::Relaxed);
        worker.settle(core);
        look_at_paths(worker, &endpoints, &mut paths);
        // Whoever sets an earlier time from here on also writes the event.
        let left = wake_at.saturating_sub(nanos(boot_time()));
        let timeout = match wake_at {
            u64::MAX => PollTimeout::NONE,
            _ => PollTimeout::try_from(left.div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX),
        };
        let mut waited = [PollFd::new(worker.timer.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waited, timeout).is_ok_and(|count| count > 0) {
            let _ = worker.timer.read();
        }
    }
}

fn look_at_paths(worker: &Worker, endpoints: &[SocketAddr], paths: &mut HashMap<SocketAddr, (u16, Duration)>) {
    let now = boot_time();
    if worker.is_path_too_small.swap(false, Ordering::Relaxed) {
        paths.clear();
    }
    paths.retain(|endpoint, _| endpoints.contains(endpoint));
    let mark = worker.sockets().mark;
    for endpoint in endpoints {
        if paths.get(endpoint).is_some_and(|(_, since)| now < *since + PATH_LIFE) {
            continue;
        }
        let Some(outer) = udp::path_mtu(*endpoint, mark) else {
            continue;
        };
        let headers = if endpoint.is_ipv6() { 40 + 8 } else { 20 + 8 };
        let mtu = outer.saturating_sub(headers + OVERHEAD as u16);
        paths.insert(*endpoint, (mtu, now));
        worker.lock().set_path_mtu(*endpoint, mtu);
    }
}
