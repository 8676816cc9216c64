//! From the TUN device to the network: read all there is into fair queues, seal frame by frame, send runs.

use super::Worker;
use super::batch::Batch;
use crate::core::Hold;
use crate::counters::Reason;
use crate::flows::{Flows, POOL};
use crate::key::random;
use crate::packet::segment::Segments;
use crate::packet::vnet::{GSO_NONE, VNET, Vnet};
use crate::packet::{fragment, icmp};
use crate::sys::prefer_short_slices;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use tracing::{error, warn};

/// Silence after which memory of a burst is given back, in milliseconds.
const IDLE_MS: u16 = 2_000;

/// What IPv4 and IPv6 may count on, in bytes (RFC 1122, RFC 8200). On a narrower path, packets up to this go in datagrams that
/// are fragmented.
const LEAST_MTU: (u16, u16) = (576, 1_280);

pub(super) fn run(worker: &Worker) {
    prefer_short_slices();
    let mut flows = Flows::new(u64::from_ne_bytes(random()));
    let mut batch = None;
    while !worker.has_ended.load(Ordering::Relaxed) {
        let batch = batch.get_or_insert_with(Batch::default);
        let sockets = worker.sockets();
        release(worker, batch);
        while read_all(worker, &mut flows) || !flows.is_empty() {
            let Some((place, length)) = flows.pop() else { break };
            let frame = &mut flows.bytes(place)[..length];
            forward(worker, batch, frame);
            flows.give_back(place);
        }
        batch.flush(worker, &sockets);
        if !wait(worker, PollTimeout::from(IDLE_MS)) {
            flows.shrink();
            *batch = Batch::default();
            wait(worker, PollTimeout::NONE);
        }
    }
}

/// Waits until there is something to do; false if the time is over.
fn wait(worker: &Worker, timeout: PollTimeout) -> bool {
    let mut waited = [
        PollFd::new(worker.tun.as_fd(), PollFlags::POLLIN),
        PollFd::new(worker.outbound.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut waited, timeout) {
        Ok(0) => return false,
        Ok(_) if waited[1].any() == Some(true) => {
            let _ = worker.outbound.read();
        }
        Ok(_) => {
            if waited[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLERR))
            {
                // The device is down or gone: it comes back, or the process is told to end.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        Err(_) => {}
    }
    true
}

/// Reads frames until there are none, or as many as may wait; true if something was read.
fn read_all(worker: &Worker, flows: &mut Flows) -> bool {
    for count in 0..POOL {
        let (place, dropped) = flows.room();
        if dropped {
            worker.drops.add(Reason::QueueFull);
        }
        match worker.tun.read(flows.bytes(place)) {
            Ok(length) if length > VNET => {
                if flows.push(place, length, VNET) {
                    worker.drops.add(Reason::QueueFull);
                }
            }
            Ok(_) => {
                worker.drops.add(Reason::BadFrame);
                flows.give_back(place);
            }
            Err(error) => {
                flows.give_back(place);
                let is_expected = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                if error.raw_os_error() == Some(Errno::EBADFD as i32) {
                    // Somebody removed it. Whoever started us makes another.
                    error!("the device is gone");
                    std::process::exit(71);
                }
                if !is_expected {
                    warn!(%error, "cannot read from the device");
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                return count > 0;
            }
        }
    }
    true
}

/// Sends packets that waited for a session.
fn release(worker: &Worker, batch: &mut Batch) {
    loop {
        let mut core = worker.lock();
        let Some(mut frame) = core.unstage() else { return };
        drop(core);
        forward(worker, batch, &mut frame);
    }
}

/// Seals a frame with its header, or keeps it, or drops it.
fn forward(worker: &Worker, batch: &mut Batch, frame: &mut [u8]) {
    let Some((head, packet)) = frame.split_first_chunk_mut::<VNET>() else {
        return;
    };
    let vnet = Vnet::read(head);
    let destination = match Segments::new(vnet, packet) {
        Ok(segments) => segments.ip().destination,
        Err(reason) => return worker.drops.add(reason),
    };
    let mut core = worker.lock();
    let granted = core.outgoing(destination, Worker::now());
    if let Err(Hold::Stage(peer)) = granted {
        // The checksum is complete now, if the frame is not to be cut.
        let mut kept = frame.to_vec();
        if vnet.gso_type == GSO_NONE {
            kept[..VNET].copy_from_slice(&Vnet::default().bytes());
        }
        core.stage(peer, kept, Worker::now());
    }
    worker.settle(core);
    let grant = match granted {
        Ok(grant) => grant,
        Err(Hold::Stage(_)) => return,
        Err(Hold::Drop(reason)) => return worker.drops.add(reason),
    };
    let whole = if vnet.gso_type == GSO_NONE {
        Vnet::default()
    } else {
        vnet
    };
    let Ok(mut segments) = Segments::new(whole, &mut frame[VNET..]) else {
        return;
    };
    let sockets = worker.sockets();
    let mtu = grant.mtu.min(worker.mtu.load(Ordering::Relaxed));
    let least = if segments.ip().is_v6() {
        LEAST_MTU.1
    } else {
        LEAST_MTU.0
    };
    let limit = grant.mtu.max(least);
    if segments.largest() <= usize::from(limit) {
        return batch.add(worker, &sockets, &grant, &mut segments, mtu.into());
    }
    if vnet.gso_type == GSO_NONE && fragment::is_allowed(segments.frame()) {
        for mut piece in fragment::fragments(segments.frame(), limit.into()) {
            if let Ok(mut segments) = Segments::new(Vnet::default(), &mut piece) {
                batch.add(worker, &sockets, &grant, &mut segments, mtu.into());
            }
        }
        return;
    }
    worker.drops.add(Reason::TooBig);
    refuse(worker, &mut segments, limit);
}

/// Tells the sender of a frame how large packets may be.
fn refuse(worker: &Worker, segments: &mut Segments<'_>, mtu: u16) {
    // What is answered is a packet, so of a frame that is to be cut its first.
    let Some(length) = segments.next_length() else { return };
    let mut first = vec![0; length];
    segments.write_next(&mut first);
    if let Some(message) = icmp::too_big(&first, mtu) {
        let head = Vnet::default().bytes();
        if worker
            .tun
            .write(&[IoSlice::new(&head), IoSlice::new(&message)])
            .is_err()
        {
            worker.drops.add(Reason::TunWrite);
        }
    }
}
