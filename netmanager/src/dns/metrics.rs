//! What the name server counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// All metrics of the name server. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct DnsMetrics {
    /// Queries for names and addresses of ours that exist.
    pub found: Counter,
    /// Queries for names and addresses of ours that do not exist for who asked.
    pub unknown: Counter,
    /// Queries passed on.
    pub forwarded: Counter,
    /// Queries that are malformed, of a kind that is not served, or from nobody's address.
    pub refused: Counter,
    /// Datagrams that got no answer, for they were no queries.
    pub dropped: Counter,
    /// Queries and connections beyond what a client, or all together, may use.
    pub limited: Counter,
    /// Attempts at a server upstream without a usable answer.
    pub upstream_failures: Counter,
    /// Queries passed on that nobody answered.
    pub unanswered: Counter,
}

impl DnsMetrics {
    /// Registers all as `net_dns_...`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("net_dns");
        for (name, help, counter) in [
            ("found", "Queries for names that are ours", &self.found),
            (
                "unknown",
                "Queries below our domain for what is not there",
                &self.unknown,
            ),
            ("forwarded", "Queries passed on", &self.forwarded),
            ("refused", "Queries that are not served", &self.refused),
            ("dropped", "Datagrams that are no queries", &self.dropped),
            ("limited", "Queries and connections beyond the limits", &self.limited),
            (
                "upstream_failures",
                "Attempts upstream without an answer",
                &self.upstream_failures,
            ),
            ("unanswered", "Queries passed on that nobody answered", &self.unanswered),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}
