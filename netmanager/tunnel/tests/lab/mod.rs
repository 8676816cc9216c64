//! Nodes as network namespaces of this machine, each with a device.

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt,
};
use roble_tunnel::{Client, Device, DeviceConfig, DeviceStatus, PeerConfig, PrivateKey, Reason};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Name of the devices.
pub const DEVICE: &str = "rblwg0";
/// Port of the workers.
pub const PORT: u16 = 51_820;

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

/// Waits until `done` says something.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything is removed when it is dropped.
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        run("nft", &["--version"]);
        Self {
            prefix: format!("rbtu{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            namespaces: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Makes a namespace.
    pub fn add(&mut self, name: &str) {
        run("ip", &["netns", "add", &self.full(name)]);
        self.namespaces.push(self.full(name));
        self.run_in(name, "ip", &["link", "set", "lo", "up"]);
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs a program in a namespace.
    pub fn run_in(&self, name: &str, program: &str, args: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.full(name));
        run("nsenter", &[&[netns.as_str(), program], args].concat())
    }

    /// Joins two namespaces by a link; each end is named `to-` and the other namespace.
    pub fn link(&self, one: &str, other: &str, addresses: [&[&str]; 2]) {
        let (a, b) = (self.full(one), self.full(other));
        // A bare letter is an abbreviation to `ip`.
        let (here, there) = (format!("to-{other}"), format!("to-{one}"));
        let peer = ["type", "veth", "peer", "name", &there, "netns", &b];
        run("ip", &[&["link", "add", &here, "netns", &a], &peer[..]].concat());
        for ((netns, link), addresses) in [(one, &here), (other, &there)].into_iter().zip(addresses) {
            for address in addresses {
                let mut args = vec!["addr", "add", address, "dev", link];
                args.extend(address.contains(':').then_some("nodad"));
                self.run_in(netns, "ip", &args);
            }
            self.run_in(netns, "ip", &["link", "set", link, "up"]);
        }
        for (netns, link) in [(one, &here), (other, &there)] {
            wait("the link to carry packets", || {
                self.run_in(netns, "ip", &["link", "show", link])
                    .contains("state UP")
                    .then_some(())
            });
        }
    }

    /// Loads nftables rules.
    pub fn rules(&self, name: &str, rules: &str) {
        let path = self.folder.path().join(format!("{name}.nft"));
        std::fs::write(&path, rules).unwrap();
        self.run_in(name, "nft", &["-f", path.to_str().unwrap()]);
    }

    /// Runs `work` on a thread inside a namespace.
    pub fn inside<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/run/netns/{}", self.full(name))).unwrap();
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    pub fn udp(&self, name: &str, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(name, move || {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket
        })
    }

    /// Starts a worker in a namespace; its device gets the addresses and comes up.
    pub fn worker(&self, name: &'static str, inner: [&str; 2]) -> Node {
        let client = Client::new(self.folder.path().join(format!("{name}.sock")));
        let node = self.node(name, inner, Arc::new(client.clone()), Some(client)).start();
        self.bring_up(name, DEVICE, inner);
        node
    }

    /// Starts another program that does the same.
    pub fn foreign(&self, name: &'static str, program: &Path, args: &[&str], inner: [&str; 2]) -> Node {
        // They all have their sockets in one folder.
        let device = format!("rbtu{}", NEXT.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir_all("/run/wireguard").unwrap();
        let socket = format!("/run/wireguard/{device}.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.full(name)))
            .arg(program)
            .args(args)
            .arg(&device);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::new(socket);
        let mut node = self.node(name, inner, Arc::new(client.clone()), Some(client));
        node.child = Some(child);
        wait("a program that serves", || node.device.get().ok());
        self.run_in(name, "ip", &["link", "set", &device, "mtu", "1420"]);
        self.bring_up(name, &device, inner);
        node
    }

    /// A node whose device is there already.
    pub fn node(&self, name: &'static str, inner: [&str; 2], device: Arc<dyn Device>, client: Option<Client>) -> Node {
        Node {
            name,
            netns: self.full(name),
            device,
            client,
            key: PrivateKey::generate(),
            log: self.folder.path().join(format!("{name}.log")),
            inner: inner.map(|address| address.parse().unwrap()),
            child: None,
        }
    }

    pub fn bring_up(&self, name: &str, device: &str, inner: [&str; 2]) {
        for (address, prefix) in inner.into_iter().zip(["/16", "/64"]) {
            let address = format!("{address}{prefix}");
            let mut args = vec!["addr", "add", &address, "dev", device];
            args.extend(address.contains(':').then_some("nodad"));
            self.run_in(name, "ip", &args);
        }
        self.run_in(name, "ip", &["link", "set", device, "up"]);
    }

    /// Two nodes with a link, each told of the other.
    pub fn pair() -> (Self, Node, Node) {
        let mut lab = Self::new();
        lab.add("a");
        lab.add("b");
        lab.link(
            "a",
            "b",
            [&["10.77.0.1/24", "fd77::1/64"], &["10.77.0.2/24", "fd77::2/64"]],
        );
        let a = lab.worker("a", ["10.18.0.1", "fd18::1"]);
        let b = lab.worker("b", ["10.18.0.2", "fd18::2"]);
        a.set(vec![b.as_peer(Some("10.77.0.2"))]);
        b.set(vec![a.as_peer(Some("10.77.0.1"))]);
        (lab, a, b)
    }

    /// A server that sends back what it receives on each connection, for ever.
    pub fn serve_echo(&self, name: &str, port: u16) {
        self.inside(name, move || {
            let listener = TcpListener::bind(("::", port)).unwrap();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    std::thread::spawn(move || {
                        let mut bytes = vec![0; 1 << 16];
                        while let Ok(length @ 1..) = stream.read(&mut bytes) {
                            if stream.write_all(&bytes[..length]).is_err() {
                                break;
                            }
                        }
                    });
                }
            });
        });
    }

    pub fn connect(&self, from: &str, to: SocketAddr) -> TcpStream {
        let stream = self.inside(from, move || {
            TcpStream::connect_timeout(&to, Duration::from_secs(60)).unwrap()
        });
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for netns in &self.namespaces {
            let _ = Command::new("ip")
                .args(["netns", "del", netns])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A namespace with a device.
pub struct Node {
    pub name: &'static str,
    pub device: Arc<dyn Device>,
    client: Option<Client>,
    pub key: PrivateKey,
    /// IPv4 and IPv6.
    pub inner: [IpAddr; 2],
    netns: String,
    log: std::path::PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts its worker, and waits until it serves.
    pub fn start(mut self) -> Self {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        // Elsewhere than where it was built (tests/vm).
        let program = std::env::var_os("ROBLE_TUNNEL_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_roble-tunnel").into());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg(program)
            .args(["--device", DEVICE, "--socket"])
            .arg(self.client().socket());
        self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        wait("a worker that serves", || self.device.get().ok());
        self
    }

    /// Its worker's socket.
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("this node has a worker")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// The end of the process after it was told to stop.
    pub fn wait_end(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        wait("the end of the worker", || child.try_wait().unwrap()).success()
    }

    pub fn set(&self, peers: Vec<PeerConfig>) {
        let config = DeviceConfig {
            private_key: Some(self.key.clone()),
            listen_port: Some(PORT),
            replace_peers: true,
            peers,
            ..DeviceConfig::default()
        };
        self.device.set(&config).unwrap();
    }

    /// How others know it, at an address of the underlay.
    pub fn as_peer(&self, at: Option<&str>) -> PeerConfig {
        let mut peer = PeerConfig::new(self.key.public());
        peer.endpoint = at.map(|at| SocketAddr::new(at.parse().unwrap(), PORT));
        peer.replace_allowed_ips = true;
        peer.allowed_ips = self.inner.into_iter().map(Into::into).collect();
        peer
    }

    pub fn status(&self) -> DeviceStatus {
        self.device.get().unwrap()
    }

    /// Where its only peer is.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.status().peers[0].endpoint
    }

    pub fn drops(&self, reason: Reason) -> u64 {
        self.status().drops.of(reason)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "log of {}:\n{}",
                self.name,
                std::fs::read_to_string(&self.log).unwrap_or_default()
            );
        }
    }
}

