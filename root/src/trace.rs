//! The way from an instance to a service, from what the root knows of both ends and what the nodes on the way say. No I/O.
//!
//! The kernels decide, so what the net managers read there decides here; what the root knows says what should be there, and which
//! descriptor to change.

use roble_core::overlay::row::Policy;
use roble_core::ports::PortRange;
use roble_core::status::Phase;
use roble_proto::local_net::{Arrival, Departure, Knowledge, Leaving, Path, Peer, Permit, Way};
use roble_proto::trace::{FoundOn, Relay, Rule, Stop, Trace, TracedWay, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Instances whose nodes are asked, and that are shown.
pub const MOST: usize = 8;
/// Endpoints that the caller's node is asked about.
pub const MOST_ENDPOINTS: usize = 128;

/// What the root knows of both ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ends {
    /// The caller.
    pub from: Stop,
    /// `app/service`, or `app/service.N`.
    pub to: String,
    /// `app/service`.
    pub service: String,
    /// Its name, as containers use it.
    pub name: String,
    /// How its addresses choose.
    pub policy: Policy,
    /// Its addresses under that policy.
    pub addresses: Vec<IpAddr>,
    /// Both are of one application.
    pub is_same_application: bool,
    /// Rules of its descriptor that name the caller.
    pub rules: Vec<Rule>,
    /// The port that is meant.
    pub port: Option<PortRange>,
    /// Its instances, by number; under the policy of a single one, that one.
    pub backends: Vec<Stop>,
    /// Relays that are told of.
    pub relays: Vec<Relay>,
    /// Whoever asks may see the nodes, too: what is found on them, and where they are.
    pub is_operator: bool,
}

/// What became of a question to a node: why there is no answer, for people.
pub type Told<T> = Result<T, String>;

/// The IPv4 endpoint address.
pub fn endpoint(stop: &Stop) -> Option<Ipv4Addr> {
    stop.addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}

/// Instances in the order in which they are shown, and whether new flows go to them.
fn ranked<'a>(ends: &'a Ends, departure: Option<&Departure>) -> Vec<(&'a Stop, bool)> {
    let turned = departure.iter().flat_map(|departure| &departure.turned);
    let taken: BTreeSet<IpAddr> = turned.flat_map(|turned| &turned.to).copied().collect();
    let is_taken = |stop: &Stop| stop.addresses.iter().any(|address| taken.contains(address));
    let mut ranked: Vec<_> = ends.backends.iter().map(|stop| (stop, is_taken(stop))).collect();
    ranked.sort_by_key(|(_, taken)| !taken);
    ranked
}

/// Instances whose nodes are to be asked whether the caller may come in.
pub fn to_ask(ends: &Ends, departure: &Departure) -> Vec<String> {
    let ranked = ranked(ends, Some(departure)).into_iter().take(MOST);
    let running = ranked.filter(|(stop, _)| stop.phase == Phase::Running);
    running.map(|(stop, _)| stop.instance.clone()).collect()
}

/// The whole way. `arrivals`: by instance, of those [`to_ask`] names.
pub fn judge(ends: Ends, departure: &Told<Departure>, arrivals: &BTreeMap<String, Told<Arrival>>) -> Trace {
    let left = departure.as_ref().ok();
    let ranked = ranked(&ends, left);
    let more = ranked.len().saturating_sub(MOST);
    let judged = ranked.into_iter().take(MOST).map(|(stop, taken)| {
        let address = endpoint(stop);
        let leaving = left.and_then(|left| left.ways.iter().find(|leaving| Some(leaving.to) == address));
        let arrival = arrivals.get(&stop.instance);
        let (verdict, reason) = judge_way(&ends, stop, leaving, arrival);
        TracedWay {
            to: stop.clone(),
            taken,
            leaves: leaving.map(|leaving| leaving.permit.clone()),
            path: leaving.map(|leaving| leaving.path.clone()),
            relay: leaving.and_then(|leaving| relay(&ends.relays, &leaving.path)),
            arrives: arrival
                .and_then(|arrival| Some(arrival.as_ref().ok()?.permit.clone()))
                .filter(|_| leaving.is_some()),
            verdict,
            reason,
        }
    });
    let mut ways: Vec<TracedWay> = judged.collect();
    if !ends.is_operator {
        ways.iter_mut().for_each(hide_node);
    }
    let (verdict, summary) = obstacle(&ends, departure, &ways).unwrap_or_else(|| overall(&ends, &ways));
    let node = |stop: &Stop| stop.node.clone().unwrap_or_else(|| "?".to_owned());
    let here = left.iter().flat_map(|left| &left.findings);
    let here = here.map(|finding| (node(&ends.from), finding.clone()));
    let there = ways.iter().filter_map(|way| {
        let arrival = arrivals.get(&way.to.instance)?.as_ref().ok()?;
        Some((node(&way.to), arrival))
    });
    let there = there.flat_map(|(node, arrival)| {
        arrival
            .findings
            .iter()
            .map(move |finding| (node.clone(), finding.clone()))
    });
    let mut findings: Vec<FoundOn> = Vec::new();
    for (node, finding) in here.chain(there).filter(|_| ends.is_operator) {
        let found = FoundOn { node, finding };
        if !findings.contains(&found) {
            findings.push(found);
        }
    }
    Trace {
        turned: left.map(|left| left.turned.clone()).unwrap_or_default(),
        from: ends.from,
        to: ends.to,
        name: ends.name,
        policy: ends.policy,
        addresses: ends.addresses,
        port: ends.port,
        rules: ends.rules,
        verdict,
        summary,
        ways,
        more,
        findings,
    }
}

