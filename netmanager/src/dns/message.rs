//! One query to one answer, without I/O.
//!
//! Sources: RFC 1035 (messages), 2308 (answers without data), 2782 (SRV), 6891 (EDNS), 8020 (what NXDOMAIN says), 8482 (ANY).

use super::DOMAIN;
use super::zone::{Caller, Found, Zone};
use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{PushError, RecordSectionBuilder, StaticCompressor};
use domain::base::wire::Composer;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Question, Rtype, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ptr, Soa, Srv};
use roble_core::ids::ServiceId;
use roble_core::overlay::row::{Policy, Wanted};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How long an answer of ours may be kept, whether there was something or not.
const TTL: Ttl = Ttl::from_secs(5);
/// The longest datagram that we send of ourselves: never in fragments.
const DATAGRAM: u16 = 1_232;
/// What everybody takes.
pub(super) const LEAST_DATAGRAM: u16 = 512;
/// Size of the OPT record without options.
const OPT_BYTES: usize = 11;

/// What a query came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: short answers.
    Udp,
    /// A stream: any answer.
    Tcp,
}

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// It is for the host's servers.
    Upstream,
    /// It is no query: say nothing.
    Drop,
}

/// A record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Data {
    Address(IpAddr),
    Name(FullName),
    /// Port and target.
    Server(u16, FullName),
}

type FullName = Name<Vec<u8>>;
type Asked<'a> = Question<ParsedName<&'a [u8]>>;

/// What is in a reply.
#[derive(Debug)]
struct Content {
    rcode: Rcode,
    answers: Vec<Data>,
    additional: Vec<(FullName, Data)>,
    /// Apex of the zone that says that there is nothing; `None`: there is no zone in it.
    apex: Option<&'static str>,
    is_truncated: bool,
    is_bad_version: bool,
}

impl Content {
    /// Only a code.
    const fn code(rcode: Rcode) -> Self {
        Self {
            rcode,
            answers: Vec::new(),
            additional: Vec::new(),
            apex: None,
            is_truncated: false,
            is_bad_version: false,
        }
    }

    /// Of a zone of ours, with nothing in it yet.
    fn of(apex: &'static str) -> Self {
        Self {
            apex: Some(apex),
            ..Self::code(Rcode::NOERROR)
        }
    }
}

/// The answer to `query`, for `caller`, from `zone`.
pub fn answer(query: &[u8], caller: &Caller, zone: &Zone, transport: Transport) -> Answer {
    let Ok(message) = Message::from_slice(query) else {
        return Answer::Drop;
    };
    let header = message.header();
    if header.qr() {
        return Answer::Drop;
    }
    let reply = |content: &Content| compose(message, content, transport).map_or(Answer::Drop, Answer::Reply);
    if header.opcode() != Opcode::QUERY {
        return reply(&Content::code(Rcode::NOTIMP));
    }
    let Ok(asked) = asked(message) else {
        return reply(&Content::code(Rcode::FORMERR));
    };
    if message.opt().is_some_and(|opt| opt.version() != 0) {
        return reply(&Content {
            is_bad_version: true,
            ..Content::code(Rcode::NOERROR)
        });
    }
    let is_transfer = matches!(asked.qtype(), Rtype::AXFR | Rtype::IXFR);
    if is_transfer || !matches!(asked.qclass(), Class::IN | Class::ANY) {
        return reply(&Content::code(Rcode::REFUSED));
    }
    let name = text(asked.qname());
    let content = match below(&name, DOMAIN) {
        Some(labels) => forward_content(labels, asked.qtype(), caller, zone),
        None => match reverse(&name) {
            Some(reverse) if zone.owns(reverse.first, reverse.last) => {
                reverse_content(&reverse, asked.qtype(), caller, zone)
            }
            _ => return Answer::Upstream,
        },
    };
    reply(&content)
}

