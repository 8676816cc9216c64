//! What the daemon counts.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::broker::{Broker, BrokerStats};

/// Counters and gauges of the daemon. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ClusterMetrics {
    /// The session with the root stands.
    pub uplink_connected: Gauge,
    /// Sessions with the root that were opened.
    pub uplink_sessions: Counter,
    /// Frames to the root that were dropped.
    pub dropped_to_root: Counter,
    /// Messages to nodes that were dropped.
    pub dropped_to_nodes: Counter,
    /// Members that are not revoked.
    pub members: Gauge,
    /// Instances known.
    pub instances: Gauge,
    /// Decisions about instances.
    pub steps: Counter,
    /// Messages that were not understood, or broke the protocol.
    pub violations: Counter,
    /// Eviction is held.
    pub brake: Gauge,
    /// Joins and renewals granted.
    pub granted: Counter,
    /// Joins and renewals refused.
    pub refused: Counter,
    /// Streams passed on to the root.
    pub streams: Counter,
}

impl ClusterMetrics {
    /// Registers all under `roble_cluster_...`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("roble_cluster");
        registry.register(
            "uplink_connected",
            "The session with the root stands",
            self.uplink_connected.clone(),
        );
        registry.register(
            "uplink_sessions",
            "Sessions with the root opened",
            self.uplink_sessions.clone(),
        );
        registry.register(
            "dropped_to_root",
            "Frames to the root dropped",
            self.dropped_to_root.clone(),
        );
        registry.register(
            "dropped_to_nodes",
            "Messages to nodes dropped",
            self.dropped_to_nodes.clone(),
        );
        registry.register("members", "Members that are not revoked", self.members.clone());
        registry.register("instances", "Instances known", self.instances.clone());
        registry.register("steps", "Decisions about instances", self.steps.clone());
        registry.register("violations", "Messages not understood", self.violations.clone());
        registry.register("brake", "Eviction is held", self.brake.clone());
        registry.register("granted", "Joins and renewals granted", self.granted.clone());
        registry.register("refused", "Joins and renewals refused", self.refused.clone());
        registry.register("streams", "Streams passed on to the root", self.streams.clone());
    }
}

/// Reads the broker's figures on each scrape.
pub struct BrokerFigures(
    /// The broker.
    pub Arc<dyn Broker>,
);

impl fmt::Debug for BrokerFigures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BrokerFigures")
    }
}

impl Collector for BrokerFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats: BrokerStats = self.0.stats();
        let gauges = [("clients", stats.clients), ("queued_bytes", stats.queued_bytes)];
        for (name, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("roble_cluster_broker_{name}");
            gauge.encode(encoder.encode_descriptor(&name, "See BrokerStats", None, gauge.metric_type())?)?;
        }
        let counters = [
            ("connects", stats.connects),
            ("refused", stats.refused),
            ("received", stats.received),
            ("sent", stats.sent),
            ("queue_full", stats.queue_full),
            ("forbidden_publish", stats.forbidden_publish),
            ("forbidden_subscribe", stats.forbidden_subscribe),
            ("protocol_errors", stats.protocol_errors),
            ("stalled", stats.stalled),
            ("silent", stats.silent),
            ("duplicates", stats.duplicates),
            ("revoked", stats.revoked),
            ("restarts", stats.restarts),
        ];
        for (name, value) in counters {
            let counter = ConstCounter::new(value);
            let name = format!("roble_cluster_broker_{name}");
            counter.encode(encoder.encode_descriptor(&name, "See BrokerStats", None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
