//! From the network to the TUN device: receive runs, open each datagram in place, join packets of a flow, write frames.

use super::{Sockets, Worker};
use crate::core::Arrival;
use crate::counters::Reason;
use crate::noise::index_at;
use crate::packet::coalesce::{Coalescer, Frame, MOST_PIECES};
use crate::packet::vnet::VNET;
use crate::packet::{Ip, ecn};
use crate::replay::Seen;
use crate::session::{HEADER, OVERHEAD, Session, TYPE};
use crate::sys::prefer_short_slices;
use crate::sys::udp::{Receiver, Run};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Silence after which memory of a burst is given back, in milliseconds.
const IDLE_MS: u16 = 2_000;

/// A datagram that was opened.
struct Opened {
    counter: u64,
    /// Its text, in the receiver's memory, with padding.
    text: Range<usize>,
    seen: Seen,
}

/// What one thread keeps between receives.
struct Inbound<'a> {
    worker: &'a Worker,
    coalescer: Coalescer,
    opened: Vec<Opened>,
    /// Packets to be written.
    packets: Vec<Range<usize>>,
    last: Option<Arc<Session>>,
    /// Where what is in `opened` came from, and with which marks.
    way: Option<(SocketAddr, u8)>,
}

pub(super) fn run(worker: &Worker) {
    prefer_short_slices();
    let mut receiver = Receiver::default();
    let mut inbound = Inbound {
        worker,
        coalescer: Coalescer::new(worker.tun.offloads.0, worker.tun.offloads.1),
        opened: Vec::with_capacity(MOST_PIECES),
        packets: Vec::new(),
        last: None,
        way: None,
    };
    while !worker.has_ended.load(Ordering::Relaxed) {
        let (sockets, version) = (worker.sockets(), worker.version.load(Ordering::Relaxed));
        while version == worker.version.load(Ordering::Relaxed) && !worker.has_ended.load(Ordering::Relaxed) {
            let mut has_any = false;
            for socket in &sockets.all {
                match receiver.receive(socket) {
                    Ok(()) => {
                        has_any = true;
                        inbound.take(&mut receiver);
                    }
                    // An error that an earlier send caused, or nothing there.
                    Err(error) => has_any |= error.kind() != io::ErrorKind::WouldBlock,
                }
            }
            if !has_any && !wait(worker, &sockets, PollTimeout::from(IDLE_MS)) {
                receiver.shrink();
                inbound.coalescer.shrink();
                inbound.last = None;
                wait(worker, &sockets, PollTimeout::NONE);
            }
        }
    }
}

/// Waits until there is something to do; false if the time is over.
fn wait(worker: &Worker, sockets: &Sockets, timeout: PollTimeout) -> bool {
    let mut waited: Vec<_> = sockets
        .all
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    waited.push(PollFd::new(worker.inbound.as_fd(), PollFlags::POLLIN));
    let count = poll(&mut waited, timeout);
    if waited.last().and_then(PollFd::any) == Some(true) {
        let _ = worker.inbound.read();
    }
    count != Ok(0)
}

