//! What the kernel offers and the standard library does not: TUN devices, and UDP sockets that send and receive many
//! datagrams at once. The only place with `unsafe`.

#![allow(unsafe_code)]

pub mod tun;
pub mod udp;

use nix::libc;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

/// `setsockopt` of a number.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let pointer = std::ptr::from_ref(&value).cast();
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `pointer` is to a value of `size` bytes that lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `getsockopt` of a number.
pub(crate) fn get_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(&mut value).cast();
    // SAFETY: `pointer` is to a value of `size` bytes that lives until the call returns.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut size) };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Time since boot, counting suspension.
pub fn boot_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // The clock is there since Linux 2.6.39.
    now.map_or(Duration::ZERO, Duration::from)
}

/// As the kernel's `sched_attr`, its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Slice of a thread that prefers to run soon rather than long: the least that the kernel takes.
const SLICE_NS: u64 = 100_000;

/// Asks the kernel to run this thread soon after it wakes, in short slices. It gets no more time than others for it. Does
/// nothing before Linux 6.12.
pub fn prefer_short_slices() {
    // SAFETY: no pointers.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        nice,
        runtime_ns: SLICE_NS,
        ..SchedAttr::default()
    };
    // SAFETY: the kernel reads as many bytes as `size` says, all of them of `attributes`; 0 is this thread. A thread that
    // may not do this stays as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}
