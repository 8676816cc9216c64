//! What happens because time passes.

use super::peer::REKEY_ATTEMPTS;
use super::{Core, Now, PeerId, Slot};
use crate::counters::Reason;

impl Core {
    /// Does what is due. Call it when [`Core::wake_at`] has come; earlier does no harm.
    pub fn tick(&mut self, now: Now) {
        if self.former.as_ref().is_some_and(|(_, until)| *until <= now.boot) {
            self.former = None;
        }
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.tick_peer(id, now);
        }
        self.wake_at = self.peers.values().filter_map(super::peer::Peer::next_due).min();
    }

    fn tick_peer(&mut self, id: PeerId, now: Now) {
        self.expire(id, now);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut due = peer.due(now.boot);
        let (has_session, current) = (peer.sealing_session(now.boot).is_some(), peer.paths.current());
        if due.silence {
            peer.paths.suspect(now.boot);
            peer.attempts = 0;
            due.probe |= peer.paths.has_several();
            self.initiate(id, now);
        }
        if due.initiate {
            self.retry(id, due.has_timed_out, now);
        }
        if due.keepalive || due.persistent {
            match current {
                Some(to) if has_session => self.send_keepalive(id, to, now),
                _ if due.persistent => self.initiate(id, now),
                _ => {}
            }
        }
        if due.probe {
            self.probe(id, now);
        }
    }

    fn retry(&mut self, id: PeerId, has_timed_out: bool, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if has_timed_out {
            peer.paths.suspect(now.boot);
        }
        let is_hopeless = peer
            .trying_since
            .is_some_and(|since| now.boot >= since + REKEY_ATTEMPTS);
        if is_hopeless {
            let mut dropped = 0;
            while peer.unstage().is_some() {
                dropped += 1;
            }
            self.drops.add_many(Reason::NoSession, dropped);
        }
        if is_hopeless && !peer.paths.has_several() {
            if let Some(waiting) = peer.waiting.take() {
                self.slots.remove(&waiting.local);
            }
            (peer.attempts, peer.trying_since) = (0, None);
            return;
        }
        self.initiate(id, now);
    }

    /// Tries other ways.
    fn probe(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let others: Vec<_> = peer.paths.others().collect();
        let has_session = peer.sealing_session(now.boot).is_some();
        peer.next_probe(now.boot);
        if has_session {
            for to in others {
                self.send_keepalive(id, to, now);
            }
        } else {
            self.initiate(id, now);
        }
    }

    fn expire(&mut self, id: PeerId, now: Now) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.expire(now.boot) {
            return;
        }
        if peer.paths.has_several() {
            peer.probe_now(now.boot);
        }
        let live: Vec<u32> = peer.live_numbers().collect();
        self.slots.retain(|number, slot| {
            !matches!(slot, Slot::Session(session) if session.peer == id) || live.contains(number)
        });
    }
}