/// What must be asked for before `query` can be answered: a service of another application that is not known, or the IPv4
/// address of a policy that has none before its first use.
pub fn wanted(query: &[u8], caller: &Caller, zone: &Zone) -> Option<Wanted> {
    let message = Message::from_slice(query).ok()?;
    if message.header().qr() || message.header().opcode() != Opcode::QUERY {
        return None;
    }
    let asked = asked(message).ok()?;
    let name = text(asked.qname());
    let labels = below(&name, DOMAIN)?;
    let is_wanted = match zone.find(caller, labels) {
        Found::Service(service, Policy::Closest) if asked.qtype() == Rtype::A => !zone.has_v4(service, Policy::Closest),
        Found::Service(service, Policy::LeastUsed) if asked.qtype() == Rtype::A => {
            !zone.has_v4(service, Policy::LeastUsed)
        }
        Found::Nothing => zone.may_be_elsewhere(caller, labels),
        Found::Service(..) | Found::Inner => false,
    };
    is_wanted.then(|| Wanted::Name(labels.to_owned()))
}

/// Whether there is something of ours at the name that `query` asks for.
pub fn is_found(query: &[u8], caller: &Caller, zone: &Zone) -> bool {
    let message = Message::from_slice(query).ok();
    let name = message
        .and_then(|message| asked(message).ok())
        .map(|asked| text(asked.qname()));
    let labels = name.as_deref().and_then(|name| below(name, DOMAIN));
    labels.is_some_and(|labels| zone.find(caller, labels) != Found::Nothing)
}

fn asked(message: &Message<[u8]>) -> Result<Asked<'_>, ()> {
    let counts = message.header_counts();
    if counts.qdcount() != 1 || counts.ancount() != 0 {
        return Err(());
    }
    message.sole_question().map_err(|_| ())
}

/// The name in lower case. What can be in no name of ours becomes a `?`, so that a dot is always between labels.
fn text(name: &ParsedName<&[u8]>) -> String {
    let mut text = String::new();
    for label in name.iter().filter(|label| !label.is_root()) {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| match byte {
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte.to_ascii_lowercase()),
            _ => '?',
        }));
    }
    text
}

/// The labels of `name` in front of `suffix`.
fn below<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let front = name.strip_suffix(suffix)?;
    if front.is_empty() {
        return Some(front);
    }
    front.strip_suffix('.')
}

fn forward_content(labels: &str, qtype: Rtype, caller: &Caller, zone: &Zone) -> Content {
    let mut content = Content::of(DOMAIN);
    match zone.find(caller, labels) {
        Found::Service(service, policy) if qtype == Rtype::SRV => {
            if policy == Policy::RoundRobin {
                add_servers(&mut content, service, zone);
            }
        }
        Found::Service(service, policy) => {
            let of_type = |address: &IpAddr| match qtype {
                Rtype::A => address.is_ipv4(),
                Rtype::AAAA => address.is_ipv6(),
                _ => false,
            };
            let addresses = zone.addresses(service, policy).filter(of_type);
            content.answers.extend(addresses.map(Data::Address));
        }
        Found::Inner => {}
        Found::Nothing => content.rcode = Rcode::NXDOMAIN,
    }
    content
}

/// One server for each instance that is ready, under its number. Which port it listens on is not known here: 0.
fn add_servers(content: &mut Content, service: ServiceId, zone: &Zone) {
    for number in zone.ready(service) {
        let policy = Policy::Instance(number);
        let addresses: Vec<_> = zone.addresses(service, policy).collect();
        let target = zone.name(service, policy).and_then(|name| full_name(&name));
        let (Some(target), false) = (target, addresses.is_empty()) else {
            continue;
        };
        content.answers.push(Data::Server(0, target.clone()));
        let records = addresses
            .into_iter()
            .map(|address| (target.clone(), Data::Address(address)));
        content.additional.extend(records);
    }
}

/// A name of ours is never too long; if one is, it has no record.
fn full_name(name: &str) -> Option<FullName> {
    Name::vec_from_str(name).ok()
}

/// A name below `in-addr.arpa` or `ip6.arpa`.
#[derive(Debug, PartialEq, Eq)]
struct Reverse {
    apex: &'static str,
    /// The addresses that it stands for.
    first: IpAddr,
    last: IpAddr,
    /// It has labels in front of those of an address.
    is_deeper: bool,
}

