//! Handshakes: begun, answered, ended.

use super::limits::{Admission, COOKIE_LIFE};
use super::paths::Sighting;
use super::peer::{PROBE_LOST, PROBE_OFTEN, Peer, REKEY_ATTEMPTS, REKEY_TIMEOUT, Waiting};
use super::{Core, Now, PeerId, Slot, Transmit};
use crate::counters::Reason;
use crate::key::{PublicKey, random};
use crate::noise::{COOKIE_REPLY, Codes, INITIATION, Identity, Keys, RESPONSE, TIMESTAMP, index_at, read_response};
use crate::session::{Parties, Session};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Least time between two initiations of one peer that are worked on.
const FLOOD: Duration = Duration::from_millis(20);
/// TAI64's name of the second in which 1970 began (TAI was 10 s ahead then).
const TAI_1970: u64 = (1 << 62) + 10;
/// Time stamps are no finer than this, so that they tell nobody the exact time (16.8 ms).
const GRAIN: u32 = 1 << 24;

impl Core {
    /// Sends an initiation, unless one of the last seconds may still be answered.
    pub(super) fn initiate(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.peers.get(&id) else { return };
        let patience = patience(peer, now.boot);
        if peer
            .waiting
            .as_ref()
            .is_some_and(|waiting| now.boot < waiting.sent + patience)
        {
            return;
        }
        let targets = peer.initiation_targets();
        let timestamp = stamp(&mut self.last_stamp, now.unix);
        let Some((identity, remote)) = self.keys_to_try(peer, now).filter(|_| !targets.is_empty()) else {
            return;
        };
        let local = self.new_number();
        let Ok((state, mut message)) = identity.initiate(&remote, &peer.shared, local, &timestamp) else {
            return;
        };
        let cookie = peer.cookie.filter(|(_, since)| now.boot < *since + COOKIE_LIFE);
        let mac1 = Codes::of(remote).sign(&mut message, cookie.as_ref().map(|(cookie, _)| cookie));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let waiting = Waiting {
            state: Box::new(state),
            local,
            remote,
            sent: now.boot,
            mac1,
        };
        if let Some(before) = peer.waiting.replace(waiting) {
            self.slots.remove(&before.local);
        }
        self.slots.insert(local, Slot::Handshake(id));
        peer.attempts += 1;
        peer.trying_since.get_or_insert(now.boot);
        let jitter = Duration::from_millis(u64::from(random::<1>()[0]));
        peer.initiate_due = Some(now.boot + patience + jitter);
        let due = peer.initiate_due;
        let bytes = (message.len() * targets.len()) as u64;
        peer.traffic.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.output.extend(targets.into_iter().map(|to| Transmit {
            to,
            bytes: message.to_vec(),
        }));
        self.wake_by(due);
    }

    /// Own and the peer's key: the newest first, then, if nothing answers, in turn those that may still be in use.
    fn keys_to_try(&self, peer: &Peer, now: Now) -> Option<(&Identity, PublicKey)> {
        let newest = self.identity.as_ref()?;
        let former = self.former_identity(now).into_iter();
        let ours: Vec<_> = [newest].into_iter().chain(former).collect();
        let theirs: Vec<_> = [peer.public_key].into_iter().chain(peer.previous_key).collect();
        let turn = peer.attempts as usize % (ours.len() * theirs.len());
        Some((ours[turn / theirs.len()], theirs[turn % theirs.len()]))
    }

    fn former_identity(&self, now: Now) -> Option<&Identity> {
        let former = self.former.as_ref().filter(|(_, until)| now.boot < *until);
        former.map(|(identity, _)| identity)
    }

    /// The key that a message's first code says it is for.
    fn addressee(&self, message: &[u8], now: Now) -> Option<&Identity> {
        let ours = self.identity.iter().chain(self.former_identity(now));
        ours.into_iter().find(|identity| identity.codes().is_signed(message))
    }

