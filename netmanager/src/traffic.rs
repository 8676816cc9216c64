//! Metrics of the traffic: per other node, per service, and what the tunnel dropped. The kernel and the tunnel's worker count;
//! here it is read when somebody asks for the metrics, at most once a second, and nothing is added up.
//!
//! Labels are bounded by what this node is told of: nodes and services that its own instances use.

use crate::api::Ways;
use crate::datapath::rules::services::{FLOWS, PASSED};
use crate::datapath::{Counted, Overlay};
use crate::peers;
use crate::service::NetService;
use crate::tier::Told;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use roble_core::ids::ServiceId;
use roble_proto::local_net::{Peer, SealedBy, Way};
use roble_tunnel::{DeviceStatus, REASONS};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was read is shown again for so long.
const FRESH: Duration = Duration::from_secs(1);

/// Traffic of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfService {
    path: String,
    new_flows: u64,
    /// What they carried, both ways.
    bytes: u64,
    /// Tracked flows, by the number of the instance.
    flows: BTreeMap<u32, u64>,
}

/// Everything, as it was read last.
#[derive(Debug, Default)]
struct Reading {
    peers: Vec<Peer>,
    drops: Vec<(&'static str, u64)>,
    services: BTreeMap<ServiceId, OfService>,
}

/// The metrics. Clones share them.
#[derive(Clone)]
pub struct Traffic {
    service: Arc<NetService>,
    ways: Ways,
    /// One reads, others wait for it.
    read_at: Arc<tokio::sync::Mutex<Option<Instant>>>,
    reading: Arc<Mutex<Reading>>,
}

impl Traffic {
    /// Of the node that `service` serves.
    pub fn new(service: Arc<NetService>, ways: Ways) -> Self {
        Self {
            service,
            ways,
            read_at: Arc::default(),
            reading: Arc::default(),
        }
    }

    /// Registers all as `net_...`.
    pub fn register(&self, registry: &mut Registry) {
        let shown = Shown(self.reading.clone());
        registry
            .sub_registry_with_prefix("net")
            .register_collector(Box::new(shown));
    }

    /// Reads everything anew, unless that was done a moment ago.
    pub async fn read(&self) {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let status = peers::status(&self.ways.device).await;
        let known = self.ways.known.borrow().clone();
        let told = self.ways.told.borrow().clone();
        let reading = Reading {
            peers: peers::look(known, status.as_ref()),
            drops: drops(
                status
                    .as_ref()
                    .filter(|(by, _)| *by == SealedBy::UserSpace)
                    .map(|(_, status)| status),
            ),
            services: services(&self.service.overlay(), &told, &self.service.counted().await),
        };
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        *read_at = Some(Instant::now());
    }
}

/// Has everything read before the metrics are rendered.
pub async fn before_metrics(State(traffic): State<Traffic>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/metrics" {
        traffic.read().await;
    }
    next.run(request).await
}

fn drops(status: Option<&DeviceStatus>) -> Vec<(&'static str, u64)> {
    let of = |status: &DeviceStatus| REASONS.map(|(reason, word)| (word, status.drops.of(reason)));
    status.map(|status| of(status).to_vec()).unwrap_or_default()
}

