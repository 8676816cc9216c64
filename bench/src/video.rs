//! `video`: 60 frames a second at 45 Mbit/s from a container of one node to one of another through the encrypted tunnel, with poses
//! back, alone and in turns beside a bulk TCP stream of the same direction. A frame's latency: from before its first datagram is
//! sent until its last has come. What counts is how much later the latest frames come beside the bulk.
//!
//! Sender and receiver are threads of this process, in the containers' networks: one clock for both.

use crate::placed::{self, inside, wait_for_iperf};
use crate::process::{Owned, output};
use crate::report::Row;
use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FRAMES_PER_SECOND: u32 = 60;
/// 45 Mbit/s: 93,750 bytes a frame.
const DATAGRAM: usize = 1_250;
const DATAGRAMS: u32 = 75;
/// Of a pose, and between two of them.
const POSE: usize = 96;
const POSE_EVERY: Duration = Duration::from_millis(4);
const PORT: u16 = 7_002;
/// Later than this is lost.
const LATE: Duration = Duration::from_secs(2);

/// Of one look, milliseconds.
#[derive(Debug, Clone)]
struct Figures {
    frames: Vec<f64>,
    poses: Vec<f64>,
    lost_frames: usize,
    /// Gbit/s of the bulk stream; 0 without one.
    bulk: f64,
}

/// Runs `work` in a network namespace, in a thread of its own.
fn at<T: Send + 'static>(
    netns: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
    let file = File::open(netns).with_context(|| format!("open {netns}"))?;
    Ok(std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    }))
}

/// Sends numbered datagrams at fixed times; when each number was due to be sent, in the order of the numbers.
fn send(
    socket: &UdpSocket,
    every: Duration,
    per_number: u32,
    size: usize,
    numbers: u32,
) -> anyhow::Result<Vec<Instant>> {
    let mut datagram = vec![0x5a; size];
    let started = Instant::now();
    let mut sent = Vec::new();
    for number in 0..numbers {
        let due = started + every * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        sent.push(Instant::now());
        for _ in 0..per_number {
            // A full socket, or the other end not there yet: it counts as lost.
            let _ = socket.send(&datagram);
        }
    }
    Ok(sent)
}

/// Takes numbered datagrams until nothing has come for a while; when the last of each number came, `None` if some are missing.
fn receive(socket: &UdpSocket, per_number: u32, numbers: u32) -> anyhow::Result<Vec<Option<Instant>>> {
    socket.set_read_timeout(Some(LATE))?;
    let mut come = vec![0; numbers as usize];
    let mut complete = vec![None; numbers as usize];
    let mut datagram = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut datagram) {
        let now = Instant::now();
        let Some(number) = datagram.first_chunk().map(|four| u32::from_be_bytes(*four) as usize) else {
            continue;
        };
        anyhow::ensure!(length >= 4 && number < come.len(), "{from} has sent something else");
        come[number] += 1;
        if come[number] == per_number {
            complete[number] = Some(now);
            if number + 1 == complete.len() {
                break;
            }
        }
    }
    Ok(complete)
}

fn latencies(sent: &[Instant], complete: &[Option<Instant>]) -> Vec<f64> {
    let pairs = sent.iter().zip(complete);
    pairs
        .filter_map(|(sent, complete)| Some(complete.as_ref()?.saturating_duration_since(*sent).as_secs_f64() * 1e3))
        .collect()
}

/// The figure that all but so many of a thousand are below.
fn late(figures: &[f64], of_thousand: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * (1_000 - of_thousand) / 1_000).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::INFINITY)
}

