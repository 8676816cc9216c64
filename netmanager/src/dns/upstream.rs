//! Asks the host's servers for every name that is not ours.
//!
//! A query goes on as it came, under an id and from a port of its own, both at random, through a socket that takes answers
//! from the asked server only; the answer must repeat the question. So a forger must guess 16 bits of id and 15 of port.

use super::message::{self, Transport};
use super::metrics::DnsMetrics;
use domain::base::Message;
use domain::base::iana::Rcode;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

/// How long one server has for an answer.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How many times servers are asked for one query. With [`PATIENCE`] it ends before containers' resolvers give up, at 5 s.
const ATTEMPTS: usize = 3;
/// How many servers of a `resolv.conf` count, as for the C library.
const MOST_SERVERS: usize = 3;
/// How long a `resolv.conf` that was read is believed.
const BELIEF: Duration = Duration::from_secs(5);
/// The longest datagram from upstream; a longer one is asked for again by TCP.
const DATAGRAM: usize = 4_096;

/// Which servers are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// These, the first that answers.
    Servers(Vec<SocketAddr>),
    /// Those of a file of the form of `/etc/resolv.conf`, read again when it may have changed.
    File(PathBuf),
}

impl Default for Upstream {
    fn default() -> Self {
        Self::File("/etc/resolv.conf".into())
    }
}

/// The servers of a `resolv.conf`, in order.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    servers.filter_map(parse_server).take(MOST_SERVERS).collect()
}

/// An address, with the name of an interface behind `%` if it counts on that link only.
fn parse_server(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, super::PORT));
    };
    let scope = interface.parse().ok();
    let scope = scope.or_else(|| nix::net::if_::if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, super::PORT, 0, scope).into())
}

/// Servers that were read, and when.
type Believed = Option<(Instant, Arc<[SocketAddr]>)>;

/// Asks upstream.
#[derive(Debug)]
pub(super) struct Resolver {
    upstream: Upstream,
    /// Where we listen ourselves: never asked.
    own: Vec<SocketAddr>,
    metrics: DnsMetrics,
    /// Derived from the file.
    believed: Mutex<Believed>,
    /// Counts on when a server fails; it says who is asked first.
    turn: AtomicUsize,
}

impl Resolver {
    pub(super) fn new(upstream: Upstream, own: Vec<SocketAddr>, metrics: DnsMetrics) -> Self {
        Self {
            upstream,
            own,
            metrics,
            believed: Mutex::default(),
            turn: AtomicUsize::default(),
        }
    }

