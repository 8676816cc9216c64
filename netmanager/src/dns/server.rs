//! Sockets on the gateway addresses, and what a client may use of them.

use super::message::{self, Answer, Transport, answer};
use super::metrics::DnsMetrics;
use super::upstream::{Resolver, Upstream, read_framed, write_framed};
use super::zone::{Caller, Callers, Zone};
use crate::wants::{Outcome, Wants};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind as bind_socket, listen, setsockopt, socket,
    sockopt,
};
use roble_core::ids::ApplicationId;
use roble_core::overlay::row::Wanted;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// The longest query that is read.
const QUERY_BYTES: usize = 4_096;
/// Queries that may be upstream at a time, of all clients together and of each.
const FORWARDS: usize = 512;
const FORWARDS_EACH: usize = 64;
/// Connections at a time, of all clients together and of each.
const CONNECTIONS: usize = 256;
const CONNECTIONS_EACH: usize = 16;
/// How long a connection may take for its next query, or to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Queries of a client per second, and at once after a rest.
const RATE: u32 = 1_000;
const BURST: u32 = 2_000;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// How long a socket rests after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen for DNS on {address}")]
pub struct BindError {
    /// Which.
    pub address: SocketAddr,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Bound sockets.
#[derive(Debug)]
pub struct Listeners {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Listens on each address by UDP and TCP. The address need not be there yet: the sockets work from when it is. Must be
    /// called within the runtime. With port 0 both get the same free one.
    ///
    /// # Errors
    /// [`BindError`], e.g. if another server has the port.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, BindError> {
        let mut listeners = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
        };
        for &address in addresses {
            let (udp, tcp) = bind_both(address).map_err(|source| BindError { address, source })?;
            listeners.udp.push(udp);
            listeners.tcp.push(tcp);
        }
        Ok(listeners)
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|udp| udp.local_addr().ok()).collect()
    }
}

fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    // A port that is free for one may be taken for the other.
    for _ in 0..8 {
        let udp: std::net::UdpSocket = open(SockType::Datagram, address)?.into();
        match open(SockType::Stream, udp.local_addr()?) {
            Ok(tcp) => return Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp.into())?)),
            Err(error) if address.port() != 0 => return Err(error),
            Err(_) => {}
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn open(kind: SockType, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // Linux takes it for IPv6 as well.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind_socket(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}

/// What the server knows, as it changes.
#[derive(Clone)]
pub struct Views {
    /// The names.
    pub zone: watch::Receiver<Arc<Zone>>,
    /// Who may ask.
    pub callers: watch::Receiver<Arc<Callers>>,
    /// What must be asked for first.
    pub wants: Arc<Wants>,
}

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Views").finish_non_exhaustive()
    }
}

/// Answers until `stop`. Queries that are being answered then are dropped.
pub async fn serve(
    listeners: Listeners,
    views: Views,
    upstream: Upstream,
    metrics: DnsMetrics,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        views,
        resolver: Resolver::new(upstream, listeners.addresses(), metrics.clone()),
        metrics,
        forwards: Arc::new(Semaphore::new(FORWARDS)),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        clients: Mutex::default(),
    });
    // Dropping the set ends what runs in it.
    let mut tasks = JoinSet::new();
    for socket in listeners.udp {
        tasks.spawn(server.clone().serve_udp(Arc::new(socket)));
    }
    for listener in listeners.tcp {
        tasks.spawn(server.clone().serve_tcp(listener));
    }
    stop.cancelled().await;
}

#[derive(Debug)]
struct Server {
    views: Views,
    resolver: Resolver,
    metrics: DnsMetrics,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Those who asked lately, by address; at most a few more than there are callers.
    clients: Mutex<HashMap<IpAddr, Client>>,
}

