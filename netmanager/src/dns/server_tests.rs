//! The server on loopback, with servers upstream that are ours.

use super::*;
use crate::tier::Told;
use crate::wants::{Answers, Wants};
use domain::base::iana::Rcode;
use domain::base::message_builder::OptBuilder;
use domain::base::{Message, MessageBuilder, Name, Rtype};
use domain::rdata::A;
use roble_core::ids::{RawId, ServiceId};
use roble_core::overlay::row::{Row, ServiceRow, WantRow, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use upstream::{read_framed, write_framed};

/// Addresses of containers: of organisations 1 and 2, and of nobody.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 13);
const DEADLINE: Duration = Duration::from_secs(20);

struct Node {
    address: SocketAddr,
    metrics: DnsMetrics,
    zone: watch::Sender<Arc<Zone>>,
    callers: watch::Sender<Arc<Callers>>,
    wants: Arc<Wants>,
    stop: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(upstream: Upstream) -> Node {
    let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = listeners.addresses()[0];
    let (zone, zone_view) = watch::channel(Arc::new(zone::sample().0));
    let callers = Callers::from([
        (FIRST.into(), zone::sample_caller(1)),
        (SECOND.into(), zone::sample_caller(2)),
    ]);
    let (callers, callers_view) = watch::channel(Arc::new(callers));
    let wants = Arc::new(Wants::new(Duration::from_secs(60), &Told::default()));
    let views = Views {
        zone: zone_view,
        callers: callers_view,
        wants: wants.clone(),
    };
    let (metrics, stop) = (DnsMetrics::default(), CancellationToken::new());
    tokio::spawn(serve(listeners, views, upstream, metrics.clone(), stop.clone()));
    Node {
        address,
        metrics,
        zone,
        callers,
        wants,
        stop,
    }
}

fn query(name: &str, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x4242);
    let mut question = builder.question();
    question.push((Name::vec_from_str(name).unwrap(), Rtype::A)).unwrap();
    let mut additional = question.additional();
    if let Some(size) = edns {
        let set = |record: &mut OptBuilder<'_, Vec<u8>>| {
            record.set_udp_payload_size(size);
            Ok(())
        };
        additional.opt(set).unwrap();
    }
    additional.finish()
}

/// Code, whether it is cut, and the addresses in it; of a reply to what [`query`] makes.
fn shown(reply: &[u8]) -> String {
    let message = Message::from_slice(reply).unwrap();
    assert_eq!(message.header().id(), 0x4242);
    let mut text = message.header().rcode().to_string();
    if message.header().tc() {
        text.push_str(" TC");
    }
    let records: Vec<_> = message.answer().unwrap().limit_to::<A>().collect();
    match records.first() {
        Some(record) if records.len() == 1 => text.push_str(&format!(" {}", record.as_ref().unwrap().data())),
        Some(_) => text.push_str(&format!(" {} addresses", records.len())),
        None => {}
    }
    text
}

async fn ask_udp(node: &Node, from: Ipv4Addr, query: &[u8]) -> String {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.send_to(query, node.address).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let (length, _) = timeout(DEADLINE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    shown(&buffer[..length])
}

async fn connect(node: &Node, from: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(node.address).await.unwrap()
}

async fn ask_tcp(node: &Node, from: Ipv4Addr, query: &[u8]) -> String {
    let mut stream = connect(node, from).await;
    write_framed(&mut stream, query).await.unwrap();
    let reply = timeout(DEADLINE, read_framed(&mut stream, 65_535))
        .await
        .unwrap()
        .unwrap();
    shown(&reply.unwrap())
}

/// How a server upstream behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// It has this many addresses; by UDP it says that they do not fit into 512 bytes.
    Long(usize),
    Silent,
    Unable,
    /// Answers of others come before its own.
    Forged,
}

struct Fake {
    address: SocketAddr,
    /// Ids and source ports that it was asked with.
    asked: Arc<Mutex<Vec<(u16, u16)>>>,
    by_tcp: Arc<AtomicUsize>,
}

fn fake_reply(query: &[u8], manner: Manner, is_tcp: bool) -> Vec<u8> {
    let message = Message::from_slice(query).unwrap();
    let rcode = if manner == Manner::Unable {
        Rcode::SERVFAIL
    } else {
        Rcode::NOERROR
    };
    let mut answer = MessageBuilder::new_vec().start_answer(message, rcode).unwrap();
    let owner = message.sole_question().unwrap().qname().to_owned();
    let count = match manner {
        Manner::Good | Manner::Forged => 1,
        Manner::Long(count) if is_tcp => count,
        _ => 0,
    };
    answer.header_mut().set_tc(matches!(manner, Manner::Long(_)) && !is_tcp);
    for number in 1..=count {
        let address = A::new(Ipv4Addr::from(0xc000_0200 + number as u32));
        answer.push((owner, 60, address)).unwrap();
    }
    answer.finish()
}