    /// Whether a handshake message is meant for this device.
    pub fn is_for_us(&self, message: &[u8], now: Now) -> bool {
        self.addressee(message, now).is_some()
    }

    /// A number that no session has.
    fn new_number(&self) -> u32 {
        loop {
            let number = u32::from_le_bytes(random());
            if !self.slots.contains_key(&number) {
                return number;
            }
        }
    }

    /// Works on a datagram that is no message of a session. Whatever it is, it is answered, used or counted.
    pub fn handshake(&mut self, message: &[u8], from: SocketAddr, now: Now) {
        let result = match message.first_chunk::<4>() {
            Some([1, 0, 0, 0]) => whole::<INITIATION>(message).and_then(|all| self.initiation(all, from, now)),
            Some([2, 0, 0, 0]) => whole::<RESPONSE>(message).and_then(|all| self.response(all, from, now)),
            Some([3, 0, 0, 0]) => whole::<COOKIE_REPLY>(message).and_then(|all| self.cookie_reply(all, now)),
            Some(_) => Err(Reason::Garbage),
            None => Err(Reason::TooShort),
        };
        if let Err(reason) = result {
            self.drop(reason);
        }
    }

    /// Whether there is time for it; if not, who sent it may get a cookie.
    fn admit(&mut self, message: &[u8], from: SocketAddr, now: Now) -> Result<(), Reason> {
        self.addressee(message, now).ok_or(Reason::BadMac)?;
        match self.limits.admit(message, from, now.boot) {
            Admission::Work => Ok(()),
            Admission::Ignore => Err(Reason::RateLimited),
            Admission::SendCookie(cookie) => {
                if let Some(identity) = self.addressee(message, now) {
                    let bytes = identity.cookie_reply(message, &cookie, &random()).to_vec();
                    self.output.push(Transmit { to: from, bytes });
                }
                Err(Reason::RateLimited)
            }
        }
    }

    fn initiation(&mut self, message: &[u8; INITIATION], from: SocketAddr, now: Now) -> Result<(), Reason> {
        self.admit(message, from, now)?;
        let identity = self.addressee(message, now).ok_or(Reason::BadMac)?;
        let read = identity.read_initiation(message).map_err(|_| Reason::BadHandshake)?;
        let id = *self.by_key.get(&read.peer).ok_or(Reason::UnknownPeer)?;
        let local = self.new_number();
        let peer = self.peers.get_mut(&id).ok_or(Reason::UnknownPeer)?;
        if read.timestamp <= peer.latest {
            return Err(Reason::StaleHandshake);
        }
        if peer.latest_came.is_some_and(|came| now.boot < came + FLOOD) {
            return Err(Reason::RateLimited);
        }
        peer.latest = read.timestamp;
        peer.latest_came = Some(now.boot);
        let (remote, theirs) = (read.sender, read.peer);
        let (mut answer, keys) = read.respond(&peer.shared, local).map_err(|_| Reason::BadHandshake)?;
        let cookie = peer.cookie.filter(|(_, since)| now.boot < *since + COOKIE_LIFE);
        Codes::of(theirs).sign(&mut answer, cookie.as_ref().map(|(cookie, _)| cookie));
        peer.traffic.tx_bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
        let parties = Parties {
            peer: id,
            local,
            remote,
            is_initiator: false,
        };
        self.begin_session(&keys, parties, message.len(), from, now);
        self.output.push(Transmit {
            to: from,
            bytes: answer.to_vec(),
        });
        Ok(())
    }