/// Sends `megabytes` to an echo server and back; they must come back as they were. Writer and reader are on threads of
/// their own, so that both directions are full at once.
pub fn echo(stream: &TcpStream, megabytes: usize, seed: u8) {
    let mut writer = stream.try_clone().unwrap();
    let byte = move |at: usize| (at.wrapping_mul(31) >> 3) as u8 ^ seed;
    let total = megabytes << 20;
    let thread = std::thread::spawn(move || {
        let mut at = 0;
        while at < total {
            let chunk: Vec<u8> = (at..(at + (1 << 18)).min(total)).map(byte).collect();
            writer.write_all(&chunk).unwrap();
            at += chunk.len();
        }
    });
    let (mut reader, mut at, mut bytes) = (stream, 0, vec![0; 1 << 18]);
    while at < total {
        let length = reader.read(&mut bytes).unwrap();
        assert!(length > 0, "the stream ended after {at} bytes");
        for (place, found) in bytes[..length].iter().enumerate() {
            assert_eq!(*found, byte(at + place), "byte {}", at + place);
        }
        at += length;
    }
    thread.join().unwrap();
}

/// A datagram there and back.
pub fn exchange(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, length: usize) {
    let sent: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
    let mut bytes = vec![0; 65_536];
    // A datagram is not sent again by anybody: the first one waits for the handshake.
    client.send_to(&sent, to).unwrap();
    let (got, from) = wait("a datagram", || server.recv_from(&mut bytes).ok());
    assert_eq!(bytes[..got], sent);
    server.send_to(&sent, from).unwrap();
    let got = wait("its answer", || client.recv(&mut bytes).ok());
    assert_eq!(bytes[..got], sent);
}

/// An ICMP echo of so many bytes.
pub fn ping(lab: &Lab, from: &str, to: IpAddr, length: usize) {
    let (v4, v6) = (
        (AddressFamily::Inet, SockProtocol::Icmp),
        (AddressFamily::Inet6, SockProtocol::IcmpV6),
    );
    let (family, protocol) = if to.is_ipv4() { v4 } else { v6 };
    let request = if to.is_ipv4() { 8 } else { 128 };
    lab.inside(from, move || {
        let socket = socket(family, SockType::Raw, SockFlag::empty(), protocol).unwrap();
        let timeout = nix::sys::time::TimeVal::new(0, 500_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).unwrap();
        let mut message = vec![0_u8; 8 + length];
        message[0] = request;
        message[4..8].copy_from_slice(&[7, 7, 0, 1]);
        message[8..]
            .iter_mut()
            .zip(0_u64..)
            .for_each(|(byte, at)| *byte = at as u8);
        if request == 8 {
            let sum = roble_tunnel::packet::checksum::sum(&message, 0);
            message[2..4].copy_from_slice(&roble_tunnel::packet::checksum::finish(sum).to_be_bytes());
        }
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let mut answer = vec![0; 70_000];
        sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
        wait("an echo", || {
            let got = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
            let body = if request == 8 { &answer[20..got] } else { &answer[..got] };
            (body[0] != request && body[4..] == message[4..]).then_some(())
        });
    });
}