fn services(overlay: &Overlay, told: &Told, counted: &Counted) -> BTreeMap<ServiceId, OfService> {
    let (mut all, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for service in &overlay.services {
        let of = service.service;
        let count = |kind: &str| {
            counted
                .counters
                .get(&format!("{kind}{of}"))
                .copied()
                .unwrap_or_default()
        };
        let empty = OfService {
            new_flows: count(FLOWS).packets,
            bytes: count(PASSED).bytes,
            ..OfService::default()
        };
        all.insert(of, empty);
        addresses.extend(service.addresses.values().flatten().map(|address| (*address, service)));
    }
    for row in told.services() {
        if let Some(service) = all.get_mut(&row.service) {
            service.path.clone_from(&row.path);
        }
    }
    for ((to, went), flows) in &counted.flows {
        let Some(service) = addresses.get(to) else { continue };
        let is_it = |v4: IpAddr, v6: IpAddr| *went == v4 || *went == v6;
        let mut backends = service.backends.iter();
        let backend = backends.find(|backend| is_it(backend.v4.into(), backend.v6.into()));
        if let (Some(backend), Some(of)) = (backend, all.get_mut(&service.service)) {
            *of.flows.entry(backend.number).or_default() += flows;
        }
    }
    all
}

#[derive(Debug)]
struct Shown(Arc<Mutex<Reading>>);

/// The labels of a series.
type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<_> = reading
            .peers
            .iter()
            .map(|peer| (peer.node.to_string(), peer.cluster.to_string(), peer))
            .collect();
        let of_peers = || {
            ids.iter().map(|(node, cluster, peer)| {
                let labels: Labels<'_> = vec![("node", node.as_str()), ("cluster", cluster.as_str())];
                (labels, *peer)
            })
        };
        // What a VXLAN device carries is not counted per node.
        let counts = |of: fn(&Peer) -> u64| {
            let sealed = of_peers().filter(|(_, peer)| peer.way != Way::Vxlan);
            sealed.map(move |(labels, peer)| (labels, of(peer)))
        };
        let out = &mut encoder;
        counter(
            out,
            "peer_receive_bytes",
            "Bytes of sealed datagrams of a node",
            counts(|peer| peer.rx_bytes),
        )?;
        counter(
            out,
            "peer_transmit_bytes",
            "Bytes of sealed datagrams to a node",
            counts(|peer| peer.tx_bytes),
        )?;
        // The kernel's WireGuard counts no packets.
        let packets = |of: fn(&Peer) -> u64| {
            let counted =
                of_peers().filter(|(_, peer)| peer.way != Way::Vxlan && peer.sealed_by != Some(SealedBy::Kernel));
            counted.map(move |(labels, peer)| (labels, of(peer)))
        };
        counter(
            out,
            "peer_receive_packets",
            "Packets of a node",
            packets(|peer| peer.rx_packets),
        )?;
        counter(
            out,
            "peer_transmit_packets",
            "Packets to a node",
            packets(|peer| peer.tx_packets),
        )?;
        let every = |of: fn(&Peer) -> u64| of_peers().map(move |(labels, peer)| (labels, of(peer)));
        counter(out, "peer_probes", "Echoes sent to a node", every(|peer| peer.probes))?;
        counter(
            out,
            "peer_probes_lost",
            "Echoes that were not answered in time",
            every(|peer| peer.probes_lost),
        )?;
        let some =
            |of: fn(&Peer) -> Option<f64>| of_peers().filter_map(move |(labels, peer)| Some((labels, of(peer)?)));
        gauge(
            out,
            "peer_rtt_seconds",
            "Round-trip time of echoes, smoothed",
            some(|peer| Some(peer.rtt_ms? / 1e3)),
        )?;
        gauge(
            out,
            "peer_handshake_age_seconds",
            "Time since the last handshake with a node",
            some(|peer| Some(peer.handshake_age_s? as f64)),
        )?;
        gauge(
            out,
            "peer_mtu_bytes",
            "Largest packet that fits the way to a node",
            some(|peer| Some(f64::from(peer.mtu?))),
        )?;
        let paths = of_peers().map(|(mut labels, peer)| {
            labels.push(("path", path(peer.way)));
            (labels, 1.0)
        });
        gauge(
            out,
            "peer_path",
            "The way that packets to a node take now: the one with 1",
            paths,
        )?;
        let drops = reading
            .drops
            .iter()
            .map(|(reason, count)| (vec![("reason", *reason)], *count));
        counter(
            out,
            "tunnel_drops",
            "Packets and datagrams that the tunnel dropped",
            drops,
        )?;

        let ids: Vec<_> = reading.services.iter().map(|(id, of)| (id.to_string(), of)).collect();
        let each = |count: fn(&OfService) -> u64| {
            ids.iter().map(move |(id, of)| {
                let labels: Labels<'_> = vec![("service", of.path.as_str()), ("id", id.as_str())];
                (labels, count(of))
            })
        };
        counter(
            out,
            "service_new_flows",
            "New flows to a service, refused ones too",
            each(|of| of.new_flows),
        )?;
        counter(
            out,
            "service_bytes",
            "Bytes between callers and a service, both ways",
            each(|of| of.bytes),
        )?;
        let flows = ids
            .iter()
            .flat_map(|(id, of)| of.flows.iter().map(move |(number, flows)| (id, of, number, flows)));
        let numbers: Vec<_> = flows
            .map(|(id, of, number, flows)| (id, of, number.to_string(), *flows as f64))
            .collect();
        let flows = numbers.iter().map(|(id, of, number, flows)| {
            let labels: Labels<'_> = vec![
                ("service", of.path.as_str()),
                ("id", id.as_str()),
                ("instance", number.as_str()),
            ];
            (labels, *flows)
        });
        gauge(out, "service_flows", "Tracked flows to a service, by instance", flows)
    }
}

