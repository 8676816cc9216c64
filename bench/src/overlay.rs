//! `service-ip`, `latency`, `attach`, `net-idle`: the overlay on one node, with real containers, of a tree as `roble dev` starts it.
//!
//! Two instances of one application. In their networks stand iperf3 and a small ping-pong; service and endpoint address take turns.

use crate::process::{Owned, output, pss, wait_for};
use crate::report::Row;
use crate::tree::{IMAGE, Tree};
use anyhow::Context as _;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
/// Flows of `net-idle`.
const FLOWS: usize = 10_000;
/// Round trips of one look at the latency.
const TRIPS: usize = 5_000;

/// A tree with two instances, `bench/a.0` and `bench/b.0`, and the addresses of the second.
struct Pair {
    tree: Tree,
    /// Network namespaces of both.
    netns: [String; 2],
    endpoint: String,
    service: String,
}

impl Pair {
    fn up() -> anyhow::Result<Self> {
        let tree = Tree::up(&[])?;
        tree.import()?;
        let service = |name: &str| format!("  {name}:\n    image: {IMAGE}\n    cpu: 50m\n    memory: 32MiB\n");
        let text = format!("application: bench\nservices:\n{}{}", service("a"), service("b"));
        let file = tree.path("bench.yaml");
        std::fs::write(&file, text)?;
        tree.roble(&["apply", "-f", &file])?;
        let json = |args: &[&str]| -> anyhow::Result<Value> {
            Ok(serde_json::from_str(&tree.roble(&[args, &["-o", "json"]].concat())?)?)
        };
        let mut netns = [String::new(), String::new()];
        for (place, name) in netns.iter_mut().zip(["a", "b"]) {
            tree.roble(&["wait", &format!("bench/{name}"), "--for", "running", "--timeout", "60s"])?;
            let view = json(&["get", "instance", &format!("bench/{name}.0")])?;
            *place = tree.path(&format!("n1/netns/{}", view["id"].as_str().context("an id")?));
        }
        let address = |value: &Value| value[0].as_str().map(str::to_owned).context("an address");
        let endpoint = address(&json(&["get", "instance", "bench/b.0"])?["addresses"])?;
        let service = address(&json(&["get", "service", "bench/b"])?["addresses"]["round-robin"])?;
        Ok(Self {
            tree,
            netns,
            endpoint,
            service,
        })
    }

    /// A command in the network of the first (0) or the second (1).
    fn inside(&self, which: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns[which])).arg(program);
        command
    }

    /// Seconds for a gigabit from the first to `address`.
    fn seconds_per_gigabit(&self, address: &str, seconds: u64, udp: bool) -> anyhow::Result<f64> {
        let mut client = self.inside(0, "iperf3");
        client.args(["-c", address, "-t", &seconds.to_string(), "-J"]);
        if udp {
            client.args(["-u", "-b", "0", "-l", "1400"]);
        }
        let said: Value = serde_json::from_str(&output(&mut client)?)?;
        let end = &said["end"];
        let bits = match udp {
            // What arrived: the sender can send more than the way takes.
            true => {
                let sum = &end["sum"];
                let lost = sum["lost_percent"].as_f64().unwrap_or(0.0);
                sum["bits_per_second"].as_f64().map(|sent| sent * (1.0 - lost / 100.0))
            }
            false => end["sum_received"]["bits_per_second"].as_f64(),
        };
        Ok(1e9 / bits.context("iperf3 told no rate")?)
    }
}

/// `service-ip`: time per gigabit to a service address against the endpoint's own.
///
/// # Errors
/// The tree does not start, or iperf3 fails.
pub fn service_ip(rounds: usize, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let pair = Pair::up()?;
    let _server = Owned::start(pair.inside(1, "iperf3").arg("-s"))?;
    wait_for("iperf3", DEADLINE, || {
        pair.seconds_per_gigabit(&pair.endpoint, 1, false).ok()
    })?;
    let mut rows = Vec::new();
    for (what, udp) in [("TCP", false), ("UDP, 1,400 bytes", true)] {
        let mut pairs = Vec::new();
        for round in 0..=rounds {
            let ours = pair.seconds_per_gigabit(&pair.service, seconds, udp)?;
            let peer = pair.seconds_per_gigabit(&pair.endpoint, seconds, udp)?;
            println!(
                "{what} {round}: service {:.2} Gbit/s, endpoint {:.2} Gbit/s",
                ours.recip(),
                peer.recip()
            );
            // The first is not counted.
            if round > 0 {
                pairs.push((ours * 1e3, peer * 1e3));
            }
        }
        let name = format!("{what} to a service address, ms per gigabit");
        // 0.97 of the throughput.
        rows.extend(Row::of_pairs(&name, "its endpoint", &pairs, Some(1.03)));
    }
    Ok(rows)
}