async fn fake(manner: Manner) -> Fake {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let fake = Fake {
        address: udp.local_addr().unwrap(),
        asked: Arc::default(),
        by_tcp: Arc::default(),
    };
    let (asked, by_tcp) = (fake.asked.clone(), fake.by_tcp.clone());
    tokio::spawn(async move {
        let mut buffer = vec![0; 4_096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let query = &buffer[..length];
            asked
                .lock()
                .unwrap()
                .push((u16::from_be_bytes([query[0], query[1]]), from.port()));
            if manner == Manner::Silent {
                continue;
            }
            let reply = fake_reply(query, manner, false);
            if manner == Manner::Forged {
                let bad = A::new(Ipv4Addr::new(6, 6, 6, 6)).addr().octets();
                let mut forged = reply.clone();
                let end = forged.len();
                forged[end - 4..].copy_from_slice(&bad);
                let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                stranger.send_to(&forged, from).await.unwrap();
                // Another id, another name, no reply at all, garbage.
                for at in [0, 13, 2] {
                    let mut other = forged.clone();
                    other[at] ^= if at == 2 { 0x80 } else { 1 };
                    udp.send_to(&other, from).await.unwrap();
                }
                udp.send_to(b"garbage", from).await.unwrap();
            }
            udp.send_to(&reply, from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            by_tcp.fetch_add(1, Ordering::Relaxed);
            while let Ok(Some(query)) = read_framed(&mut stream, 4_096).await {
                write_framed(&mut stream, &fake_reply(&query, manner, true))
                    .await
                    .unwrap();
            }
        }
    });
    fake
}

/// A port that nobody listens on.
async fn dead() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn callers_of_two_organisations_get_their_own_answers() {
    let node = start(Upstream::Servers(Vec::new()));
    let web = query("web.shop.roble", None);
    for (caller, expected) in [
        (FIRST, "NOERROR 10.30.11.1"),
        (SECOND, "NOERROR 10.30.21.1"),
        (STRANGER, "REFUSED"),
    ] {
        assert_eq!(ask_udp(&node, caller, &web).await, expected);
        if caller != STRANGER {
            assert_eq!(ask_tcp(&node, caller, &web).await, expected);
        }
    }
    let mut stream = connect(&node, STRANGER).await;
    assert!(
        matches!(read_framed(&mut stream, 9).await, Ok(None) | Err(_)),
        "a stranger's connection is closed"
    );
    assert_eq!(ask_udp(&node, FIRST, &query("no.shop.roble", None)).await, "NXDOMAIN");
    assert_eq!((node.metrics.found.get(), node.metrics.unknown.get()), (4, 1));
    assert_eq!(node.metrics.forwarded.get(), 0);
}

#[tokio::test]
async fn a_connection_takes_several_queries_and_ends_when_idle() {
    let node = start(Upstream::Servers(Vec::new()));
    let mut stream = connect(&node, FIRST).await;
    for _ in 0..3 {
        write_framed(&mut stream, &query("web.shop.roble", None)).await.unwrap();
        let reply = read_framed(&mut stream, 65_535).await.unwrap().unwrap();
        assert_eq!(shown(&reply), "NOERROR 10.30.11.1");
    }
    // Half of a query does not keep it open. From here on, time passes as soon as nothing else happens.
    use tokio::io::AsyncWriteExt as _;
    stream.write_all(&[0]).await.unwrap();
    tokio::time::pause();
    assert_eq!(read_framed(&mut stream, 9).await.unwrap(), None);
}

/// What is said of a name that is not there for the caller of organisation 1.
fn nothing_at(name: &str) -> Answers {
    let want = WantRow {
        application: zone::sample_caller(1).application,
        wanted: Wanted::Name(name.to_owned()),
        service: None,
    };
    Answers::of(&[Row::Want(want)], BTreeSet::new())
}

#[tokio::test]
async fn a_service_of_another_application_is_asked_for_and_the_answer_waits() {
    let node = start(Upstream::Servers(Vec::new()));
    let (whole, _) = zone::sample();
    node.zone.send(Arc::new(Zone::default())).unwrap();
    let wanted = node.wants.rows();
    let web = query("web.shop.roble", None);
    let answer = {
        let (address, web) = (node.address, web.clone());
        tokio::spawn(async move {
            let socket = UdpSocket::bind((FIRST, 0)).await.unwrap();
            socket.send_to(&web, address).await.unwrap();
            let mut buffer = vec![0; 512];
            let (length, _) = timeout(DEADLINE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
            shown(&buffer[..length])
        })
    };
    let mut changes = wanted.clone();
    timeout(DEADLINE, changes.wait_for(|rows| !rows.is_empty()))
        .await
        .unwrap()
        .unwrap();
    let Some(Row::Want(want)) = wanted.borrow().first().cloned() else {
        panic!("a want")
    };
    assert_eq!(want.wanted, Wanted::Name("web.shop".to_owned()));
    assert!(!answer.is_finished());
    node.zone.send(Arc::new(whole)).unwrap();
    let found = WantRow {
        service: Some(ServiceId(RawId::from_bytes([11; 12]))),
        ..want
    };
    node.wants
        .set_answers(Answers::of(&[Row::Want(found.clone())], BTreeSet::new()));
    assert!(!answer.is_finished(), "the service's row has not come yet");
    let service = ServiceRow {
        service: ServiceId(RawId::from_bytes([11; 12])),
        organization: zone::sample_caller(1).organization,
        application: found.application,
        path: "shop/web".to_owned(),
        v4: BTreeMap::new(),
        v6: BTreeMap::new(),
        allows: Vec::new(),
    };
    let rows = [Row::Want(found), Row::Service(service)];
    node.wants.set_answers(Answers::of(&rows, BTreeSet::new()));
    assert_eq!(answer.await.unwrap(), "NOERROR 10.30.11.1");
    // Nobody answers: neither there nor not there. Nobody is asked for what is of the own application, or no service's name.
    assert_eq!(ask_tcp(&node, FIRST, &query("web.mail.roble", None)).await, "SERVFAIL");
    for name in ["other.shop.roble", "web.roble", "we*b.mail.roble"] {
        assert_eq!(ask_udp(&node, FIRST, &query(name, None)).await, "NXDOMAIN", "{name}");
    }
    // A policy without an IPv4 address: it is asked for, and the name is there all the same.
    assert_eq!(
        ask_udp(&node, FIRST, &query("closest.web.shop.roble", None)).await,
        "NOERROR"
    );
    let names: BTreeSet<String> = wanted
        .borrow()
        .iter()
        .filter_map(|row| match row {
            Row::Want(WantRow {
                wanted: Wanted::Name(name),
                ..
            }) => Some(name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        names,
        ["closest.web.shop", "web.mail", "web.shop"].map(str::to_owned).into()
    );
}

#[tokio::test]
async fn changes_count_at_once() {
    let node = start(Upstream::Servers(Vec::new()));
    let web = query("web.shop.roble", None);
    node.zone.send(Arc::new(Zone::default())).unwrap();
    node.wants.set_answers(nothing_at("web.shop"));
    assert_eq!(ask_udp(&node, FIRST, &web).await, "NXDOMAIN");
    node.callers.send(Arc::default()).unwrap();
    assert_eq!(ask_udp(&node, FIRST, &web).await, "REFUSED");
}

#[tokio::test]
async fn other_names_go_upstream_under_ids_and_ports_of_their_own() {
    let server = fake(Manner::Good).await;
    let node = start(Upstream::Servers(vec![server.address]));
    for _ in 0..20 {
        assert_eq!(
            ask_udp(&node, FIRST, &query("example.com", Some(1_232))).await,
            "NOERROR 192.0.2.1"
        );
    }
    assert_eq!(
        ask_tcp(&node, SECOND, &query("example.com", None)).await,
        "NOERROR 192.0.2.1"
    );
    let asked = server.asked.lock().unwrap().clone();
    let ids: BTreeSet<u16> = asked.iter().map(|(id, _)| *id).collect();
    let ports: BTreeSet<u16> = asked.iter().map(|(_, port)| *port).collect();
    assert!(ids.len() > 15 && ports.len() > 15, "{asked:?}");
    assert_eq!((node.metrics.forwarded.get(), node.metrics.unanswered.get()), (21, 0));
}

#[tokio::test]
async fn what_is_cut_upstream_is_asked_again_by_tcp() {
    for (count, edns, expected, by_tcp) in [
        (60, Some(4_096), "NOERROR 60 addresses", 1),
        // Too long for its asker, who has to come by TCP.
        (60, None, "NOERROR TC", 0),
        (60, Some(600), "NOERROR TC", 1),
    ] {
        let server = fake(Manner::Long(count)).await;
        let node = start(Upstream::Servers(vec![server.address]));
        assert_eq!(
            ask_udp(&node, FIRST, &query("example.com", edns)).await,
            expected,
            "{edns:?}"
        );
        assert_eq!(server.by_tcp.load(Ordering::Relaxed), by_tcp, "{edns:?}");
        assert_eq!(
            ask_tcp(&node, FIRST, &query("example.com", edns)).await,
            "NOERROR 60 addresses"
        );
    }
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let server = fake(Manner::Forged).await;
    let node = start(Upstream::Servers(vec![server.address]));
    assert_eq!(
        ask_udp(&node, FIRST, &query("example.com", None)).await,
        "NOERROR 192.0.2.1"
    );
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_and_then_first() {
    for manner in [Manner::Unable, Manner::Silent] {
        let (bad, good) = (fake(manner).await, fake(Manner::Good).await);
        let node = start(Upstream::Servers(vec![bad.address, good.address]));
        for _ in 0..3 {
            assert_eq!(
                ask_udp(&node, FIRST, &query("example.com", None)).await,
                "NOERROR 192.0.2.1"
            );
        }
        if manner == Manner::Silent {
            assert_eq!(bad.asked.lock().unwrap().len(), 1, "it is not waited for each time");
            assert_eq!(node.metrics.upstream_failures.get(), 1);
        }
    }
    let node = start(Upstream::Servers(vec![dead().await, fake(Manner::Good).await.address]));
    assert_eq!(
        ask_udp(&node, FIRST, &query("example.com", None)).await,
        "NOERROR 192.0.2.1"
    );
}

#[tokio::test]
async fn names_of_ours_are_answered_while_upstream_is_dead() {
    let silent = fake(Manner::Silent).await;
    let node = start(Upstream::Servers(vec![silent.address]));
    // As many as are passed on for one client, and more.
    let waiting = UdpSocket::bind((FIRST, 0)).await.unwrap();
    let asked = Instant::now();
    for _ in 0..80 {
        waiting
            .send_to(&query("example.com", None), node.address)
            .await
            .unwrap();
    }
    assert_eq!(
        ask_udp(&node, FIRST, &query("web.shop.roble", None)).await,
        "NOERROR 10.30.11.1"
    );
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let mut buffer = [0; 512];
    for _ in 0..80 {
        let received = timeout(DEADLINE, waiting.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(shown(&buffer[..received]), "SERVFAIL");
    }
    assert!(asked.elapsed() < Duration::from_secs(6), "before the asker gives up");
    assert_eq!((node.metrics.limited.get(), node.metrics.unanswered.get()), (16, 64));
    for upstream in [
        Upstream::Servers(Vec::new()),
        Upstream::Servers(vec![dead().await]),
        Upstream::File("/nonexistent/resolv.conf".into()),
    ] {
        let node = start(upstream);
        assert_eq!(ask_udp(&node, FIRST, &query("example.com", None)).await, "SERVFAIL");
        assert_eq!(ask_tcp(&node, FIRST, &query("example.com", None)).await, "SERVFAIL");
    }
}

#[tokio::test]
async fn a_flood_of_one_client_is_cut_off_and_others_are_served() {
    let node = start(Upstream::Servers(Vec::new()));
    let flood = UdpSocket::bind((FIRST, 0)).await.unwrap();
    let web = query("web.shop.roble", None);
    let began = Instant::now();
    while node.metrics.limited.get() == 0 {
        assert!(began.elapsed() < DEADLINE, "never limited");
        for _ in 0..100 {
            flood.send_to(&web, node.address).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(ask_udp(&node, SECOND, &web).await, "NOERROR 10.30.21.1");
}

#[tokio::test]
async fn an_address_need_not_be_there_yet_and_a_port_has_one_owner() {
    let addresses = ["192.0.2.77:0".parse().unwrap(), "[2001:db8::77]:0".parse().unwrap()];
    match Listeners::bind(&addresses) {
        Ok(listeners) => assert_eq!(listeners.addresses().len(), 2),
        // A kernel without IPv6.
        Err(error) => assert_eq!(error.source.raw_os_error(), Some(97), "{error:?}"),
    }
    let first = Listeners::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let error = Listeners::bind(&first.addresses()).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}
