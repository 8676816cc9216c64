//! Nodes of one site as network namespaces, each with a datapath of its own, and containers that greet whoever calls.

use crate::lab::{inside, run, wait};
use nix::sched::{CloneFlags, setns};
use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{Allowed, Policy, Row, WantRow};
use roble_daemon::CancellationToken;
use roble_net::datapath::kernel::KernelDatapath;
use roble_net::datapath::miss::Device;
use roble_net::datapath::permits::Member;
use roble_net::datapath::rules::services::{FLOWS, PASSED};
use roble_net::datapath::tunnel::{DEFAULT_PORT, Tunnel, TunnelKind};
use roble_net::datapath::{
    Backend, Count, Datapath as _, DatapathConfig, Egress, Endpoint, LinkName, Misses, Overlay, RemoteNode, Service,
    conntrack, nft,
};
use roble_net::diagnosis;
use roble_net::dns::{Caller, Callers};
use roble_net::metrics::NetMetrics;
use roble_net::misses;
use roble_net::tier::Told;
use roble_net::wants::{Answers, Wants};
use roble_proto::local_net::{Finding, Tenant};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where containers listen.
pub const PORT: u16 = 7000;

const TIMEOUT: Duration = Duration::from_secs(1);

/// Name and source of who answered, or why nobody did.
pub type Call = fn(&Site, &str, IpAddr) -> io::Result<(String, IpAddr)>;

enum Request {
    /// What shall be, and whether the tunnel cannot be.
    Set(Box<DatapathConfig>, bool),
    Restart,
    CleanUp,
    /// Whether the kernel has the rules that were loaded.
    InForce(bool),
}

struct Container {
    name: &'static str,
    node: usize,
    v4: Ipv4Addr,
    application: Option<u8>,
}

/// Everything is removed when it is dropped.
pub struct Site {
    prefix: String,
    plan: Plan,
    nodes: Vec<mpsc::Sender<(Request, oneshot::Sender<()>)>>,
    lonely: BTreeSet<usize>,
    /// The nodes' addresses, without the last part.
    underlay: &'static str,
    containers: Vec<Container>,
    /// By number: application and ready backends.
    services: BTreeMap<u8, (u8, Vec<usize>)>,
    /// Who may call a service: application and ports.
    rules: BTreeMap<u8, Vec<(u8, Vec<&'static str>)>>,
    /// Nodes that have not heard of any rule.
    ruleless: BTreeSet<usize>,
    /// Services that no node was told of yet.
    hidden: BTreeSet<u8>,
    /// On nodes that hold the first packets to unknown services.
    holds: Vec<Holds>,
    namespaces: Vec<String>,
    _folder: tempfile::TempDir,
}

/// What holds packets on one node.
pub struct Holds {
    pub wants: Arc<Wants>,
    pub metrics: NetMetrics,
    callers: watch::Sender<Arc<Callers>>,
}

impl Holds {
    fn new() -> Self {
        Self {
            wants: Arc::new(Wants::new(Duration::from_secs(60), &Told::default())),
            metrics: NetMetrics::default(),
            callers: watch::Sender::default(),
        }
    }
}

const fn raw(kind: u8, number: u8) -> RawId {
    RawId::from_bytes([kind, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

/// The thread of one node: works inside its namespace.
fn node(netns: &str, state: PathBuf, holds: Option<&Holds>) -> mpsc::Sender<(Request, oneshot::Sender<()>)> {
    let (sender, mut receiver) = mpsc::channel::<(Request, oneshot::Sender<()>)>(1);
    let file = File::open(format!("/run/netns/{netns}")).unwrap();
    std::fs::create_dir_all(&state).unwrap();
    let holds = holds.map(|holds| (holds.wants.clone(), holds.metrics.clone(), holds.callers.subscribe()));
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut datapath = KernelDatapath::new(&state);
            if let Some((wants, metrics, callers)) = holds {
                let device = Device::open().expect("/dev/net/tun");
                tokio::spawn(misses::run(device, wants, callers, metrics, CancellationToken::new()));
            }
            while let Some((request, done)) = receiver.recv().await {
                match request {
                    Request::Set(config, tunnel_fails) => {
                        let failures = datapath.set(&config).await.unwrap();
                        let failed: Vec<_> = failures.iter().map(|failure| failure.link.as_str()).collect();
                        let expected = if tunnel_fails { vec!["rbl-vx"] } else { Vec::new() };
                        assert_eq!(failed, expected, "{failures:?}");
                    }
                    Request::Restart => datapath = KernelDatapath::new(&state),
                    Request::InForce(expected) => {
                        let in_force = datapath.in_force().await.unwrap();
                        assert_eq!(in_force.is_whole, expected);
                        assert!(in_force.links.iter().any(|link| link.name == "lo"));
                    }
                    Request::CleanUp => datapath.clean_up().await.unwrap(),
                }
                done.send(()).unwrap();
            }
        });
    });
    sender
}

