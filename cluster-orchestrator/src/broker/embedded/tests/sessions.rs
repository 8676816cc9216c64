//! Names, topics, order of events, quality of service 1.

use super::*;

#[tokio::test(start_paused = true)]
async fn only_the_names_in_the_certificate_are_admitted() {
    let broker = broker();
    let me = node(1);
    let good = client_id(me, Branch::Net);
    for (name, code) in [
        (good.clone(), ConnectReturnCode::Success),
        (client_id(node(2), Branch::Net), ConnectReturnCode::BadClientId),
        (me.to_string(), ConnectReturnCode::BadClientId),
        (String::new(), ConnectReturnCode::BadClientId),
        (format!("{me}/x"), ConnectReturnCode::BadClientId),
        (format!("{me}/e/"), ConnectReturnCode::BadClientId),
        (good.to_uppercase(), ConnectReturnCode::BadClientId),
    ] {
        let mut raw = Raw::open(&broker, me);
        raw.say(&Packet::Connect(Connect::new(name.clone()))).await;
        assert_eq!(raw.connack().await, code, "{name}");
        if code != ConnectReturnCode::Success {
            raw.closed().await;
        }
    }
    let mut lasting = Connect::new(good.clone());
    lasting.clean_session = false;
    let mut newer = Connect::new(good);
    newer.protocol = rumqttc::mqttbytes::Protocol::V5;
    for connect in [lasting, newer] {
        let mut raw = Raw::open(&broker, me);
        raw.say(&Packet::Connect(connect)).await;
        assert_ne!(raw.connack().await, ConnectReturnCode::Success);
        raw.closed().await;
    }
    until(&broker, "refusals", |stats| stats.refused == 8).await;
}

