//! `roble network trace`: the way from an instance to a service, hop by hop.

use super::{Session, network};
use crate::api::{self, Api};
use crate::failure::Failure;
use crate::flags::Format;
use crate::output;
use crate::reference::{Reference, escape, path};
use crate::text::{self, clean, count};
use clap::Args;
use roble_core::overlay::row::Policy;
use roble_core::ports::PortRange;
use roble_proto::local_net::{Path, Peer, Permit, Way};
use roble_proto::rest::{InstanceView, ServiceView};
use roble_proto::trace as proto;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Flags of `network trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// The calling instance (`shop/web.0`).
    #[arg(value_name = "FROM")]
    from: Reference,
    /// Whom it calls: `shop/api`, `shop/api.2`, a name (`closest.api.shop`) or an address.
    #[arg(value_name = "TO")]
    to: String,
    /// Which port of it; without one, what rules open is shown.
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    port: Option<PortRange>,
}

pub(crate) async fn run(trace: &Trace, session: Session<'_>) -> Result<(), Failure> {
    let Reference::Instance(from) = &trace.from else {
        let text = format!("a way begins at an instance: `{}.0`, say", trace.from);
        return Err(Failure::Usage(text));
    };
    let (to, policy) = called(&trace.to, session.api).await?;
    let mut asked = format!("{}?to={}", path(&["trace", from]), escape(&to));
    let port = trace.port.map(|port| port.to_string());
    for (key, value) in [("policy", policy.map(|policy| policy.to_string())), ("port", port)] {
        if let Some(value) = value {
            let _ = write!(asked, "&{key}={}", escape(&value));
        }
    }
    let answer: proto::Trace = api::get(session.api, asked).await?;
    let console = session.console;
    match session.format {
        Format::Table => console.out.write_all(render(&answer).as_bytes())?,
        Format::Name => writeln!(console.out, "{}", answer.verdict)?,
        format => output::document(console, format, &answer)?,
    }
    console.out.flush()?;
    match answer.verdict.reaches() {
        true => Ok(()),
        false => Err(Failure::other(format!("{from} does not reach {}", clean(&answer.to)))),
    }
}

/// The service or instance that is meant, and how its address chooses.
async fn called(to: &str, api: &dyn Api) -> Result<(String, Option<Policy>), Failure> {
    if to.contains('/') {
        return Ok((to.to_owned(), None));
    }
    let services: Vec<ServiceView> = api::get(api, path(&["services"])).await?;
    let of = |service: &ServiceView, policy| match policy {
        Policy::Instance(number) => (format!("{}.{number}", service.path), None),
        policy => (service.path.clone(), Some(policy)),
    };
    let Ok(address) = to.parse::<IpAddr>() else {
        let (service, policy) = network::by_name(to, &services)?;
        return Ok(of(service, policy));
    };
    for service in &services {
        let mut policies = service.addresses.iter();
        if let Some((policy, _)) = policies.find(|(_, all)| all.contains(&address)) {
            return Ok(of(service, *policy));
        }
    }
    let instances: Vec<InstanceView> = api::get(api, path(&["instances"])).await?;
    let has = |instance: &&InstanceView| {
        instance.addresses.contains(&address) || instance.service_addresses.contains(&address)
    };
    let instance = instances.iter().find(has).ok_or_else(|| network::nobody_at(address))?;
    Ok((instance.path.clone(), None))
}

fn render(trace: &proto::Trace) -> String {
    let mut text = format!("{}\n\n", clean(&trace.summary));
    let mut hops = vec![("caller", place(&trace.from))];
    let choice = match trace.policy {
        Policy::Instance(number) => format!("always instance {number}"),
        other => other.to_string(),
    };
    hops.push((
        "address",
        format!("{}, {choice}: {}", trace.name, listed(&trace.addresses)),
    ));
    for turned in trace.turned.iter().filter(|turned| !turned.to.is_empty()) {
        hops.push(("turned into", format!("{} for {}", listed(&turned.to), turned.address)));
    }
    for rule in &trace.rules {
        let service = trace
            .to
            .rsplit_once('.')
            .map_or(trace.to.as_str(), |(service, _)| service);
        let service = if matches!(trace.policy, Policy::Instance(_)) {
            service
        } else {
            &trace.to
        };
        hops.push(("rule", format!("{} of {service}, {}", rule.path, ports(&rule.ports))));
    }
    lines(&mut text, &hops);
    for way in &trace.ways {
        let taken = if way.taken { "" } else { ", not taken now" };
        let reason = if way.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", way.reason)
        };
        let _ = writeln!(
            text,
            "\n{}: {}{taken}{}",
            clean(&way.to.instance),
            way.verdict,
            clean(&reason)
        );
        let mut hops = Vec::new();
        if let Some(permit) = &way.leaves {
            hops.push(("let out", permitted(permit, trace.from.node.as_deref())));
        }
        if let Some(path) = &way.path {
            hops.push(("way", travelled(path, way.relay.as_ref())));
        }
        if let Some(permit) = &way.arrives {
            hops.push(("let in", permitted(permit, way.to.node.as_deref())));
        }
        hops.push(("destination", place(&way.to)));
        lines(&mut text, &hops);
    }
    if trace.more > 0 {
        let _ = writeln!(text, "\n... and {}", count(trace.more, "more instance"));
    }
    if !trace.findings.is_empty() {
        text.push_str("\nIn the way on the nodes:\n");
    }
    for found in &trace.findings {
        let (code, message, hint) = (&found.finding.code, &found.finding.message, &found.finding.hint);
        let _ = writeln!(
            text,
            "  {}: {code}: {}\n    {}",
            clean(&found.node),
            clean(message),
            clean(hint)
        );
    }
    text
}

fn lines(text: &mut String, hops: &[(&str, String)]) {
    for (what, hop) in hops {
        let _ = writeln!(text, "  {what:<12} {}", clean(hop));
    }
}

fn place(stop: &proto::Stop) -> String {
    let node = stop.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let cluster = stop
        .cluster
        .as_ref()
        .map(|cluster| format!(" (cluster {cluster})"))
        .unwrap_or_default();
    format!(
        "{}, {}{node}{cluster}: {}",
        stop.instance,
        stop.phase,
        listed(&stop.addresses)
    )
}

fn listed(addresses: &[IpAddr]) -> String {
    text::addresses(addresses).unwrap_or_else(|| "no address".to_owned())
}

fn ports(ports: &[PortRange]) -> String {
    match ports {
        [] => "all ports".to_owned(),
        ports => ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn permitted(permit: &Permit, node: Option<&str>) -> String {
    let node = node.unwrap_or("?");
    match permit {
        Permit::SameApplication => format!("by {node}: same application"),
        Permit::Rule(open) => format!("by {node}: a rule, {}", ports(open)),
        Permit::OtherPorts(open) => format!("not by {node}: the rule is for {}", ports(open)),
        Permit::Refused => format!("not by {node}: no rule there"),
    }
}

fn travelled(path: &Path, relay: Option<&proto::Relay>) -> String {
    match path {
        Path::SameNode { mtu } => format!(
            "to a container of the same node{}",
            mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default()
        ),
        Path::NoRoute => "no route".to_owned(),
        Path::Tunnel { device, peer: None, .. } => format!("{device}, to nobody who is known"),
        Path::Tunnel {
            device,
            by_kernel,
            peer: Some(peer),
        } => format!("{device}, {}", sealed(peer, *by_kernel, relay)),
    }
}

fn sealed(peer: &Peer, by_kernel: bool, relay: Option<&proto::Relay>) -> String {
    let sealed = if by_kernel {
        "sealed by the kernel"
    } else {
        "sealed in user space"
    };
    let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    let mut text = match (peer.way, relay) {
        (Way::Direct, _) if peer.endpoint.is_none() => format!("{sealed}, direct"),
        (Way::Vxlan, _) if peer.endpoint.is_none() => "VXLAN, not sealed".to_owned(),
        (Way::Vxlan, _) => format!(
            "VXLAN, not sealed, to {}",
            peer.endpoint.map(|end| end.ip().to_string()).unwrap_or_default()
        ),
        (Way::Relayed, Some(relay)) => {
            let by = relay
                .cluster
                .as_ref()
                .map(|cluster| format!(" of cluster {cluster}"))
                .unwrap_or_default();
            format!("{sealed}, passed on by the relay{by} at {}", relay.address)
        }
        (Way::Relayed, None) => format!("{sealed}, passed on by a relay at {endpoint}"),
        (Way::Direct, _) => format!("{sealed}, direct to {endpoint}"),
        (Way::None, _) => format!("{sealed}, nobody answers"),
    };
    let facts = [
        peer.mtu.map(|mtu| format!("MTU {mtu}")),
        peer.rtt_ms.map(|rtt| format!("RTT {rtt:.1} ms")),
        peer.handshake_age_s.map(|age| format!("handshake {age} s ago")),
    ];
    for fact in facts.into_iter().flatten() {
        let _ = write!(text, ", {fact}");
    }
    text
}