impl Site {
    /// Nodes with addresses 192.0.2.1, 192.0.2.2 on one link.
    pub fn new(nodes: usize) -> Self {
        Self::over(nodes, "192.0.2.", false)
    }

    /// One node, on which the first packets to unknown services are held.
    pub fn holding() -> Self {
        Self::over(1, "192.0.2.", true)
    }

    /// Nodes with addresses 2001:db8::1, 2001:db8::2 on one link.
    pub fn over_v6(nodes: usize) -> Self {
        Self::over(nodes, "2001:db8::", false)
    }

    fn over(nodes: usize, underlay: &'static str, holds: bool) -> Self {
        let prefix = format!("rbls{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let mut site = Self {
            prefix,
            plan: Plan::default(),
            nodes: Vec::new(),
            lonely: BTreeSet::new(),
            underlay,
            containers: Vec::new(),
            services: BTreeMap::new(),
            rules: BTreeMap::new(),
            ruleless: BTreeSet::new(),
            hidden: BTreeSet::new(),
            holds: (0..nodes).filter(|_| holds).map(|_| Holds::new()).collect(),
            namespaces: Vec::new(),
            _folder: folder,
        };
        for index in 0..nodes {
            let netns = site.node_name(index);
            site.make(&netns);
            site.nodes.push(node(
                &netns,
                site._folder.path().join(index.to_string()),
                site.holds.get(index),
            ));
        }
        if nodes == 2 {
            let (a, b) = (site.node_name(0), site.node_name(1));
            let pair = [
                "link", "add", "up0", "netns", &a, "type", "veth", "peer", "name", "up0", "netns", &b,
            ];
            run("ip", &pair);
            for (netns, last) in [(a, 1), (b, 2)] {
                let off = "cd /proc/sys/net/ipv6/conf/up0; echo 0 > accept_dad; echo 1 > addr_gen_mode";
                run("nsenter", &[&format!("--net=/run/netns/{netns}"), "sh", "-c", off]);
                let prefix = if underlay.contains(':') { 64 } else { 24 };
                run(
                    "ip",
                    &[
                        "-n",
                        &netns,
                        "addr",
                        "add",
                        &format!("{underlay}{last}/{prefix}"),
                        "dev",
                        "up0",
                    ],
                );
                run("ip", &["-n", &netns, "link", "set", "up0", "up"]);
            }
            wait("the link", || {
                let is_up = |index| site.node(index, "ip", &["link", "show", "up0"]).contains("state UP");
                let is_local = |index: usize| {
                    let address = format!("{underlay}{}", index + 1);
                    site.node(index, "ip", &["route", "get", &address]).contains("local")
                };
                [0, 1]
                    .iter()
                    .all(|index| is_up(*index) && is_local(*index))
                    .then_some(())
            });
        }
        site
    }

    fn make(&mut self, netns: &str) {
        run("ip", &["netns", "add", netns]);
        run("ip", &["-n", netns, "link", "set", "lo", "up"]);
        self.namespaces.push(netns.into());
    }

    pub fn name(&self, container: &str) -> String {
        format!("{}-{container}", self.prefix)
    }

