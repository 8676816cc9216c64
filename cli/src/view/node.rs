//! Nodes.

use crate::output::{Page, View};
use crate::text;
use roble_core::labels::ARCH;
use roble_core::time::Timestamp;
use roble_proto::rest::NodeView;

impl View for NodeView {
    const PLURAL: &'static str = "nodes";
    const HEADERS: &'static [&'static str] = &[
        "NODE",
        "CLUSTER",
        "STATE",
        "ARCH",
        "INSTANCES",
        "CPU",
        "MEMORY",
        "ADDRESS",
        "HEARD",
        "VERSION",
        "AGE",
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (used, all) = (&self.reserved, &self.allocatable);
        vec![
            self.name.clone(),
            text::or_dash(Some(&self.cluster)),
            super::standing(self.state, &self.standing, self.cordoned, self.cloned),
            text::or_dash(self.labels.get(ARCH)),
            self.instances.to_string(),
            format!("{}/{}", text::cpu(used.cpu_millis), text::cpu(all.cpu_millis)),
            format!("{}/{}", text::bytes(used.memory_bytes), text::bytes(all.memory_bytes)),
            text::or_dash(Some(&self.address)),
            text::or_dash(self.silent_ms.map(|silent| format!("{} ago", text::span(silent)))),
            text::or_dash(Some(&self.software)),
            text::age(self.joined_at, now),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Node", &self.name);
        page.entry("Id", self.id);
        page.entry("Cluster", text::or_dash(Some(&self.cluster)));
        page.entry(
            "State",
            super::standing(self.state, &self.standing, self.cordoned, self.cloned),
        );
        page.maybe(
            "Heard",
            self.silent_ms.map(|silent| format!("{} ago", text::span(silent))),
        );
        page.entry("Labels", super::labels(&self.labels));
        page.entry("Address", text::or_dash(Some(&self.address)));
        page.entry("Instances", self.instances);
        page.entry("Allocatable", text::resources(&self.allocatable));
        page.entry("Reserved", text::resources(&self.reserved));
        page.entry("Version", text::or_dash(Some(&self.software)));
        super::moment(page, "Joined", self.joined_at, now);
    }
}
