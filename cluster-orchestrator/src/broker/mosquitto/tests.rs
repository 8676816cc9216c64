//! With the real program; skipped loudly where it is missing.

use roble_link::transport::Transport;

use super::super::fixture::Tree;
use super::super::suite::{self, Harness, down, event, node, up, within};
use super::*;

struct Mosquitto {
    tree: Tree,
    broker: Arc<MosquittoBroker>,
    folder: tempfile::TempDir,
    port: u16,
}

fn program() -> Option<PathBuf> {
    let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: mosquitto is not installed");
    }
    found
}

impl Mosquitto {
    async fn start() -> Option<Self> {
        let program = program()?;
        let (tree, folder) = (Tree::new(), tempfile::tempdir().unwrap());
        // Mosquitto cannot tell which port it was given, so one is chosen that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let (credential, authority) = (folder.path().join("cluster.pem"), folder.path().join("root.pem"));
        tree.cluster().save(&credential).unwrap();
        std::fs::write(&authority, tree.root_pem()).unwrap();
        let config = MosquittoConfig {
            program,
            folder: folder.path().join("mosquitto"),
            listen: ([127, 0, 0, 1], port).into(),
            cluster: tree.cluster,
            credential,
            authority,
            tls: tree.source(&tree.cluster()),
            admitted: Vec::new(),
            clients: 100,
            backoff: Backoff {
                base_ms: 20,
                cap_ms: 200,
            },
        };
        let broker = Arc::new(MosquittoBroker::start(config, 1).await.unwrap());
        let harness = Self {
            tree,
            broker,
            folder,
            port,
        };
        harness.linked().await;
        Some(harness)
    }