/// What a client uses.
#[derive(Debug, Clone)]
struct Client {
    rate: Rate,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// What to do with a query.
enum Step {
    Reply(Vec<u8>),
    /// Ask upstream while holding these.
    Forward([OwnedSemaphorePermit; 2]),
    /// Ask the cluster for this first, while holding these.
    Want(ApplicationId, Wanted, [OwnedSemaphorePermit; 2]),
    Nothing,
}

impl Server {
    /// What becomes of a query from `source`.
    fn step(&self, query: &[u8], source: IpAddr, transport: Transport) -> Step {
        let reply = |bytes: Option<Vec<u8>>| bytes.map_or(Step::Nothing, Step::Reply);
        let caller = self.views.callers.borrow().get(&source).copied();
        let Some(caller) = caller else {
            self.metrics.refused.inc();
            return reply(message::refusal(query, transport));
        };
        let Some(forwards) = self.with_client(source, |client| {
            client.rate.take(Instant::now()).then(|| client.forwards.clone())
        }) else {
            self.metrics.limited.inc();
            return Step::Nothing;
        };
        let zone = self.views.zone.borrow().clone();
        let application = caller.application;
        if let Some(wanted) = message::wanted(query, &caller, &zone)
            && self.views.wants.known(application, &wanted).is_none()
        {
            return match (forwards.try_acquire_owned(), self.forwards.clone().try_acquire_owned()) {
                (Ok(own), Ok(shared)) => Step::Want(application, wanted, [own, shared]),
                _ => {
                    self.metrics.limited.inc();
                    reply(message::failure(query, transport))
                }
            };
        }
        self.settled(query, &caller, &zone, transport, forwards)
    }

    /// What becomes of a query when all is known that there is to know.
    fn settled(
        &self,
        query: &[u8],
        caller: &Caller,
        zone: &Zone,
        transport: Transport,
        forwards: Arc<Semaphore>,
    ) -> Step {
        let reply = |bytes: Option<Vec<u8>>| bytes.map_or(Step::Nothing, Step::Reply);
        match answer(query, caller, zone, transport) {
            Answer::Drop => {
                self.metrics.dropped.inc();
                Step::Nothing
            }
            Answer::Reply(bytes) => {
                // The lower half of the fourth byte: 0 is no error, 3 is that there is no such name.
                match bytes.get(3).map(|flags| flags & 0x0f) {
                    Some(0) => self.metrics.found.inc(),
                    Some(3) => self.metrics.unknown.inc(),
                    _ => self.metrics.refused.inc(),
                };
                Step::Reply(bytes)
            }
            Answer::Upstream => match (forwards.try_acquire_owned(), self.forwards.clone().try_acquire_owned()) {
                (Ok(own), Ok(shared)) => {
                    self.metrics.forwarded.inc();
                    Step::Forward([own, shared])
                }
                _ => {
                    self.metrics.limited.inc();
                    reply(message::failure(query, transport))
                }
            },
        }
    }

    /// The answer to a query once `wanted` is known, or was asked for in vain.
    async fn answer_wanted(
        &self,
        query: &[u8],
        source: IpAddr,
        transport: Transport,
        application: ApplicationId,
        wanted: Wanted,
    ) -> Option<Vec<u8>> {
        let outcome = self.views.wants.resolve(application, wanted).await;
        // It may be gone by now.
        let caller = self.views.callers.borrow().get(&source).copied()?;
        let zone = self.views.zone.borrow().clone();
        if outcome == Outcome::Unknown && !message::is_found(query, &caller, &zone) {
            self.metrics.unanswered.inc();
            return message::failure(query, transport);
        }
        match self.settled(query, &caller, &zone, transport, Arc::new(Semaphore::new(0))) {
            Step::Reply(reply) => Some(reply),
            _ => None,
        }
    }