    async fn servers(&self) -> Arc<[SocketAddr]> {
        let file = match &self.upstream {
            Upstream::Servers(servers) => return self.without_own(servers.clone()),
            Upstream::File(file) => file,
        };
        let lock = || self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, servers)) = &*lock()
            && read.elapsed() < BELIEF
        {
            return servers.clone();
        }
        let text = tokio::fs::read_to_string(file).await;
        let text = text.inspect_err(|error| tracing::debug!(%error, file = %file.display(), "no upstream servers"));
        let servers = self.without_own(parse_resolv_conf(&text.unwrap_or_default()));
        *lock() = Some((Instant::now(), servers.clone()));
        servers
    }

    fn without_own(&self, servers: Vec<SocketAddr>) -> Arc<[SocketAddr]> {
        let is_other = |server: &SocketAddr| {
            let is_own = |own: &SocketAddr| own.ip() == server.ip() && own.port() == server.port();
            !server.ip().is_unspecified() && !self.own.iter().any(is_own)
        };
        servers.into_iter().filter(is_other).collect()
    }

    /// The answer to `query`, short enough for its sender; SERVFAIL if there is none. `None` if `query` cannot be read.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let reply = match self.ask_servers(query, transport).await {
            Some(reply) => reply,
            None => {
                self.metrics.unanswered.inc();
                return message::failure(query, transport);
            }
        };
        let limit = match transport {
            Transport::Udp => usize::from(message::datagram_limit(query)),
            Transport::Tcp => usize::from(u16::MAX),
        };
        if reply.len() > limit {
            return message::truncated(query);
        }
        Some(reply)
    }

    async fn ask_servers(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.servers().await;
        let first = self.turn.load(Ordering::Relaxed);
        let mut poor = None;
        for attempt in 0..ATTEMPTS {
            // A server that said that it cannot is not asked twice.
            if servers.is_empty() || (poor.is_some() && attempt >= servers.len()) {
                break;
            }
            let turn = first.wrapping_add(attempt);
            let server = servers[turn % servers.len()];
            match self.ask_server(server, query, transport).await {
                Ok(reply) if is_poor(&reply) => {
                    self.metrics.upstream_failures.inc();
                    poor = Some(reply);
                }
                Ok(reply) => return Some(reply),
                Err(error) => {
                    self.metrics.upstream_failures.inc();
                    tracing::debug!(%server, attempt, %error, "no answer from upstream");
                    // Only if nobody has moved it on since.
                    let next = turn.wrapping_add(1);
                    let _ = self
                        .turn
                        .compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }
        poor
    }

    /// One server's answer, under the id of `query`.
    async fn ask_server(&self, server: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let own = with_id(query, random_id()?);
        let mut reply = within(ask_udp(server, &own)).await?;
        // What does not fit into the least of datagrams would not fit its sender either, if that is all that it takes.
        let may_fit = transport == Transport::Tcp || message::datagram_limit(query) > message::LEAST_DATAGRAM;
        if is_cut(&reply) && may_fit {
            match within(ask_tcp(server, &own)).await {
                Ok(whole) => reply = whole,
                Err(error) if transport == Transport::Tcp => return Err(error),
                // What fitted is better than nothing, and it says that it is cut.
                Err(error) => tracing::debug!(%server, %error, "no answer from upstream by TCP"),
            }
        }
        Ok(with_id(&reply, id_of(query)))
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses the port at random.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if message::is_reply_to(&buffer[..length], query) {
            if length == DATAGRAM {
                // Perhaps there was more.
                return message::truncated(query).ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, query).await?;
    let reply = read_framed(&mut stream, usize::from(u16::MAX)).await?;
    let reply = reply.filter(|reply| message::is_reply_to(reply, query));
    reply.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A message with its length in front. `None` at the end of the stream, and for one that is longer than `most`.
pub(super) async fn read_framed(stream: &mut TcpStream, most: usize) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > most {
        return Ok(None);
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes a message with its length in front, in one piece.
pub(super) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await
}

/// The flag of a cut answer, in the third byte.
const CUT: u8 = 0x02;

fn is_cut(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & CUT != 0)
}

/// Whether another server may know better.
fn is_poor(reply: &[u8]) -> bool {
    let rcode = Message::from_slice(reply).map(|message| message.header().rcode());
    matches!(rcode, Ok(Rcode::SERVFAIL | Rcode::REFUSED | Rcode::NOTIMP))
}

fn random_id() -> io::Result<u16> {
    OsRng
        .try_next_u32()
        .map(|number| number as u16)
        .map_err(io::Error::other)
}

/// The id of a message that can be read.
fn id_of(message: &[u8]) -> u16 {
    message.first_chunk().map_or(0, |id: &[u8; 2]| u16::from_be_bytes(*id))
}

fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_a_resolv_conf() {
        let text = "# nameserver 1.1.1.1\n; nameserver 1.1.1.1\nsearch example.com\n  nameserver\t127.0.0.53\n\
                    nameserver ::1 trailing\nnameserver bad\nnameserver\nnameservers 9.9.9.9\nnameserver fe80::1%7\n\
                    nameserver 8.8.8.8\n";
        let servers: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[::1]:53", "[fe80::1%7]:53"]);
        assert!(parse_server("fe80::1%lo").is_some());
        assert!(parse_server("fe80::1%no-such-link").is_none());
    }

    #[test]
    fn it_never_asks_itself() {
        let own = vec!["10.18.0.1:53".parse().unwrap()];
        let resolver = Resolver::new(Upstream::default(), own.clone(), DnsMetrics::default());
        let mut servers = own;
        servers.extend(["0.0.0.0:53", "127.0.0.53:53"].map(|server| server.parse::<SocketAddr>().unwrap()));
        let left = resolver.without_own(servers);
        assert_eq!(*left, ["127.0.0.53:53".parse().unwrap()]);
    }
}
