//! Join tokens.

use crate::output::{Page, View};
use crate::text;
use roble_core::time::Timestamp;
use roble_proto::rest::TokenView;

impl View for TokenView {
    const PLURAL: &'static str = "tokens";
    const HEADERS: &'static [&'static str] = &[
        "TOKEN",
        "KIND",
        "CLUSTER",
        "FOR-NAME",
        "STATE",
        "EXPIRES",
        "REUSE-TRIED",
    ];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.kind.to_string(),
            text::or_dash(self.cluster.as_ref()),
            text::or_dash(self.name.as_ref()),
            state(self, now).to_owned(),
            expires(self, now),
            self.reuse_attempts.to_string(),
        ]
    }

    fn describe(&self, page: &mut Page, now: Timestamp) {
        page.entry("Token", self.id);
        page.entry("Lets join", self.kind);
        page.maybe("Cluster", self.cluster.as_ref());
        page.maybe("Only as", self.name.as_ref());
        page.entry("State", state(self, now));
        page.entry("Expires", format!("{} ({})", self.expires_at, expires(self, now)));
        page.entry("Needs approval", if self.needs_approval { "yes" } else { "no" });
        page.entry("Tries after use", self.reuse_attempts);
    }
}

fn state(token: &TokenView, now: Timestamp) -> &'static str {
    match (token.used, token.expires_at <= now) {
        (true, _) => "used",
        (false, true) => "expired",
        (false, false) => "open",
    }
}

fn expires(token: &TokenView, now: Timestamp) -> String {
    match token.expires_at <= now {
        true => format!("{} ago", text::age(token.expires_at, now)),
        false => format!("in {}", text::age(now, token.expires_at)),
    }
}
