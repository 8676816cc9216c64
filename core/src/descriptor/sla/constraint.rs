//! `constraints` and `connectivity` of the SLA form.

use super::note_unknown;
use crate::descriptor::finding::{Code, Findings, did_you_mean, shown};
use crate::descriptor::tree::{Item, Table, Value};
use crate::spec::Constraints;

/// Types of constraints that Oakestra names and does not evaluate, and that we refuse until we do.
const LATER: [&str; 4] = ["latency", "geo", "addons", "clusters"];

const KEYS: [&str; 10] = [
    "type",
    "area",
    "cluster",
    "node",
    "location",
    "threshold",
    "rigidness",
    "convergence_time",
    "needs",
    "allowed",
];

/// Of several `direct` constraints the last one counts.
pub(super) fn constraints(item: &Item<'_>, findings: &mut Findings) -> Constraints {
    let mut result = Constraints::default();
    let mut before: Option<Item<'_>> = None;
    for item in item.list(findings).unwrap_or_default() {
        let Some(table) = item.table(findings) else { continue };
        check_types(&table, findings);
        let Some(kind) = table.required("type", findings) else {
            continue;
        };
        let Some(text) = kind.text(findings) else { continue };
        if LATER.contains(&text) {
            let message = format!("constraints of type `{text}` are not supported yet");
            findings.mistake(
                kind.finding(Code::NotSupportedYet, message)
                    .with_help("leave it out for now"),
            );
        } else if text == "direct" {
            note_unknown(&table, &KEYS, &[], &[], findings);
            result.cluster = place(&table, "cluster", findings);
            result.node = place(&table, "node", findings);
            if let Some(before) = before.replace(item.clone()) {
                let message = format!(
                    "replaced by `{}`: of several direct constraints the last one counts",
                    item.path
                );
                findings.notice(before.finding(Code::Ignored, message));
            }
        } else {
            let message = format!(
                "constraints of type `{}` mean nothing to Oakestra and are ignored",
                shown(text)
            );
            let finding = kind.finding(Code::Ignored, message);
            findings.notice(match did_you_mean(text, LATER.into_iter().chain(["direct"])) {
                Some(help) => finding.with_help(help),
                None => finding,
            });
        }
    }
    result
}

/// The name of a cluster or node; an empty one means any.
fn place(table: &Table<'_>, key: &str, findings: &mut Findings) -> Option<String> {
    let item = table.get(key)?;
    // A wrong type was noted before.
    let text = item.text(&mut Findings::default()).filter(|text| !text.is_empty())?;
    if text.len() > 253 {
        findings.mistake(item.finding(
            Code::TooLarge,
            format!("the name of a {key} has at most 253 characters"),
        ));
        return None;
    }
    if text.contains(';') {
        let message = format!(
            "`{}` is taken as one name, as Oakestra takes it; a list is not read here",
            shown(text)
        );
        findings.notice(item.finding(Code::Consequence, message));
    }
    Some(text.to_owned())
}

/// The types that Oakestra's schema demands, whatever the constraint.
fn check_types(table: &Table<'_>, findings: &mut Findings) {
    for key in ["area", "cluster", "node", "location"] {
        table.get(key).map(|item| item.text(findings));
    }
    for key in ["threshold", "rigidness"] {
        table.get(key).map(|item| number(&item, findings));
    }
    table
        .get("convergence_time")
        .map(|item| item.integer(1 << 53, findings));
    for key in ["needs", "allowed"] {
        for item in table.get(key).and_then(|item| item.list(findings)).unwrap_or_default() {
            let _ = item.text(findings);
        }
    }
}

fn number(item: &Item<'_>, findings: &mut Findings) -> bool {
    let ok = matches!(item.node.value, Value::Number(_));
    if !ok {
        item.wrong_type("a number", findings);
    }
    ok
}

/// Checks the shape that Oakestra's schema demands; nothing is evaluated. Whether it has that shape.
pub(super) fn connectivity(item: &Item<'_>, findings: &mut Findings) -> bool {
    let Some(items) = item.list(findings) else { return false };
    let mut ok = true;
    for item in items {
        let Some(table) = item.table(findings) else {
            ok = false;
            continue;
        };
        let target = table.required("target_microservice_id", findings);
        ok &= target.is_some_and(|item| item.text(findings).is_some());
        let Some(list) = table
            .required("con_constraints", findings)
            .and_then(|item| item.list(findings))
        else {
            ok = false;
            continue;
        };
        for constraint in list {
            let Some(table) = constraint.table(findings) else {
                ok = false;
                continue;
            };
            ok &= table
                .required("type", findings)
                .is_some_and(|item| item.text(findings).is_some());
            for key in ["threshold", "rigidness"] {
                ok &= table
                    .required(key, findings)
                    .is_some_and(|item| number(&item, findings));
            }
            let time = table.required("convergence_time", findings);
            ok &= time.is_some_and(|item| item.integer(1 << 53, findings).is_some());
        }
    }
    ok
}
