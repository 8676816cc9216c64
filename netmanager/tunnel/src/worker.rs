//! The threads around the core: one from the TUN device to the network, one back, one for timers, and the caller's for
//! control. They share the core under one lock, which is never held during a cipher or a system call on packets.

mod batch;
mod inbound;
mod outbound;
mod timers;

use crate::control::Controlled;
use crate::core::{Core, Now, Transmit};
use crate::counters::{DropCounters, Reason};
use crate::sys::boot_time;
use crate::sys::tun::Tun;
use crate::sys::udp::Udp;
use crate::types::{DeviceConfig, DeviceStatus};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// The sockets of one port, and what they are marked with.
struct Sockets {
    all: Vec<Udp>,
    port: u16,
    mark: u32,
}

/// What the threads share.
pub struct Worker {
    core: Mutex<Core>,
    tun: Tun,
    sockets: Mutex<Arc<Sockets>>,
    /// Changes with the sockets.
    version: AtomicU64,
    drops: Arc<DropCounters>,
    mtu: AtomicU16,
    /// What the timers' thread sleeps for, in nanoseconds since boot.
    timer_at: AtomicU64,
    timer: EventFd,
    outbound: EventFd,
    inbound: EventFd,
    is_path_too_small: AtomicBool,
    has_ended: AtomicBool,
}

/// A thread's name, and what it does.
type Body = (&'static str, fn(&Worker));

impl Worker {
    /// Opens the device.
    ///
    /// # Errors
    /// As [`Tun::open`]; no event descriptors left.
    pub fn open(device: &str, mtu: u16) -> io::Result<Arc<Self>> {
        let tun = Tun::open(device)?;
        if tun.mtu()? != mtu {
            tun.set_mtu(mtu)?;
        }
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let drops = Arc::<DropCounters>::default();
        info!(device, tcp = tun.offloads.0, udp = tun.offloads.1, "device is open");
        Ok(Arc::new(Self {
            core: Mutex::new(Core::new(drops.clone())),
            tun,
            sockets: Mutex::new(Arc::new(Sockets {
                all: Vec::new(),
                port: 0,
                mark: 0,
            })),
            version: AtomicU64::new(1),
            drops,
            mtu: AtomicU16::new(mtu),
            timer_at: AtomicU64::new(u64::MAX),
            timer: event()?,
            outbound: event()?,
            inbound: event()?,
            is_path_too_small: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }))
    }

    /// Starts the threads. They end with [`Worker::end`], or with the process.
    ///
    /// # Errors
    /// No threads left.
    pub fn start(self: &Arc<Self>) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
        let bodies: [Body; 3] = [
            ("outbound", outbound::run),
            ("inbound", inbound::run),
            ("timers", timers::run),
        ];
        let start = |(name, body): Body| {
            let worker = self.clone();
            // What they need is a few kilobytes; the receive's headers are the most.
            let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
            builder.spawn(move || {
                let _watch = Watch(&worker);
                body(&worker);
            })
        };
        bodies.into_iter().map(start).collect()
    }

    /// Ends the threads and lets the device go.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        for event in [&self.timer, &self.outbound, &self.inbound] {
            let _ = event.write(1);
        }
        if let Err(error) = self.tun.remove_at_end() {
            warn!(%error, "cannot remove the device");
        }
    }

    fn now() -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            boot: boot_time(),
            unix: unix.unwrap_or_default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sockets(&self) -> Arc<Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the core go, and does what it left to do.
    fn settle(&self, mut core: MutexGuard<'_, Core>) {
        let (wake_at, has_ready) = (core.wake_at(), core.has_ready());
        let output = if core.has_output() {
            core.take_output()
        } else {
            Vec::new()
        };
        drop(core);
        if !output.is_empty() {
            self.transmit(&output);
        }
        if has_ready {
            let _ = self.outbound.write(1);
        }
        let wake_at = wake_at.map_or(u64::MAX, nanos);
        if wake_at < self.timer_at.fetch_min(wake_at, Ordering::Relaxed) {
            let _ = self.timer.write(1);
        }
    }

    fn transmit(&self, output: &[Transmit]) {
        let sockets = self.sockets();
        for Transmit { to, bytes } in output {
            self.send(&sockets, *to, bytes, bytes.len(), 0);
        }
    }

    /// Sends a run of datagrams, or counts it.
    fn send(&self, sockets: &Sockets, to: SocketAddr, bytes: &[u8], segment: usize, tos: u8) {
        let Some(socket) = sockets.all.iter().find(|socket| socket.is_for(to)) else {
            self.drops.add(Reason::UdpSend);
            return;
        };
        let Err(error) = socket.send(to, bytes, segment, tos) else {
            return;
        };
        let errno = error.raw_os_error().map(Errno::from_raw);
        let count = bytes.len().div_ceil(segment.max(1)) as u64;
        match errno {
            // Larger than the path takes, which only now turned out; or a device on the way that cannot send runs: one by
            // one, in fragments if need be.
            Some(Errno::EMSGSIZE | Errno::EINVAL | Errno::EIO) if count > 1 => {
                self.is_path_too_small.store(true, Ordering::Relaxed);
                self.timer_at.store(0, Ordering::Relaxed);
                let _ = self.timer.write(1);
                for one in bytes.chunks(segment) {
                    self.send(sockets, to, one, segment, tos);
                }
            }
            _ => self.drops.add_many(Reason::UdpSend, count),
        }
    }

    /// Binds anew if port or mark change.
    fn bind(&self, port: Option<u16>, mark: Option<u32>) -> Result<(), Errno> {
        let before = self.sockets();
        let (port, mark) = (port.unwrap_or(before.port), mark.unwrap_or(before.mark));
        if !before.all.is_empty() && before.mark == mark && (before.port == port) {
            return Ok(());
        }
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let mut all = Vec::new();
        let mut bound = port;
        if !before.all.is_empty() && before.port == port {
            // Only the mark: the port cannot be bound twice.
            before
                .all
                .iter()
                .try_for_each(|socket| socket.set_mark(mark))
                .map_err(errno)?;
            let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            let all = duplicate(&before.all).map_err(errno)?;
            *sockets = Arc::new(Sockets { all, port, mark });
            return Ok(());
        }
        for is_v6 in [false, true] {
            match Udp::bind(is_v6, bound, mark) {
                Ok(socket) => {
                    bound = socket.port().map_err(errno)?;
                    all.push(socket);
                }
                // A machine without one of the families.
                Err(error)
                    if matches!(
                        error.raw_os_error().map(Errno::from_raw),
                        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
                    ) => {}
                Err(error) => return Err(errno(error)),
            }
        }
        info!(port = bound, "port is bound");
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        *sockets = Arc::new(Sockets { all, port: bound, mark });
        drop(sockets);
        self.version.fetch_add(1, Ordering::Relaxed);
        let _ = self.inbound.write(1);
        Ok(())
    }
}

