//! What seals packets on this node: the kernel's WireGuard or the worker. Both go by the same name; the one that is not wanted
//! goes before the other comes.

use crate::datapath::sealed::LINK;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use roble_proto::local_net::SealedBy;
use roble_tunnel::client::Launch;
use roble_tunnel::kernel::{self, LinkKind};
use roble_tunnel::{Client, Device, DeviceConfig, DeviceError, KernelDevice};
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// When the kernel's device is looked after again that could not be.
const PAUSE: Duration = Duration::from_millis(400);

/// How long the device of a worker that was told to stop may take to go.
const GONE_DEADLINE: Duration = Duration::from_secs(5);

/// Which is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The kernel's if it has one, else the worker.
    Auto,
    /// The kernel's.
    Kernel,
    /// The worker.
    User,
}

impl Wanted {
    /// Their names in the settings.
    pub const NAMES: &[&str] = &["auto", "kernel", "user"];

    /// The one of that name; [`Wanted::Auto`] for any other.
    pub fn from_name(name: &str) -> Self {
        match name {
            "kernel" => Self::Kernel,
            "user" => Self::User,
            _ => Self::Auto,
        }
    }
}

/// A device that runs, and what it is.
#[derive(Clone)]
pub struct Running {
    /// Which kind.
    pub by: SealedBy,
    /// Itself.
    pub device: Arc<dyn Device>,
}

/// The device, once there is one. Shared with those who only look.
#[derive(Clone, Default)]
pub struct Current(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    running: Option<Running>,
    kernel: Option<Arc<KernelDevice>>,
    /// What was chosen, for as long as this process runs.
    chosen: Option<SealedBy>,
    /// Why there is none, if one is needed.
    failure: Option<String>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = self.running().map(|running| running.by);
        f.debug_tuple("Current").field(&by).finish()
    }
}

impl Current {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device, if one runs.
    pub fn running(&self) -> Option<Running> {
        self.lock().running.clone()
    }

    /// Why there is none although one is needed: in words, with causes.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// There is one or none is needed, or why there is none.
    pub fn set_failure(&self, failure: Option<String>) {
        self.lock().failure = failure;
    }

    /// Brings the device that is wanted to `config`, and makes it first if need be; the other kind goes. `None`: there is
    /// none, and without peers none is needed. Blocks.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn ensure(&self, wanted: Wanted, launch: &Launch, config: &DeviceConfig) -> Result<Option<Guard>, DeviceError> {
        let link = kernel::kind_of(LINK)?;
        if config.peers.is_empty() && link != Some(LinkKind::WireGuard) && Client::new(&launch.socket).get().is_err() {
            return Ok(None);
        }
        let chosen = self.lock().chosen;
        let chosen = chosen.unwrap_or_else(|| choose(wanted));
        let guard = match chosen {
            SealedBy::Kernel => match self.ensure_kernel(launch, link, config) {
                Err(error) if wanted == Wanted::Auto && self.lock().chosen.is_none() => {
                    fall_back(&error);
                    self.lock().chosen = Some(SealedBy::UserSpace);
                    self.ensure_worker(launch, kernel::kind_of(LINK)?, config)?
                }
                result => result?,
            },
            SealedBy::UserSpace => self.ensure_worker(launch, link, config)?,
        };
        self.lock().chosen.get_or_insert(chosen);
        Ok(Some(guard))
    }

    fn ensure_kernel(
        &self,
        launch: &Launch,
        link: Option<LinkKind>,
        config: &DeviceConfig,
    ) -> Result<Guard, DeviceError> {
        let known = self.lock().kernel.clone().filter(|_| link == Some(LinkKind::WireGuard));
        let device = match known {
            Some(device) => device,
            None => {
                remove_worker(&launch.socket)?;
                let device = Arc::new(KernelDevice::ensure(LINK)?);
                tracing::info!(device = LINK, "the kernel's WireGuard seals packets to other nodes");
                device
            }
        };
        device.set(config)?;
        let mut state = self.lock();
        state.kernel = Some(device.clone());
        state.running = Some(Running {
            by: SealedBy::Kernel,
            device: device.clone(),
        });
        Ok(Guard::Kernel(device))
    }

    fn ensure_worker(
        &self,
        launch: &Launch,
        link: Option<LinkKind>,
        config: &DeviceConfig,
    ) -> Result<Guard, DeviceError> {
        if link == Some(LinkKind::WireGuard) {
            kernel::remove(LINK)?;
            tracing::info!(
                device = LINK,
                "the kernel's WireGuard is removed, a worker seals packets"
            );
        }
        let (client, child) = launch.ensure_running()?;
        client.set(config)?;
        let failed = |source| DeviceError::Socket {
            socket: client.socket().to_owned(),
            source,
        };
        let guard = Guard::of(client.socket()).map_err(failed)?;
        if let Some(mut child) = child {
            tracing::info!(worker = child.id(), "tunnel's worker started");
            // It is nobody else's to bury; it may well live longer than this process.
            std::thread::spawn(move || drop(child.wait()));
        }
        self.lock().running = Some(Running {
            by: SealedBy::UserSpace,
            device: Arc::new(client),
        });
        Ok(guard)
    }
}

