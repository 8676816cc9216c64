//! Fair queueing of what waits to be sealed: frames of a few flows must not wait behind the many of another.
//!
//! Deficit round robin over hashed flows, new flows first, as in fq_codel (RFC 8290, section 4); when there is no room, the
//! oldest frame of the longest queue goes. Frames live in two fixed pools, few that the kernel has joined and many single packets,
//! such as the datagrams of one picture of a video: nothing is allocated once they are warm.

use crate::packet::{Ip, TCP, UDP};
use crate::sys::tun::FRAME;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Large frames that may wait; each up to 64 KiB. Two milliseconds of ChaCha20 on a fast core.
pub const POOL: usize = 64;
/// Small frames that may wait; a picture of 45 Mbit/s at 60 a second is 75, an intra-coded one some times that.
const SMALLS: usize = 1_024;
/// A frame up to so many bytes is small.
const SMALL: usize = 2_048;
/// Flows that are told apart.
const QUEUES: usize = 128;
/// Bytes that a flow may send before the next one's turn: one large frame counts as four turns.
const QUANTUM: i64 = 16 << 10;

/// One frame's memory and length.
struct Slot {
    bytes: Box<[u8]>,
    length: usize,
}

impl Slot {
    fn size(&self) -> Size {
        if self.bytes.len() > SMALL {
            Size::Large
        } else {
            Size::Small
        }
    }
}

/// Which pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Large,
    Small,
}

#[derive(Default)]
struct Queue {
    slots: VecDeque<usize>,
    /// That wait, by [`Size`].
    bytes: [usize; 2],
    deficit: i64,
    is_listed: bool,
}

/// Frames that wait, by flow.
pub struct Flows {
    slots: Vec<Slot>,
    /// By [`Size`]: places that are free, and how many there are in all.
    free: [Vec<usize>; 2],
    made: [usize; 2],
    queues: Vec<Queue>,
    /// Flows that had nothing waiting until now.
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    seed: u64,
    waiting: usize,
}

