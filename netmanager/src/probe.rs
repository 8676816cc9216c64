//! Round-trip times to other nodes: echoes to their gateway addresses, through the tunnel.

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use roble_core::ids::NodeId;
use roble_daemon::CancellationToken;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// ICMP types of RFC 792.
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Bytes of an ICMP echo without payload.
const HEADER: usize = 8;

/// Between rounds, at first: what was just told of is measured soon.
const FIRST: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// Between rounds later: two packets to each node that this one talks to, 0.3 MB a day.
const LATER: Duration = Duration::from_secs(60);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a round found: the time to each node, `None` for those that did not answer.
pub type Round = BTreeMap<NodeId, Option<Duration>>;

/// Measures the way to `targets`, sooner after they change, until `stop`. Without any it sleeps.
pub fn start(
    mut targets: watch::Receiver<BTreeMap<NodeId, Ipv4Addr>>,
    stop: CancellationToken,
) -> mpsc::Receiver<Round> {
    let (rounds, results) = mpsc::channel(1);
    let measuring = async move {
        let mut prober = match Prober::open() {
            Ok(prober) => prober,
            Err(error) => {
                tracing::warn!(%error, "distances are not measured: closest is any");
                // What is told goes on without.
                return rounds.closed().await;
            }
        };
        let mut done = 0;
        loop {
            let nodes = targets.borrow_and_update().clone();
            if nodes.is_empty() {
                done = 0;
                match targets.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FIRST.get(done).copied().unwrap_or(LATER)) => {}
                changed = targets.changed() => match changed {
                    Ok(()) => { done = 0; continue }
                    Err(_) => return,
                }
            }
            done += 1;
            let round = prober.round(&nodes, PATIENCE).await;
            if rounds.send(round).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = measuring => {}
            () = stop.cancelled() => {}
        }
    });
    results
}

/// Sends echoes and hears answers.
#[derive(Debug)]
pub struct Prober {
    /// A raw socket; that type sends and receives datagrams of any protocol.
    socket: UdpSocket,
    id: u16,
    sequence: u16,
}

impl Prober {
    /// Opens its socket.
    ///
    /// # Errors
    /// If the process may not.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            // Enough to tell our answers from those to another program's echoes.
            id: std::process::id() as u16,
            sequence: 0,
        })
    }

    /// One echo to each of `nodes`; how long each took, `None` without an answer within `patience`.
    pub async fn round(&mut self, nodes: &BTreeMap<NodeId, Ipv4Addr>, patience: Duration) -> Round {
        let mut sent: BTreeMap<u16, (NodeId, Ipv4Addr, Instant)> = BTreeMap::new();
        let mut heard = Round::new();
        for (node, gateway) in nodes {
            self.sequence = self.sequence.wrapping_add(1);
            let packet = echo(self.id, self.sequence);
            heard.insert(*node, None);
            if self.socket.send_to(&packet, (*gateway, 0)).await.is_ok() {
                sent.insert(self.sequence, (*node, *gateway, Instant::now()));
            }
        }
        let listening = async {
            while !sent.is_empty() {
                let Ok((from, sequence)) = self.next().await else {
                    return;
                };
                if let Some((node, gateway, at)) = sent.get(&sequence)
                    && *gateway == from
                {
                    heard.insert(*node, Some(at.elapsed()));
                    sent.remove(&sequence);
                }
            }
        };
        // Whoever has not answered by now is silent.
        let _ = tokio::time::timeout(patience, listening).await;
        heard
    }

    /// The next answer to an echo of ours: from whom, and its sequence number.
    async fn next(&self) -> io::Result<(Ipv4Addr, u16)> {
        let mut packet = [0; 128];
        loop {
            let length = self.socket.recv(&mut packet).await?;
            if let Some((from, id, sequence)) = reply(&packet[..length])
                && id == self.id
            {
                return Ok((from, sequence));
            }
        }
    }
}

fn echo(id: u16, sequence: u16) -> [u8; HEADER] {
    let mut packet = [ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    // The sum is over the packet with a sum of zero (RFC 1071).
    let words = packet
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Sender, identifier and sequence number of an echo reply, from the IP header on.
fn reply(packet: &[u8]) -> Option<(Ipv4Addr, u16, u16)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let icmp = packet.get(header..header + HEADER)?;
    let field = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
    (icmp[0] == ECHO_REPLY).then(|| (from.into(), field(4), field(6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_has_a_right_sum_and_a_reply_is_read_behind_any_header() {
        let packet = echo(0xffff, 0xfffe);
        let sum: u32 = packet
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        for words in [5_u8, 6, 15] {
            let mut answer = vec![0; usize::from(words) * 4];
            answer[0] = 0x40 | words;
            answer[12..16].copy_from_slice(&[10, 18, 0, 1]);
            answer.extend([ECHO_REPLY, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
            assert_eq!(reply(&answer), Some(([10, 18, 0, 1].into(), 0xffff, 0xfffe)));
            for cut in 0..answer.len() {
                assert_eq!(reply(&answer[..cut]), None);
            }
            answer[usize::from(words) * 4] = ECHO_REQUEST;
            assert_eq!(reply(&answer), None, "one's own request");
        }
    }
}