    pub fn node_name(&self, index: usize) -> String {
        format!("{}-node{index}", self.prefix)
    }

    /// A container on a node, of an application; attached by the next [`apply`](Self::apply).
    pub fn add(&mut self, name: &'static str, node: usize, application: Option<u8>) {
        let netns = self.name(name);
        self.make(&netns);
        let last = self.containers.len() as u8 + 2;
        let v4 = Ipv4Addr::new(10, 18, node as u8, last);
        self.containers.push(Container {
            name,
            node,
            v4,
            application,
        });
    }

    /// Says which containers, by number, are ready backends of a service of an application.
    pub fn service(&mut self, number: u8, application: u8, ready: &[usize]) {
        self.services.insert(number, (application, ready.to_vec()));
    }

    /// Says who of another application may call a service, at which ports; no port: all.
    pub fn allow(&mut self, service: u8, rules: &[(u8, &[&'static str])]) {
        let rules = rules.iter().map(|(application, ports)| (*application, ports.to_vec()));
        self.rules.insert(service, rules.collect());
    }

    /// A node does not hear of rules, or does again.
    pub fn set_ruleless(&mut self, node: usize, is_ruleless: bool) {
        if is_ruleless {
            self.ruleless.insert(node);
        } else {
            self.ruleless.remove(&node);
        }
    }

    /// Nodes are told of a service, or not.
    pub fn set_hidden(&mut self, service: u8, is_hidden: bool) {
        if is_hidden {
            self.hidden.insert(service);
        } else {
            self.hidden.remove(&service);
        }
    }

    /// What holds packets on a node.
    pub fn holds(&self, node: usize) -> &Holds {
        &self.holds[node]
    }

    /// Sends a node's request to its thread.
    fn request(&self, node: usize, request: Request) {
        let (done, wait) = oneshot::channel();
        assert!(
            self.nodes[node].blocking_send((request, done)).is_ok(),
            "the node's thread has failed"
        );
        wait.blocking_recv().expect("the node's thread has failed");
    }

    /// Sets all nodes.
    pub fn apply(&self) {
        for node in 0..self.nodes.len() {
            self.apply_answered(node, &BTreeSet::new());
        }
    }

    /// Sets a node, and tells those who wait what is known then; of `nobody` that these addresses are nobody's.
    pub fn apply_answered(&self, node: usize, nobody: &BTreeSet<IpAddr>) {
        let mut config = self.config(node);
        let known = config.services.iter().flat_map(|service| service.addresses.values());
        let known: BTreeSet<IpAddr> = known.flatten().copied().collect();
        let Some(holds) = self.holds.get(node) else {
            return self.request(node, Request::Set(Box::new(config), false));
        };
        let applications: BTreeSet<_> = config.endpoints.iter().filter_map(Endpoint::application).collect();
        let refused = applications
            .iter()
            .flat_map(|of| nobody.iter().map(|address| (*of, *address)));
        let refused: BTreeSet<_> = refused.collect();
        let answers = refused.iter().map(|(application, address)| {
            Row::Want(WantRow {
                application: *application,
                wanted: roble_core::overlay::row::Wanted::Address(*address),
                service: None,
            })
        });
        let answers: Vec<Row> = answers.collect();
        config.misses = Some(Misses { refused });
        let callers = config.endpoints.iter().filter_map(|endpoint| {
            let tenant = endpoint.tenant.as_ref()?;
            let caller = Caller {
                organization: tenant.organization,
                application: tenant.application,
            };
            let v6 = self.plan.endpoint_v6(endpoint.address);
            Some([(endpoint.address.into(), caller), (v6.into(), caller)])
        });
        holds.callers.send_replace(Arc::new(callers.flatten().collect()));
        self.request(node, Request::Set(Box::new(config), false));
        holds.wants.set_answers(Answers::of(&answers, known));
    }

    /// Sets a node whose tunnel cannot be.
    pub fn apply_without_tunnel(&self, node: usize) {
        self.request(node, Request::Set(Box::new(self.config(node)), true));
    }

    /// Checks whether a node's kernel has the rules that were loaded.
    pub fn is_in_force(&self, node: usize, expected: bool) {
        self.request(node, Request::InForce(expected));
    }

    /// As after `kill -9`.
    pub fn restart(&self, node: usize) {
        self.request(node, Request::Restart);
    }

    pub fn clean_up(&self) {
        for node in 0..self.nodes.len() {
            self.request(node, Request::CleanUp);
        }
    }

    /// A node is told of no other nodes any more.
    pub fn forget_peers(&mut self, node: usize) {
        self.lonely.insert(node);
    }

    fn config(&self, node: usize) -> DatapathConfig {
        let endpoints = self
            .containers
            .iter()
            .enumerate()
            .filter(|(_, container)| container.node == node);
        let endpoint = |(number, container): (usize, &Container)| Endpoint {
            link: LinkName::of(&self.name(container.name)),
            netns: format!("/run/netns/{}", self.name(container.name)).into(),
            address: container.v4,
            ports: Vec::new(),
            tenant: container.application.map(|application| Tenant {
                instance: InstanceId {
                    service: ServiceId(raw(9, 9)),
                    number: number as u32,
                },
                application: ApplicationId(raw(2, application)),
                organization: OrganizationId(raw(3, application)),
                path: "app/service".into(),
            }),
        };
        let shown = self.services.iter().filter(|(number, _)| !self.hidden.contains(number));
        let services = shown.map(|(number, (application, ready))| {
            let rules = self.rules.get(number).filter(|_| !self.ruleless.contains(&node));
            let allowed = |(application, ports): &(u8, Vec<&'static str>)| Allowed {
                application: ApplicationId(raw(2, *application)),
                service: None,
                ports: ports.iter().map(|range| range.parse().unwrap()).collect(),
            };
            let backend = |(copy, container): (usize, &Container)| Backend {
                number: copy as u32,
                v4: container.v4,
                v6: self.plan.endpoint_v6(container.v4),
                ready: ready.contains(&copy),
                near: container.node == node,
                idle: container.node == node,
            };
            let of_application = |(_, container): &(usize, &Container)| container.application == Some(*application);
            let backends = self.containers.iter().enumerate().filter(of_application).map(backend);
            let copies = (0..self.containers.len() as u32)
                .map(|copy| (Policy::Instance(copy), self.instance_addresses(*number, copy)));
            let policies = [
                (Policy::RoundRobin, vec![self.v4(*number), self.v6(*number)]),
                (Policy::Closest, self.closest(*number)),
            ];
            Service {
                service: ServiceId(raw(1, *number)),
                application: ApplicationId(raw(2, *application)),
                addresses: policies.into_iter().chain(copies).collect(),
                backends: backends.collect(),
                allows: rules.into_iter().flatten().map(allowed).collect(),
            }
        });
        let members = self.containers.iter().enumerate().filter_map(|(number, container)| {
            Some(Member {
                instance: InstanceId {
                    service: ServiceId(raw(9, 9)),
                    number: number as u32,
                },
                application: ApplicationId(raw(2, container.application?)),
                v4: container.v4,
                v6: self.plan.endpoint_v6(container.v4),
            })
        });
        let address = |index: usize| -> IpAddr { format!("{}{}", self.underlay, index + 1).parse().unwrap() };
        let block = |index: usize| Block::new([10, 18, index as u8, 0].into(), 26);
        let others = (0..self.nodes.len()).filter(|_| !self.lonely.contains(&node));
        DatapathConfig {
            plan: self.plan,
            range: block(node),
            endpoints: endpoints.map(endpoint).collect(),
            resting: BTreeSet::new(),
            services: services.collect(),
            members: members.collect(),
            nodes: others
                .map(|index| RemoteNode {
                    node: NodeId(raw(4, index as u8)),
                    address: address(index),
                    block: block(index),
                })
                .collect(),
            sealed: None,
            tunnel: (self.nodes.len() > 1).then(|| Tunnel {
                address: address(node),
                kind: TunnelKind::Vxlan {
                    port: DEFAULT_PORT,
                    vni: 7,
                },
            }),
            egress: Egress::default(),
            misses: None,
        }
    }

    /// What `roble doctor` finds on a node.
    pub fn findings(&self, node: usize) -> Vec<Finding> {
        let config = self.config(node);
        let overlay = Overlay {
            plan: config.plan,
            block: Some(config.range),
            nodes: config.nodes,
            tunnel: config.tunnel,
            ..Overlay::default()
        };
        inside(&self.node_name(node), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(diagnosis::look(&overlay))
        })
    }

    /// Round-robin address of a service.
    pub fn v4(&self, service: u8) -> IpAddr {
        [10, 30, 0, service].into()
    }

    /// Round-robin address of a service.
    pub fn v6(&self, service: u8) -> IpAddr {
        self.plan
            .service_v6(Policy::RoundRobin, ServiceId(raw(1, service)))
            .unwrap()
            .into()
    }

    pub fn closest(&self, service: u8) -> Vec<IpAddr> {
        let v6 = self
            .plan
            .service_v6(Policy::Closest, ServiceId(raw(1, service)))
            .unwrap();
        vec![[10, 30, 100, service].into(), v6.into()]
    }

    pub fn instance_addresses(&self, service: u8, copy: u32) -> Vec<IpAddr> {
        let v6 = self
            .plan
            .service_v6(Policy::Instance(copy), ServiceId(raw(1, service)))
            .unwrap();
        vec![[10, 30, service, copy as u8].into(), v6.into()]
    }

    /// Endpoint addresses of a container: IPv4, IPv6.
    pub fn addresses(&self, container: &str) -> Vec<IpAddr> {
        let found = self.containers.iter().find(|one| one.name == container).unwrap();
        vec![found.v4.into(), self.plan.endpoint_v6(found.v4).into()]
    }

    /// Runs a program inside a node.
    pub fn node(&self, index: usize, program: &str, args: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.node_name(index));
        run("nsenter", &[&[netns.as_str(), program], args].concat())
    }

    /// Runs `ip` inside a container.
    pub fn container(&self, name: &str, args: &[&str]) -> String {
        let netns = self.name(name);
        run("ip", &[&["-n", netns.as_str()], args].concat())
    }

    /// All that can be seen of a node's network.
    pub fn everything(&self, node: usize) -> String {
        let sysctls = "grep -r . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/force_forwarding \
                       /proc/sys/net/ipv6/conf/*/forwarding";
        [
            self.node(node, "ip", &["-d", "addr"]),
            self.node(node, "ip", &["route", "show", "table", "all"]),
            self.node(node, "ip", &["-6", "route", "show", "table", "all"]),
            self.node(node, "ip", &["neigh", "show", "nud", "permanent"]),
            self.node(node, "nft", &["--stateless", "list", "ruleset"]),
            self.node(node, "sh", &["-c", sysctls]),
        ]
        .join("----\n")
    }

    /// How often any rules were changed.
    pub fn generation(&self, node: usize) -> u32 {
        inside(&self.node_name(node), || nft::generation().unwrap())
    }

    /// New flows to a service that the first node has counted since its rules were made.
    pub fn new_flows(&self, service: u8) -> u64 {
        let counters = inside(&self.node_name(0), || nft::counters().unwrap());
        counters[&format!("{FLOWS}{}", ServiceId(raw(1, service)))].packets
    }

    /// What has passed between callers on the first node and a service since its rules were made.
    pub fn passed(&self, service: u8) -> Count {
        let counters = inside(&self.node_name(0), || nft::counters().unwrap());
        counters[&format!("{PASSED}{}", ServiceId(raw(1, service)))]
    }

    /// Flows to an address that the first node tracks, by where they went.
    pub fn tracked(&self, address: IpAddr) -> BTreeMap<IpAddr, u64> {
        let tally = inside(&self.node_name(0), move || {
            conntrack::tally(|to| to == address).unwrap()
        });
        tally.into_iter().map(|((_, went), flows)| (went, flows)).collect()
    }

    /// Every container answers each line and each datagram with its name and the caller's address.
    pub fn serve_all(&self) {
        for container in &self.containers {
            let name = container.name;
            inside(&self.name(name), move || {
                let listener = TcpListener::bind(("::", PORT)).unwrap();
                let socket = UdpSocket::bind(("::", PORT)).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let caller = stream.peer_addr().unwrap().ip().to_canonical();
                        std::thread::spawn(move || {
                            for line in BufReader::new(&stream).lines() {
                                if line.is_err() || writeln!(&stream, "{name} {caller}").is_err() {
                                    break;
                                }
                            }
                        });
                    }
                });
                std::thread::spawn(move || {
                    let mut buffer = [0; 9000];
                    while let Ok((_, caller)) = socket.recv_from(&mut buffer) {
                        let text = format!("{name} {}", caller.ip().to_canonical());
                        let _ = socket.send_to(text.as_bytes(), caller);
                    }
                });
            });
        }
    }

    /// A TCP connection from a container.
    pub fn connect(&self, from: &str, address: IpAddr) -> io::Result<TcpStream> {
        inside(&self.name(from), move || {
            let stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(stream)
        })
    }

    /// A UDP socket of a container that talks to one address, from a port that none before it had: a port met again would
    /// belong to a flow that the kernel still tracks.
    pub fn udp_socket(&self, from: &str, address: IpAddr) -> UdpSocket {
        static NEXT: AtomicU16 = AtomicU16::new(10_000);
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        inside(&self.name(from), move || {
            let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
            let socket = UdpSocket::bind((any, port)).unwrap();
            socket.connect((address, PORT)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket
        })
    }

    /// Whether an ICMP echo is answered.
    pub fn echo(&self, from: &str, address: IpAddr) -> bool {
        inside(&self.name(from), move || echo(address).is_ok())
    }
}

