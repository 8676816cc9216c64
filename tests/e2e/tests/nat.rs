//! Services of sites behind NATs that let nothing in: both sites have the same inner addresses, and the way between their
//! nodes is encrypted, relayed until a direct one is found.

use roble_e2e::{Done, Loose, PROBE, Tree, command, serve, texts, wait_for};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// The machine's own address in the tree's underlay.
const PUBLIC: &str = "10.99.77.1";
/// The relay of the tree's own cluster, which has no NAT before it.
const RELAY: &str = "10.99.77.1:50104";
/// Never seen on the wire.
const MARKER: &str = "marker-that-nobody-else-may-read";

/// A site: a router with a NAT, and behind it one machine that is cluster orchestrator and node.
struct Site<'a> {
    tree: &'a Tree,
    name: &'static str,
    /// The router's address outside.
    outside: &'static str,
    daemons: Vec<Loose>,
}

impl<'a> Site<'a> {
    /// Makes the namespaces and starts the daemons.
    fn start(tree: &'a Tree, name: &'static str, outside: &'static str) -> Self {
        let mut site = Self {
            tree,
            name,
            outside,
            daemons: Vec::new(),
        };
        site.remove();
        let (router, machine) = (site.router(), site.machine());
        for namespace in [&router, &machine] {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        let link = format!("{name}-out");
        ip(&[
            "link", "add", &link, "type", "veth", "peer", "name", "wan", "netns", &router,
        ]);
        ip(&["link", "set", &link, "master", "roble-dev0", "up"]);
        ip(&[
            "-n", &router, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", &machine,
        ]);
        ip(&["-n", &router, "addr", "add", &format!("{outside}/24"), "dev", "wan"]);
        ip(&["-n", &router, "addr", "add", "10.42.0.1/16", "dev", "lan"]);
        ip(&["-n", &machine, "addr", "add", "10.42.0.2/16", "dev", "eth0"]);
        for link in ["wan", "lan"] {
            ip(&["-n", &router, "link", "set", link, "up"]);
        }
        ip(&["-n", &machine, "link", "set", "eth0", "up"]);
        ip(&["-n", &machine, "route", "add", "default", "via", "10.42.0.1"]);
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        assert!(inside(&router, &["sh", "-c", forward]).ok);
        site.nft(
            "table ip site { chain nat { type nat hook postrouting priority srcnat; oifname wan masquerade; };
             chain forward { type filter hook forward priority filter; policy drop;
               ct state established,related accept; iifname lan accept; };
             chain input { type filter hook input priority filter; policy drop;
               ct state established,related accept; iifname lan accept; };
             chain blocked { type filter hook forward priority filter - 1; }; }",
        );
        site.join();
        site
    }

    fn router(&self) -> String {
        format!("e2e-{}-router", self.name)
    }

    fn machine(&self) -> String {
        format!("e2e-{}", self.name)
    }

    fn path(&self, name: &str) -> String {
        self.tree.path(&format!("{}/{name}", self.name))
    }