/// One byte there and back over TCP, so many times: the sorted times, in microseconds.
const PING_PONG: &str = "import socket,sys,time\ns=socket.create_connection((sys.argv[1],7001))\n\
                         s.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)\nn=time.perf_counter_ns\nt=[]\n\
                         for _ in range(int(sys.argv[2])):\n a=n(); s.send(b'x'); s.recv(1); t.append(n()-a)\n\
                         t.sort(); print(t[len(t)//2]/1e3, t[len(t)*999//1000]/1e3)\n";
const PONG: &str = "import socket\ns=socket.create_server(('0.0.0.0',7001))\nwhile True:\n c=s.accept()[0]\n \
                    c.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)\n while c.recv(1): c.send(b'x')\n";

/// `latency`: ping-pong through a service address against the endpoint's own.
///
/// # Errors
/// The tree does not start.
pub fn latency(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let pair = Pair::up()?;
    let _server = Owned::start(pair.inside(1, "python3").args(["-c", PONG]))?;
    let look = |address: &str| -> anyhow::Result<(f64, f64)> {
        let mut client = pair.inside(0, "python3");
        let said = output(client.args(["-c", PING_PONG, address, &TRIPS.to_string()]))?;
        let mut figures = said.split_whitespace().map(str::parse);
        Ok((figures.next().context("p50")??, figures.next().context("p99.9")??))
    };
    wait_for("the ping-pong", DEADLINE, || look(&pair.endpoint).ok())?;
    let (mut middle, mut late) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (ours, peer) = (look(&pair.service)?, look(&pair.endpoint)?);
        println!(
            "latency {round}: service {:.1} / {:.1} us, endpoint {:.1} / {:.1} us",
            ours.0, ours.1, peer.0, peer.1
        );
        middle.push((ours.0, peer.0));
        late.push((ours.1, peer.1));
    }
    let rows = [("p50", middle), ("p99.9", late)];
    let rows = rows.iter().filter_map(|(what, pairs)| {
        let name = format!("round trip to a service address, {what}, us");
        Row::of_pairs(&name, "its endpoint", pairs, Some(1.1))
    });
    Ok(rows.collect())
}

/// A request to the net manager; how long its answer took.
fn ask(socket: &str, method: &str, path: &str, body: &str) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    Ok(started.elapsed())
}

/// `attach`: a container's interface, from the request to the answer.
///
/// # Errors
/// The tree does not start, or an attachment is refused.
pub fn attach(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let pair = Pair::up()?;
    let socket = pair.tree.path("n1/net.sock");
    let mut times = Vec::new();
    for round in 0..rounds {
        let name = format!("roble-bench-{round}");
        let ip = |args: &[&str]| output(Command::new("ip").args(["netns"]).args(args));
        ip(&["add", &name])?;
        let body = format!(r#"{{"netns":"/run/netns/{name}","ports":[]}}"#);
        let path = format!("/v1/attachments/{name}");
        let took = ask(&socket, "PUT", &path, &body);
        let gone = ask(&socket, "DELETE", &path, "");
        ip(&["del", &name])?;
        times.push(took?.as_secs_f64() * 1e3);
        gone?;
    }
    times.sort_by(f64::total_cmp);
    let late = times[(times.len() * 99 / 100).min(times.len() - 1)];
    println!("attach: {} times, the least {:.1} ms", times.len(), times[0]);
    let rows = [
        Row::of_figures("attach, ms", &times, None, 1),
        Row::of_figures("attach, p99, ms", &[late], Some(20.0), 1),
    ];
    Ok(rows.into_iter().flatten().collect())
}

/// So many UDP flows, each from a port of its own.
const MANY: &str = "import socket,sys\nfor p in range(20000,20000+int(sys.argv[2])):\n \
                    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('',p)); s.sendto(b'x',(sys.argv[1],9)); s.close()\n";

/// `net-idle`: memory of the net manager and of its worker, with and without flows.
///
/// # Errors
/// The tree does not start.
pub fn net_idle(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let pair = Pair::up()?;
    let pid = pair.tree.pid("n1-net")?;
    let look = || -> anyhow::Result<f64> { Ok(pss(pid)?.0 as f64 / 1e6) };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    std::thread::sleep(Duration::from_secs(20));
    for _ in 0..rounds {
        before.push(look()?);
        std::thread::sleep(Duration::from_secs(2));
    }
    let mut flows = pair.inside(0, "python3");
    output(flows.args(["-c", MANY, &pair.service, &FLOWS.to_string()]))?;
    // It counts flows when it measures distances, and attaching makes it look at everything.
    for _ in 0..rounds {
        after.push(look()?);
        std::thread::sleep(Duration::from_secs(2));
    }
    let rows = [
        Row::of_figures("roble-net without flows: PSS, MB", &before, Some(10.0), 2),
        Row::of_figures("roble-net with 10,000 flows: PSS, MB", &after, Some(25.0), 2),
    ];
    Ok(rows.into_iter().flatten().collect())
}
