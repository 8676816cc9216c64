//! Clients that stall, flood, lie or babble: each loses its connection, and a bystander notices nothing.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_connect_that_drips_is_cut_off() {
    let broker = broker();
    let mut bystander = Raw::session(&broker, node(1), Branch::Engine).await;
    let started = tokio::time::Instant::now();
    let mut packet = BytesMut::new();
    Packet::Connect(Connect::new(client_id(node(2), Branch::Engine)))
        .write(&mut packet, 1024)
        .unwrap();
    let mut raw = Raw::open(&broker, node(2));
    for byte in packet {
        raw.bytes(&[byte]).await;
        tokio::time::advance(Duration::from_millis(900)).await;
    }
    raw.closed().await;
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(broker.stats().refused, 1);
    let _ = bystander.is_alive().await;
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_one_and_a_half_times_the_keep_alive() {
    let broker = broker();
    let mut raw = Raw::session(&broker, node(1), Branch::Engine).await;
    let heard = tokio::time::Instant::now();
    // A byte of a packet that never ends is silence too.
    raw.bytes(&[0x30]).await;
    raw.closed().await;
    assert_eq!(heard.elapsed().as_secs(), 15);
    assert_eq!(broker.stats().silent, 1);

    let mut connect = Connect::new(client_id(node(1), Branch::Engine));
    connect.keep_alive = 0;
    let mut raw = Raw::open(&broker, node(1));
    raw.say(&Packet::Connect(connect)).await;
    raw.connack().await;
    let heard = tokio::time::Instant::now();
    while raw.hear().await.is_some() {}
    assert_eq!(heard.elapsed(), Limits::default().longest_idle);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_fills_its_queue_and_is_put_out() {
    let broker = broker();
    let (me, branch) = (node(1), Branch::Engine);
    let mut raw = Raw::with_pipe(&broker, me, 4 * 1024);
    raw.enter(me, branch, QoS::AtMostOnce).await;
    event(&broker, BrokerEvent::Connected { node: me, branch }).await;
    let mut bystander = Raw::session(&broker, node(2), branch).await;

    let message = Bytes::from(vec![1; 50_000]);
    let mut taken = 0;
    while broker.send(me, branch, message.clone()).await.is_ok() {
        taken += 1;
        assert!(broker.stats().queued_bytes <= MQTT_QUEUE_BYTES as u64);
    }
    assert!((20..=22).contains(&taken), "{taken}");
    assert_eq!(broker.stats().queue_full, 1);
    assert!(bystander.is_alive().await);
    broker
        .send(node(2), branch, Bytes::from_static(b"still served"))
        .await
        .unwrap();
    assert!(matches!(
        within("message", bystander.hear()).await,
        Some(Packet::Publish(_))
    ));

    event(&broker, BrokerEvent::Disconnected { node: me, branch }).await;
    assert_eq!(broker.stats().stalled, 1);
    assert_eq!(broker.send(me, branch, message).await, Err(SendError::NotConnected));
}

#[tokio::test(start_paused = true)]
async fn many_small_messages_are_bounded_by_number() {
    let broker = broker();
    let mut raw = Raw::with_pipe(&broker, node(1), 1024);
    raw.enter(node(1), Branch::Engine, QoS::AtMostOnce).await;
    event(
        &broker,
        BrokerEvent::Connected {
            node: node(1),
            branch: Branch::Engine,
        },
    )
    .await;
    let mut taken = 0;
    while broker
        .send(node(1), Branch::Engine, Bytes::from_static(b"tiny"))
        .await
        .is_ok()
    {
        taken += 1;
    }
    assert_eq!(taken, MQTT_QUEUE_PACKETS);
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_his_answers_is_put_out() {
    let broker = broker();
    let mut raw = Raw::with_pipe(&broker, node(1), 1024);
    raw.enter(node(1), Branch::Engine, QoS::AtMostOnce).await;
    event(
        &broker,
        BrokerEvent::Connected {
            node: node(1),
            branch: Branch::Engine,
        },
    )
    .await;
    for _ in 0..2_000 {
        raw.say(&Packet::PingReq).await;
    }
    event(
        &broker,
        BrokerEvent::Disconnected {
            node: node(1),
            branch: Branch::Engine,
        },
    )
    .await;
    assert_eq!(broker.stats().stalled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_makes_only_its_sender_wait() {
    let broker = broker();
    let (flooder, branch) = (node(1), Branch::Engine);
    let mut raw = Raw::session(&broker, flooder, branch).await;
    let mut bystander = Raw::session(&broker, node(2), branch).await;
    // Nobody takes events meanwhile. The flood stops at the client's share.
    let up = topic(flooder, branch, Direction::Up);
    let flood = tokio::spawn(async move {
        for _ in 0..10_000 {
            raw.publish(&up, &[7; 1000]).await;
        }
        raw
    });
    until(&broker, "share used up", |stats| stats.received > 100).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let share = Limits::default().inbox_bytes_per_client as u64 / 1_000;
    assert!(broker.stats().received <= share, "{}", broker.stats().received);
    let before = broker.stats().received;
    bystander
        .publish(&topic(node(2), branch, Direction::Up), b"through")
        .await;
    until(&broker, "bystander heard", |stats| stats.received == before + 1).await;
    // Taking events lets the flood go on.
    let mut flooded = 0;
    while flooded < 10_000 {
        if let BrokerEvent::Message { node, .. } = within("event", broker.next()).await {
            flooded += u64::from(node == flooder);
        }
    }
    assert!(flood.await.unwrap().is_alive().await);
}

#[tokio::test(start_paused = true)]
async fn too_large_packets_are_refused_by_their_header() {
    let broker = broker();
    for connected in [false, true] {
        let mut raw = Raw::open(&broker, node(1));
        if connected {
            raw.enter(node(1), Branch::Engine, QoS::AtMostOnce).await;
            // PUBLISH announcing 256 KiB and one byte.
            raw.bytes(&[0x30, 0x81, 0x80, 0x10]).await;
        } else {
            // CONNECT announcing 2 KiB.
            raw.bytes(&[0x10, 0x80, 0x10]).await;
        }
        raw.closed().await;
    }
    assert_eq!(broker.stats().protocol_errors, 2);
}

#[tokio::test(start_paused = true)]
async fn packets_out_of_place_end_the_connection() {
    let broker = broker();
    let (me, branch) = (node(1), Branch::Engine);
    let up = topic(me, branch, Direction::Up);
    let mut twice = Publish::new(&up, QoS::ExactlyOnce, "x");
    twice.pkid = 1;
    let mut kept = Publish::new(&up, QoS::AtMostOnce, "x");
    kept.retain = true;
    let many = Subscribe {
        pkid: 1,
        filters: vec![Subscribe::new("r/x", QoS::AtMostOnce).filters[0].clone(); 9],
    };
    for packet in [
        Packet::Connect(Connect::new(client_id(me, branch))),
        Packet::PingResp,
        Packet::Publish(twice),
        Packet::Publish(kept),
        Packet::Subscribe(many),
    ] {
        let mut raw = Raw::session(&broker, me, branch).await;
        raw.say(&packet).await;
        raw.closed().await;
        event(&broker, BrokerEvent::Disconnected { node: me, branch }).await;
    }
    // Speaking before subscribing: the cluster could not answer.
    let mut raw = Raw::open(&broker, me);
    raw.say(&Packet::Connect(Connect::new(client_id(me, branch)))).await;
    raw.connack().await;
    raw.publish(&up, b"early").await;
    raw.closed().await;
    assert_eq!(broker.stats().protocol_errors, 6);
}

#[tokio::test(start_paused = true)]
async fn one_node_cannot_take_all_connections() {
    let broker = broker();
    let limit = Limits::default().connections_per_node;
    let mut quiet: Vec<_> = (0..limit).map(|_| Raw::open(&broker, node(1))).collect();
    tokio::task::yield_now().await;
    Raw::open(&broker, node(1)).closed().await;
    Raw::session(&broker, node(2), Branch::Engine).await;
    // They time out without CONNECT, and the node can come back.
    for raw in &mut quiet {
        raw.closed().await;
    }
    Raw::session(&broker, node(1), Branch::Engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_reconnections_leaves_nothing_behind() {
    let broker = broker();
    let branch = Branch::Engine;
    let storm: Vec<_> = (0..50_u8)
        .map(|number| {
            let broker = broker.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let mut raw = Raw::open(&broker, node(number));
                    if round % 3 == 0 {
                        continue;
                    }
                    raw.enter(node(number), branch, QoS::AtMostOnce).await;
                }
            })
        })
        .collect();
    let counting = tokio::spawn({
        let broker = broker.clone();
        async move {
            let mut open = HashMap::new();
            loop {
                match broker.next().await {
                    BrokerEvent::Connected { node, .. } => assert!(open.insert(node, ()).is_none()),
                    BrokerEvent::Disconnected { node, .. } => assert!(open.remove(&node).is_some()),
                    BrokerEvent::Message { payload, .. } if payload == "end" => return open.len(),
                    _ => {}
                }
            }
        }
    });
    for task in storm {
        task.await.unwrap();
    }
    until(&broker, "all gone", |stats| stats.clients == 0).await;
    let mut last = Raw::open(&broker, node(200));
    last.enter(node(200), branch, QoS::AtMostOnce).await;
    last.publish(&topic(node(200), branch, Direction::Up), b"end").await;
    assert_eq!(within("end", counting).await.unwrap(), 1);
    until(&broker, "one open", |_| broker.hub.state().open.len() == 1).await;
}

/// Valid packets, alone and together, that the fuzzing starts from.
fn corpus() -> Vec<Vec<u8>> {
    let mut twice = Publish::new("r/a/e/u", QoS::AtLeastOnce, "payload");
    twice.pkid = 7;
    let packets = [
        Packet::Connect(Connect::new(client_id(node(1), Branch::Engine))),
        Packet::Publish(Publish::new("r/a/e/u", QoS::AtMostOnce, vec![1; 200])),
        Packet::Publish(twice),
        Packet::Subscribe(Subscribe::new("r/a/e/d", QoS::AtLeastOnce)),
        Packet::Unsubscribe(rumqttc::mqttbytes::v4::Unsubscribe::new("r/a/e/d")),
        Packet::PubAck(PubAck::new(3)),
        Packet::PingReq,
        Packet::Disconnect,
    ];
    let mut all = Vec::new();
    let mut corpus: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let mut buffer = BytesMut::new();
            packet.write(&mut buffer, usize::MAX).unwrap();
            all.extend_from_slice(&buffer);
            buffer.to_vec()
        })
        .collect();
    corpus.push(all);
    // Announces more than follows; announces the most that can be; endless length.
    corpus.extend([
        vec![0x30, 0x7f, 0],
        vec![0x30, 0xff, 0xff, 0xff, 0x7f],
        vec![0x30, 0xff, 0xff, 0xff, 0xff, 0xff],
    ]);
    // Every type with every short body of zeros or ones.
    for kind in 0..=255_u8 {
        for length in 0..6_u8 {
            for fill in [0, 0xff] {
                let mut packet = vec![kind, length];
                packet.extend(std::iter::repeat_n(fill, length.into()));
                corpus.push(packet);
            }
        }
    }
    corpus
}

fn damaged(seed: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            _ if bytes.is_empty() => {}
            kind => {
                let at = at % bytes.len();
                bytes[at] = if kind == 2 {
                    rng.random()
                } else {
                    bytes[at] ^ (1 << rng.random_range(0..8))
                };
            }
        }
    }
    bytes
}

