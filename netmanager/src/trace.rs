//! This node's part of a traced way: what its kernel does with a packet, by the rules that are in force, the routes, and the
//! tunnel as it is now. Reading is at the edge, [`departure`] and [`arrival`] are pure.

use crate::datapath::link::Link;
use crate::datapath::ruleset::Ruleset;
use crate::datapath::{InForce, miss, sealed, tunnel, walk};
use crate::diagnosis::{self, Route};
use crate::service::NetService;
use crate::wants::{Outcome, Wants};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::Wanted;
use roble_core::ports::PortRange;
use roble_proto::local_net::{About, Arrival, Departure, Finding, Knowledge, Leaving, Path, Peer, Question, Turned};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};

/// What is on this node, read at one moment.
#[derive(Debug, Clone, Copy)]
struct Snapshot<'a> {
    plan: Plan,
    /// The address of the instance that it is about, if it is attached.
    address: Option<Ipv4Addr>,
    rules: &'a Ruleset,
    links: &'a [Link],
    routes: &'a [Route],
    peers: &'a [Peer],
    findings: &'a [Finding],
}

impl<'a> Snapshot<'a> {
    fn with<'b>(self, in_force: &'b InForce) -> Snapshot<'b>
    where
        'a: 'b,
    {
        Snapshot {
            rules: &in_force.rules,
            links: in_force.links.as_slice(),
            ..self
        }
    }
}

/// Answers a question with a [`Departure`] or an [`Arrival`], as JSON. `findings`: what is wrong on this node. `None`: nothing is set in
/// the kernel yet.
pub async fn answer(
    service: &NetService,
    wants: Option<&Wants>,
    peers: Vec<Peer>,
    mut findings: Vec<Finding>,
    question: Question,
) -> Option<Value> {
    let overlay = service.overlay();
    let plan = overlay.plan;
    let mut in_force = service.in_force().await?;
    let attachment = service.attachment(question.instance).await;
    findings.extend(changed(&in_force));
    let routes = diagnosis::own_routes();
    let address = attachment.as_ref().map(|attachment| attachment.address);
    let (routes, peers, findings) = (routes.as_slice(), peers.as_slice(), findings.as_slice());
    let nothing = Ruleset::default();
    let at = Snapshot {
        plan,
        address,
        rules: &nothing,
        links: &[],
        routes,
        peers,
        findings,
    };
    let json = match question.about {
        About::Arriving { from, port } => serde_json::to_value(arrival(at.with(&in_force), from, port)),
        About::Leaving {
            addresses,
            endpoints,
            port,
        } => {
            let mut knowledge = Knowledge::Known;
            let mut left = departure(at.with(&in_force), &addresses, &endpoints, port, knowledge);
            let application = attachment.and_then(|attachment| Some(attachment.instance?.application));
            if left.turned.iter().all(|turned| turned.to.is_empty())
                && let (Some(wants), Some(application), Some(first)) = (wants, application, addresses.first())
            {
                // As its first packet would.
                knowledge = match wants.resolve(application, Wanted::Address(*first)).await {
                    Outcome::Known => Knowledge::Known,
                    Outcome::Nothing => Knowledge::Nothing,
                    Outcome::Unknown => Knowledge::Unanswered,
                };
                in_force = service.in_force().await?;
                left = departure(at.with(&in_force), &addresses, &endpoints, port, knowledge);
            }
            serde_json::to_value(left)
        }
    };
    json.ok()
}

/// The kernel's table is not the one that was loaded.
fn changed(in_force: &InForce) -> Option<Finding> {
    (!in_force.is_whole).then(|| Finding {
        code: "rules-changed".to_owned(),
        message: "table `inet roble` was changed by somebody else: what is said of rules is what should be there"
            .to_owned(),
        hint: "the next look of roble-net loads it again; who runs `nft` or `iptables-restore` on this node?"
            .to_owned(),
    })
}

fn departure(
    on: Snapshot<'_>,
    addresses: &[IpAddr],
    endpoints: &[Ipv4Addr],
    port: Option<PortRange>,
    knowledge: Knowledge,
) -> Departure {
    let turned = |caller: Ipv4Addr, address: IpAddr| {
        let caller = match address {
            IpAddr::V4(_) => IpAddr::V4(caller),
            IpAddr::V6(_) => on.plan.endpoint_v6(caller).into(),
        };
        let to = walk::turned(on.rules, caller, address);
        Turned { address, to }
    };
    let ways = |caller: Ipv4Addr| {
        endpoints.iter().map(move |to| Leaving {
            to: *to,
            permit: walk::permit(on.rules, caller, *to, port.map(|port| (port.protocol, port.first))),
            path: path(on, *to),
        })
    };
    Departure {
        address: on.address,
        turned: on
            .address
            .iter()
            .flat_map(|caller| addresses.iter().map(|address| turned(*caller, *address)))
            .collect(),
        knowledge,
        ways: on.address.into_iter().flat_map(ways).collect(),
        findings: on.findings.to_vec(),
    }
}