/// Where a node is, and what others have sent to it, is its operator's to know.
fn hide_node(way: &mut TracedWay) {
    if let Some(Path::Tunnel { peer: Some(peer), .. }) = &mut way.path {
        peer.endpoint = None;
        (peer.rx_bytes, peer.tx_bytes, peer.rx_packets, peer.tx_packets) = (0, 0, 0, 0);
    }
}

/// What keeps the caller from all instances.
fn obstacle(ends: &Ends, departure: &Told<Departure>, ways: &[TracedWay]) -> Option<(Verdict, String)> {
    let (caller, service) = (&ends.from.instance, &ends.to);
    let node = ends.from.node.as_deref().unwrap_or("?");
    if ends.from.phase != Phase::Running {
        let text = format!("{caller} is {}: it calls nobody now", ends.from.phase);
        return Some((Verdict::NotPlaced, text));
    }
    let departure = match departure {
        Ok(departure) => departure,
        Err(why) => return Some((Verdict::Unanswered, format!("node {node} does not say: {why}"))),
    };
    if departure.address.is_none() {
        let text = format!("node {node} has given {caller} no network; the next look of its engine does");
        return Some((Verdict::NotAttached, text));
    }
    let is_let = |way: &TracedWay| matches!(way.leaves, Some(Permit::SameApplication | Permit::Rule(_)));
    if !ends.is_same_application && ends.rules.is_empty() && !ways.iter().any(is_let) {
        return Some((Verdict::DeniedAtCaller, missing_rule(ends)));
    }
    if !ends.backends.iter().any(|stop| stop.phase == Phase::Running) {
        let text = match ends.backends.as_slice() {
            [] => format!("{service} has no instance"),
            [only] => format!("{} is {}", only.instance, only.phase),
            all => format!("none of the {} instances of {service} runs", all.len()),
        };
        return Some((Verdict::NoBackend, text));
    }
    if departure.turned.iter().any(|turned| !turned.to.is_empty()) {
        return None;
    }
    Some(match departure.knowledge {
        Knowledge::Known => (
            Verdict::NoBackend,
            format!("node {node} knows no instance of {service} that is ready: new flows are refused"),
        ),
        Knowledge::Nothing => (
            Verdict::UnknownService,
            format!(
                "node {node} was told that there is no {service} for {caller}: the tables of its cluster are behind the root's"
            ),
        ),
        Knowledge::Unanswered => (
            Verdict::UnknownService,
            format!("node {node} has not been told of {service}, and its cluster does not answer: is it connected?"),
        ),
    })
}

/// The worst of what is taken.
fn overall(ends: &Ends, ways: &[TracedWay]) -> (Verdict, String) {
    let taken: Vec<&TracedWay> = ways.iter().filter(|way| way.taken).collect();
    let Some(worst) = taken.iter().max_by_key(|way| way.verdict) else {
        let text = format!("none of the first {MOST_ENDPOINTS} instances of {} is taken", ends.to);
        return (Verdict::Unanswered, text);
    };
    let (caller, service) = (&ends.from.instance, &ends.to);
    if worst.verdict.reaches() {
        let kinds: BTreeSet<&str> = taken.iter().map(|way| way.verdict.as_str()).collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(" or ");
        return (worst.verdict, format!("{caller} reaches {service}: {kinds}"));
    }
    let failing = taken.iter().filter(|way| !way.verdict.reaches()).count();
    let share = match taken.len() {
        1 => String::new(),
        all => format!("{failing} of {all} instances that are taken are not reached; "),
    };
    (worst.verdict, format!("{share}{}: {}", worst.to.instance, worst.reason))
}

