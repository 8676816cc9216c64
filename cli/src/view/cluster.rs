//! Clusters.

use crate::output::{Page, View, table};
use crate::text;
use roble_core::labels::ARCH;
use roble_core::resources::Resources;
use roble_core::time::Timestamp;
use roble_proto::rest::ClusterView;

impl View for ClusterView {
    const PLURAL: &'static str = "clusters";
    const HEADERS: &'static [&'static str] = &[
        "CLUSTER",
        "STATE",
        "NODES",
        "INSTANCES",
        "CPU",
        "MEMORY",
        "HEARD",
        "VERSION",
        "AGE",
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let all = total(self);
        vec![
            self.name.clone(),
            super::standing(self.state, &self.standing, self.cordoned, self.cloned),
            nodes(self).to_string(),
            self.instances.to_string(),
            format!("{}/{}", text::cpu(self.reserved.cpu_millis), text::cpu(all.cpu_millis)),
            format!(
                "{}/{}",
                text::bytes(self.reserved.memory_bytes),
                text::bytes(all.memory_bytes)
            ),
            text::or_dash(self.silent_ms.map(|silent| format!("{} ago", text::span(silent)))),
            text::or_dash(Some(&self.software)),
            text::age(self.joined_at, now),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Cluster", &self.name);
        page.entry("Id", self.id);
        page.entry(
            "State",
            super::standing(self.state, &self.standing, self.cordoned, self.cloned),
        );
        page.maybe(
            "Heard",
            self.silent_ms.map(|silent| format!("{} ago", text::span(silent))),
        );
        page.entry("Labels", super::labels(&self.labels));
        page.entry("Nodes", nodes(self));
        page.entry("Instances", self.instances);
        page.entry("Allocatable", text::resources(&total(self)));
        page.entry("Reserved", text::resources(&self.reserved));
        page.entry("Version", text::or_dash(Some(&self.software)));
        super::moment(page, "Joined", self.joined_at, now);
        page.section("Classes of nodes");
        let rows = self.offers.iter().map(|offer| {
            vec![
                text::or_dash(offer.labels.get(ARCH)),
                offer.count.to_string(),
                text::resources(&offer.allocatable),
                text::or_dash(offer.largest_free.first().map(text::resources)),
                super::labels(&offer.labels),
            ]
        });
        page.text_block(&table(
            &["ARCH", "COUNT", "ALLOCATABLE", "LARGEST FREE", "LABELS"],
            rows,
        ));
    }
}

fn nodes(cluster: &ClusterView) -> u32 {
    cluster.offers.iter().map(|offer| offer.count).sum()
}

fn total(cluster: &ClusterView) -> Resources {
    let offers = cluster.offers.iter();
    offers.fold(Resources::ZERO, |sum, offer| sum.plus(&offer.allocatable))
}
