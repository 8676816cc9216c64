//! Instances.

use crate::output::{Page, View};
use crate::text;
use roble_core::status::Phase;
use roble_core::time::Timestamp;
use roble_proto::rest::InstanceView;

/// A cluster silent for longer makes what is known of its instances old news.
const OLD_NEWS_MS: u64 = 15_000;

impl View for InstanceView {
    const PLURAL: &'static str = "instances";
    const HEADERS: &'static [&'static str] = &[
        "INSTANCE", "PHASE", "REASON", "CLUSTER", "NODE", "ADDRESS", "RESTARTS", "AGE",
    ];

    fn name(&self) -> String {
        self.path.clone()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.path.clone(),
            self.phase.to_string(),
            reason(self),
            text::or_dash(self.cluster.as_ref()),
            node(self),
            text::or_dash(address(self)),
            self.restarts.to_string(),
            text::or_dash(self.started_at.map(|at| text::age(at, now))),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Instance", &self.path);
        page.entry("Id", &self.id);
        page.entry("Phase", self.phase);
        page.maybe("Reason", self.reason.as_ref());
        page.entry("Cluster", text::or_dash(self.cluster.as_ref()));
        page.entry("Node", node(self));
        page.entry(
            "Address",
            text::or_dash(address(self).or_else(|| self.node_address.clone())),
        );
        page.maybe("Endpoint", text::addresses(&self.addresses));
        page.maybe("Service address", text::addresses(&self.service_addresses));
        page.entry("Generation", self.generation);
        let epochs: Vec<String> = self.epochs.iter().map(ToString::to_string).collect();
        page.entry("Epochs", text::or_dash(Some(epochs.join("/"))));
        page.entry("Restarts", self.restarts);
        page.maybe("Last exit code", self.exit_code);
        if let Some(at) = self.started_at {
            super::moment(page, "Started", at, now);
        }
        page.maybe("Image digest", self.image_digest.as_ref());
        page.maybe("Reported", self.age_ms.map(|age| format!("{} ago", text::span(age))));
    }
}

fn node(instance: &InstanceView) -> String {
    let id = || instance.node.map(|id| id.to_string());
    text::or_dash(instance.node_name.clone().filter(|name| !name.is_empty()).or_else(id))
}

fn address(instance: &InstanceView) -> Option<String> {
    let address = instance.node_address.as_deref().filter(|address| !address.is_empty())?;
    Some(text::endpoints(address, &instance.ports)).filter(|text| !text.is_empty())
}

fn reason(instance: &InstanceView) -> String {
    let mut parts = Vec::new();
    parts.extend(instance.reason.as_ref().map(|reason| reason.code.clone()));
    if let Some(code) = instance.exit_code.filter(|_| instance.phase != Phase::Running) {
        parts.push(format!("exit {code}"));
    }
    if let Some(age) = instance.age_ms.filter(|age| *age > OLD_NEWS_MS) {
        parts.push(format!("heard {} ago", text::span(age)));
    }
    text::or_dash(Some(parts.join(", ")))
}
