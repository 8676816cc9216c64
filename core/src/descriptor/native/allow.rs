//! Who outside of its application may call a service: `allow` of the native form.

use crate::descriptor::finding::{Code, Findings, shown};
use crate::descriptor::name;
use crate::descriptor::tree::{Item, Table};
use crate::descriptor::{AllowRule, MAX_ALLOW_PORTS, MAX_ALLOW_RULES};
use crate::ports::PortRange;
use std::str::FromStr;

const KEYS: [&str; 3] = ["from", "organization", "ports"];

/// Walks the list of rules.
pub(super) fn rules(item: &Item<'_>, findings: &mut Findings) -> Vec<AllowRule> {
    let items = item.list(findings).unwrap_or_default();
    if items.len() > MAX_ALLOW_RULES {
        let message = format!("{} rules; at most {MAX_ALLOW_RULES} are accepted", items.len());
        findings.mistake(item.finding(Code::TooLarge, message));
        return Vec::new();
    }
    items.iter().filter_map(|item| rule(item, findings)).collect()
}

fn rule(item: &Item<'_>, findings: &mut Findings) -> Option<AllowRule> {
    let table = item.table(findings)?;
    table.refuse_unknown(&KEYS, &[], findings);
    let (from, organization) = (table.get("from"), table.get("organization"));
    if from.is_none() && organization.is_none() {
        let finding = item.finding(
            Code::Missing,
            "a rule says who may call: `from`, `organization` or both",
        );
        findings.mistake(finding.with_help("write e.g. `from: shop` or `from: shop/web`"));
        return None;
    }
    // What is there and wrong must not make the rule a wider one.
    let from = from.map(|item| caller(&item, findings));
    let organization = organization.map(|item| organization_name(&item, findings));
    Some(AllowRule {
        from: from.map_or(Some(None), |from| from.map(Some))?,
        organization: organization.map_or(Some(None), |name| name.map(Some))?,
        ports: ports(&table, findings)?,
    })
}

/// `APPLICATION` or `APPLICATION/SERVICE`.
fn caller(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.text(findings)?;
    let fault = match text.split_once('/') {
        Some((application, service)) => name::fault(application).or_else(|| name::fault(service)),
        None => name::fault(text),
    };
    let Some(fault) = fault else {
        return Some(text.to_owned());
    };
    let message = format!("`{}` is not who may call: {fault}", shown(text));
    let suggestion = text.split('/').take(2).map(|part| match name::fault(part) {
        None => Some(part.to_owned()),
        Some(_) => name::suggestion(part),
    });
    let finding = item.finding(Code::BadName, message);
    findings.mistake(match suggestion.collect::<Option<Vec<_>>>() {
        Some(parts) => finding.with_help(format!("write e.g. `{}`", parts.join("/"))),
        None => finding.with_help("write `APPLICATION` or `APPLICATION/SERVICE`"),
    });
    None
}

fn organization_name(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.text(findings)?;
    if (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Some(text.to_owned());
    }
    findings.mistake(item.finding(Code::BadName, "an organization has a name of 1 to 64 characters"));
    None
}

/// `None` if they are there and wrong: no port is not all ports.
fn ports(table: &Table<'_>, findings: &mut Findings) -> Option<Vec<PortRange>> {
    let Some(item) = table.get("ports") else {
        return Some(Vec::new());
    };
    let items = item.list(findings)?;
    if items.is_empty() {
        let finding = item.finding(Code::BadValue, "a rule without a port would allow nothing");
        findings.mistake(finding.with_help("leave `ports` out to allow all of them"));
        return None;
    }
    if items.len() > MAX_ALLOW_PORTS {
        let message = format!("{} entries; at most {MAX_ALLOW_PORTS} are accepted", items.len());
        findings.mistake(item.finding(Code::TooLarge, message));
        return None;
    }
    let ports: Vec<_> = items.iter().map(|item| port(item, findings)).collect();
    ports.into_iter().collect()
}

fn port(item: &Item<'_>, findings: &mut Findings) -> Option<PortRange> {
    let text = item.scalar(findings)?;
    let range = PortRange::from_str(text);
    if let Err(error) = &range {
        let finding = item.finding(Code::BadValue, error.to_string());
        findings.mistake(finding.with_help("write e.g. `5432/tcp` or `6000-6010/udp`"));
    }
    range.ok()
}