    /// Only for a source that is a caller.
    fn with_client<T>(&self, source: IpAddr, work: impl FnOnce(&mut Client) -> T) -> T {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let callers = self.views.callers.borrow();
        if clients.len() > 2 * callers.len() + 16 {
            clients.retain(|address, _| callers.contains_key(address));
        }
        drop(callers);
        work(clients.entry(source).or_insert_with(|| Client {
            rate: Rate::new(Instant::now()),
            forwards: Arc::new(Semaphore::new(FORWARDS_EACH)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_EACH)),
        }))
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut forwards = JoinSet::new();
        let mut buffer = vec![0; QUERY_BYTES];
        loop {
            while forwards.try_join_next().is_some() {}
            let (length, source) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receive a query");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.step(query, source.ip(), Transport::Udp) {
                Step::Reply(reply) => send(&socket, &reply, source).await,
                Step::Nothing => {}
                Step::Want(application, wanted, permits) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    forwards.spawn(async move {
                        let _permits = permits;
                        let answer = server.answer_wanted(&query, source.ip(), Transport::Udp, application, wanted);
                        if let Some(reply) = answer.await {
                            send(&socket, &reply, source).await;
                        }
                    });
                }
                Step::Forward(permits) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    forwards.spawn(async move {
                        let _permits = permits;
                        if let Some(reply) = server.resolver.ask(&query, Transport::Udp).await {
                            send(&socket, &reply, source).await;
                        }
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "accept a connection");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            if !self.views.callers.borrow().contains_key(&source.ip()) {
                self.metrics.refused.inc();
                continue;
            }
            match self.admit(source.ip()) {
                Some(permits) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        let _permits = permits;
                        if let Err(error) = server.converse(stream, source.ip()).await {
                            tracing::debug!(%source, %error, "a connection ended early");
                        }
                    });
                }
                None => {
                    self.metrics.limited.inc();
                }
            }
        }
    }

    /// Room for one more connection of a caller.
    fn admit(&self, source: IpAddr) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.with_client(source, |client| client.connections.clone());
        let own = own.try_acquire_owned().ok()?;
        Some([own, self.connections.clone().try_acquire_owned().ok()?])
    }

    /// Answers the queries of a connection, one after the other.
    async fn converse(&self, mut stream: TcpStream, source: IpAddr) -> io::Result<()> {
        // Answers are written whole.
        stream.set_nodelay(true)?;
        loop {
            let query = match timeout(IDLE, read_framed(&mut stream, QUERY_BYTES)).await {
                Ok(query) => query?,
                Err(_) => return Ok(()),
            };
            let Some(query) = query else { return Ok(()) };
            let reply = match self.step(&query, source, Transport::Tcp) {
                Step::Reply(reply) => Some(reply),
                Step::Want(application, wanted, _permits) => {
                    self.answer_wanted(&query, source, Transport::Tcp, application, wanted)
                        .await
                }
                Step::Forward(_permits) => self.resolver.ask(&query, Transport::Tcp).await,
                Step::Nothing => None,
            };
            let Some(reply) = reply else { return Ok(()) };
            timeout(IDLE, write_framed(&mut stream, &reply)).await??;
        }
    }
}

/// Losing an answer is what datagrams do.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%to, %error, "send an answer");
    }
}

/// How many queries a client has left, counted in thousandths of one so that short pauses count.
#[derive(Debug, Clone)]
struct Rate {
    left: u64,
    since: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            left: u64::from(BURST) * 1_000,
            since: now,
        }
    }

    /// Whether one more is within the rate.
    fn take(&mut self, now: Instant) -> bool {
        let elapsed = u64::try_from(now.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(u64::from(RATE)) / 1_000;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(u64::from(BURST) * 1_000);
            self.since = now;
        }
        let has_one = self.left >= 1_000;
        if has_one {
            self.left -= 1_000;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_a_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let taken = |rate: &mut Rate, now| (0..10_000).filter(|_| rate.take(now)).count();
        assert_eq!(taken(&mut rate, start), 2_000);
        assert_eq!(taken(&mut rate, start + Duration::from_millis(100)), 100);
        // In the smallest steps, nothing is lost.
        let mut now = start + Duration::from_millis(100);
        let mut count = 0;
        for _ in 0..10_000 {
            now += Duration::from_micros(10);
            count += u32::from(rate.take(now));
        }
        assert_eq!(count, 100);
        assert_eq!(taken(&mut rate, now + Duration::from_secs(3_600)), 2_000);
    }
}
