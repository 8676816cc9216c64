//! Accepting, bounding and draining, whatever is spoken.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Limits;

/// Pause after a failed accept; out of file descriptors, for one, would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The next connection. Errors are waited out: a listener that gives up helps nobody.
pub(super) async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                return (stream, SocketAddr::new(address.ip().to_canonical(), address.port()));
            }
            Err(error) => paused(&error).await,
        }
    }
}

/// Says that accepting failed, and waits a little.
pub(super) async fn paused(error: &std::io::Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "accept failed");
    tokio::time::sleep(PAUSE).await;
}

/// Counts connections in total and per peer.
#[derive(Debug)]
pub(super) struct Gate {
    total: usize,
    per_peer: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    per_peer: HashMap<IpAddr, usize>,
}

impl Gate {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            total: limits.connections,
            per_peer: limits.connections_per_peer,
            open: Arc::default(),
        }
    }

    /// A place, until the permit is dropped; `None` if a bound is reached.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Permit> {
        let peer = network_of(address);
        let mut open = lock(&self.open);
        if open.total >= self.total || open.per_peer.get(&peer).is_some_and(|count| *count >= self.per_peer) {
            return None;
        }
        open.total += 1;
        *open.per_peer.entry(peer).or_default() += 1;
        Some(Permit {
            open: self.open.clone(),
            peer,
        })
    }
}

/// One place behind a [`Gate`].
#[derive(Debug)]
pub(super) struct Permit {
    open: Arc<Mutex<Open>>,
    peer: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.total -= 1;
        if let Some(count) = open.per_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.per_peer.remove(&self.peer);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One IPv6 host usually has a whole /64 to choose addresses from.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// The tasks of one listener, ended together.
#[derive(Debug)]
pub(super) struct Drain {
    tasks: TaskTracker,
    kill: CancellationToken,
}

impl Drain {
    pub(super) fn new() -> Self {
        Self {
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = kill.cancelled() => {}
            }
        });
    }

    /// Waits for the tasks, at most `deadline`; then drops them and returns how many.
    pub(super) async fn finish(self, deadline: Duration) -> usize {
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tasks.len();
        self.kill.cancel();
        self.tasks.wait().await;
        left
    }
}

impl Drop for Drain {
    // The serving future may be dropped; its connections must not outlive it.
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

/// Runs a closure when dropped.
pub(super) struct OnDrop<F: FnMut()>(pub(super) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_bounds_total_and_each_peer_and_forgets() {
        let gate = Gate::new(&Limits {
            connections: 3,
            connections_per_peer: 2,
            ..Limits::default()
        });
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = gate.admit(a).unwrap();
        let _second = gate.admit(a).unwrap();
        assert!(gate.admit(a).is_none(), "per peer");
        let _third = gate.admit(b).unwrap();
        assert!(gate.admit(b).is_none(), "in total");
        drop(first);
        drop(gate.admit(a).unwrap());
        assert_eq!(lock(&gate.open).total, 2);
        assert_eq!(lock(&gate.open).per_peer.len(), 2);
    }

    #[test]
    fn one_ipv6_network_is_one_peer() {
        assert_eq!(
            network_of("2001:db8::1".parse().unwrap()),
            network_of("2001:db8::ffff:1".parse().unwrap())
        );
        assert_ne!(
            network_of("2001:db8::1".parse().unwrap()),
            network_of("2001:db8:0:1::1".parse().unwrap())
        );
        assert_eq!(
            network_of("::ffff:10.0.0.1".parse().unwrap()),
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
    }
}
