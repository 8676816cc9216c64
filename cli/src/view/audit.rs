//! Audit records.

use crate::output::{Page, View};
use roble_core::time::Timestamp;
use roble_proto::rest::AuditView;

impl View for AuditView {
    const PLURAL: &'static str = "audit records";
    const HEADERS: &'static [&'static str] = &["AT", "USER", "ACTION", "OBJECT"];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn row(&self, _: Timestamp) -> Vec<String> {
        vec![
            self.at.to_string(),
            self.user.clone(),
            self.action.clone(),
            self.object.clone(),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Record", self.id);
        super::moment(page, "At", self.at, now);
        page.entry("User", &self.user);
        page.entry("Action", &self.action);
        page.entry("Object", &self.object);
    }
}
