//! How often beats are answered: what an idle link costs.

use prost::Message;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roble_core::time::{Boottime, Now, Timestamp};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_link::parent::{ParentClocks, ParentEnd, ParentOutput};
use roble_proto::wire::frame::Body;
use roble_proto::wire::{Frame, SetKind};

const BEAT_MS: u64 = 2_500;

/// One order, once it is given.
struct Orders(bool);

impl Source for Orders {
    fn value(&self, set: SetKind, _: &str) -> Option<Vec<u8>> {
        (self.0 && set == SetKind::Orders).then(|| b"order".to_vec())
    }
}

struct Link {
    child: ChildEnd,
    parent: ParentEnd,
    orders: Orders,
    rng: StdRng,
    ms: u64,
    /// What the parent says does not arrive.
    deaf: bool,
}

impl Link {
    fn new() -> Self {
        let clocks = ChildClocks {
            beat_ms: BEAT_MS,
            silence_ms: 6_000,
        };
        let parents = ParentClocks {
            beat_ms: BEAT_MS,
            fence_ms: 30_000,
        };
        let mut link = Self {
            child: ChildEnd::new(clocks, 1, "test"),
            parent: ParentEnd::new(parents, true),
            orders: Orders(false),
            rng: StdRng::seed_from_u64(1),
            ms: 1_000,
            deaf: false,
        };
        link.child.transport_up(link.now());
        // Hello, and the first beat.
        link.step();
        link.step();
        link
    }

    fn now(&self) -> Now {
        Now {
            boot: Boottime::from_millis(self.ms),
            wall: Timestamp::from_millis(self.ms),
        }
    }

    /// Lets the child do what is due, and carries frames to and fro. Returns those of the child and those of the parent.
    fn step(&mut self) -> (Vec<Frame>, Vec<Frame>) {
        let now = self.now();
        let mut outputs = self.child.tick(now, &mut self.rng);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while !outputs.is_empty() {
            let frames: Vec<Frame> = outputs
                .drain(..)
                .filter_map(|output| match output {
                    ChildOutput::Send(frame) => Some(frame),
                    _ => None,
                })
                .collect();
            for frame in frames {
                up.push(frame.clone());
                let mut answers = self.parent.receive(frame, &self.orders, now);
                answers.extend(self.parent.flush(&self.orders));
                for answer in answers {
                    let ParentOutput::Send(frame) = answer else { continue };
                    down.push(frame.clone());
                    if !self.deaf {
                        outputs.extend(self.child.receive(frame, &self.orders, now));
                    }
                }
            }
        }
        (up, down)
    }

    /// The answers to so many beats.
    fn answers(&mut self, beats: usize) -> Vec<bool> {
        (0..beats)
            .map(|_| {
                self.ms += BEAT_MS;
                let (up, down) = self.step();
                assert!(matches!(up[0].body, Some(Body::Beat(_))), "{up:?}");
                down.iter().any(|frame| matches!(frame.body, Some(Body::BeatAck(_))))
            })
            .collect()
    }
}

#[test]
fn an_idle_link_answers_every_third_beat() {
    let mut link = Link::new();
    assert_eq!(link.answers(6), [false, false, true, false, false, true]);
    let sent = Boottime::from_millis(link.ms);
    assert_eq!(
        link.child.acked_at(),
        Some(sent),
        "the lease runs from the last beat that was answered"
    );
}

#[test]
fn whoever_was_not_answered_asks_again_with_every_beat() {
    let mut link = Link::new();
    link.answers(3);
    link.deaf = true;
    assert_eq!(link.answers(3), [false, false, true]);
    link.deaf = false;
    assert_eq!(link.answers(4), [true, false, false, true]);
    assert!(link.child.is_connected());
}

#[test]
fn a_lease_wants_every_beat_answered() {
    let mut link = Link::new();
    link.child.set_eager(true);
    assert_eq!(link.answers(3), [true; 3]);
}

#[test]
fn two_answers_lost_in_a_row_are_silence() {
    let mut link = Link::new();
    link.answers(3);
    link.deaf = true;
    link.answers(4);
    assert!(link.child.is_connected());
    link.ms += BEAT_MS / 2;
    link.step();
    assert!(!link.child.is_connected());
}

#[test]
fn orders_that_differ_are_answered_at_once() {
    let mut link = Link::new();
    link.answers(2);
    link.orders = Orders(true);
    link.parent.set_order("a.0", Some(b"order"));
    // The update itself is lost.
    assert!(!link.parent.flush(&link.orders).is_empty());
    assert_eq!(link.answers(1), [true], "a beat that did not ask");
    assert_eq!(
        link.answers(4),
        [true, false, false, true],
        "after the exchange it asks again"
    );
}

#[test]
fn an_idle_day_stays_small() {
    let mut link = Link::new();
    let mut bytes = 0;
    for _ in 0..2_000 {
        link.ms += BEAT_MS;
        let (up, down) = link.step();
        bytes += up.iter().chain(&down).map(Message::encoded_len).sum::<usize>();
    }
    // A beat and a third of an answer. Headers, topic and TLS come on top: 8 MB a day are 231 bytes a beat for everything.
    assert!(bytes / 2_000 <= 24, "{} bytes a beat", bytes / 2_000);
}
