use super::super::zone::{sample, sample_caller};
use super::*;
use domain::rdata::AllRecordData;
use proptest::prelude::*;
use roble_core::ids::{ApplicationId, InstanceId, NodeId, OrganizationId, RawId};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{InstanceRow, Row, ServiceRow};
use std::collections::BTreeMap;

const ID: u16 = 0x1234;

fn query(name: &str, qtype: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(ID);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((Name::vec_from_str(name).unwrap(), qtype)).unwrap();
    let mut additional = question.additional();
    if let Some(size) = edns {
        let set = |record: &mut domain::base::message_builder::OptBuilder<'_, _>| {
            record.set_udp_payload_size(size);
            Ok(())
        };
        additional.opt(set).unwrap();
    }
    additional.finish()
}

/// What a reply says: code, records of each section as text.
fn shown(reply: &[u8]) -> String {
    let message = Message::from_slice(reply).unwrap();
    let header = message.header();
    assert!(
        header.qr() && header.ra() && header.rd() && header.id() == ID,
        "{header:?}"
    );
    let mut text = header.rcode().to_string();
    if header.tc() {
        text.push_str(" TC");
    }
    let sections = [("", message.answer().unwrap()), ("+", message.additional().unwrap())];
    for (mark, section) in sections {
        for record in section.limit_to::<AllRecordData<_, _>>() {
            let record = record.unwrap();
            if record.rtype() != Rtype::OPT {
                assert_eq!(record.ttl(), TTL);
                text.push_str(&format!(" {mark}{} {}", record.owner(), record.data()));
            }
        }
    }
    if message.header_counts().nscount() > 0 {
        text.push_str(" SOA");
    }
    text
}

fn ask(name: &str, qtype: Rtype) -> String {
    let (zone, caller) = sample();
    match answer(&query(name, qtype, None), &caller, &zone, Transport::Udp) {
        Answer::Reply(reply) => shown(&reply),
        other => format!("{other:?}"),
    }
}

#[test]
fn names_of_ours() {
    let web6 = "fdff:2000:b0b:b0b:b0b:b0b:b0b:b0b";
    for (name, qtype, expected) in [
        ("web.shop.roble", Rtype::A, "NOERROR web.shop.roble 10.30.11.1"),
        ("web.shop.roble", Rtype::AAAA, &format!("NOERROR web.shop.roble {web6}")),
        ("WEB.sHoP.rObLe", Rtype::A, "NOERROR WEB.sHoP.rObLe 10.30.11.1"),
        (
            "web.shop.test.roble",
            Rtype::A,
            "NOERROR web.shop.test.roble 10.30.12.1",
        ),
        ("0.web.shop.roble", Rtype::A, "NOERROR 0.web.shop.roble 10.30.11.2"),
        ("1.web.shop.roble", Rtype::A, "NOERROR SOA"),
        (
            "closest.web.shop.roble",
            Rtype::AAAA,
            "NOERROR closest.web.shop.roble fdff:1000:b0b:b0b:b0b:b0b:b0b:b0b",
        ),
        ("least.web.shop.roble", Rtype::A, "NOERROR SOA"),
        ("web.shop.roble", Rtype::TXT, "NOERROR SOA"),
        ("web.shop.roble", Rtype::HTTPS, "NOERROR SOA"),
        ("web.shop.roble", Rtype::from_int(65_280), "NOERROR SOA"),
        ("web.shop.roble", Rtype::ANY, "NOERROR SOA"),
        ("web.shop.roble", Rtype::AXFR, "REFUSED"),
        ("shop.roble", Rtype::A, "NOERROR SOA"),
        ("roble", Rtype::A, "NOERROR SOA"),
        ("none.shop.roble", Rtype::A, "NXDOMAIN SOA"),
        ("7.web.shop.roble", Rtype::A, "NXDOMAIN SOA"),
        ("a\\.b.roble", Rtype::A, "NXDOMAIN SOA"),
        ("web\\.shop.roble", Rtype::A, "NXDOMAIN SOA"),
        ("closest.web.shop.roble", Rtype::SRV, "NOERROR SOA"),
        ("example.com", Rtype::A, "Upstream"),
        ("web.shop.roble.com", Rtype::A, "Upstream"),
        ("xroble", Rtype::A, "Upstream"),
        ("x\\.roble", Rtype::A, "Upstream"),
        (".", Rtype::NS, "Upstream"),
    ] {
        assert_eq!(ask(name, qtype), expected, "{name} {qtype}");
    }
}

#[test]
fn servers_are_the_instances_that_are_ready_with_their_addresses() {
    let expected = "NOERROR \
        web.shop.roble 0 0 0 0.web.shop.roble. web.shop.roble 0 0 0 1.web.shop.roble. \
        +0.web.shop.roble 10.30.11.2 +0.web.shop.roble fdff:0:b0b:b0b:b0b:b0b:b0b:b0b \
        +1.web.shop.roble fdff:1:b0b:b0b:b0b:b0b:b0b:b0b";
    let plain = |text: String| text.replace(". ", " ");
    assert_eq!(plain(ask("web.shop.roble", Rtype::SRV)), plain(expected.to_owned()));
}