/// What becomes of a flow to one instance.
fn judge_way(
    ends: &Ends,
    stop: &Stop,
    leaving: Option<&Leaving>,
    arrival: Option<&Told<Arrival>>,
) -> (Verdict, String) {
    let here = ends.from.node.as_deref().unwrap_or("?");
    let there = stop.node.as_deref().unwrap_or("?");
    if stop.phase != Phase::Running {
        return (Verdict::NotReady, format!("it is {}", stop.phase));
    }
    let Some(leaving) = leaving else {
        let why = match endpoint(stop) {
            None => "it has no address",
            Some(_) => "the caller's node did not say",
        };
        return (Verdict::Unanswered, why.to_owned());
    };
    if let Some(why) = refusal(ends, &leaving.permit, here) {
        return (Verdict::DeniedAtCaller, why);
    }
    let reached = match reached(&leaving.path, here, there) {
        Ok(reached) => reached,
        Err(why) => return (Verdict::NoPath, why),
    };
    let arrival = match arrival {
        Some(Ok(arrival)) => arrival,
        Some(Err(why)) => return (Verdict::Unanswered, format!("node {there} does not say: {why}")),
        None => return (Verdict::Unanswered, format!("node {there} was not asked")),
    };
    if !arrival.attached {
        let why = format!("node {there} has given it no network; the next look of its engine does");
        return (Verdict::NotReady, why);
    }
    match refusal(ends, &arrival.permit, there) {
        Some(why) => (Verdict::DeniedAtDestination, why),
        None => (reached, String::new()),
    }
}

/// Why the rules of a node do not let it through.
fn refusal(ends: &Ends, permit: &Permit, node: &str) -> Option<String> {
    let chain = "chain `between` of table `inet roble`";
    match permit {
        Permit::SameApplication | Permit::Rule(_) => None,
        Permit::OtherPorts(ports) => {
            let port = ends.port.map_or_else(|| "that".to_owned(), |port| port.to_string());
            let by = match ends.rules.first() {
                Some(rule) => format!("`{}` of {}", rule.path, ends.service),
                None => format!("a rule of {}", ends.service),
            };
            Some(format!(
                "{by} opens {} to the caller, not {port}: add it to `ports` there",
                listed(ports)
            ))
        }
        Permit::Refused if ends.is_same_application => Some(format!(
            "node {node} drops it ({chain}): it was not told yet that both are of one application"
        )),
        Permit::Refused => Some(match ends.rules.first() {
            None => missing_rule(ends),
            Some(rule) => format!(
                "node {node} drops it ({chain}): `{}` of {} lets it in, but the node was not told yet",
                rule.path, ends.service
            ),
        }),
    }
}

fn missing_rule(ends: &Ends) -> String {
    let caller = ends
        .from
        .instance
        .rsplit_once('.')
        .map_or(ends.from.instance.as_str(), |(of, _)| of);
    let (application, service) = ends.service.split_once('/').unwrap_or(("?", &ends.service));
    format!(
        "no rule of {} lets {caller} in: put `allow: [{{from: {caller}}}]` under `services.{service}` in the descriptor of {application}",
        ends.service
    )
}

/// Which way it takes, or why none.
fn reached(path: &Path, here: &str, there: &str) -> Result<Verdict, String> {
    let peer = match path {
        Path::SameNode { .. } => return Ok(Verdict::SameNode),
        Path::NoRoute => {
            return Err(format!(
                "node {here} has no route to node {there}: it was not told of it yet, or has no tunnel, which its findings say"
            ));
        }
        Path::Tunnel { peer: None, device, .. } => {
            return Err(format!(
                "the route leads into {device}, behind which node {here} knows nobody of that address"
            ));
        }
        Path::Tunnel { peer: Some(peer), .. } => peer,
    };
    match peer.way {
        Way::Vxlan => Ok(Verdict::Vxlan),
        Way::Direct => Ok(Verdict::Direct),
        Way::Relayed => Ok(Verdict::Relayed),
        Way::None => Err(silent(peer, there)),
    }
}

fn silent(peer: &Peer, there: &str) -> String {
    let since = match peer.handshake_age_s {
        Some(age) => format!("its last handshake was {age} s ago"),
        None => "there was no handshake".to_owned(),
    };
    format!(
        "node {there} does not answer, {since}: does its roble-net run? behind NATs, does a cluster have a relay, and does UDP to it get out \
         of both sites?"
    )
}

fn relay(relays: &[Relay], path: &Path) -> Option<Relay> {
    let Path::Tunnel { peer: Some(peer), .. } = path else {
        return None;
    };
    let address = peer.endpoint.filter(|_| peer.way == Way::Relayed)?;
    let known = relays.iter().find(|relay| relay.address == address);
    Some(known.cloned().unwrap_or(Relay { address, cluster: None }))
}

fn listed(ports: &[PortRange]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