/// Every topic that three nodes could name, with some that are nobody's, against every identity and branch.
#[tokio::test(start_paused = true)]
async fn every_topic_by_every_identity() {
    let broker = broker();
    let (nodes, branches) = ([node(1), node(2), node(3)], [Branch::Engine, Branch::Net]);
    let mut topics = Vec::new();
    for node in nodes {
        for branch in branches {
            for direction in [Direction::Up, Direction::Down] {
                topics.push(topic(node, branch, direction));
            }
        }
        let down = topic(node, Branch::Engine, Direction::Down);
        let name = down.trim_end_matches("/e/d");
        topics.extend([
            format!("{name}/#"),
            format!("{name}/+/d"),
            format!("{down}/x"),
            format!("{name}=/e/d"),
            format!("{node}/e/d"),
        ]);
    }
    topics.extend(
        [
            "#",
            "+/+/+",
            "+/+/+/+",
            "+/+/u",
            "$SYS/#",
            "$share/g/x/e/d",
            "",
            "r",
            "/",
            "//",
        ]
        .map(String::from),
    );

    let (mut publishes, mut subscribes) = (0, 0);
    for me in nodes {
        for branch in branches {
            for name in &topics {
                let mut raw = Raw::session(&broker, me, branch).await;
                let own = *name == topic(me, branch, Direction::Down);
                let code = raw.subscribe(name, QoS::AtMostOnce).await;
                let expected = if own {
                    SubscribeReasonCode::Success(QoS::AtMostOnce)
                } else {
                    SubscribeReasonCode::Failure
                };
                assert_eq!(code, vec![expected], "{me} {branch:?} subscribes to {name}");
                subscribes += u64::from(!own);

                raw.publish(name, b"x").await;
                if *name == topic(me, branch, Direction::Up) {
                    let payload = Bytes::from_static(b"x");
                    event(
                        &broker,
                        BrokerEvent::Message {
                            node: me,
                            branch,
                            payload,
                        },
                    )
                    .await;
                    assert!(raw.is_alive().await);
                    drop(raw);
                } else {
                    publishes += 1;
                    raw.closed().await;
                }
                event(&broker, BrokerEvent::Disconnected { node: me, branch }).await;
            }
        }
    }
    let stats = broker.stats();
    assert_eq!(
        (stats.forbidden_publish, stats.forbidden_subscribe),
        (publishes, subscribes)
    );
    assert_eq!(stats.clients, 0);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_reported_between_the_two_sessions() {
    let broker = broker();
    let (me, branch) = (node(1), Branch::Engine);
    let mut first = Raw::session(&broker, me, branch).await;
    first.publish(&topic(me, branch, Direction::Up), b"1").await;
    assert!(first.is_alive().await);
    let mut second = Raw::open(&broker, me);
    second.enter(me, branch, QoS::AtMostOnce).await;
    first.closed().await;
    second.publish(&topic(me, branch, Direction::Up), b"2").await;
    let message = |text| BrokerEvent::Message {
        node: me,
        branch,
        payload: Bytes::from_static(text),
    };
    for expected in [
        message(b"1"),
        BrokerEvent::Duplicate { node: me },
        BrokerEvent::Disconnected { node: me, branch },
        BrokerEvent::Connected { node: me, branch },
        message(b"2"),
    ] {
        assert_eq!(within("event", broker.next()).await, expected);
    }
    assert_eq!(broker.stats().duplicates, 1);
    // The other branch of the same node is no duplicate.
    Raw::session(&broker, me, Branch::Net).await;
    assert_eq!(broker.stats().duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn quality_of_service_1_is_acknowledged_both_ways_and_bounded() {
    let broker = broker();
    let (me, branch) = (node(1), Branch::Engine);
    let mut raw = Raw::open(&broker, me);
    raw.enter(me, branch, QoS::AtLeastOnce).await;
    event(&broker, BrokerEvent::Connected { node: me, branch }).await;

    let mut publish = Publish::new(topic(me, branch, Direction::Up), QoS::AtLeastOnce, "up");
    publish.pkid = 9;
    raw.say(&Packet::Publish(publish)).await;
    assert_eq!(within("PUBACK", raw.hear()).await, Some(Packet::PubAck(PubAck::new(9))));

    for _ in 0..100 {
        broker.send(me, branch, Bytes::from_static(b"down")).await.unwrap();
    }
    let mut ids = Vec::new();
    for _ in 0..Limits::default().inflight {
        match within("PUBLISH", raw.hear()).await {
            Some(Packet::Publish(publish)) => ids.push(publish.pkid),
            other => panic!("{other:?}"),
        }
    }
    // No more without an acknowledgement: the next packet is the answer to the ping.
    assert!(raw.is_alive().await);
    ids.reverse();
    for id in ids.drain(..).take(36) {
        raw.say(&Packet::PubAck(PubAck::new(id))).await;
    }
    for _ in 0..36 {
        assert!(matches!(within("PUBLISH", raw.hear()).await, Some(Packet::Publish(_))));
    }
    // Whoever never acknowledges has stalled once something waits for it.
    broker.send(me, branch, Bytes::from_static(b"more")).await.unwrap();
    raw.closed().await;
    until(&broker, "stalled", |stats| stats.stalled == 1).await;
}

#[tokio::test(start_paused = true)]
async fn unsubscribing_ends_delivery_only() {
    let broker = broker();
    let (me, branch) = (node(1), Branch::Engine);
    let mut raw = Raw::session(&broker, me, branch).await;
    let mut unsubscribe = rumqttc::mqttbytes::v4::Unsubscribe::new(topic(me, branch, Direction::Down));
    unsubscribe.pkid = 3;
    raw.say(&Packet::Unsubscribe(unsubscribe)).await;
    assert!(matches!(
        within("UNSUBACK", raw.hear()).await,
        Some(Packet::UnsubAck(_))
    ));
    assert_eq!(
        broker.send(me, branch, Bytes::new()).await,
        Err(SendError::NotConnected)
    );
    assert!(raw.is_alive().await);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_node_is_put_out_at_once_also_before_connect() {
    let broker = broker();
    let mut session = Raw::session(&broker, node(1), Branch::Engine).await;
    let mut quiet = Raw::open(&broker, node(1));
    let mut other = Raw::session(&broker, node(2), Branch::Engine).await;
    tokio::task::yield_now().await;
    let before = tokio::time::Instant::now();
    broker.revoke(node(1)).await.unwrap();
    session.closed().await;
    quiet.closed().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    event(
        &broker,
        BrokerEvent::Disconnected {
            node: node(1),
            branch: Branch::Engine,
        },
    )
    .await;
    Raw::open(&broker, node(1)).closed().await;
    assert!(other.is_alive().await);
    assert!(broker.is_revoked(node(1)) && broker.stats().revoked == 3);
    broker.admit(node(1)).await.unwrap();
    Raw::session(&broker, node(1), Branch::Engine).await;
}
