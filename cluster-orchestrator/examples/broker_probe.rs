//! Measures a broker with N TLS clients on this machine: memory of its process, rate of connections, time to put a
//! revoked node out. Figures of a run are in docs/adr/0002-broker.md.
//!
//! `broker_probe embedded 1000`, `broker_probe mosquitto 1000`

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::iter;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use roble_cluster::broker::embedded::{EmbeddedBroker, Limits, Listener};
use roble_cluster::broker::mosquitto::{MosquittoBroker, MosquittoConfig};
use roble_cluster::broker::{Broker, BrokerEvent};
use roble_core::backoff::Backoff;
use roble_core::ids::{ClusterId, NodeId, RawId};
use roble_core::time::Timestamp;
use roble_daemon::CancellationToken;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::{Authority, Credential, Identity, Lifetimes, PrivateKey, VerifiedRequest, certificates_to_pem};
use roble_daemon::serve::{self, ServeMetrics};
use roble_daemon::tls::{ClientTls, Dialer, Protocol, ServerTls};
use roble_proto::topics::{Branch, Direction, Topic, client_id};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish, Subscribe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const AUTHORITY: &str = "authority.pem";
const CLUSTER: ClusterId = ClusterId(RawId::from_bytes([0xcc; 12]));
const AT_A_TIME: usize = 16;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = roble_daemon::runtime(roble_daemon::runtime::DEFAULT_WORKERS)?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", folder] => runtime.block_on(serve(Path::new(folder))),
        [kind @ ("embedded" | "mosquitto"), clients] => {
            let folder = std::env::temp_dir().join(format!("broker-probe-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            let result = runtime.block_on(measure(kind, clients.parse()?, &folder));
            std::fs::remove_dir_all(&folder)?;
            result
        }
        _ => bail!("usage: broker_probe embedded|mosquitto <clients>"),
    }
}

/// The broker's side, in a process of its own: answers every message with one of the same size.
async fn serve(folder: &Path) -> anyhow::Result<()> {
    let authority = Authority::load(&folder.join(AUTHORITY), Lifetimes::default())?.context("authority")?;
    let clock = Arc::new(VerifierClock::volatile(Arc::new(SystemClock)));
    let tls = ServerTls::builder(&cluster(&authority, &clock)?, clock)
        .protocol(Protocol::Raw)
        .build()?;
    let socket = serve::bind(([127, 0, 0, 1], 0).into()).await?;
    println!("{}", socket.local_addr()?.port());
    std::io::stdout().flush()?;
    let (broker, metrics) = (EmbeddedBroker::new(Limits::default()), ServeMetrics::default());
    let limits = serve::Limits {
        connections: 5000,
        connections_per_peer: 5000,
        ..serve::Limits::default()
    };
    let listener = Listener {
        socket,
        tls,
        cluster: CLUSTER,
        limits,
        metrics: ServeMetrics::default(),
    };
    let (echo, commands) = (broker.clone(), broker.clone());
    tokio::spawn(async move { answer(&echo).await });
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(node) = line.parse() {
                let commands = commands.clone();
                tokio::runtime::Handle::current()
                    .block_on(async move { commands.revoke(node).await })
                    .ok();
            }
        }
        eprintln!("{:?}", commands.stats());
        eprintln!("{metrics:?}");
        std::process::exit(0);
    });
    Ok(broker.listen(listener, CancellationToken::new()).await?)
}

async fn answer(broker: &dyn Broker) {
    loop {
        if let BrokerEvent::Message { node, branch, payload } = broker.next().await {
            let _ = broker.send(node, branch, payload).await;
        }
    }
}