impl Flows {
    /// Empty. `seed`: so that nobody can choose flows that share a queue with another's.
    pub fn new(seed: u64) -> Self {
        Self {
            slots: Vec::with_capacity(POOL),
            free: [Vec::with_capacity(POOL), Vec::new()],
            made: [0; 2],
            queues: (0..QUEUES).map(|_| Queue::default()).collect(),
            new: VecDeque::with_capacity(QUEUES),
            old: VecDeque::with_capacity(QUEUES),
            seed,
            waiting: 0,
        }
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Gives back memory that a burst took, if nothing waits.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.slots = Vec::with_capacity(POOL);
            self.free = [Vec::with_capacity(POOL), Vec::new()];
            self.made = [0; 2];
        }
    }

    /// Memory for the next frame, [`FRAME`] bytes, and its place. If there is none left, a waiting frame goes: second `true`.
    pub fn room(&mut self) -> (usize, bool) {
        self.place(Size::Large)
    }

    fn place(&mut self, size: Size) -> (usize, bool) {
        if let Some(place) = self.free[size as usize].pop() {
            return (place, false);
        }
        let (most, bytes) = match size {
            Size::Large => (POOL, FRAME),
            Size::Small => (SMALLS, SMALL),
        };
        if self.made[size as usize] < most {
            self.made[size as usize] += 1;
            self.slots.push(Slot {
                bytes: vec![0; bytes].into_boxed_slice(),
                length: 0,
            });
            return (self.slots.len() - 1, false);
        }
        (self.evict(size), true)
    }

    /// Takes the oldest frame of a size from the queue that has most of it.
    fn evict(&mut self, size: Size) -> usize {
        let longest = (0..QUEUES)
            .max_by_key(|at| self.queues[*at].bytes[size as usize])
            .unwrap_or(0);
        let waiting = &self.queues[longest].slots;
        // All of this size are made and none is free: one waits, in the longest queue before all.
        let oldest = waiting.iter().position(|place| self.slots[*place].size() == size);
        let oldest = oldest.expect("what is neither free nor read into waits");
        let place = self.queues[longest].slots.remove(oldest).expect("it was found there");
        self.queues[longest].bytes[size as usize] -= self.slots[place].length;
        self.waiting -= 1;
        place
    }

    /// The memory at a place.
    pub fn bytes(&mut self, place: usize) -> &mut [u8] {
        &mut self.slots[place].bytes
    }

    /// Gives memory back that nothing was put into.
    pub fn give_back(&mut self, place: usize) {
        let size = self.slots[place].size();
        self.free[size as usize].push(place);
    }

    /// Puts the frame at `place` into its queue. `packet`: where the IP packet begins. If there is no room left for small ones, a
    /// waiting frame goes: `true`.
    pub fn push(&mut self, place: usize, length: usize, packet: usize) -> bool {
        let (place, dropped) = if length <= SMALL {
            // What it was read into is for the next one that may be large.
            let (small, dropped) = self.place(Size::Small);
            let [from, to] = self.slots.get_disjoint_mut([place, small]).expect("two places");
            to.bytes[..length].copy_from_slice(&from.bytes[..length]);
            self.give_back(place);
            (small, dropped)
        } else {
            (place, false)
        };
        let slot = &mut self.slots[place];
        slot.length = length;
        let size = slot.size();
        let at = (hash(&slot.bytes[packet.min(length)..length], self.seed) % QUEUES as u64) as usize;
        let queue = &mut self.queues[at];
        queue.slots.push_back(place);
        queue.bytes[size as usize] += length;
        if !queue.is_listed {
            queue.is_listed = true;
            queue.deficit = QUANTUM;
            self.new.push_back(at);
        }
        self.waiting += 1;
        dropped
    }

    /// The next frame's place and length. Give it back with [`Flows::give_back`].
    pub fn pop(&mut self) -> Option<(usize, usize)> {
        loop {
            let is_new = !self.new.is_empty();
            let at = *if is_new { self.new.front() } else { self.old.front() }?;
            if self.queues[at].deficit <= 0 {
                self.queues[at].deficit += QUANTUM;
                self.move_on(is_new, true);
                continue;
            }
            let Some(place) = self.take_from(at) else {
                // A new flow that is empty goes through the old ones once, so that it cannot be new all the time.
                let stays = is_new && !self.old.is_empty();
                self.queues[at].is_listed = stays;
                self.move_on(is_new, stays);
                continue;
            };
            let length = self.slots[place].length;
            self.queues[at].deficit -= length as i64;
            return Some((place, length));
        }
    }

    fn move_on(&mut self, is_new: bool, stays: bool) {
        let list = if is_new { &mut self.new } else { &mut self.old };
        if let Some(at) = list.pop_front().filter(|_| stays) {
            self.old.push_back(at);
        }
    }

    fn take_from(&mut self, at: usize) -> Option<usize> {
        let queue = &mut self.queues[at];
        let place = queue.slots.pop_front()?;
        let slot = &self.slots[place];
        queue.bytes[slot.size() as usize] -= slot.length;
        self.waiting -= 1;
        Some(place)
    }
}

/// The same for packets of one flow: addresses, protocol, ports. Fragments have no ports that can be seen.
fn hash(packet: &[u8], seed: u64) -> u64 {
    let mut state = seed;
    let mut mix = |word: u64| {
        state = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^= state >> 29;
    };
    // A frame that is to be cut may be longer than its header can say; the beginning is enough.
    let Some(ip) = Ip::parse(packet).or_else(|| lenient(packet)) else {
        return 0;
    };
    match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => mix(u64::from(from.to_bits()) << 32 | u64::from(to.to_bits())),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            for bits in [from.to_bits(), to.to_bits()] {
                mix(bits as u64);
                mix((bits >> 64) as u64);
            }
        }
        _ => {}
    }
    mix(ip.protocol.into());
    let is_fragment = !ip.is_v6() && crate::packet::half(packet, 6) & 0x3fff != 0;
    if matches!(ip.protocol, TCP | UDP) && !is_fragment {
        mix(crate::packet::word(packet, ip.header).into());
    }
    state ^ (state >> 32)
}

