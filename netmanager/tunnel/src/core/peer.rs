//! One peer: its sessions, its handshake, its timers, its waiting packets.

use super::paths::Paths;
use crate::counters::Traffic;
use crate::key::{PresharedKey, PublicKey};
use crate::noise::{Cookie, TIMESTAMP};
use crate::session::Session;
use snow::HandshakeState;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Age at which the initiator renews a session, by sending.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which a session ends.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// How long a handshake waits for its response.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long handshakes are tried without new data.
pub const REKEY_ATTEMPTS: Duration = Duration::from_secs(90);
/// Silence after which received data is acknowledged by an empty message.
pub const KEEPALIVE: Duration = Duration::from_secs(10);
/// The same, and the patience of the other side, between peers with several ways to each other.
pub const KEEPALIVE_OF_SEVERAL: Duration = Duration::from_secs(3);
/// How often candidates are tried while there is no direct way.
pub const PROBE_OFTEN: Duration = Duration::from_secs(2);
/// How often a peer is tried that has not answered for [`REKEY_ATTEMPTS`].
pub const PROBE_LOST: Duration = Duration::from_secs(10);
/// How often other ways are kept open.
pub const PROBE_SELDOM: Duration = Duration::from_secs(25);
/// Messages after which a session is renewed.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Packets that wait for a session; then the oldest go.
const MOST_STAGED: usize = 64;
/// Their bytes.
const MOST_STAGED_BYTES: usize = 512 << 10;

/// A handshake of ours that waits for its response.
pub struct Waiting {
    pub state: Box<HandshakeState>,
    pub local: u32,
    /// Key of the peer that it was made for.
    pub remote: PublicKey,
    pub sent: Duration,
    /// First code of the initiation, which a cookie reply answers.
    pub mac1: [u8; 16],
}

/// A peer.
pub struct Peer {
    pub public_key: PublicKey,
    pub previous_key: Option<PublicKey>,
    pub shared: PresharedKey,
    pub persistent_keepalive: u16,
    pub paths: Paths,
    pub mtu: u16,
    pub traffic: Arc<Traffic>,
    pub last_handshake: Option<Duration>,
    pub rtt: Option<Duration>,
    pub waiting: Option<Waiting>,
    /// Initiations since the last session or the last new reason for one.
    pub attempts: u32,
    /// When the first of these was sent.
    pub trying_since: Option<Duration>,
    pub cookie: Option<(Cookie, Duration)>,
    /// Newest initiation of the peer's, by its clock.
    pub latest: [u8; TIMESTAMP],
    /// When it came.
    pub latest_came: Option<Duration>,
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    /// As responder: not yet confirmed by a message.
    next: Option<Arc<Session>>,
    staged: VecDeque<Vec<u8>>,
    staged_bytes: usize,
    /// Data came, nothing was sent since: when to send an empty message.
    keepalive_due: Option<Duration>,
    /// Data was sent, nothing came since: when to doubt.
    silence_due: Option<Duration>,
    persistent_due: Option<Duration>,
    probe_due: Option<Duration>,
    /// When to initiate, for whatever reason.
    pub initiate_due: Option<Duration>,
}

impl Peer {
    pub fn new(public_key: PublicKey, mtu: u16) -> Self {
        Self {
            public_key,
            previous_key: None,
            shared: PresharedKey::default(),
            persistent_keepalive: 0,
            paths: Paths::default(),
            mtu,
            traffic: Arc::default(),
            last_handshake: None,
            rtt: None,
            waiting: None,
            attempts: 0,
            trying_since: None,
            cookie: None,
            latest: [0; TIMESTAMP],
            latest_came: None,
            previous: None,
            current: None,
            next: None,
            staged: VecDeque::new(),
            staged_bytes: 0,
            keepalive_due: None,
            silence_due: None,
            persistent_due: None,
            probe_due: None,
            initiate_due: None,
        }
    }

    /// The session to seal with, if it is young enough.
    pub fn sealing_session(&self, now: Duration) -> Option<&Arc<Session>> {
        self.current
            .as_ref()
            .filter(|session| now < session.born + REJECT_AFTER)
    }

    /// Takes a new session in; as initiator it is used at once, as responder after the first message in it.
    pub fn add_session(&mut self, session: Arc<Session>) {
        if !session.is_initiator {
            self.next = Some(session);
            self.previous = None;
            return;
        }
        self.previous = match self.next.take() {
            Some(next) => Some(next),
            None => self.current.take(),
        };
        self.current = Some(session);
    }

