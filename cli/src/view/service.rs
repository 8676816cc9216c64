//! Services.

use crate::output::{Page, View};
use crate::text;
use roble_core::time::Timestamp;
use roble_proto::rest::ServiceView;

impl View for ServiceView {
    const PLURAL: &'static str = "services";
    const HEADERS: &'static [&'static str] = &[
        "SERVICE",
        "RUNNING",
        "UP-TO-DATE",
        "GENERATION",
        "PORTS",
        "AGE",
        "IMAGE",
    ];

    fn name(&self) -> String {
        self.path.clone()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let running = format!("{}/{}", self.running, self.replicas);
        vec![
            self.path.clone(),
            match self.deleting {
                true => format!("{running} deleting"),
                false => running,
            },
            self.up_to_date.to_string(),
            self.generation.to_string(),
            ports(self),
            text::age(self.created_at, now),
            self.image.clone(),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Service", &self.path);
        page.entry("Id", self.id);
        page.entry("Image", &self.image);
        page.entry("Replicas", self.replicas);
        page.entry("Running", self.running);
        page.entry(
            "Up to date",
            format!("{} with generation {}", self.up_to_date, self.generation),
        );
        page.entry("Deleting", if self.deleting { "yes" } else { "no" });
        page.entry("Reserves", text::resources(&self.resources));
        page.entry("Ports", ports(self));
        for (policy, addresses) in &self.addresses {
            page.maybe(&format!("Address, {policy}"), text::addresses(addresses));
        }
        super::moment(page, "Created", self.created_at, now);
        super::moment(page, "Changed", self.updated_at, now);
        page.section("Descriptor");
        let text = serde_saphyr::to_string(&self.descriptor).unwrap_or_else(|_| self.descriptor.to_string());
        page.text_block(text.trim_end());
    }
}

fn ports(service: &ServiceView) -> String {
    let list: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    text::or_dash(Some(list.join(",")))
}
