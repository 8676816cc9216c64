//! The model as native YAML. Texts are written plain only if they are sure to read back as the same text.

use super::tree::Value;
use super::{
    Addresses, AllowRule, ApplicationDescriptor, DEFAULT_RESOURCES, DEFAULT_STOP_GRACE_MS, Descriptor,
    ServiceDescriptor, quantity, yaml,
};
use crate::spec::{Constraints, RestartPolicy, SecurityProfile, WhenCutOff};
use std::fmt::Display;
use std::fmt::Write as _;

/// Writes `descriptor` in the native form; [`super::parse`] gives it back, if it was native.
///
/// What is as the defaults are is left out, except `replicas`. Of an SLA descriptor, `customer` and `requested_id` have
/// no place in the native form and are lost.
pub fn to_native_yaml(descriptor: &Descriptor) -> String {
    let mut page = Page::default();
    match descriptor.applications.as_slice() {
        [] => page.line(0, "applications: []"),
        [one] => application(&mut page, 0, one),
        several => {
            page.line(0, "applications:");
            for one in several {
                page.item_from = Some(page.text.len());
                application(&mut page, 2, one);
            }
        }
    }
    page.text
}

/// Lines of YAML; `item_from`: where the next line starts an item of a list.
#[derive(Default)]
struct Page {
    text: String,
    item_from: Option<usize>,
}

impl Page {
    fn line(&mut self, indent: usize, line: impl Display) {
        match self.item_from.take() {
            // `indent` is that of the item's content; its dash stands two before.
            Some(_) => {
                let _ = writeln!(self.text, "{:1$}- {line}", "", indent.saturating_sub(2));
            }
            None => {
                let _ = writeln!(self.text, "{:indent$}{line}", "");
            }
        }
    }

    fn entry(&mut self, indent: usize, key: &str, value: impl Display) {
        self.line(indent, format_args!("{}: {value}", quoted(key)));
    }

    fn list(&mut self, indent: usize, key: &str, values: &[String]) {
        if values.is_empty() {
            return;
        }
        self.line(indent, format_args!("{key}:"));
        for value in values {
            self.line(indent + 2, format_args!("- {}", quoted(value)));
        }
    }

    fn map<'e>(&mut self, indent: usize, key: &str, entries: impl Iterator<Item = (&'e str, String)>) {
        let mut entries = entries.peekable();
        if entries.peek().is_none() {
            return;
        }
        self.line(indent, format_args!("{key}:"));
        for (key, value) in entries {
            self.entry(indent + 2, key, quoted(&value));
        }
    }
}

fn application(page: &mut Page, indent: usize, application: &ApplicationDescriptor) {
    page.entry(indent, "application", quoted(&application.name));
    if !application.description.is_empty() {
        page.entry(indent, "description", quoted(&application.description));
    }
    if application.services.is_empty() {
        page.line(indent, "services: {}");
        return;
    }
    page.line(indent, "services:");
    for one in &application.services {
        page.line(indent + 2, format_args!("{}:", quoted(&one.name)));
        service(page, indent + 4, one);
    }
}

fn service(page: &mut Page, indent: usize, service: &ServiceDescriptor) {
    page.entry(indent, "image", quoted(&service.image));
    page.entry(indent, "replicas", service.replicas);
    page.list(indent, "command", &service.command);
    page.list(indent, "args", &service.args);
    // A list, because a name may be there twice.
    let environment: Vec<String> = service
        .environment
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    page.list(indent, "environment", &environment);
    if let Some(dir) = &service.working_dir {
        page.entry(indent, "working_dir", quoted(dir));
    }
    if let Some(user) = &service.user {
        page.entry(indent, "user", quoted(user));
    }
    if service.resources.cpu_millis != DEFAULT_RESOURCES.cpu_millis {
        page.entry(indent, "cpu", quantity::print_cpu(service.resources.cpu_millis));
    }
    if service.resources.memory_bytes != DEFAULT_RESOURCES.memory_bytes {
        page.entry(indent, "memory", quantity::print_memory(service.resources.memory_bytes));
    }
    let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    page.list(indent, "ports", &ports);
    match service.restart {
        RestartPolicy::Always => {}
        RestartPolicy::OnFailure => page.entry(indent, "restart", "on-failure"),
        RestartPolicy::Never => page.entry(indent, "restart", "never"),
    }
    if service.one_shot {
        page.entry(indent, "one_shot", true);
    }
    if service.stop_grace_ms != DEFAULT_STOP_GRACE_MS {
        page.entry(indent, "stop_grace", quantity::print_duration(service.stop_grace_ms));
    }
    if service.when_cut_off == WhenCutOff::Stop {
        page.entry(indent, "when_cut_off", "stop");
    }
    if service.security == SecurityProfile::Restricted {
        page.entry(indent, "security", "restricted");
    }
    placement(page, indent, &service.constraints);
    addresses(page, indent, &service.addresses);
    allow(page, indent, &service.allow);
}

fn placement(page: &mut Page, indent: usize, constraints: &Constraints) {
    if *constraints == Constraints::default() {
        return;
    }
    page.line(indent, "placement:");
    for (key, name) in [("cluster", &constraints.cluster), ("node", &constraints.node)] {
        if let Some(name) = name {
            page.entry(indent + 2, key, quoted(name));
        }
    }
    for (key, selector) in [
        ("cluster_labels", &constraints.cluster_selector),
        ("node_labels", &constraints.node_selector),
    ] {
        page.map(
            indent + 2,
            key,
            selector.0.iter().map(|(key, value)| (key.as_str(), value.clone())),
        );
    }
    page.list(indent + 2, "architectures", &constraints.architectures);
}

fn addresses(page: &mut Page, indent: usize, addresses: &Addresses) {
    let wished = [
        ("round_robin", addresses.round_robin.map(|address| address.to_string())),
        (
            "round_robin_v6",
            addresses.round_robin_v6.map(|address| address.to_string()),
        ),
        ("closest", addresses.closest.map(|address| address.to_string())),
        ("closest_v6", addresses.closest_v6.map(|address| address.to_string())),
    ];
    page.map(
        indent,
        "addresses",
        wished.into_iter().filter_map(|(key, address)| Some((key, address?))),
    );
}

fn allow(page: &mut Page, indent: usize, rules: &[AllowRule]) {
    if !rules.is_empty() {
        page.line(indent, "allow:");
    }
    for rule in rules {
        page.item_from = Some(page.text.len());
        if let Some(from) = &rule.from {
            page.entry(indent + 4, "from", quoted(from));
        }
        if let Some(organization) = &rule.organization {
            page.entry(indent + 4, "organization", quoted(organization));
        }
        let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
        page.list(indent + 4, "ports", &ports);
    }
}

/// `text` as a YAML scalar that reads back as the text.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.' | '=' | '+' | '@' | '-' | ':');
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.'));
    let is_text = matches!(yaml::resolve(text), Value::Text(_));
    // A colon at the end would make a key of it; `...` and `---` end a document.
    if starts_well && is_text && text.chars().all(plain) && !text.ends_with(':') && !text.starts_with("...") {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            // Printable for YAML, and no line separator for any version of it.
            '\u{a1}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' => quoted.push(c),
            _ => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}