#[test]
fn addresses_have_names() {
    let six = "3.0.b.0.2.1.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.c.f.ip6.arpa";
    let plain = |text: String| text.trim_end_matches('.').to_owned();
    for (name, expected) in [
        (
            "3.11.18.10.in-addr.arpa",
            "NOERROR 3.11.18.10.in-addr.arpa 1.web.shop.roble",
        ),
        (
            "1.11.30.10.in-addr.arpa",
            "NOERROR 1.11.30.10.in-addr.arpa web.shop.roble",
        ),
        // Another organisation's, nobody's, one with a label too many, a whole network's.
        ("3.21.18.10.in-addr.arpa", "NXDOMAIN SOA"),
        ("9.99.18.10.in-addr.arpa", "NXDOMAIN SOA"),
        ("x.3.11.18.10.in-addr.arpa", "NXDOMAIN SOA"),
        ("11.18.10.in-addr.arpa", "NOERROR SOA"),
        // Not only ours, not ours, no address at all.
        ("10.in-addr.arpa", "Upstream"),
        ("1.1.168.192.in-addr.arpa", "Upstream"),
        ("03.11.18.10.in-addr.arpa", "Upstream"),
        ("in-addr.arpa", "Upstream"),
        ("ip6.arpa", "Upstream"),
        ("8.b.d.0.1.0.0.2.ip6.arpa", "Upstream"),
    ] {
        assert_eq!(plain(ask(name, Rtype::PTR)), expected, "{name}");
    }
    assert!(
        ask(six, Rtype::PTR).contains("1.web.shop.roble"),
        "{}",
        ask(six, Rtype::PTR)
    );
    assert_eq!(ask("3.11.18.10.in-addr.arpa", Rtype::A), "NOERROR SOA");
}

#[test]
fn each_organisation_has_its_own_answer_to_one_name() {
    let (zone, _) = sample();
    let ask = |organization, name: &str| {
        let query = query(name, Rtype::A, None);
        match answer(&query, &sample_caller(organization), &zone, Transport::Udp) {
            Answer::Reply(reply) => shown(&reply),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(ask(1, "web.shop.roble"), "NOERROR web.shop.roble 10.30.11.1");
    assert_eq!(ask(2, "web.shop.roble"), "NOERROR web.shop.roble 10.30.21.1");
    assert_eq!(ask(3, "web.shop.roble"), "NXDOMAIN SOA");
    assert_eq!(ask(3, "shop.roble"), "NXDOMAIN SOA");
}

/// A zone with a service of many instances, so that SRV does not fit.
fn crowd(instances: u32) -> (Zone, Caller) {
    let id = RawId::from_bytes([1; 12]);
    let service = ServiceId(id);
    let mut rows = vec![Row::Service(ServiceRow {
        service,
        organization: OrganizationId(id),
        application: ApplicationId(id),
        path: "shop/web".to_owned(),
        v4: BTreeMap::new(),
        v6: BTreeMap::new(),
        allows: Vec::new(),
    })];
    rows.extend((0..instances).map(|number| {
        Row::Instance(InstanceRow {
            instance: InstanceId { service, number },
            application: ApplicationId(id),
            node: NodeId(id),
            v4: Ipv4Addr::from(0x0a12_0000 + number),
            v6: Ipv6Addr::from(u128::from(number)),
            ready: true,
        })
    }));
    (Zone::new(Plan::default(), &rows), sample_caller(1))
}

#[test]
fn what_does_not_fit_a_datagram_comes_by_tcp() {
    let (zone, caller) = crowd(200);
    for (edns, limit) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(4_096), 1_232)] {
        let query = query("web.shop.roble", Rtype::SRV, edns);
        assert_eq!(reply_limit(&query, Transport::Udp), limit);
        let Answer::Reply(reply) = answer(&query, &caller, &zone, Transport::Udp) else {
            panic!("no reply");
        };
        assert_eq!(shown(&reply), "NOERROR TC");
        assert_eq!(Message::from_slice(&reply).unwrap().opt().is_some(), edns.is_some());
    }
    let query = query("web.shop.roble", Rtype::SRV, Some(1_232));
    let Answer::Reply(reply) = answer(&query, &caller, &zone, Transport::Tcp) else {
        panic!("no reply");
    };
    let counts = Message::from_slice(&reply).unwrap().header_counts();
    assert_eq!((counts.ancount(), counts.arcount()), (200, 201));
    // The addresses beside the answer are left out before the answer is.
    let (zone, caller) = crowd(12);
    let query = super::tests::query("web.shop.roble", Rtype::SRV, None);
    let Answer::Reply(reply) = answer(&query, &caller, &zone, Transport::Udp) else {
        panic!("no reply");
    };
    let message = Message::from_slice(&reply).unwrap();
    assert!(!message.header().tc() && reply.len() <= 512);
    assert_eq!(message.header_counts().ancount(), 12);
    assert!(message.header_counts().arcount() < 12);
}

