//! Every metric of the root.

use crate::tier::RootTier;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use roble_core::registry::MemberState;
use roble_daemon::metrics::Metrics;
use roble_daemon::serve::ServeMetrics;

/// What the root counts. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RootMetrics {
    /// Messages of clusters that broke the protocol.
    pub violations: Counter,
    /// Links dropped because a cluster did not read what was sent.
    pub slow_links: Counter,
    /// Requests for login or joining that came too fast.
    pub throttled: Counter,
    /// Clusters that may take part.
    pub clusters_active: Gauge,
    /// Clusters whose session stands.
    pub clusters_connected: Gauge,
    /// The listener of users.
    pub api: ServeMetrics,
    /// The listener of clusters.
    pub link: ServeMetrics,
}

impl RootMetrics {
    /// Registers all.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register(
                "root_violations",
                "Protocol violations of clusters",
                self.violations.clone(),
            );
            registry.register(
                "root_slow_links",
                "Links dropped for a full queue",
                self.slow_links.clone(),
            );
            registry.register(
                "root_throttled_requests",
                "Logins and joins too fast",
                self.throttled.clone(),
            );
            registry.register(
                "root_clusters_active",
                "Clusters that take part",
                self.clusters_active.clone(),
            );
            registry.register(
                "root_clusters_connected",
                "Clusters in session",
                self.clusters_connected.clone(),
            );
            self.api.register(registry, "root_api");
            self.link.register(registry, "root_link");
        });
    }

    /// Looks at the tier after a batch of events.
    pub fn look(&self, tier: &RootTier) {
        let (mut active, mut connected) = (0, 0);
        for member in tier.registry().members() {
            active += i64::from(member.state == MemberState::Active);
            connected += i64::from(tier.children().is_open(member.id));
        }
        self.clusters_active.set(active);
        self.clusters_connected.set(connected);
    }
}