fn arrival(on: Snapshot<'_>, from: Ipv4Addr, port: Option<PortRange>) -> Arrival {
    let permit = on.address.map(|to| {
        let port = port.map(|port| (port.protocol, port.first));
        walk::permit(on.rules, from, to, port)
    });
    Arrival {
        attached: on.address.is_some(),
        permit: permit.unwrap_or(roble_proto::local_net::Permit::Refused),
        findings: on.findings.to_vec(),
    }
}

/// Where the routes lead to, and who is there.
fn path(on: Snapshot<'_>, to: Ipv4Addr) -> Path {
    let Some(device) = device(on.routes, to) else {
        return Path::NoRoute;
    };
    let link = on.links.iter().find(|link| link.name == device);
    match device {
        tunnel::LINK | sealed::LINK => Path::Tunnel {
            device: device.to_owned(),
            by_kernel: link.is_some_and(|link| link.is_wireguard) || device == tunnel::LINK,
            peer: on.peers.iter().find(|peer| peer.block.contains(to)).cloned(),
        },
        device if device.starts_with(crate::datapath::LINK_PREFIX) && device != miss::LINK => Path::SameNode {
            mtu: link.map(|link| link.mtu),
        },
        _ => Path::NoRoute,
    }
}

/// The device of the longest route.
fn device(routes: &[Route], to: Ipv4Addr) -> Option<&str> {
    let leading = routes.iter().filter(|route| route.holds(to.into()));
    // By the default route no endpoint is reached: the rules refuse it.
    let longest = leading
        .filter(|route| route.prefix > 0)
        .max_by_key(|route| route.prefix)?;
    Some(&longest.device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::{ClusterId, NodeId, RawId};
    use roble_proto::local_net::{Permit, Way};

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      rbl-00000000001\t0200120A\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
                      rbl-wg\t4000120A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0\n\
                      rbl-vx\t8000120A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0\n";

    fn link(name: &str, mtu: u32, is_wireguard: bool) -> Link {
        Link {
            name: name.to_owned(),
            index: 1,
            peer: None,
            mac: Vec::new(),
            up: true,
            operational: true,
            mtu,
            is_wireguard,
        }
    }

    fn peer(block: &str, way: Way) -> Peer {
        Peer {
            sealed_by: None,
            node: NodeId(RawId::MAX),
            cluster: ClusterId(RawId::MIN),
            block: block.parse().unwrap(),
            way,
            endpoint: None,
            rtt_ms: None,
            handshake_age_s: None,
            mtu: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            probes: 0,
            probes_lost: 0,
        }
    }

    #[test]
    fn the_longest_route_says_the_way_and_the_block_whose_it_is() {
        let routes = diagnosis::routes_v4(V4);
        let peers = [peer("10.18.0.64/26", Way::Relayed), peer("10.18.0.128/26", Way::Vxlan)];
        let links = [link("rbl-00000000001", 1420, false), link("rbl-wg", 1420, true)];
        let rules = Ruleset::default();
        let on = Snapshot {
            plan: Plan::default(),
            address: Some([10, 18, 0, 2].into()),
            rules: &rules,
            links: &links,
            routes: &routes,
            peers: &peers,
            findings: &[],
        };
        let to = |last: u8| path(on, [10, 18, 0, last].into());
        assert_eq!(to(2), Path::SameNode { mtu: Some(1420) });
        assert_eq!(to(3), Path::NoRoute, "by the default route nothing goes");
        let way = |path: Path| match path {
            Path::Tunnel {
                device,
                by_kernel,
                peer,
            } => (device, by_kernel, peer.map(|peer| peer.way)),
            other => panic!("{other:?}"),
        };
        assert_eq!(way(to(70)), ("rbl-wg".to_owned(), true, Some(Way::Relayed)));
        assert_eq!(way(to(130)), ("rbl-vx".to_owned(), true, Some(Way::Vxlan)));
        let bare = Snapshot {
            peers: &[],
            links: &[],
            ..on
        };
        assert_eq!(
            way(path(bare, [10, 18, 0, 70].into())),
            ("rbl-wg".to_owned(), false, None)
        );

        let endpoints = [[10, 18, 0, 70].into()];
        let left = departure(on, &[[10, 30, 0, 1].into()], &endpoints, None, Knowledge::Known);
        assert_eq!((left.turned[0].to.len(), &left.ways[0].permit), (0, &Permit::Refused));
        let unattached = Snapshot { address: None, ..on };
        let left = departure(unattached, &[[10, 30, 0, 1].into()], &endpoints, None, Knowledge::Known);
        assert!(left.turned.is_empty() && left.ways.is_empty());
        assert!(!arrival(unattached, [10, 18, 0, 70].into(), None).attached);
    }
}
