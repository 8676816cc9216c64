//! The native form: strict, with defaults for all but the image. `docs/descriptor.md` is its reference.

mod allow;
mod service;

use super::finding::{Code, Findings, shown};
use super::tree::{Item, Table};
use super::{ApplicationDescriptor, Descriptor, Form};
use super::{check, name};

const APPLICATION_KEYS: [&str; 3] = ["application", "description", "services"];

/// Walks a document; what it gives is only complete if no mistake was noted.
pub(super) fn walk(table: &Table<'_>, findings: &mut Findings) -> Descriptor {
    let applications = match table.get("applications") {
        None => application(table, findings).into_iter().collect(),
        Some(list) => {
            table.refuse_unknown(&["applications"], &[], findings);
            let items = list.list(findings).unwrap_or_default();
            if items.is_empty() {
                findings.notice(list.finding(Code::Empty, "there is no application in it"));
            }
            let tables: Vec<_> = items.iter().filter_map(|item| item.table(findings)).collect();
            tables.iter().filter_map(|table| application(table, findings)).collect()
        }
    };
    Descriptor {
        form: Form::Native,
        customer: None,
        applications,
    }
}

fn application(table: &Table<'_>, findings: &mut Findings) -> Option<ApplicationDescriptor> {
    table.refuse_unknown(&APPLICATION_KEYS, &[], findings);
    let application = table.required("application", findings).and_then(|item| {
        let text = item.text(findings)?;
        check::claim_name("", text, &item, findings);
        check_name(&item, text, findings).then(|| text.to_owned())
    });
    let description = table
        .get("description")
        .and_then(|item| item.text(findings))
        .unwrap_or_default()
        .to_owned();
    let services = table
        .required("services", findings)
        .and_then(|item| services(&item, findings));
    Some(ApplicationDescriptor {
        name: application?,
        description,
        requested_id: None,
        services: services?,
    })
}

fn services(item: &Item<'_>, findings: &mut Findings) -> Option<Vec<super::ServiceDescriptor>> {
    let table = item.table(findings)?;
    if table.is_empty() {
        findings.notice(item.finding(Code::Empty, "there is no service in it"));
    }
    let mut services = Vec::new();
    for (key, service) in table.iter() {
        let name_ok = match name::fault(&key.text) {
            None => true,
            Some(fault) => {
                let message = format!("`{}` can not be the name of a service: {fault}", shown(&key.text));
                let finding = table.at_key(key, Code::BadName, message);
                findings.mistake(with_suggestion(finding, &key.text));
                false
            }
        };
        if let Some(service) = service::service(&key.text, &service, findings).filter(|_| name_ok) {
            services.push(service);
        }
    }
    Some(services)
}

fn check_name(item: &Item<'_>, text: &str, findings: &mut Findings) -> bool {
    let Some(fault) = name::fault(text) else { return true };
    let message = format!("`{}` can not be the name of an application: {fault}", shown(text));
    findings.mistake(with_suggestion(item.finding(Code::BadName, message), text));
    false
}

fn with_suggestion(finding: super::Finding, text: &str) -> super::Finding {
    match name::suggestion(text) {
        Some(suggestion) => finding.with_help(format!("write e.g. `{suggestion}`")),
        None => finding,
    }
}