    /// The peer has sent in a session; true if that makes it the current one.
    pub fn confirm(&mut self, session: &Arc<Session>) -> bool {
        let is_next = self.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session));
        if is_next {
            self.previous = self.current.take();
            self.current = self.next.take();
        }
        is_next
    }

    /// After a session became usable.
    pub fn established(&mut self) {
        self.attempts = 0;
        self.trying_since = None;
        self.initiate_due = None;
        self.silence_due = None;
    }

    /// Numbers of its sessions.
    pub fn live_numbers(&self) -> impl Iterator<Item = u32> {
        let sessions = [&self.previous, &self.current, &self.next].into_iter().flatten();
        sessions.map(|session| session.local)
    }

    /// Forgets sessions that are too old; true if there were any.
    pub fn expire(&mut self, now: Duration) -> bool {
        let mut has_expired = false;
        for slot in [&mut self.previous, &mut self.current, &mut self.next] {
            if slot.as_ref().is_some_and(|session| now >= session.born + REJECT_AFTER) {
                *slot = None;
                has_expired = true;
            }
        }
        has_expired
    }

    /// When the oldest session ends.
    fn expiry(&self) -> Option<Duration> {
        let sessions = [&self.previous, &self.current, &self.next].into_iter().flatten();
        sessions.map(|session| session.born + REJECT_AFTER).min()
    }

    /// Whether the session that was just used to send is to be renewed.
    pub fn wants_rekey_after_sending(&self, now: Duration) -> bool {
        self.current.as_ref().is_some_and(|session| {
            session.sealed() > REKEY_AFTER_MESSAGES || (session.is_initiator && now >= session.born + REKEY_AFTER)
        })
    }

    /// Whether the session that something was received in ends before the peer can be expected to renew it.
    pub fn wants_rekey_after_receiving(&self, session: &Arc<Session>, now: Duration) -> bool {
        let is_current = self
            .current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, session));
        is_current && session.is_initiator && now >= session.born + (REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT)
    }

    fn keepalive(&self) -> Duration {
        if self.paths.has_several() {
            KEEPALIVE_OF_SEVERAL
        } else {
            KEEPALIVE
        }
    }

    /// How long the peer may be silent after data was sent to it.
    fn patience(&self) -> Duration {
        match self.paths.has_several() {
            true => 2 * KEEPALIVE_OF_SEVERAL,
            false => KEEPALIVE + REKEY_TIMEOUT,
        }
    }

    /// Something is sent; when a timer runs out that did not run before.
    pub fn note_sent(&mut self, has_data: bool, now: Duration) -> Option<Duration> {
        self.keepalive_due = None;
        self.persistent_due = self.persistent_interval().map(|interval| now + interval);
        if has_data && self.silence_due.is_none() {
            self.silence_due = Some(now + self.patience());
            return self.silence_due;
        }
        self.persistent_due
    }

    /// Something came; when a timer runs out that did not run before.
    pub fn note_received(&mut self, has_data: bool, now: Duration) -> Option<Duration> {
        self.silence_due = None;
        if has_data && self.keepalive_due.is_none() {
            self.keepalive_due = Some(now + self.keepalive());
            return self.keepalive_due;
        }
        None
    }

    /// How often something is sent in any case. Other ways are only good while the one in use is kept open too.
    pub fn persistent_interval(&self) -> Option<Duration> {
        let wanted = (self.persistent_keepalive != 0).then(|| Duration::from_secs(self.persistent_keepalive.into()));
        match self.paths.has_several() {
            true => Some(wanted.map_or(PROBE_SELDOM, |wanted| wanted.min(PROBE_SELDOM))),
            false => wanted,
        }
    }

    /// Sets when other ways are tried next; that moment, if there are any.
    pub fn next_probe(&mut self, now: Duration) -> Option<Duration> {
        let is_needed = self.paths.has_several() && (self.current.is_none() || self.paths.others().next().is_some());
        let interval = match &self.current {
            None if self.trying_since.is_some_and(|since| now > since + REKEY_ATTEMPTS) => PROBE_LOST,
            Some(_) if !self.paths.is_relayed() => PROBE_SELDOM,
            _ => PROBE_OFTEN,
        };
        self.probe_due = is_needed.then(|| now + interval);
        self.probe_due
    }

    /// Sets that other ways are tried now.
    pub fn probe_now(&mut self, now: Duration) {
        self.probe_due = Some(now);
    }

    /// What is due.
    pub fn due(&mut self, now: Duration) -> Due {
        let take = |due: &mut Option<Duration>| match *due {
            Some(at) if at <= now => {
                *due = None;
                true
            }
            _ => false,
        };
        let is_waiting = self.waiting.as_ref().is_some_and(|waiting| !waiting.sent.is_zero());
        let has_timed_out = is_waiting && take(&mut self.initiate_due);
        Due {
            keepalive: take(&mut self.keepalive_due),
            persistent: take(&mut self.persistent_due),
            silence: take(&mut self.silence_due),
            probe: take(&mut self.probe_due),
            initiate: has_timed_out || take(&mut self.initiate_due),
            has_timed_out,
        }
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Duration> {
        let timers = [
            self.keepalive_due,
            self.silence_due,
            self.persistent_due,
            self.probe_due,
            self.initiate_due,
            self.expiry(),
        ];
        timers.into_iter().flatten().min()
    }

    /// Sets the timer of regular keep-alives.
    pub fn arm_persistent(&mut self, now: Duration) {
        self.persistent_due = self.persistent_interval().map(|_| now);
    }

    /// Keeps a packet; how many others went for it.
    pub fn stage(&mut self, frame: Vec<u8>) -> u64 {
        let mut dropped = 0;
        self.staged_bytes += frame.len();
        self.staged.push_back(frame);
        while self.staged.len() > MOST_STAGED || self.staged_bytes > MOST_STAGED_BYTES {
            if self.unstage().is_none() {
                break;
            }
            dropped += 1;
        }
        dropped
    }

    /// The packet that waits longest.
    pub fn unstage(&mut self) -> Option<Vec<u8>> {
        let frame = self.staged.pop_front()?;
        self.staged_bytes -= frame.len();
        Some(frame)
    }

    /// Whether packets wait.
    pub fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Ends every session.
    pub fn forget_sessions(&mut self) {
        (self.previous, self.current, self.next) = (None, None, None);
    }

    /// Addresses that an initiation goes to: with several ways, all of them unless the one in use is good.
    pub fn initiation_targets(&self) -> Vec<SocketAddr> {
        match self.paths.current() {
            Some(current) if self.current.is_some() && self.attempts == 0 => vec![current],
            _ => self.paths.all(),
        }
    }
}

/// Timers that ran out.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a timer of its own")]
pub struct Due {
    pub keepalive: bool,
    pub persistent: bool,
    pub silence: bool,
    pub probe: bool,
    pub initiate: bool,
    /// That is because a handshake got no response.
    pub has_timed_out: bool,
}