    async fn linked(&self) {
        within("cluster linked", async {
            while !self.broker.shared.state().linked {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Harness for Mosquitto {
    fn broker(&self) -> Arc<dyn Broker> {
        self.broker.clone()
    }

    fn transport(&self, node: NodeId, branch: Branch) -> Box<dyn Transport> {
        Box::new(self.tree.transport(self.port, node, branch))
    }
}

#[tokio::test]
async fn contract() {
    let Some(harness) = Mosquitto::start().await else {
        return;
    };
    suite::run(&harness).await;
}

#[tokio::test]
async fn comes_back_after_it_was_killed() {
    let Some(harness) = Mosquitto::start().await else {
        return;
    };
    let (me, branch) = (node(1), Branch::Engine);
    harness.broker.admit(me).await.unwrap();
    let transport = harness.transport(me, branch);
    up(transport.as_ref()).await;
    transport.send(Bytes::from_static(b"one")).await.unwrap();
    event(harness.broker.as_ref(), BrokerEvent::Connected { node: me, branch }).await;
    let child = harness.broker.shared.state().child.unwrap();
    kill(child, Signal::SIGKILL).unwrap();
    event(harness.broker.as_ref(), BrokerEvent::Disconnected { node: me, branch }).await;
    down(transport.as_ref()).await;
    up(transport.as_ref()).await;
    harness.linked().await;
    transport.send(Bytes::from_static(b"two")).await.unwrap();
    event(harness.broker.as_ref(), BrokerEvent::Connected { node: me, branch }).await;
    assert!(harness.broker.stats().restarts >= 1);
}

#[tokio::test]
async fn shows_the_renewed_certificate_and_keeps_its_sessions() {
    let Some(harness) = Mosquitto::start().await else {
        return;
    };
    let (me, branch) = (node(1), Branch::Engine);
    harness.broker.admit(me).await.unwrap();
    let transport = harness.transport(me, branch);
    up(transport.as_ref()).await;
    let renewed = harness.tree.cluster();
    renewed.save(&harness.folder.path().join("cluster.pem")).unwrap();
    harness.broker.reload_certificate().await.unwrap();
    let dialer = roble_daemon::tls::Dialer::new(harness.tree.client(&harness.tree.node(node(2))));
    let stream = dialer.connect(&format!("127.0.0.1:{}", harness.port)).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], renewed.chain()[0]);
    transport.send(Bytes::from_static(b"same session")).await.unwrap();
    event(harness.broker.as_ref(), BrokerEvent::Connected { node: me, branch }).await;
}

/// A node that is not on the list, and one that is and meddles, reach nothing.
#[tokio::test]
async fn topics_are_tied_to_the_certificate() {
    let Some(harness) = Mosquitto::start().await else {
        return;
    };
    let (me, victim, stranger) = (node(1), node(2), node(3));
    for node in [me, victim] {
        harness.broker.admit(node).await.unwrap();
    }
    for (of, claims) in [(stranger, stranger), (me, victim)] {
        let mut config = roble_link::mqtt::MqttConfig::new("127.0.0.1", harness.port, claims, Branch::Engine);
        config.backoff = Backoff {
            base_ms: 20,
            cap_ms: 200,
        };
        let source = harness.tree.source(&harness.tree.node(of));
        let rng: rand::rngs::SmallRng = rand::SeedableRng::seed_from_u64(1);
        let liar = roble_link::mqtt::MqttTransport::start(config, source, Box::new(rng));
        // Subscribing may look granted; what counts is what arrives.
        let spoken = async {
            up(&liar).await;
            let _ = liar.send(Bytes::from_static(b"lie")).await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), spoken).await;
    }
    let honest = harness.transport(me, Branch::Engine);
    up(honest.as_ref()).await;
    honest.send(Bytes::from_static(b"truth")).await.unwrap();
    loop {
        match within("message", harness.broker.next()).await {
            BrokerEvent::Message { node, payload, .. } => {
                assert_eq!((node, payload), (me, Bytes::from_static(b"truth")));
                return;
            }
            BrokerEvent::Connected { node, .. } => assert_eq!(node, me),
            _ => {}
        }
    }
}

/// A client that says what the test tells it to.
struct Raw {
    client: AsyncClient,
    events: rumqttc::EventLoop,
    heard: BTreeSet<(String, String)>,
}

impl Raw {
    async fn connect(harness: &Mosquitto, name: &str, credential: &roble_daemon::pki::Credential) -> Self {
        let mut options = rumqttc::MqttOptions::new(name, "127.0.0.1", harness.port);
        let tls = (harness.tree.source(credential))().unwrap();
        options.set_transport(rumqttc::Transport::tls_with_config(rumqttc::TlsConfiguration::Rustls(
            tls,
        )));
        let (client, events) = AsyncClient::new(options, 200);
        let heard = BTreeSet::new();
        Self { client, events, heard }
    }

    /// Waits until the broker has done all that was asked before: it answers in order.
    async fn fence(&mut self) {
        self.subscribe("fence").await;
    }

    async fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(filter, QoS::AtMostOnce).await.unwrap();
        within("answer of the broker", async {
            loop {
                match self.events.poll().await.expect("connected") {
                    rumqttc::Event::Incoming(rumqttc::Incoming::Publish(publish)) => {
                        let said = String::from_utf8_lossy(&publish.payload).into_owned();
                        self.heard.insert((publish.topic, said));
                    }
                    rumqttc::Event::Incoming(rumqttc::Incoming::SubAck(_)) => return,
                    _ => {}
                }
            }
        })
        .await;
    }
}

/// Every topic by every identity at the real program: everybody asks for everything, and says something everywhere.
#[tokio::test]
async fn every_topic_by_every_identity() {
    let Some(harness) = Mosquitto::start().await else {
        return;
    };
    for admitted in [node(1), node(2)] {
        harness.broker.admit(admitted).await.unwrap();
    }
    let tree = &harness.tree;
    let mut clients = Vec::new();
    for (name, credential) in [
        ("node 1", tree.node(node(1))),
        ("node 2", tree.node(node(2))),
        ("not admitted", tree.node(node(3))),
        ("foreign", tree.foreign_node(node(1))),
        ("cluster", tree.cluster()),
    ] {
        clients.push((name, Raw::connect(&harness, name, &credential).await));
    }
    let own = |number, direction| {
        [Branch::Engine, Branch::Net].map(|branch| {
            let node = node(number);
            let topic = Topic {
                node,
                branch,
                direction,
            };
            topic.to_string()
        })
    };
    let mut topics: Vec<String> = ["r", "/e/u", "x/e/u", "x", "fence/x", "/", "r/x/e/u", "e/u/d"]
        .map(str::to_owned)
        .to_vec();
    for number in 1..=3 {
        for direction in [Direction::Up, Direction::Down] {
            for topic in own(number, direction) {
                topics.extend([format!("{topic}/x"), format!("x/{topic}"), topic.to_uppercase(), topic]);
            }
        }
    }
    let filters = ["#", "+/#", "+/+/u", "+/+/d", "+/e/#", "$SYS/#", "$share/g/+/+/u", "/#"];
    for (_, client) in &mut clients {
        for filter in filters.into_iter().chain(topics.iter().map(String::as_str)) {
            client.subscribe(filter).await;
        }
    }
    for (name, client) in &mut clients {
        for topic in &topics {
            client
                .client
                .publish(topic, QoS::AtMostOnce, false, *name)
                .await
                .unwrap();
        }
        client.fence().await;
    }
    for (name, client) in &mut clients {
        client.fence().await;
        let number = match *name {
            "node 1" => 1,
            "node 2" => 2,
            _ => 0,
        };
        let expected: BTreeSet<(String, String)> = match *name {
            "cluster" => (1..=2)
                .flat_map(|number| own(number, Direction::Up).map(|topic| (topic, format!("node {number}"))))
                .collect(),
            _ if number > 0 => own(number, Direction::Down)
                .map(|topic| (topic, "cluster".to_owned()))
                .into(),
            _ => BTreeSet::new(),
        };
        assert_eq!(client.heard, expected, "{name}");
    }
}

#[test]
fn user_names() {
    let (cluster, other) = (
        Tree::new().cluster,
        ClusterId(roble_core::ids::RawId::from_bytes([1; 12])),
    );
    let user = files::node_user(cluster, node(1));
    assert_eq!(files::user_node(cluster, &user), Some(node(1)));
    assert_eq!(files::user_node(other, &user), None);
    assert_eq!(files::user_node(cluster, &files::cluster_user(cluster)), None);
}