fn reverse(name: &str) -> Option<Reverse> {
    if let Some(labels) = below(name, "in-addr.arpa") {
        let (bits, known, is_deeper) = digits(labels, 4, 8, |label| {
            let octet: u8 = label.parse().ok()?;
            (octet.to_string() == label).then_some(octet.into())
        })?;
        let rest = u32::MAX.checked_shr(known * 8).unwrap_or(0);
        let first = (bits as u32).checked_shl(32 - known * 8).unwrap_or(0);
        return Some(Reverse {
            apex: "in-addr.arpa",
            first: Ipv4Addr::from(first).into(),
            last: Ipv4Addr::from(first | rest).into(),
            is_deeper,
        });
    }
    let labels = below(name, "ip6.arpa")?;
    let (bits, known, is_deeper) = digits(labels, 32, 4, |label| {
        let digit = label.chars().next().filter(|_| label.len() == 1)?;
        digit.to_digit(16)
    })?;
    let rest = u128::MAX.checked_shr(known * 4).unwrap_or(0);
    let first = bits.checked_shl(128 - known * 4).unwrap_or(0);
    Some(Reverse {
        apex: "ip6.arpa",
        first: Ipv6Addr::from(first).into(),
        last: Ipv6Addr::from(first | rest).into(),
        is_deeper,
    })
}

/// The number that up to `most` labels write, the last label first and each as a digit of `width` bits; how many of them
/// there are, and whether there are more. `None` if there is none, or one is not a digit.
fn digits(labels: &str, most: u32, width: u32, digit: impl Fn(&str) -> Option<u32>) -> Option<(u128, u32, bool)> {
    let mut labels = labels.rsplit('.');
    let (mut number, mut known) = (0_u128, 0);
    while known < most {
        let Some(label) = labels.next() else { break };
        number = number << width | u128::from(digit(label)?);
        known += 1;
    }
    (known > 0).then(|| (number, known, labels.next().is_some()))
}

fn reverse_content(reverse: &Reverse, qtype: Rtype, caller: &Caller, zone: &Zone) -> Content {
    let mut content = Content::of(reverse.apex);
    let is_address = reverse.first == reverse.last;
    let name = (is_address && !reverse.is_deeper)
        .then(|| zone.name_at(caller, reverse.first))
        .flatten();
    match name.and_then(|name| full_name(&name)) {
        Some(name) if qtype == Rtype::PTR => content.answers.push(Data::Name(name)),
        Some(_) => {}
        None if is_address => content.rcode = Rcode::NXDOMAIN,
        None => {}
    }
    content
}

/// The longest answer that the sender of `query` takes from us.
pub fn reply_limit(query: &[u8], transport: Transport) -> usize {
    match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => usize::from(datagram_limit(query).min(DATAGRAM)),
    }
}

/// The longest datagram that the sender of `query` takes.
pub fn datagram_limit(query: &[u8]) -> u16 {
    let opt = Message::from_slice(query).ok().and_then(|message| message.opt());
    opt.map_or(LEAST_DATAGRAM, |opt| opt.udp_payload_size().max(LEAST_DATAGRAM))
}

/// An answer that says that none could be had. `None` if `query` cannot be read.
pub fn failure(query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    compose(
        Message::from_slice(query).ok()?,
        &Content::code(Rcode::SERVFAIL),
        transport,
    )
}

/// An answer that refuses to give one. `None` if `query` is none.
pub fn refusal(query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let message = Message::from_slice(query)
        .ok()
        .filter(|message| !message.header().qr())?;
    compose(message, &Content::code(Rcode::REFUSED), transport)
}

/// An answer that sends the asker to TCP. `None` if `query` cannot be read.
pub fn truncated(query: &[u8]) -> Option<Vec<u8>> {
    let content = Content {
        is_truncated: true,
        ..Content::code(Rcode::NOERROR)
    };
    compose(Message::from_slice(query).ok()?, &content, Transport::Udp)
}