/// One look: so many seconds of video.
fn look(from: &placed::Instance, to: &placed::Instance, seconds: u64, with_bulk: bool) -> anyhow::Result<Figures> {
    let frames = FRAMES_PER_SECOND * u32::try_from(seconds)?;
    let poses = u32::try_from(Duration::from_secs(seconds).as_micros() / POSE_EVERY.as_micros())?;
    let bulk = if with_bulk {
        let mut client = inside(&from.netns, "iperf3");
        let time = (seconds + 2).to_string();
        client.args(["-c", &to.endpoint, "-t", &time, "-J"]);
        let child = client
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // Its window has opened by then.
        std::thread::sleep(Duration::from_secs(1));
        Some(child)
    } else {
        None
    };
    let server: SocketAddr = format!("{}:{PORT}", to.endpoint).parse()?;
    let client: SocketAddr = format!("{}:{PORT}", from.endpoint).parse()?;
    let bind = move || -> anyhow::Result<UdpSocket> { Ok(UdpSocket::bind(("0.0.0.0", PORT))?) };
    // Both sockets are there before anything is sent.
    let of_server = at(&to.netns, move || {
        let socket = bind()?;
        socket.connect(client)?;
        Ok(socket)
    })?;
    let of_client = at(&from.netns, move || {
        let socket = bind()?;
        socket.connect(server)?;
        Ok(socket)
    })?;
    let join = |thread: JoinHandle<anyhow::Result<UdpSocket>>| {
        thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    };
    let (there, here) = (join(of_server)?, join(of_client)?);
    let every = Duration::from_secs(1) / FRAMES_PER_SECOND;
    let figures = std::thread::scope(|scope| -> anyhow::Result<Figures> {
        let shown = scope.spawn(|| receive(&there, DATAGRAMS, frames));
        let heard = scope.spawn(|| receive(&here, 1, poses));
        let posed = scope.spawn(|| send(&there, POSE_EVERY, 1, POSE, poses));
        let filmed = scope.spawn(|| send(&here, every, DATAGRAMS, DATAGRAM, frames));
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let (filmed, posed) = (filmed.join().map_err(panicked)??, posed.join().map_err(panicked)??);
        let (shown, heard) = (shown.join().map_err(panicked)??, heard.join().map_err(panicked)??);
        Ok(Figures {
            frames: latencies(&filmed, &shown),
            poses: latencies(&posed, &heard),
            lost_frames: shown.iter().filter(|one| one.is_none()).count(),
            bulk: 0.0,
        })
    })?;
    let bulk = match bulk {
        Some(child) => {
            let said: serde_json::Value = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
            said["end"]["sum_received"]["bits_per_second"]
                .as_f64()
                .context("iperf3 told no rate")?
                / 1e9
        }
        None => 0.0,
    };
    Ok(Figures { bulk, ..figures })
}

/// Looks so many times, alone and beside the bulk in turns.
///
/// # Errors
/// The tree does not start, or iperf3 fails.
pub fn run(rounds: usize, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let (_tree, instances) = placed::up(&[], &["n1", "n2"])?;
    let [from, to] = &instances[..] else {
        anyhow::bail!("two instances")
    };
    let _server = Owned::start(inside(&to.netns, "iperf3").arg("-s"))?;
    wait_for_iperf(&from.netns, &to.endpoint)?;
    let way = output(inside(&from.netns, "ip").args(["route", "get", &to.endpoint]))?;
    println!("video: {}", way.lines().next().unwrap_or_default().trim());
    let (mut frames, mut poses, mut added, mut lost, mut bulk) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        let alone = look(from, to, seconds, false)?;
        let beside = look(from, to, seconds, true)?;
        for (what, one) in [("alone", &alone), ("beside bulk", &beside)] {
            println!(
                "video {round}, {what}: frames p50 {:.2} ms, p99.9 {:.2} ms, lost {} of {}; poses p50 {:.2} ms, p99.9 {:.2} ms; bulk {:.2} Gbit/s",
                late(&one.frames, 500),
                late(&one.frames, 1),
                one.lost_frames,
                one.lost_frames + one.frames.len(),
                late(&one.poses, 500),
                late(&one.poses, 1),
                one.bulk
            );
        }
        frames.push((late(&beside.frames, 1), late(&alone.frames, 1)));
        poses.push((late(&beside.poses, 1), late(&alone.poses, 1)));
        added.push(late(&beside.frames, 1) - late(&alone.frames, 1));
        lost.push(beside.lost_frames as f64);
        bulk.push(beside.bulk);
    }
    let rows = [
        Row::of_figures("added to a frame by the bulk, p99.9, ms", &added, Some(1.0), 2),
        Row::of_pairs("frame beside bulk, p99.9, ms", "alone", &frames, None),
        Row::of_pairs("pose beside bulk, p99.9, ms", "alone", &poses, None),
        Row::of_figures("frames lost beside bulk, of each look", &lost, Some(0.0), 0),
        Row::of_figures("bulk beside, Gbit/s", &bulk, None, 2),
    ];
    Ok(rows.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_or_lost() {
        let start = Instant::now();
        let sent = [start, start + Duration::from_millis(16)];
        let complete = [Some(start + Duration::from_millis(3)), None];
        assert_eq!(latencies(&sent, &complete), [3.0]);
        assert_eq!(late(&(1..=1_000).map(f64::from).collect::<Vec<_>>(), 1), 1_000.0);
        assert_eq!(late(&[], 1), f64::INFINITY);
        assert_eq!(DATAGRAM as u32 * DATAGRAMS * FRAMES_PER_SECOND * 8, 45_000_000);
    }

    #[test]
    fn datagrams_of_one_machine_all_come() {
        let [a, b] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        let receiving = std::thread::spawn(move || receive(&b, 3, 5).unwrap());
        let sent = send(&a, Duration::from_millis(1), 3, 100, 5).unwrap();
        assert_eq!(latencies(&sent, &receiving.join().unwrap()).len(), 5);
    }
}