#[test]
fn the_codec_survives_damaged_packets() {
    let mut rng = SmallRng::seed_from_u64(20_261_122);
    for seed in corpus() {
        codec::fuzz(&seed, seed.len() / 2, 64 * 1024);
        for _ in 0..100 {
            let bytes = damaged(&seed, &mut rng);
            codec::fuzz(&bytes, rng.random_range(0..=bytes.len()), 64 * 1024);
        }
    }
    for _ in 0..20_000 {
        let mut bytes = vec![0; rng.random_range(0..64)];
        rng.fill_bytes(&mut bytes);
        codec::fuzz(&bytes, bytes.len() / 3, 64 * 1024);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection_and_nothing_else() {
    let broker = broker();
    let mut rng = SmallRng::seed_from_u64(1);
    let seeds = corpus();
    let mut connect = BytesMut::new();
    Packet::Connect(Connect::new(client_id(node(1), Branch::Engine)))
        .write(&mut connect, 1024)
        .unwrap();
    for round in 0..2_000 {
        let (mut stream, far) = tokio::io::duplex(4096);
        let mut bytes = if round % 2 == 0 { connect.to_vec() } else { Vec::new() };
        bytes.extend(damaged(&seeds[rng.random_range(0..seeds.len())], &mut rng));
        let served = tokio::spawn({
            let broker = broker.clone();
            async move { broker.serve(node(1), far).await }
        });
        stream.write_all(&bytes).await.unwrap();
        drop(stream);
        within("connection ended", served).await.expect("no panic");
    }
    while tokio::time::timeout(Duration::from_millis(1), broker.next())
        .await
        .is_ok()
    {}
    assert!(Raw::session(&broker, node(2), Branch::Engine).await.is_alive().await);
    assert_eq!(broker.stats().clients, 1);
}