/// Whether `reply` has the id and the question of `query`.
pub fn is_reply_to(reply: &[u8], query: &[u8]) -> bool {
    let (Ok(reply), Ok(query)) = (Message::from_slice(reply), Message::from_slice(query)) else {
        return false;
    };
    if !reply.header().qr() || reply.header().id() != query.header().id() {
        return false;
    }
    let (Ok(answered), Ok(asked)) = (reply.sole_question(), query.sole_question()) else {
        // Some servers leave the question out of an error.
        return reply.header_counts().qdcount() == 0 && reply.header().rcode() != Rcode::NOERROR;
    };
    answered.qname() == asked.qname() && answered.qtype() == asked.qtype() && answered.qclass() == asked.qclass()
}

type Target = StaticCompressor<Vec<u8>>;

/// The bytes of a reply, cut as `transport` and the query demand. `None`: not even its head fits, which cannot be.
fn compose(query: &Message<[u8]>, content: &Content, transport: Transport) -> Option<Vec<u8>> {
    let limit = reply_limit(query.as_slice(), transport);
    try_compose(query, content, limit)
        .or_else(|_| {
            let cut = Content {
                is_truncated: true,
                ..Content::code(content.rcode)
            };
            try_compose(query, &cut, limit)
        })
        .ok()
}

fn try_compose(query: &Message<[u8]>, content: &Content, limit: usize) -> Result<Vec<u8>, PushError> {
    let opt = query.opt();
    let mut builder =
        MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(usize::from(LEAST_DATAGRAM))))
            .map_err(|_| PushError::ShortBuf)?;
    builder.set_push_limit(limit - if opt.is_some() { OPT_BYTES } else { 0 });
    let header = builder.header_mut();
    header.set_id(query.header().id());
    header.set_qr(true);
    header.set_opcode(query.header().opcode());
    header.set_rd(query.header().rd());
    header.set_ra(true);
    header.set_aa(content.apex.is_some());
    header.set_tc(content.is_truncated);
    header.set_rcode(content.rcode);

    let mut questions = builder.question();
    let question = asked(query);
    if let Ok(question) = &question {
        questions.push(question)?;
    }
    let mut answers = questions.answer();
    if let Ok(question) = &question {
        for data in &content.answers {
            push(&mut answers, question.qname(), data)?;
        }
    }
    let mut authority = answers.authority();
    if let Some(apex) = content.apex.filter(|_| content.answers.is_empty())
        && let (Some(apex), Some(mailbox)) = (full_name(apex), full_name(&format!("hostmaster.{DOMAIN}")))
    {
        let soa = Soa::new(apex.clone(), mailbox, Serial(1), TTL, TTL, TTL, TTL);
        authority.push((apex, Class::IN, TTL, soa))?;
    }
    let mut additional = authority.additional();
    for (owner, data) in &content.additional {
        // What does not fit can be asked for.
        if push(&mut additional, owner, data).is_err() {
            break;
        }
    }
    if opt.is_some() {
        additional.clear_push_limit();
        additional.opt(|record| {
            record.set_udp_payload_size(DATAGRAM);
            if content.is_bad_version {
                record.set_rcode(OptRcode::BADVERS);
            }
            Ok(())
        })?;
    }
    Ok(additional.finish().into_target())
}

fn push<B: RecordSectionBuilder<Target>>(section: &mut B, owner: &impl ToName, data: &Data) -> Result<(), PushError>
where
    Target: Composer,
{
    match data {
        Data::Address(IpAddr::V4(address)) => section.push((owner, Class::IN, TTL, A::new(*address))),
        Data::Address(IpAddr::V6(address)) => section.push((owner, Class::IN, TTL, Aaaa::new(*address))),
        Data::Name(name) => section.push((owner, Class::IN, TTL, Ptr::new(name.clone()))),
        Data::Server(port, target) => section.push((owner, Class::IN, TTL, Srv::new(0, 0, *port, target.clone()))),
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
