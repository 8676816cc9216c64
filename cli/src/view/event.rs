//! Events.

use crate::output::{Page, View};
use roble_core::time::Timestamp;
use roble_proto::rest::EventView;

impl View for EventView {
    const PLURAL: &'static str = "events";
    const HEADERS: &'static [&'static str] = &["AT", "ABOUT", "EVENT", "MESSAGE"];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn row(&self, _: Timestamp) -> Vec<String> {
        vec![
            self.at.to_string(),
            self.about.clone(),
            self.code.clone(),
            self.message.clone(),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Event", self.id);
        super::moment(page, "At", self.at, now);
        page.entry("About", &self.about);
        page.entry("Code", &self.code);
        page.entry("Message", &self.message);
    }
}
