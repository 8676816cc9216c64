//! Oakestra's SLA v2.0, accepted unchanged: what Oakestra refuses is refused, what it ignores is accepted with a notice,
//! and what we can not do yet is refused by name.
//!
//! Source: the JSON schema and behaviour of Oakestra 0.4.410, as facts; `docs/descriptor.md` lists every field.

mod constraint;
mod service;

use super::finding::{Code, Findings, did_you_mean, shown};
use super::tree::{Item, Table};
use super::{ApplicationDescriptor, Descriptor, Form, check};
use crate::ids::ApplicationId;

const TOP_KEYS: [&str; 3] = ["sla_version", "customerID", "applications"];
const APPLICATION_KEYS: [&str; 5] = [
    "applicationID",
    "application_name",
    "application_namespace",
    "application_desc",
    "microservices",
];
/// Keys that Oakestra's own clients send and its server drops.
const DROPPED: [&str; 4] = ["_id", "action", "userId", "args"];

/// Walks a document that has `sla_version`.
pub(super) fn walk(table: &Table<'_>, findings: &mut Findings) -> Option<Descriptor> {
    let version = table.required("sla_version", findings)?;
    let text = version.text(findings)?;
    if text != "v2.0" {
        let message = format!("`{}` is not a version of the SLA form that is read here", shown(text));
        findings.mistake(version.finding(Code::UnknownVersion, message).with_help("write `v2.0`"));
        return None;
    }
    note_unknown(table, &TOP_KEYS, &[], &["args"], findings);
    if let Some(args) = table.get("args") {
        let _ = texts(&args, findings);
    }
    let customer = table
        .required("customerID", findings)
        .and_then(|item| item.text(findings))
        .map(str::to_owned);
    let list = table.required("applications", findings)?;
    let items = list.list(findings)?;
    if items.is_empty() {
        findings.notice(list.finding(Code::Empty, "there is no application in it"));
    }
    let applications = items.iter().filter_map(|item| application(item, findings)).collect();
    Some(Descriptor {
        form: Form::Sla,
        customer,
        applications,
    })
}

fn application(item: &Item<'_>, findings: &mut Findings) -> Option<ApplicationDescriptor> {
    let table = item.table(findings)?;
    note_unknown(&table, &APPLICATION_KEYS, &[], &DROPPED, findings);
    let requested_id = table
        .get("applicationID")
        .and_then(|item| requested_id(&item, findings));
    let name = full_name(&table, "application_name", "application_namespace", findings);
    let scope = name.clone().unwrap_or_else(|| item.path.clone());
    if let (Some(name), Some(at)) = (&name, table.get("application_name")) {
        check::claim_name("", name, &at, findings);
    }
    let description = table
        .get("application_desc")
        .and_then(|item| item.text(findings))
        .unwrap_or_default()
        .to_owned();
    let services = table.required("microservices", findings).and_then(|list| {
        let items = list.list(findings)?;
        if items.is_empty() {
            findings.notice(list.finding(Code::Empty, "there is no service in it"));
        }
        Some(
            items
                .iter()
                .filter_map(|item| service::service(item, &scope, findings))
                .collect(),
        )
    });
    Some(ApplicationDescriptor {
        name: name?,
        description,
        requested_id,
        services: services?,
    })
}

fn requested_id(item: &Item<'_>, findings: &mut Findings) -> Option<ApplicationId> {
    let text = item.text(findings)?;
    if text.is_empty() {
        return None;
    }
    let id = text.parse();
    if id.is_err() {
        let message = format!("`{}` is not an id: 24 lowercase hex digits expected", shown(text));
        let finding = item.finding(Code::BadValue, message);
        findings.mistake(finding.with_help("leave it empty for a new application"));
    }
    id.ok()
}

/// Name and namespace as one name: lower case, and a namespace other than `default` as a suffix.
fn full_name(table: &Table<'_>, name_key: &str, namespace_key: &str, findings: &mut Findings) -> Option<String> {
    let name = table
        .required(name_key, findings)
        .and_then(|item| part(&item, findings));
    let namespace = table.required(namespace_key, findings).and_then(|item| {
        let namespace = part(&item, findings)?;
        // `web.0` is the path of an instance, so a namespace may not look like a number.
        if namespace.bytes().all(|b| b.is_ascii_digit()) {
            let message = format!("the namespace `{namespace}` is called `n{namespace}` here");
            findings.notice(item.finding(Code::Changed, message));
            return Some(format!("n{namespace}"));
        }
        Some(namespace)
    });
    let (name, namespace) = (name?, namespace?);
    Some(if namespace == "default" {
        name
    } else {
        format!("{name}.{namespace}")
    })
}

/// `^[a-zA-Z0-9]{1,30}$`, lower-cased; Oakestra lets a line end slip through at the end.
fn part(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.text(findings)?;
    let trimmed = text.strip_suffix('\n').unwrap_or(text);
    if !(1..=30).contains(&trimmed.len()) || !trimmed.bytes().all(|b| b.is_ascii_alphanumeric()) {
        let message = format!(
            "`{}` is not a name: 1 to 30 letters and digits are expected",
            shown(text)
        );
        let kept: String = trimmed.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let finding = item.finding(Code::BadName, message);
        findings.mistake(if kept.is_empty() {
            finding
        } else {
            finding.with_help(format!("write e.g. `{kept}`"))
        });
        return None;
    }
    let name = trimmed.to_ascii_lowercase();
    if name != text {
        let message = format!("`{}` is called `{name}` here: names are lower case", shown(text));
        findings.notice(item.finding(Code::Changed, message));
    }
    Some(name)
}

/// Notes keys that mean nothing to Oakestra. `misspelt`: words and what was likely meant; `silent`: dropped unsaid.
fn note_unknown(
    table: &Table<'_>,
    known: &[&str],
    misspelt: &[(&str, &str)],
    silent: &[&str],
    findings: &mut Findings,
) {
    for (key, _) in table.iter() {
        let word = key.text.as_str();
        if known.contains(&word) || silent.contains(&word) {
            continue;
        }
        let message = format!("`{}` means nothing to Oakestra and is ignored", shown(word));
        let finding = table.at_key(key, Code::UnknownField, message);
        let meant = misspelt
            .iter()
            .find(|(wrong, _)| *wrong == word)
            .map(|(_, right)| format!("did you mean `{right}`?"));
        findings.notice(match meant.or_else(|| did_you_mean(word, known.iter().copied())) {
            Some(help) => finding.with_help(help),
            None => finding,
        });
    }
}

/// A list of texts.
fn texts(item: &Item<'_>, findings: &mut Findings) -> Vec<String> {
    let items = item.list(findings).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item.long_text(findings).map(str::to_owned))
        .collect()
}