    fn nft(&self, rules: &str) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.router(), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft starts");
        nft.stdin
            .take()
            .expect("piped")
            .write_all(rules.as_bytes())
            .expect("nft reads");
        assert!(nft.wait().expect("nft ends").success(), "{rules}");
    }

    /// Nothing gets through to the other site's router, or again.
    fn block(&self, other: &str) {
        self.nft(&format!("add rule ip site blocked ip daddr {other} drop"));
    }

    fn unblock(&self) {
        self.nft("flush chain ip site blocked");
    }

    fn spawn(&mut self, program: &str, args: &[&str]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.tree.path(&format!("logs/{}-{program}.log", self.name)))
            .expect("a log");
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.machine()))
            .arg(self.tree.binary(program))
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        self.daemons.push(Loose::of(child));
    }

    fn join(&mut self) {
        std::fs::create_dir_all(self.path("")).expect("the folder is writable");
        let tree = self.tree;
        let token = |args: &[&str]| {
            let created = tree.json(&[&["token", "create"], args].concat());
            created["token"].as_str().expect("a token").to_owned()
        };
        let cluster = self.path("cluster");
        self.spawn(
            "roble-cluster",
            &[
                "--state-dir",
                &cluster,
                "--root",
                &format!("{PUBLIC}:10000"),
                "--name",
                self.name,
                "--advertise",
                "10.42.0.2",
                "--listen-mqtt",
                "10.42.0.2:10003",
                "--listen-api",
                "10.42.0.2:10100",
                "--join",
                &token(&["cluster", "--name", self.name]),
            ],
        );
        wait_for("the cluster to join", 20, || {
            tree.roble(&["get", "nodes", "--cluster", self.name]).ok
        });
        let (net, socket, engine) = (self.path("net"), self.path("net.sock"), self.path("engine"));
        self.spawn(
            "roble-net",
            &["--state-dir", &net, "--socket", &socket, "--identity", &engine],
        );
        wait_for("the net manager", 20, || std::path::Path::new(&socket).exists());
        self.spawn(
            "roble-node",
            &[
                "--state-dir",
                &engine,
                "--cluster",
                "10.42.0.2:10100",
                "--name",
                self.name,
                "--containerd-socket",
                &tree.path("containerd/containerd.sock"),
                "--containerd-namespace",
                &self.containers(),
                "--cgroup-parent",
                &format!("/roble-dev/{}", self.name),
                "--net-socket",
                &socket,
                "--netns-dir",
                &self.path("netns"),
                "--join",
                &token(&["node", "--cluster", self.name, "--name", self.name]),
            ],
        );
        wait_for("the node to join", 20, || {
            let nodes = tree.json(&["get", "nodes", "--cluster", self.name]);
            nodes[0]["standing"] == "ready"
        });
        let image = tree.hello_image();
        let imported = self.ctr(&["images", "import", &image.to_string_lossy()]);
        assert!(imported.ok, "{}", imported.err);
    }

    fn containers(&self) -> String {
        // Removed with the nodes of the tree.
        format!("roble-e2e-{}", self.name)
    }

    fn ctr(&self, args: &[&str]) -> Done {
        let socket = self.tree.path("containerd/containerd.sock");
        command(
            "ctr",
            &[&["--address", &socket, "-n", &self.containers()], args].concat(),
        )
    }

    /// What is said at `address`, from inside an instance's network.
    fn ask(&self, instance: &str, address: &str) -> Option<String> {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let done = self.in_instance(
            instance,
            &["curl", "-s", "-m", "3", &format!("http://{host}:8080/?{MARKER}")],
        );
        done.ok.then(|| done.out.trim().to_owned())
    }

    fn in_instance(&self, instance: &str, args: &[&str]) -> Done {
        let netns = format!("--net={}", self.path(&format!("netns/{instance}")));
        command("nsenter", &[&[netns.as_str()], args].concat())
    }

    /// Runs a script of Python in an instance's network.
    fn spawn_in(&self, instance: &str, script: &str, args: &[&str]) -> std::process::Child {
        Command::new("nsenter")
            .arg(format!("--net={}", self.path(&format!("netns/{instance}"))))
            .args(["python3", "-c", script])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts")
    }

    /// What the worker says of its device.
    fn tunnel(&self) -> String {
        let talk = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.path("tunnel.sock"))?;
            stream.write_all(b"get=1\n\n")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        talk().unwrap_or_default()
    }

    /// Where packets to whoever has this block go; `None` if it is no peer.
    fn endpoint(&self, block: &str) -> Option<String> {
        let tunnel = self.tunnel();
        let peer = tunnel.split("public_key=").find(|peer| peer.contains(block))?;
        let endpoint = peer.lines().find_map(|line| line.strip_prefix("endpoint="))?;
        Some(endpoint.to_owned())
    }

    /// Whether packets to whoever has this block go through the relay; `None` if it is no peer.
    fn is_relayed(&self, block: &str) -> Option<bool> {
        Some(self.endpoint(block)? == RELAY)
    }

    /// The router is given another address outside, as by DHCP.
    fn move_to(&mut self, outside: &'static str) {
        let router = self.router();
        for (verb, address) in [("del", self.outside), ("add", outside)] {
            ip(&["-n", &router, "addr", verb, &format!("{address}/24"), "dev", "wan"]);
        }
        self.outside = outside;
    }

    /// The sum of a metric of the net manager, of the series whose labels contain `label`.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let metrics = command(
            "curl",
            &["-s", "--unix-socket", &self.path("net.sock"), "http://x/metrics"],
        )
        .out;
        let series = metrics
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let values = series
            .filter(|line| line.contains(label))
            .filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    fn remove(&self) {
        for namespace in [self.machine(), self.router()] {
            let _ = command("ip", &["netns", "del", &namespace]);
        }
    }

    /// Everything ends.
    fn end(mut self) {
        self.daemons.clear();
        let (net, socket) = (self.path("net"), self.path("net.sock"));
        let binary = self.tree.binary("roble-net").to_string_lossy().into_owned();
        let cleaned = inside(
            &self.machine(),
            &[&binary, "--state-dir", &net, "--socket", &socket, "--clean-up"],
        );
        assert!(cleaned.ok, "{}", cleaned.err);
        let left = inside(&self.machine(), &["ip", "-o", "link"]).out;
        assert!(!left.contains("rbl-"), "{left}");
        let rules = inside(&self.machine(), &["nft", "list", "ruleset"]).out;
        assert!(!rules.contains("roble"), "{rules}");
        assert_eq!(self.tunnel(), "", "the worker is gone");
    }
}