const fn path(way: Way) -> &'static str {
    match way {
        Way::Vxlan => "vxlan",
        Way::Direct => "direct",
        Way::Relayed => "relayed",
        Way::None => "none",
    }
}

fn counter<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl Iterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in all {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl Iterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in all {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Backend, Count, Service};
    use roble_core::ids::{ApplicationId, ClusterId, NodeId, OrganizationId, RawId};
    use roble_core::overlay::row::{Policy, Row, ServiceRow};
    use roble_daemon::metrics::Metrics;
    use roble_tunnel::{Drops, Reason};

    const SERVICE: ServiceId = ServiceId(RawId::from_bytes([1; 12]));
    const ID: &str = "010101010101010101010101";

    fn overlay() -> Overlay {
        let backend = |number: u32, last: u8| Backend {
            number,
            v4: [10, 18, 0, last].into(),
            v6: [0xfc00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
            ready: true,
            near: false,
            idle: false,
        };
        let addresses = BTreeMap::from([
            (
                Policy::RoundRobin,
                vec![[10, 30, 0, 7].into(), [0xfdff_u16, 0, 0, 0, 0, 0, 0, 7].into()],
            ),
            (Policy::Instance(1), vec![[10, 30, 0, 8].into()]),
        ]);
        Overlay {
            services: vec![Service {
                service: SERVICE,
                application: ApplicationId(RawId::MIN),
                addresses,
                backends: vec![backend(0, 2), backend(1, 3)],
                allows: Vec::new(),
            }],
            ..Overlay::default()
        }
    }

    fn told() -> Told {
        Told::of([Row::Service(ServiceRow {
            service: SERVICE,
            organization: OrganizationId(RawId::MIN),
            application: ApplicationId(RawId::MIN),
            path: "shop/api".to_owned(),
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
            allows: Vec::new(),
        })])
    }

    fn counters() -> BTreeMap<String, Count> {
        let count = |packets, bytes| Count { packets, bytes };
        [
            (format!("{FLOWS}{ID}"), count(21, 1_260)),
            (format!("{PASSED}{ID}"), count(40, 4_096)),
            (format!("{FLOWS}x"), count(1, 60)),
        ]
        .into()
    }

    #[test]
    fn flows_are_those_of_all_addresses_and_families_by_where_they_went() {
        let flows: [([u8; 4], [u8; 4], u64); 4] = [
            ([10, 30, 0, 7], [10, 18, 0, 2], 2),
            ([10, 30, 0, 7], [10, 18, 0, 3], 3),
            ([10, 30, 0, 8], [10, 18, 0, 3], 4),
            ([10, 30, 0, 9], [10, 18, 0, 3], 5),
        ];
        let mut flows: BTreeMap<(IpAddr, IpAddr), u64> =
            flows.map(|(to, went, count)| ((to.into(), went.into()), count)).into();
        let v6 = |first: u16, last: u16| IpAddr::from([first, 0, 0, 0, 0, 0, 0, last]);
        flows.insert((v6(0xfdff, 7), v6(0xfc00, 2)), 10);
        let counted = Counted {
            counters: counters(),
            flows,
        };
        let found = services(&overlay(), &told(), &counted);
        let expected = OfService {
            path: "shop/api".to_owned(),
            new_flows: 21,
            bytes: 4_096,
            flows: [(0, 12), (1, 7)].into(),
        };
        assert_eq!(found, [(SERVICE, expected)].into());
    }

    #[test]
    fn everything_is_rendered_with_its_labels_and_units() {
        let peer = |number: u8, way| Peer {
            sealed_by: None,
            node: NodeId(RawId::from_bytes([number; 12])),
            cluster: ClusterId(RawId::from_bytes([9; 12])),
            block: "10.18.1.0/26".parse().unwrap(),
            way,
            endpoint: None,
            rtt_ms: (way == Way::Relayed).then_some(12.5),
            handshake_age_s: (way == Way::Relayed).then_some(3),
            mtu: (way == Way::Relayed).then_some(1420),
            rx_bytes: 100,
            tx_bytes: 200,
            rx_packets: 1,
            tx_packets: 2,
            probes: 8,
            probes_lost: 1,
        };
        let mut of_reasons = Drops::default();
        of_reasons.set(Reason::BadAuth, 4);
        let status = DeviceStatus {
            drops: of_reasons,
            ..DeviceStatus::default()
        };
        let reading = Reading {
            peers: vec![peer(1, Way::Relayed), peer(2, Way::Vxlan)],
            drops: drops(Some(&status)),
            services: services(
                &overlay(),
                &told(),
                &Counted {
                    counters: counters(),
                    flows: [(([10, 30, 0, 7].into(), [10, 18, 0, 2].into()), 2)].into(),
                },
            ),
        };
        let metrics = Metrics::new();
        let shown = Shown(Arc::new(Mutex::new(reading)));
        metrics.register(|registry| {
            registry
                .sub_registry_with_prefix("net")
                .register_collector(Box::new(shown));
        });
        let text = metrics.render().unwrap();
        let (one, two, cluster) = ("01".repeat(12), "02".repeat(12), "09".repeat(12));
        let labels = format!("node=\"{one}\",cluster=\"{cluster}\"");
        let service = format!("service=\"shop/api\",id=\"{ID}\"");
        for line in [
            format!("net_peer_receive_bytes_total{{{labels}}} 100"),
            format!("net_peer_transmit_bytes_total{{{labels}}} 200"),
            format!("net_peer_receive_packets_total{{{labels}}} 1"),
            format!("net_peer_transmit_packets_total{{{labels}}} 2"),
            format!("net_peer_probes_total{{{labels}}} 8"),
            format!("net_peer_probes_lost_total{{{labels}}} 1"),
            format!("net_peer_rtt_seconds{{{labels}}} 0.0125"),
            format!("net_peer_handshake_age_seconds{{{labels}}} 3.0"),
            format!("net_peer_mtu_bytes{{{labels}}} 1420.0"),
            format!("net_peer_path{{{labels},path=\"relayed\"}} 1.0"),
            format!("net_peer_path{{node=\"{two}\",cluster=\"{cluster}\",path=\"vxlan\"}} 1.0"),
            "net_tunnel_drops_total{reason=\"bad_auth\"} 4".to_owned(),
            format!("net_service_new_flows_total{{{service}}} 21"),
            format!("net_service_bytes_total{{{service}}} 4096"),
            format!("net_service_flows{{{service},instance=\"0\"}} 2.0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(
            !text.contains(&format!("bytes_total{{node=\"{two}\"")),
            "not counted per node: {text}"
        );
    }
}