impl Inbound<'_> {
    /// Works on all runs of one receive.
    fn take(&mut self, receiver: &mut Receiver) {
        let (bytes, runs) = receiver.received();
        for run in runs {
            self.take_run(bytes, run);
        }
        self.settle_session(bytes);
        self.write(receiver.bytes());
    }

    fn take_run(&mut self, bytes: &mut [u8], run: &Run) {
        let end = run.start + run.length;
        if run.length == 0 {
            return self.worker.drops.add(Reason::TooShort);
        }
        if self.way != Some((run.from, run.tos)) {
            self.settle_session(bytes);
            self.way = Some((run.from, run.tos));
        }
        for start in (run.start..end).step_by(run.segment) {
            let datagram = start..(start + run.segment).min(end);
            let message = &mut bytes[datagram.clone()];
            if message.len() < OVERHEAD {
                self.worker.drops.add(Reason::TooShort);
            } else if message.starts_with(&[TYPE, 0, 0, 0]) {
                self.open(bytes, datagram);
            } else {
                let mut core = self.worker.lock();
                core.handshake(message, run.from, Worker::now());
                self.worker.settle(core);
            }
        }
    }

    /// Opens a datagram of a session. Those of one session and one way are accounted for together.
    fn open(&mut self, bytes: &mut [u8], datagram: Range<usize>) {
        let number = index_at(&bytes[datagram.clone()], 4);
        if self.last.as_ref().is_none_or(|session| session.local != number) {
            self.settle_session(bytes);
            self.last = self.worker.lock().session(number);
        }
        let Some(session) = &self.last else {
            return self.worker.drops.add(Reason::UnknownSession);
        };
        match session.open(&mut bytes[datagram.clone()]) {
            Ok(opened) => {
                let start = datagram.start + HEADER;
                self.opened.push(Opened {
                    counter: opened.counter,
                    text: start..start + opened.length,
                    seen: Seen::Before,
                });
            }
            Err(reason) => self.worker.drops.add(reason),
        }
    }

    /// After the last datagram of a session and a way: replays go, the core is told, sources are looked at.
    fn settle_session(&mut self, bytes: &mut [u8]) {
        let Some((from, tos)) = self.way else { return };
        let Some(session) = self.last.clone().filter(|_| !self.opened.is_empty()) else {
            return;
        };
        let opened = &mut self.opened;
        session.see(opened.iter_mut().map(|one| (one.counter, &mut one.seen)));
        let worker = self.worker;
        let mut core = worker.lock();
        // A session may have ended while its keys were still at hand.
        let is_live = core
            .session(session.local)
            .is_some_and(|live| Arc::ptr_eq(&live, &session));
        let (mut arrival, mut is_any) = (
            Arrival {
                from,
                is_newest: false,
                bytes: 0,
                packets: 0,
            },
            false,
        );
        let mut owned: Option<IpAddr> = None;
        for opened in self.opened.drain(..) {
            if opened.seen == Seen::Before || !is_live {
                worker.drops.add(if is_live { Reason::Replay } else { Reason::Expired });
                continue;
            }
            is_any = true;
            arrival.is_newest |= opened.seen == Seen::Newest;
            arrival.bytes += (opened.text.len() + OVERHEAD) as u64;
            if opened.text.is_empty() {
                continue;
            }
            arrival.packets += 1;
            let Some(ip) = Ip::parse(&bytes[opened.text.clone()]) else {
                worker.drops.add(Reason::BadInner);
                continue;
            };
            if owned != Some(ip.source) {
                if !core.is_owner(session.peer, ip.source) {
                    worker.drops.add(Reason::BadSource);
                    continue;
                }
                owned = Some(ip.source);
            }
            let packet = opened.text.start..opened.text.start + ip.length;
            match ecn::combine(ip.tos, tos) {
                None => {
                    worker.drops.add(Reason::Congested);
                    continue;
                }
                Some(mark) if mark != ip.tos & 3 => ecn::set(&mut bytes[packet.clone()], mark),
                Some(_) => {}
            }
            self.packets.push(packet);
        }
        if is_any {
            core.received(&session, arrival, Worker::now());
        }
        worker.settle(core);
    }

    /// Writes the packets of one receive, joined where they can be.
    fn write(&mut self, arena: &[u8]) {
        for packet in self.packets.drain(..) {
            self.coalescer.add(arena, packet);
        }
        let mut refused = false;
        for frame in self.coalescer.finish(arena) {
            refused |= !write_frame(self.worker, arena, frame);
        }
        if refused && (self.coalescer.tcp || self.coalescer.udp) {
            // Some kernels refuse what they said they take (tailscale#13041).
            tracing::warn!("the device refuses joined packets: they are written one by one from now on");
            (self.coalescer.tcp, self.coalescer.udp) = (false, false);
        }
    }
}

/// Writes a frame; false if the device does not take joined packets.
fn write_frame(worker: &Worker, arena: &[u8], frame: &Frame) -> bool {
    let mut parts = [IoSlice::new(&[]); MOST_PIECES + 1];
    parts[0] = IoSlice::new(frame.head());
    for (part, piece) in parts[1..].iter_mut().zip(frame.pieces()) {
        *part = IoSlice::new(&arena[piece.clone()]);
    }
    let Err(error) = worker.tun.write(&parts[..=frame.pieces().len()]) else {
        return true;
    };
    let is_refused = frame.is_joined() && error.raw_os_error() == Some(Errno::EINVAL as i32);
    if !is_refused {
        worker.drops.add_many(Reason::TunWrite, frame.pieces().len() as u64);
        return true;
    }
    let head = [0; VNET];
    for packet in frame.packets() {
        if worker
            .tun
            .write(&[IoSlice::new(&head), IoSlice::new(&arena[packet])])
            .is_err()
        {
            worker.drops.add(Reason::TunWrite);
        }
    }
    false
}