impl Drop for Site<'_> {
    /// A test that failed leaves nothing that runs.
    fn drop(&mut self) {
        self.daemons.clear();
        let worker = format!("roble-tunnel .*{}", self.path("tunnel.sock"));
        let _ = command("pkill", &["-9", "-f", &worker]);
        self.remove();
    }
}

fn inside(namespace: &str, args: &[&str]) -> Done {
    command("ip", &[&["netns", "exec", namespace], args].concat())
}

fn ip(args: &[&str]) {
    let done = command("ip", args);
    assert!(done.ok, "ip {}: {}", args.join(" "), done.err);
}

fn service(name: &str, cluster: &str) -> String {
    format!(
        "  {name}:\n    image: docker.io/library/roble-hello:latest\n    environment: {{GREETING: {name}}}\n    cpu: 50m\n    \
         memory: 32MiB\n    placement: {{cluster: {cluster}}}\n"
    )
}

/// A connection between two instances over which something is said and answered all the time.
struct Conversation {
    echo: Loose,
    caller: Child,
}

impl Conversation {
    fn start(from: &Site<'_>, caller: &str, to: &Site<'_>, called: &str, address: &str) -> Self {
        let echo = to.spawn_in(
            called,
            "import socket\ns=socket.create_server(('0.0.0.0',9001))\nc=s.accept()[0]\nwhile (d:=c.recv(65536)): c.sendall(d)\n",
            &[],
        );
        let caller = from.spawn_in(
            caller,
            "import socket,sys,time,select\nwhile True:\n try: s=socket.create_connection((sys.argv[1],9001),5); break\n \
             except OSError: time.sleep(.1)\ns.settimeout(120)\nn=0\nwhile n<40 or not select.select([sys.stdin],[],[],.02)[0]:\n \
             s.sendall(b'%08d'%n)\n d=b''\n while len(d)<8: d+=s.recv(8-len(d)) or sys.exit('cut')\n assert int(d)==n\n n+=1\nprint(n)\n",
            &[address],
        );
        let echo = Loose::of(echo);
        Self { echo, caller }
    }

    /// Ends it; everything must have been answered.
    fn end(self) {
        let said = self.caller.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.trim().parse::<u32>().is_ok_and(|rounds| rounds >= 40),
            "the connection was cut: {said}"
        );
        drop(self.echo);
    }
}

/// What passes between the sites: all frames of the tree's underlay, while `during` runs.
fn wiretap(during: impl FnOnce()) -> Vec<u8> {
    let script = "import socket,sys,time\ns=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.ntohs(3))\n\
                  s.bind(('roble-dev0',0))\ns.settimeout(0.2)\nsys.stderr.write('ready\\n')\nsys.stderr.flush()\n\
                  import select\nwhile not select.select([sys.stdin],[],[],0)[0]:\n try: sys.stdout.buffer.write(s.recv(70000))\n \
                  except socket.timeout: pass\n";
    let mut tap = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut ready = [0; 6];
    tap.stderr
        .take()
        .expect("piped")
        .read_exact(&mut ready)
        .expect("it listens");
    let mut out = tap.stdout.take().expect("piped");
    let reading = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let _ = out.read_to_end(&mut seen);
        seen
    });
    during();
    drop(tap.stdin.take());
    tap.wait().expect("it ends");
    reading.join().expect("what was seen")
}

/// Every protocol, family and kind of address over one path; prints the cells and fails if one is not whole.
fn matrix(path: &str, from: &str, service: &str, addresses: &[String]) {
    let name = format!("{service}.far.roble");
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    let call = [&["python3", "-c", PROBE, "call", &name], addresses.as_slice()].concat();
    let mut called = command(
        "nsenter",
        &[&[format!("--net={from}").as_str()], call.as_slice()].concat(),
    );
    for cell in called.out.lines() {
        println!("{path} {cell}");
    }
    let whole = called.out.lines().filter(|cell| cell.ends_with(" 5")).count();
    called.err.truncate(2_000);
    assert_eq!(whole, 18, "{path}: {}{}", called.out, called.err);
}