#[test]
fn odd_queries() {
    let (zone, caller) = sample();
    let ask = |bytes: &[u8]| match answer(bytes, &caller, &zone, Transport::Udp) {
        Answer::Reply(reply) => Message::from_slice(&reply).unwrap().opt_rcode().to_string(),
        other => format!("{other:?}"),
    };
    let good = query("web.shop.roble", Rtype::A, Some(1_232));
    assert_eq!(ask(&good), "NOERROR");
    assert_eq!(ask(&good[..11]), "Drop");
    assert_eq!(ask(&good[..14]), "FORMERR");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(ask(&with(2, 0x81)), "Drop", "an answer");
    assert_eq!(ask(&with(2, 0x28)), "NOTIMP", "an update");
    assert_eq!(ask(&with(5, 0)), "FORMERR", "no question");
    assert_eq!(ask(&with(5, 2)), "FORMERR", "two questions");
    assert_eq!(ask(&with(4, 0xff)), "FORMERR", "very many questions");
    let opt = good.len() - OPT_BYTES;
    assert_eq!(ask(&with(opt + 6, 1)), "BADVERS");
    let class = opt - 1;
    assert_eq!(ask(&with(class, 3)), "REFUSED", "class CHAOS");
    assert_eq!(ask(&with(class, 255)), "NOERROR", "any class");
    // Flags that other resolvers set, one reserved among them.
    assert_eq!(ask(&with(3, 0x70)), "NOERROR");
    // A name that points to itself.
    let mut looped = good[..12].to_vec();
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(ask(&looped), "FORMERR");
}

#[test]
fn replies_are_told_from_others() {
    let asked = query("example.com", Rtype::A, None);
    let reply = failure(&asked, Transport::Udp).unwrap();
    assert!(is_reply_to(&reply, &asked));
    assert!(is_reply_to(
        &failure(&query("EXAMPLE.com", Rtype::A, None), Transport::Udp).unwrap(),
        &asked
    ));
    assert!(!is_reply_to(&asked, &asked), "a query");
    let mut other = reply.clone();
    other[0] ^= 1;
    assert!(!is_reply_to(&other, &asked), "another id");
    for (name, qtype) in [("example.org", Rtype::A), ("example.com", Rtype::AAAA)] {
        let other = failure(&query(name, qtype, None), Transport::Udp).unwrap();
        assert!(!is_reply_to(&other, &asked), "{name} {qtype}");
    }
    assert!(!is_reply_to(&[], &asked));
}

proptest! {
    /// Any bytes, and bytes that begin as a query does.
    #[test]
    fn no_bytes_are_too_odd(tail in prop::collection::vec(any::<u8>(), 0..300), flags in any::<[u8; 2]>(), counts in 0_u8..3) {
        super::super::fuzz_query(&tail);
        let mut bytes = vec![0, 1, flags[0] & 0x7f, flags[1], 0, 1, 0, 0, 0, 0, 0, counts];
        bytes.extend(&tail);
        super::super::fuzz_query(&bytes);
    }

    /// A valid query with some bytes changed, or cut.
    #[test]
    fn nor_are_changed_queries(changes in prop::collection::vec((0_usize..60, any::<u8>()), 0..6), cut in 0_usize..60) {
        let mut bytes = query("closest.web.shop.roble", Rtype::SRV, Some(1_232));
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        super::super::fuzz_query(&bytes);
        super::super::fuzz_query(&bytes[..cut.min(bytes.len())]);
    }

    /// Name to address and back again, in whatever case it is asked, and the question comes back as it was.
    #[test]
    fn addresses_lead_back(number in 0_u32..12, upper in any::<u32>()) {
        let (zone, caller) = crowd(12);
        let name = format!("{number}.web.shop.roble");
        let mixed: String = name.chars().enumerate()
            .map(|(at, c)| if upper >> (at % 32) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect();
        let query_bytes = query(&mixed, Rtype::AAAA, None);
        let Answer::Reply(reply) = answer(&query_bytes, &caller, &zone, Transport::Udp) else { panic!("no reply") };
        prop_assert_eq!(&reply[12..query_bytes.len()], &query_bytes[12..]);
        let message = Message::from_slice(&reply).unwrap();
        let record = message.answer().unwrap().limit_to::<Aaaa>().next().unwrap().unwrap();
        let nibbles: Vec<String> = record.data().addr().octets().iter().rev()
            .flat_map(|byte| [format!("{:x}", byte & 15), format!("{:x}", byte >> 4)])
            .collect();
        let back = query(&format!("{}.ip6.arpa", nibbles.join(".")), Rtype::PTR, None);
        let Answer::Reply(reply) = answer(&back, &caller, &zone, Transport::Udp) else { panic!("no reply") };
        let message = Message::from_slice(&reply).unwrap();
        let record = message.answer().unwrap().limit_to::<Ptr<_>>().next().unwrap().unwrap();
        let target = record.data().ptrdname().to_string();
        prop_assert_eq!(target.trim_end_matches('.'), name);
    }
}