    fn response(&mut self, message: &[u8; RESPONSE], from: SocketAddr, now: Now) -> Result<(), Reason> {
        self.addressee(message, now).ok_or(Reason::BadMac)?;
        let local = index_at(message, 8);
        let Some(Slot::Handshake(id)) = self.slots.get(&local) else {
            return Err(Reason::BadHandshake);
        };
        let id = *id;
        let peer = self.peers.get_mut(&id).ok_or(Reason::UnknownPeer)?;
        let waiting = peer.waiting.as_mut().filter(|waiting| waiting.local == local);
        let waiting = waiting.ok_or(Reason::BadHandshake)?;
        let keys = read_response(&mut waiting.state, message).map_err(|_| Reason::BadHandshake)?;
        let rtt = now.boot.saturating_sub(waiting.sent);
        peer.rtt = Some(peer.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        peer.waiting = None;
        let parties = Parties {
            peer: id,
            local,
            remote: index_at(message, 4),
            is_initiator: true,
        };
        self.begin_session(&keys, parties, message.len(), from, now);
        self.established(id, now);
        // The peer may not send in the session before it has heard something in it.
        if let Some(to) = self.peers.get(&id).and_then(|peer| peer.paths.current()) {
            self.send_keepalive(id, to, now);
        }
        Ok(())
    }

    fn begin_session(&mut self, keys: &Keys, parties: Parties, length: usize, from: SocketAddr, now: Now) {
        let (id, local) = (parties.peer, parties.local);
        let is_controlling = self.is_controlling(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.traffic.rx_bytes.fetch_add(length as u64, Ordering::Relaxed);
        let Some(session) = Session::new(keys, parties, now.boot, peer.traffic.clone()) else {
            return;
        };
        let session = Arc::new(session);
        peer.add_session(session.clone());
        peer.paths.sight(Sighting {
            from,
            is_newest: true,
            has_data: false,
            is_controlling,
            now: now.boot,
        });
        let due = peer.next_due();
        let live: Vec<u32> = peer.live_numbers().collect();
        self.slots.insert(local, Slot::Session(session));
        self.slots
            .retain(|number, slot| !matches!(slot, Slot::Session(other) if other.peer == id) || live.contains(number));
        self.wake_by(due);
    }

    fn cookie_reply(&mut self, message: &[u8; COOKIE_REPLY], now: Now) -> Result<(), Reason> {
        let Some(Slot::Handshake(id)) = self.slots.get(&index_at(message, 4)) else {
            return Err(Reason::BadHandshake);
        };
        let peer = self.peers.get_mut(id).ok_or(Reason::UnknownPeer)?;
        let waiting = peer.waiting.as_ref().ok_or(Reason::BadHandshake)?;
        let cookie = Codes::of(waiting.remote).open_cookie(message, &waiting.mac1);
        peer.cookie = Some((cookie.map_err(|_| Reason::BadHandshake)?, now.boot));
        Ok(())
    }
}

/// How long an initiation may wait for its answer.
fn patience(peer: &Peer, now: Duration) -> Duration {
    if !peer.paths.has_several() {
        return REKEY_TIMEOUT;
    }
    match peer.trying_since {
        Some(since) if now > since + REKEY_ATTEMPTS => PROBE_LOST,
        _ => PROBE_OFTEN,
    }
}

fn whole<const N: usize>(message: &[u8]) -> Result<&[u8; N], Reason> {
    message.try_into().map_err(|_| Reason::Garbage)
}

/// The time as TAI64N, later than every one before it.
fn stamp(last: &mut Duration, unix: Duration) -> [u8; TIMESTAMP] {
    let coarse = Duration::new(unix.as_secs(), unix.subsec_nanos() / GRAIN * GRAIN);
    *last = coarse.max(*last + Duration::from_nanos(GRAIN.into()));
    let mut bytes = [0; TIMESTAMP];
    bytes[..8].copy_from_slice(&(TAI_1970.wrapping_add(last.as_secs())).to_be_bytes());
    bytes[8..].copy_from_slice(&last.subsec_nanos().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_even_if_the_clock_does_not() {
        let mut last = Duration::ZERO;
        let mut before = [0; TIMESTAMP];
        for unix in [1_000, 1_000, 2_000, 5, 2_000] {
            let stamp = stamp(&mut last, Duration::from_secs(unix));
            assert!(stamp > before);
            before = stamp;
        }
        assert_eq!(&before[..8], &(TAI_1970 + 2_000).to_be_bytes());
    }
}
