//! Applications.

use crate::output::{Page, View, table};
use crate::text;
use roble_core::time::Timestamp;
use roble_proto::rest::{ApplicationView, ServiceView};

impl View for ApplicationView {
    const PLURAL: &'static str = "applications";
    const HEADERS: &'static [&'static str] = &["APPLICATION", "SERVICES", "RUNNING", "AGE", "DESCRIPTION"];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let running: u32 = self.services.iter().map(|service| service.running).sum();
        let replicas: u32 = self.services.iter().map(|service| service.replicas).sum();
        vec![
            self.name.clone(),
            self.services.len().to_string(),
            format!("{running}/{replicas}"),
            text::age(self.created_at, now),
            text::or_dash(Some(&self.description)),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Application", &self.name);
        page.entry("Id", self.id);
        page.maybe("Description", Some(&self.description).filter(|text| !text.is_empty()));
        super::moment(page, "Created", self.created_at, now);
        page.section("Services");
        let rows = self.services.iter().map(|service| service.row(now));
        page.text_block(&table(ServiceView::HEADERS, rows));
    }
}
