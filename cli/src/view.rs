//! A file per noun: its row in tables, its details.

mod application;
mod audit;
mod cluster;
mod event;
mod instance;
mod node;
mod service;
mod token;

use crate::output::Page;
use crate::text;
use roble_core::labels::Labels;
use roble_core::registry::MemberState;
use roble_core::time::Timestamp;

/// `key=value` pairs separated by commas.
fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    text::or_dash(Some(pairs.join(",")))
}

/// One word for how a member is: its membership while that is not active, else its standing and what holds it back.
fn standing(state: MemberState, standing: &str, cordoned: bool, cloned: bool) -> String {
    let word = match state {
        MemberState::Pending => "pending-approval",
        MemberState::Revoked => "revoked",
        MemberState::Active => standing,
    };
    let mut text = word.to_owned();
    for (is_so, word) in [(cordoned, ",cordoned"), (cloned, ",cloned")] {
        if is_so {
            text.push_str(word);
        }
    }
    text
}

fn moment(page: &mut Page, key: &str, at: Timestamp, now: Timestamp) {
    page.entry(key, format!("{at} ({} ago)", text::age(at, now)));
}
