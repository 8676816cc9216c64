//! What the net manager counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All metrics of `roble-net`. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct NetMetrics {
    /// Containers attached.
    pub attachments: Gauge,
    /// Addresses that containers of this node may get.
    pub addresses: Gauge,
    /// Endpoints that are not as they should be.
    pub failed_endpoints: Gauge,
    /// Times the datapath as a whole could not be set.
    pub set_failures: Counter,
    /// Times everything was looked at and set anew.
    pub reconciliations: Counter,
    /// Requests refused because a port is taken.
    pub ports_taken: Counter,
    /// Requests refused because there is no free address.
    pub addresses_exhausted: Counter,
    /// Packets held until it was known where they go.
    pub packets_held: Counter,
    /// Packets lost because too many were held already.
    pub packets_overheld: Counter,
}

impl NetMetrics {
    /// Registers all as `net_...`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("net");
        registry.register("attachments", "Containers attached", self.attachments.clone());
        registry.register("addresses", "Endpoint addresses of this node", self.addresses.clone());
        registry.register(
            "failed_endpoints",
            "Endpoints that could not be set",
            self.failed_endpoints.clone(),
        );
        registry.register(
            "set_failures",
            "Failures to set the datapath",
            self.set_failures.clone(),
        );
        registry.register(
            "reconciliations",
            "Rounds of reconciliation",
            self.reconciliations.clone(),
        );
        registry.register(
            "ports_taken",
            "Attachments refused for a port",
            self.ports_taken.clone(),
        );
        registry.register(
            "addresses_exhausted",
            "Attachments without address",
            self.addresses_exhausted.clone(),
        );
        registry.register(
            "packets_held",
            "Packets to unknown services that were held",
            self.packets_held.clone(),
        );
        registry.register(
            "packets_overheld",
            "Packets to unknown services beyond those that are held",
            self.packets_overheld.clone(),
        );
    }
}
