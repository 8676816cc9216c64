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