fn choose(wanted: Wanted) -> SealedBy {
    match wanted {
        Wanted::Kernel => SealedBy::Kernel,
        Wanted::User => SealedBy::UserSpace,
        Wanted::Auto => match kernel::supported() {
            Ok(()) => SealedBy::Kernel,
            Err(error) => {
                fall_back(&error);
                SealedBy::UserSpace
            }
        },
    }
}

fn fall_back(error: &DeviceError) {
    let error = error as &dyn std::error::Error;
    tracing::info!(
        error,
        "no WireGuard of the kernel, a worker seals packets to other nodes"
    );
}

/// Ends a worker, if one runs, and removes its device, also one that was left behind.
fn remove_worker(socket: &Path) -> Result<(), DeviceError> {
    if Client::new(socket).stop().is_ok() {
        tracing::info!("tunnel's worker stopped");
        let deadline = Instant::now() + GONE_DEADLINE;
        while kernel::kind_of(LINK)? == Some(LinkKind::Other) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if kernel::kind_of(LINK)? == Some(LinkKind::Other) {
        kernel::remove(LINK)?;
    }
    Ok(())
}

/// Notices the end of a device; that of the kernel is looked after meanwhile.
#[derive(Debug, Clone)]
pub enum Guard {
    /// A worker, be it a child of this process or of one before it: then it may be a zombie for long, which has an id but is
    /// no more.
    Worker(Arc<OwnedFd>),
    /// The kernel's.
    Kernel(Arc<KernelDevice>),
}

impl Guard {
    fn of(socket: &Path) -> io::Result<Self> {
        let worker = getsockopt(&UnixStream::connect(socket)?, PeerCredentials)?;
        Self::of_process(worker.pid())
    }

    // There is no call for it in nix.
    #[allow(unsafe_code)]
    fn of_process(process: i32) -> io::Result<Self> {
        // SAFETY: it takes no pointers.
        let number = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
        match i32::try_from(number) {
            // SAFETY: the kernel has just given it, and nobody else has it.
            Ok(number) if number >= 0 => Ok(Self::Worker(Arc::new(unsafe { OwnedFd::from_raw_fd(number) }))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns soon after the device has ended.
    #[allow(unsafe_code)]
    pub async fn ended(&self) {
        match self {
            Self::Worker(process) => {
                // SAFETY: `self` keeps it open for as long as it is watched.
                let watched = unsafe { AsyncFd::register_with_interest(process.as_fd(), Interest::READABLE) };
                // It is readable from then on.
                let readable = match watched {
                    Ok(watched) => watched.readable().await.map(drop),
                    Err(error) => Err(io::Error::from(error)),
                };
                if let Err(error) = readable {
                    tracing::error!(%error, "the tunnel's worker is not watched");
                    std::future::pending::<()>().await;
                }
            }
            Self::Kernel(device) => {
                let mut was_fine = true;
                loop {
                    let tended = device.clone();
                    let tended = tokio::task::spawn_blocking(move || tended.tend()).await;
                    let pause = match tended.expect("looking after a device does not panic") {
                        Ok(pause) => {
                            was_fine = true;
                            pause
                        }
                        Err(DeviceError::Kernel { source, .. })
                            if source.raw_os_error() == Some(Errno::ENODEV as i32) =>
                        {
                            return;
                        }
                        Err(error) => {
                            if std::mem::take(&mut was_fine) {
                                let error = &error as &dyn std::error::Error;
                                tracing::warn!(error, "ways to other nodes were not looked after; trying again");
                            }
                            PAUSE
                        }
                    };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_has_ended_before_it_is_buried() {
        let mut worker = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let guard = Guard::of_process(worker.id().try_into().unwrap()).unwrap();
        let mut ended = std::pin::pin!(guard.ended());
        assert!(futures_util::poll!(&mut ended).is_pending(), "it lives");
        worker.kill().unwrap();
        // Nobody has waited for it: it is a zombie.
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
        worker.wait().unwrap();
    }
}