fn parse(answer: &str) -> (String, IpAddr) {
    let (name, source) = answer.trim().split_once(' ').unwrap();
    (name.into(), source.parse().unwrap())
}

/// One TCP connection.
pub fn tcp(site: &Site, from: &str, address: IpAddr) -> io::Result<(String, IpAddr)> {
    let stream = site.connect(from, address)?;
    writeln!(&stream, "who")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(parse(&line))
}

/// One datagram from a new port.
pub fn udp(site: &Site, from: &str, address: IpAddr) -> io::Result<(String, IpAddr)> {
    let socket = site.udp_socket(from, address);
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(b"who")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(parse(&String::from_utf8_lossy(&buffer[..length])))
}

/// One echo request and its answer, over a raw socket.
fn echo(address: IpAddr) -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6};
    use nix::sys::socket::{connect, recv, send, setsockopt, socket, sockopt::ReceiveTimeout};
    use std::os::fd::AsRawFd as _;
    let (family, protocol) = if address.is_ipv4() {
        (AddressFamily::Inet, SockProtocol::Icmp)
    } else {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&raw, ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0))?;
    match SocketAddr::new(address, 0) {
        SocketAddr::V4(v4) => connect(raw.as_raw_fd(), &SockaddrIn::from(v4))?,
        SocketAddr::V6(v6) => connect(raw.as_raw_fd(), &SockaddrIn6::from(v6))?,
    }
    // Type, code, checksum (the kernel's task over IPv6), identifier, sequence.
    let (kind, answer, skip) = if address.is_ipv4() {
        (8_u8, 0_u8, 20)
    } else {
        (128, 129, 0)
    };
    let mut request = [kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = u32::from(kind) * 256 + 0x1234 + 1;
    request[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    send(raw.as_raw_fd(), &request, MsgFlags::empty())?;
    let deadline = std::time::Instant::now() + TIMEOUT;
    let mut buffer = [0; 512];
    while std::time::Instant::now() < deadline {
        let length = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length > skip && buffer[skip] == answer {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

impl Drop for Site {
    fn drop(&mut self) {
        self.nodes.clear();
        for netns in &self.namespaces {
            let _ = std::process::Command::new("ip").args(["netns", "del", netns]).status();
        }
    }
}