/// An instance of another application is traced to where it ends, before and after a rule names it. `far`: the descriptor of the
/// one that it calls.
fn denied_until_a_rule_lets_in(tree: &Tree, far: &str, trace: &impl Fn(&str, &[&str]) -> Value) {
    let applied = tree.apply(&["application: mail\nservices:\n", &service("out", "north")].concat());
    assert!(applied.ok, "{}", applied.err);
    tree.must(&["wait", "mail/out", "--for", "running", "--timeout", "60s"]);
    let denied = trace("mail/out.0", &["far/shop"]);
    assert_eq!(denied["verdict"], "denied-at-caller", "{denied}");
    let says = "put `allow: [{from: mail/out}]` under `services.shop` in the descriptor of far";
    assert!(
        denied["summary"].as_str().is_some_and(|text| text.contains(says)),
        "{denied}"
    );
    let greeting = "{GREETING: shop}";
    let rule = format!("{greeting}\n    allow: [{{from: mail/out, ports: [8080]}}]");
    let applied = tree.apply(&far.replace(greeting, &rule));
    assert!(applied.ok, "{}", applied.err);
    wait_for("the rule to be told on both nodes", 30, || {
        trace("mail/out.0", &["far/shop", "--port", "8080"])["verdict"] == "relayed"
    });
    let other = trace("mail/out.0", &["far/shop", "--port", "8081"]);
    assert_eq!(other["verdict"], "denied-at-caller", "{other}");
    assert_eq!(other["rules"][0]["path"], "services.shop.allow[0]", "{other}");
}