async fn measure(kind: &str, count: usize, folder: &Path) -> anyhow::Result<()> {
    let clock = Arc::new(VerifierClock::volatile(Arc::new(SystemClock)));
    let now = clock.now();
    let root = Authority::create_root(now, Lifetimes::default())?;
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    let chain = root.issue_cluster_authority(&CLUSTER.to_string(), &request, now)?.chain;
    let authority = Authority::new(key, chain, Lifetimes::default())?;
    authority.save(&folder.join(AUTHORITY))?;

    let mut rng = SmallRng::seed_from_u64(1);
    let mut nodes = Vec::new();
    for _ in 0..count {
        let node = NodeId::generate(Timestamp::from_millis(now), &mut rng);
        let tls = client(&authority, &node_credential(&authority, &clock, node)?, &clock)?;
        nodes.push((node, Dialer::new(tls)));
    }

    let mut child = None;
    let mut mosquitto = None;
    let (port, pid) = if kind == "embedded" {
        let mut command = Command::new(std::env::current_exe()?);
        let mut started = command
            .arg("serve")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        std::io::BufReader::new(started.stdout.take().context("stdout")?).read_line(&mut line)?;
        let pid = started.id();
        child = Some(started);
        (line.trim().parse()?, pid)
    } else {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let admitted = nodes.iter().map(|(node, _)| *node).collect();
        let broker = Arc::new(start_mosquitto(&authority, &clock, folder, port, admitted).await?);
        let pid = broker.child().context("mosquitto runs")?;
        let echo = broker.clone();
        tokio::spawn(async move { answer(echo.as_ref()).await });
        mosquitto = Some(broker);
        (port, pid)
    };
    // Lets a started process come to rest; this is a measurement, not a test.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let empty = pss_kib(pid)?;

    let before = Instant::now();
    let connecting = iter(nodes.iter()).map(|(node, dialer)| connect(*node, dialer, port));
    let mut clients: Vec<_> = connecting.buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;
    let elapsed = before.elapsed();
    let failed = clients.iter().filter(|client| client.is_err()).count();
    if let Some(Err(error)) = clients.iter().find(|client| client.is_err()) {
        println!("{failed} failed, first: {error:#}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let full = pss_kib(pid)?;
    println!("{kind}: PSS {empty} KiB with 0 clients, {full} KiB with {count}");
    println!("{kind}: {:.1} KiB per client", (full - empty) as f64 / count as f64);
    println!(
        "{kind}: {:.0} connections per second, both ends on this machine",
        count as f64 / elapsed.as_secs_f64()
    );

    let (node, mut stream) = clients.swap_remove(0)?;
    let before = Instant::now();
    match (&mut child, &mosquitto) {
        (Some(child), _) => writeln!(child.stdin.as_mut().context("stdin")?, "{node}")?,
        (_, Some(broker)) => broker.revoke(node).await?,
        _ => unreachable!("one of them was started"),
    }
    let mut rest = [0; 256];
    while stream.read(&mut rest).await.unwrap_or(0) > 0 {}
    println!("{kind}: a revoked client was closed after {:?}", before.elapsed());
    drop(clients);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{kind}: PSS {} KiB after all had left", pss_kib(pid)?);
    if let Some(mut child) = child {
        drop(child.stdin.take());
        child.wait()?;
    }
    Ok(())
}

/// Connects, subscribes, sends 1 KiB and waits for the answer.
async fn connect(node: NodeId, dialer: &Dialer, port: u16) -> anyhow::Result<(NodeId, TlsStream<TcpStream>)> {
    let dialer = dialer.clone().with_timeout(Duration::from_secs(60));
    let mut stream = dialer.connect(&format!("127.0.0.1:{port}")).await?;
    let topic = |direction| {
        Topic {
            node,
            branch: Branch::Engine,
            direction,
        }
        .to_string()
    };
    let mut subscribe = Subscribe::new(topic(Direction::Down), QoS::AtMostOnce);
    subscribe.pkid = 1;
    let mut connect = Connect::new(client_id(node, Branch::Engine));
    connect.keep_alive = 600;
    let mut out = BytesMut::new();
    for packet in [
        Packet::Connect(connect),
        Packet::Subscribe(subscribe),
        Packet::Publish(Publish::from_bytes(
            topic(Direction::Up),
            QoS::AtMostOnce,
            Bytes::from(vec![7; 1024]),
        )),
    ] {
        packet.write(&mut out, usize::MAX)?;
    }
    stream.write_all(&out).await?;
    // Without it a rest may stay in the TLS buffer.
    stream.flush().await?;
    let mut buffer = BytesMut::new();
    loop {
        match Packet::read(&mut buffer, 1 << 20) {
            Ok(Packet::Publish(_)) => return Ok((node, stream)),
            Ok(_) => {}
            Err(_) => ensure!(stream.read_buf(&mut buffer).await? > 0, "closed by the broker"),
        }
    }
}

fn node_credential(authority: &Authority, clock: &VerifierClock, node: NodeId) -> anyhow::Result<Credential> {
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    Ok(Credential::new(
        key,
        authority.issue_node(&node.to_string(), &request, clock.now())?.chain,
    )?)
}

fn cluster(authority: &Authority, clock: &VerifierClock) -> anyhow::Result<Credential> {
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    Ok(Credential::new(
        key,
        authority
            .issue_cluster(&CLUSTER.to_string(), &request, clock.now())?
            .chain,
    )?)
}

fn client(authority: &Authority, credential: &Credential, clock: &Arc<VerifierClock>) -> anyhow::Result<ClientTls> {
    let builder = ClientTls::trusting(
        Identity::cluster(&CLUSTER.to_string())?,
        &[authority.root().clone()],
        clock.clone(),
    );
    Ok(builder.credential(credential).protocol(Protocol::Raw).build()?)
}

async fn start_mosquitto(
    authority: &Authority,
    clock: &Arc<VerifierClock>,
    folder: &Path,
    port: u16,
    admitted: Vec<NodeId>,
) -> anyhow::Result<MosquittoBroker> {
    let (credential, root) = (folder.join("cluster.pem"), folder.join("root.pem"));
    let own = cluster(authority, clock)?;
    own.save(&credential)?;
    std::fs::write(&root, certificates_to_pem(&[authority.root().clone()]))?;
    let tls = client(authority, &own, clock)?;
    let config = MosquittoConfig {
        program: "mosquitto".into(),
        folder: folder.join("mosquitto"),
        listen: ([127, 0, 0, 1], port).into(),
        cluster: CLUSTER,
        credential,
        authority: root,
        tls: Arc::new(move || Ok(tls.config())),
        clients: admitted.len(),
        admitted,
        backoff: Backoff {
            base_ms: 50,
            cap_ms: 500,
        },
    };
    Ok(MosquittoBroker::start(config, 1).await?)
}

/// Proportional share of memory of a process.
fn pss_kib(pid: u32) -> anyhow::Result<i64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