fn lenient(packet: &[u8]) -> Option<Ip> {
    let mut head = [0; 60];
    let length = packet.len().min(head.len());
    head[..length].copy_from_slice(&packet[..length]);
    let is_v6 = head[0] >> 4 == 6;
    let said = if is_v6 { length.checked_sub(40)? } else { length };
    crate::packet::put_half(&mut head, if is_v6 { 4 } else { 2 }, said as u16);
    Ip::parse(&head[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(port: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        (frame[0], frame[9]) = (0x45, UDP);
        frame[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&port.to_be_bytes());
        frame
    }

    fn put(flows: &mut Flows, port: u16, length: usize) -> bool {
        let (place, large) = flows.room();
        flows.bytes(place)[..length].copy_from_slice(&frame(port, length));
        let small = flows.push(place, length, 0);
        large || small
    }

    fn take(flows: &mut Flows) -> Option<(u16, usize)> {
        let (place, length) = flows.pop()?;
        let port = crate::packet::half(flows.bytes(place), 20);
        flows.give_back(place);
        Some((port, length))
    }

    #[test]
    fn a_small_flow_does_not_wait_for_a_large_one() {
        let mut flows = Flows::new(1);
        for _ in 0..20 {
            put(&mut flows, 1, 60_000);
        }
        assert_eq!(take(&mut flows), Some((1, 60_000)));
        put(&mut flows, 2, 200);
        put(&mut flows, 2, 201);
        assert_eq!(take(&mut flows), Some((2, 200)));
        assert_eq!(take(&mut flows), Some((2, 201)), "in order");
        assert_eq!(take(&mut flows), Some((1, 60_000)));
    }

    #[test]
    fn large_flows_share_by_bytes() {
        let mut flows = Flows::new(1);
        let mut sent = [0_usize; 2];
        for _ in 0..15 {
            put(&mut flows, 1, 60_000);
        }
        for _ in 0..45 {
            put(&mut flows, 2, 1_000);
        }
        while sent[1] < 40_000 {
            let (port, length) = take(&mut flows).unwrap();
            sent[usize::from(port) - 1] += length;
        }
        assert!(sent[0] <= 180_000, "{sent:?}");
    }

    #[test]
    fn when_it_is_full_the_longest_queue_pays() {
        // The place that the next frame is read into belongs to the large ones.
        for (count, least) in [(SMALLS, 200), (POOL - 1, 10_000)] {
            let mut flows = Flows::new(1);
            put(&mut flows, 2, least);
            for at in 1..count {
                assert!(!put(&mut flows, 1, least + at));
            }
            let over = put(&mut flows, 3, least) | put(&mut flows, 3, least);
            assert!(over);
            assert_eq!(take(&mut flows), Some((2, least)));
            let rest: Vec<_> = std::iter::from_fn(|| take(&mut flows)).collect();
            let kept: Vec<_> = rest.iter().filter(|(port, _)| *port == 1).collect();
            assert!(
                kept.len() < count - 1 && kept.len() >= count - 3,
                "{} of {count}",
                kept.len()
            );
            assert_eq!(rest.len() - kept.len(), 2);
            assert!(!rest.contains(&(1, least + 1)), "the oldest");
            assert!(flows.is_empty());
        }
    }

    #[test]
    fn the_datagrams_of_a_picture_all_wait_beside_large_frames() {
        let mut flows = Flows::new(1);
        for _ in 0..POOL - 1 {
            assert!(!put(&mut flows, 1, 60_000));
        }
        for _ in 0..500 {
            assert!(!put(&mut flows, 2, 1_300));
        }
        let rest: Vec<_> = std::iter::from_fn(|| take(&mut flows)).collect();
        assert_eq!(rest.iter().filter(|(port, _)| *port == 2).count(), 500);
        assert_eq!(rest.len(), 500 + POOL - 1);
    }

    #[test]
    fn nothing_is_lost_or_invented() {
        let mut flows = Flows::new(7);
        let mut next = 0_u16;
        let mut left = Vec::new();
        for round in 0..2_000 {
            if round % 3 != 0 && left.len() < POOL {
                put(&mut flows, next % 300, 100 + usize::from(next) % 5_000);
                left.push((next % 300, 100 + usize::from(next) % 5_000));
                next += 1;
            } else if let Some(taken) = take(&mut flows) {
                // The oldest of its flow.
                let place = left.iter().position(|(port, _)| *port == taken.0).unwrap();
                assert_eq!(left.remove(place), taken);
            }
        }
        assert_eq!(std::iter::from_fn(|| take(&mut flows)).count(), left.len());
    }
}