/// Ends the process if a thread ends before it is told to: nothing works without it, and whoever started us starts anew.
struct Watch<'a>(&'a Worker);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.0.has_ended.load(Ordering::Relaxed) {
            std::process::exit(70);
        }
    }
}

fn duplicate(sockets: &[Udp]) -> io::Result<Vec<Udp>> {
    sockets.iter().map(Udp::duplicate).collect()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Controlled for Arc<Worker> {
    fn get(&self) -> DeviceStatus {
        let mut status = self.lock().status();
        let sockets = self.sockets();
        (status.listen_port, status.fwmark) = (sockets.port, sockets.mark);
        status.mtu = self.mtu.load(Ordering::Relaxed);
        status.drops = self.drops.read();
        for peer in &mut status.peers {
            peer.mtu = peer.mtu.min(status.mtu);
        }
        status
    }

    fn set(&self, config: &DeviceConfig) -> Result<(), Errno> {
        if let Some(mtu) = config.mtu.filter(|mtu| *mtu != self.mtu.load(Ordering::Relaxed)) {
            let set = self.tun.set_mtu(mtu);
            set.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            self.mtu.store(mtu, Ordering::Relaxed);
        }
        // A port of its own choice is kept when "any" is asked for again.
        let port = config
            .listen_port
            .filter(|port| *port != 0 || self.sockets().all.is_empty());
        self.bind(port, config.fwmark)?;
        let mut core = self.lock();
        let applied = core.apply(config, Worker::now());
        self.settle(core);
        applied.map_err(|_| Errno::EINVAL)
    }
}