#[test]
fn sites_behind_nats_reach_each_other_relayed_and_direct() {
    let of_the_tree = [
        ("ROBLE_CLUSTER_RELAY_ADDRESS", RELAY),
        ("ROBLE_NET_TUNNEL_KIND", "vxlan"),
    ];
    let tree = Tree::up_with("nat", &of_the_tree);
    let north = Site::start(&tree, "north", "10.99.77.101");
    let mut south = Site::start(&tree, "south", "10.99.77.102");
    // At first no way but the relay.
    north.block(south.outside);
    south.block(north.outside);

    let on_a_port = |name: &str| service(name, "dev").replace("    cpu", "    ports: [\"18099:8080\"]\n    cpu");
    let text = [
        "application: far\nservices:\n",
        &service("web", "north"),
        &service("also", "north"),
        &service("shop", "south"),
        &on_a_port("near"),
        &on_a_port("other"),
    ]
    .concat();
    let applied = tree.apply(&text);
    assert!(applied.ok, "{}", applied.err);
    for service in ["web", "also", "shop", "near", "other"] {
        tree.must(&[
            "wait",
            &format!("far/{service}"),
            "--for",
            "running",
            "--timeout",
            "60s",
        ]);
    }
    let view = |service: &str| tree.json(&["get", "instance", &format!("far/{service}.0")]);
    let (web, shop, near) = (view("web"), view("shop"), view("near"));
    let id = |view: &Value| view["id"].as_str().expect("an id").to_owned();
    let block = |view: &Value| {
        let address = texts(&view["addresses"])[0].clone();
        let parts: Vec<&str> = address.split('.').collect();
        let last: u8 = parts[3].parse().expect("a number");
        format!("allowed_ip={}.{}/26", parts[..3].join("."), last & 0xc0)
    };
    let all = |service: &str, view: &Value| {
        let addresses = &tree.json(&["get", "service", &format!("far/{service}")])["addresses"];
        let mut all = [texts(&view["addresses"]), texts(&view["service_addresses"])].concat();
        all.extend(texts(&addresses["round-robin"]));
        all
    };
    let greets = |site: &Site<'_>, from: &Value, service: &str, to: &Value| {
        for address in all(service, to) {
            let said = format!("{service} from far-{service}-0 instance 0");
            wait_for(&format!("{service} at {address}"), 30, || {
                site.ask(&id(from), &address).is_some_and(|body| body.contains(&said))
            });
        }
    };
    let seen = wiretap(|| {
        greets(&north, &web, "shop", &shop);
        greets(&south, &shop, "web", &web);
        // And to a node that has no NAT before it.
        greets(&north, &web, "near", &near);
    });
    assert!(!seen.is_empty(), "nothing passed between the sites");
    let marker = MARKER.as_bytes();
    assert!(
        !seen.windows(marker.len()).any(|part| part == marker),
        "it is read on the wire"
    );
    assert_eq!(north.is_relayed(&block(&shop)), Some(true), "{}", north.tunnel());
    assert_eq!(south.is_relayed(&block(&web)), Some(true), "{}", south.tunnel());
    // The way is told as it is; at the node it is counted.
    let trace = |from: &str, to: &[&str]| -> Value {
        let done = tree.roble(&[&["network", "trace", from], to, &["-o", "json"]].concat());
        let trace: Value = serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{}{}", done.out, done.err));
        let reaches = ["same-node", "vxlan", "relayed", "direct"].contains(&trace["verdict"].as_str().expect("a word"));
        assert_eq!(done.ok, reaches, "{trace}");
        trace
    };
    for (from, to, verdict) in [
        ("far/web.0", "far/shop", "relayed"),
        ("far/shop.0", "closest.web.far.roble", "relayed"),
        ("far/web.0", "far/also.0", "same-node"),
        ("far/near.0", "far/other", "vxlan"),
    ] {
        // What a node was told, or measures, may be a moment behind.
        wait_for(&format!("{from} to {to}: {verdict}"), 20, || {
            trace(from, &[to])["verdict"] == verdict
        });
    }
    let way = trace("far/web.0", &["far/shop"])["ways"][0].clone();
    assert_eq!(
        (&way["relay"]["address"], &way["relay"]["cluster"]),
        (&RELAY.into(), &"dev".into()),
        "{way}"
    );
    assert_eq!(way["path"]["tunnel"]["by_kernel"], false, "{way}");
    assert!(north.metric("net_peer_path", "path=\"relayed\"") >= 1.0);
    assert!(north.metric("net_peer_receive_bytes_total", "") > 0.0);
    assert!(north.metric("net_peer_transmit_packets_total", "") > 0.0);
    let flows = north.metric("net_service_new_flows_total", "far/shop");
    assert!(north.ask(&id(&web), &texts(&shop["service_addresses"])[0]).is_some());
    wait_for("the flow to be counted", 5, || {
        north.metric("net_service_new_flows_total", "far/shop") > flows
    });
    assert!(north.metric("net_service_bytes_total", "far/shop") > 0.0);
    denied_until_a_rule_lets_in(&tree, &text, &trace);

    // Every cell of the matrix, but for the direct way.
    let netns_of = |site: &Site<'_>, view: &Value| site.path(&format!("netns/{}", id(view)));
    let dev = |view: &Value| {
        let node = view["node_name"].as_str().expect("a node");
        tree.path(&format!("{node}/netns/{}", id(view)))
    };
    let (also, other) = (view("also"), view("other"));
    assert_ne!(
        near["node_name"], other["node_name"],
        "a port of the node keeps them apart"
    );
    let _servers = [
        serve(&netns_of(&south, &shop)),
        serve(&netns_of(&north, &also)),
        serve(&dev(&other)),
    ];
    let cells = |path: &str, from: &str, service: &str, to: &Value| {
        let addresses = &tree.json(&["get", "service", &format!("far/{service}")])["addresses"];
        let all = [texts(&to["addresses"]), texts(&addresses["round-robin"])].concat();
        matrix(path, from, service, &all)
    };
    cells("same node", &netns_of(&north, &web), "also", &also);
    cells("VXLAN", &dev(&near), "other", &other);
    cells("relay", &netns_of(&north, &web), "shop", &shop);
    assert_eq!(
        north.is_relayed(&block(&shop)),
        Some(true),
        "it was relayed all the time"
    );

    // A direct way appears: it is taken, and an open connection goes on.
    let address = texts(&shop["addresses"])[0].clone();
    let open = Conversation::start(&north, &id(&web), &south, &id(&shop), &address);
    north.unblock();
    south.unblock();
    wait_for("the direct way", 40, || {
        north.is_relayed(&block(&shop)) == Some(false) && south.is_relayed(&block(&web)) == Some(false)
    });
    open.end();
    cells("user-space tunnel", &netns_of(&north, &web), "shop", &shop);

    assert_eq!(trace("far/web.0", &["far/shop"])["verdict"], "direct");

    // The provider gives a site another address: an open connection goes on, and the way is direct again.
    let open = Conversation::start(&north, &id(&web), &south, &id(&shop), &address);
    south.move_to("10.99.77.103");
    wait_for("the way to the new address", 90, || {
        let endpoint = north.endpoint(&block(&shop)).unwrap_or_default();
        endpoint.starts_with("10.99.77.103:") && south.is_relayed(&block(&web)) == Some(false)
    });
    open.end();
    greets(&north, &web, "shop", &shop);

    // The worker dies: another one is there within seconds, with the same peers.
    let killed = command(
        "pkill",
        &["-9", "-f", &format!("roble-tunnel .*{}", south.path("tunnel.sock"))],
    );
    assert!(killed.ok, "a worker runs");
    greets(&south, &shop, "web", &web);

    tree.must(&["delete", "app", "mail", "--wait"]);
    tree.must(&["delete", "app", "far", "--wait"]);
    north.end();
    south.end();
    tree.down();
}
