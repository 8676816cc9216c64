//! A node and a neighbour, as network namespaces of this machine, and a `roble-net` inside the node.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub const NODE: &str = "10.99.0.2";
pub const OUTSIDE: &str = "10.99.0.3";
pub const NODE_V6: &str = "2001:db8:99::2";
pub const OUTSIDE_V6: &str = "2001:db8:99::3";

/// Everything is removed when it is dropped.
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    daemon: Option<Child>,
    pub folder: tempfile::TempDir,
    /// More settings.
    pub settings: &'static [&'static str],
}

/// Runs a program, fails loudly with what it said.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("cannot run `{program}` ({error}): these tests need root, ip and nft; see scripts/install-deps.sh")
    });
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread inside a namespace.
pub fn inside<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{netns}")).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Waits until `done` says something.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Lab {
    /// Namespaces `node` and `out`, joined by a link; no daemon yet.
    pub fn new() -> Self {
        run("nft", &["--version"]);
        let prefix = format!("rblt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self {
            prefix,
            namespaces: Vec::new(),
            daemon: None,
            folder: tempfile::tempdir().unwrap(),
            // The neighbour is on the node's LAN, as far as IPv4 goes.
            settings: &["--egress-lan", "allow"],
        };
        let (node, out) = (lab.add("node"), lab.add("out"));
        run(
            "ip",
            &[
                "link", "add", "up0", "netns", &node, "type", "veth", "peer", "name", "e0", "netns", &out,
            ],
        );
        for (netns, link, address, v6) in [(&node, "up0", NODE, NODE_V6), (&out, "e0", OUTSIDE, OUTSIDE_V6)] {
            // Otherwise the IPv6 address is tentative for a second or two, which is a change nobody made.
            let dad = format!("echo 0 > /proc/sys/net/ipv6/conf/{link}/accept_dad");
            run("nsenter", &[&format!("--net=/run/netns/{netns}"), "sh", "-c", &dad]);
            run(
                "ip",
                &["-n", netns, "addr", "add", &format!("{address}/24"), "dev", link],
            );
            run("ip", &["-n", netns, "addr", "add", &format!("{v6}/64"), "dev", link]);
            run("ip", &["-n", netns, "link", "set", link, "up"]);
            run("ip", &["-n", netns, "link", "set", "lo", "up"]);
        }
        wait("settled addresses", || {
            (!lab.node("ip", &["addr"]).contains("tentative")).then_some(())
        });
        for (netns, link) in [(&node, "up0"), (&out, "e0")] {
            let is_up = || run("ip", &["-n", netns, "link", "show", link]).contains("state UP");
            wait("the link to carry packets", || is_up().then_some(()));
        }
        lab
    }

    /// Makes a namespace; its name.
    pub fn add(&mut self, name: &str) -> String {
        let full = self.name(name);
        run("ip", &["netns", "add", &full]);
        self.namespaces.push(full.clone());
        full
    }

    /// Full name of a namespace of this lab.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs `ip` or another program inside the node.
    pub fn node(&self, program: &str, args: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.name("node"));
        run("nsenter", &[&[netns.as_str(), program], args].concat())
    }

    /// Runs a program in a namespace of the lab.
    pub fn run_in(&self, name: &str, program: &str, args: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.name(name));
        run("nsenter", &[&[netns.as_str(), program], args].concat())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name("node")))
            .arg(env!("CARGO_BIN_EXE_roble-net"));
        command
            .arg("--state-dir")
            .arg(self.folder.path().join("state"))
            .args(["--endpoint-range", "10.18.0.0/26", "--identity", "/nonexistent"])
            .arg("--socket")
            .arg(self.socket());
        command.args(["--reconcile-interval", "500ms"]);
        command.args(self.settings).args(args);
        command
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("net.sock")
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let child = self.command(&[]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        wait("readiness", || {
            matches!(self.request("GET", "/readyz", ""), Ok((200, _))).then_some(())
        });
    }

    /// Process id of the daemon: `nsenter` has become it.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().unwrap().id().try_into().unwrap()
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// SIGTERM, and the end must come in time.
    pub fn stop(&mut self) {
        let mut child = self.daemon.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = wait("end of the daemon", || child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }

    /// `roble-net --clean-up`.
    pub fn clean_up(&self) {
        let output = self.command(&["--clean-up"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// One HTTP request on the daemon's socket: status and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    }

    /// PUT of an attachment: status and decoded body.
    pub fn put(&self, container: &str, ports: &[&str]) -> (u16, serde_json::Value) {
        let netns = format!("/run/netns/{}", self.name(container));
        let body = serde_json::json!({ "netns": netns, "ports": ports }).to_string();
        let (status, body) = self
            .request("PUT", &format!("/v1/attachments/{container}"), &body)
            .unwrap();
        (
            status,
            serde_json::from_str(&body).unwrap_or_else(|_| panic!("not JSON: {body}")),
        )
    }

    /// Makes a namespace and attaches it; its address.
    pub fn attach(&mut self, container: &str, ports: &[&str]) -> String {
        self.add(container);
        let (status, body) = self.put(container, ports);
        assert_eq!(status, 200, "{body}");
        body["address"].as_str().unwrap().to_owned()
    }

    /// A server in a namespace that greets every TCP connection with its name and the caller's address, for ever.
    pub fn serve(&self, name: &str, port: u16) {
        let greeting = name.to_owned();
        inside(&self.name(name), move || {
            let listener = TcpListener::bind(("::", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let caller = stream.peer_addr().unwrap().ip().to_canonical();
                    let _ = writeln!(&stream, "{greeting} {caller}");
                }
            });
        });
    }

    /// The greeting at `address`, called from a namespace.
    pub fn call(&self, from: &str, address: &str) -> io::Result<String> {
        let address: SocketAddr = address.parse().unwrap();
        inside(&self.name(from), move || {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line.trim().to_owned())
        })
    }

    /// A UDP socket in a namespace.
    pub fn udp(&self, netns: &str, port: u16) -> UdpSocket {
        inside(&self.name(netns), move || {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        })
    }

    /// All that `--clean-up` promises to put back.
    pub fn baseline(&self) -> String {
        let sysctls = "grep -r . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/route_localnet \
                       /proc/sys/net/ipv4/conf/*/send_redirects /proc/sys/net/ipv4/conf/*/rp_filter \
                       /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/*/forwarding \
                       /proc/sys/net/ipv6/conf/*/force_forwarding /proc/sys/net/ipv6/conf/*/accept_ra";
        [
            self.node("ip", &["addr"]),
            self.node("ip", &["route", "show", "table", "all"]),
            self.node("ip", &["-6", "route", "show", "table", "all"]),
            self.node("ip", &["neigh", "show", "nud", "permanent"]),
            self.node("nft", &["list", "ruleset"]),
            self.node("sh", &["-c", sysctls]),
        ]
        .join("----\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "log of the daemon:\n{}",
                std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            );
        }
        for netns in &self.namespaces {
            let _ = Command::new("ip")
                .args(["netns", "del", netns])
                .stderr(Stdio::null())
                .status();
        }
    }
}
