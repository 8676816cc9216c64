//! One service of the native form.

use crate::descriptor::finding::{Code, Findings, did_you_mean, shown};
use crate::descriptor::tree::{Item, Table};
use crate::descriptor::{Addresses, DEFAULT_RESOURCES, DEFAULT_STOP_GRACE_MS, MAX_REPLICAS, ServiceDescriptor};
use crate::descriptor::{check, field, quantity};
use crate::labels::Selector;
use crate::ports::PortMapping;
use crate::resources::Resources;
use crate::spec::{Constraints, RestartPolicy, SecurityProfile, WhenCutOff};
use std::str::FromStr;

/// Every key of a service, in the order of the documentation.
pub(super) const KEYS: [&str; 19] = [
    "image",
    "replicas",
    "command",
    "args",
    "environment",
    "working_dir",
    "user",
    "cpu",
    "memory",
    "ports",
    "restart",
    "one_shot",
    "stop_grace",
    "when_cut_off",
    "security",
    "placement",
    "addresses",
    "allow",
    "virtualization",
];

/// Known things that a later version does, and what they are.
const LATER: [(&str, &str); 20] = [
    ("probes", "health probes"),
    ("probe", "health probes"),
    ("health", "health probes"),
    ("healthcheck", "health probes"),
    ("readiness", "health probes"),
    ("liveness", "health probes"),
    ("volumes", "volumes"),
    ("mounts", "volumes"),
    ("secrets", "secrets"),
    ("config", "configuration files"),
    ("priority", "priorities"),
    ("update", "update policies"),
    ("update_policy", "update policies"),
    ("spread", "spreading over places"),
    ("near", "placement near a service"),
    ("scheduler", "schedulers by name"),
    ("gpus", "GPUs"),
    ("devices", "devices"),
    ("privileged", "privileged containers"),
    ("capabilities", "extra capabilities"),
];

const PLACEMENT_KEYS: [&str; 5] = ["cluster", "node", "cluster_labels", "node_labels", "architectures"];
const PLACEMENT_LATER: [(&str, &str); 5] = [
    ("spread", "spreading over places"),
    ("near", "placement near a service"),
    ("latency", "placement by latency"),
    ("location", "placement by location"),
    ("scheduler", "schedulers by name"),
];
const ADDRESS_KEYS: [&str; 4] = ["round_robin", "round_robin_v6", "closest", "closest_v6"];

/// Walks a service; `None` if something is missing without which there is none.
pub(super) fn service(name: &str, item: &Item<'_>, findings: &mut Findings) -> Option<ServiceDescriptor> {
    let table = item.table(findings)?;
    table.refuse_unknown(&KEYS, &LATER, findings);
    let image = table
        .required("image", findings)
        .and_then(|item| field::image(&item, findings));
    let service = ServiceDescriptor {
        name: name.to_owned(),
        image: String::new(),
        replicas: table
            .get("replicas")
            .and_then(|item| item.integer(u64::from(MAX_REPLICAS), findings))
            .map_or(1, |replicas| u32::try_from(replicas).unwrap_or(MAX_REPLICAS)),
        virtualization: field::virtualization(table.get("virtualization"), findings),
        command: scalars(table.get("command"), findings),
        args: scalars(table.get("args"), findings),
        environment: table
            .get("environment")
            .map(|item| environment(&item, findings))
            .unwrap_or_default(),
        working_dir: table.get("working_dir").and_then(|item| working_dir(&item, findings)),
        user: table.get("user").and_then(|item| user(&item, findings)),
        resources: resources(&table, findings),
        ports: table
            .get("ports")
            .map(|item| ports(&item, findings))
            .unwrap_or_default(),
        restart: choice(
            table.get("restart"),
            &[
                ("always", RestartPolicy::Always),
                ("on-failure", RestartPolicy::OnFailure),
                ("never", RestartPolicy::Never),
            ],
            findings,
        ),
        one_shot: table
            .get("one_shot")
            .and_then(|item| item.boolean(findings))
            .unwrap_or_default(),
        stop_grace_ms: table
            .get("stop_grace")
            .and_then(|item| quantity(&item, "a duration", quantity::parse_duration, findings))
            .unwrap_or(DEFAULT_STOP_GRACE_MS),
        when_cut_off: choice(
            table.get("when_cut_off"),
            &[("keep-running", WhenCutOff::KeepRunning), ("stop", WhenCutOff::Stop)],
            findings,
        ),
        security: choice(
            table.get("security"),
            &[
                ("baseline", SecurityProfile::Baseline),
                ("restricted", SecurityProfile::Restricted),
            ],
            findings,
        ),
        constraints: table
            .get("placement")
            .map(|item| placement(&item, findings))
            .unwrap_or_default(),
        addresses: table
            .get("addresses")
            .map(|item| addresses(&item, findings))
            .unwrap_or_default(),
        allow: table
            .get("allow")
            .map(|item| super::allow::rules(&item, findings))
            .unwrap_or_default(),
    };
    let service = ServiceDescriptor {
        image: image?,
        ..service
    };
    check::service(&service, item, "ports", findings);
    Some(service)
}

/// Texts, numbers or booleans, each as the text it was written as.
fn scalars(item: Option<Item<'_>>, findings: &mut Findings) -> Vec<String> {
    let items = item.and_then(|item| item.list(findings)).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item.scalar(findings).map(str::to_owned))
        .collect()
}

/// A mapping, or a list of `KEY=value`.
fn environment(item: &Item<'_>, findings: &mut Findings) -> Vec<(String, String)> {
    if matches!(item.node.value, crate::descriptor::tree::Value::List(_)) {
        let items = item.list(findings).unwrap_or_default();
        return items
            .iter()
            .filter_map(|item| field::assignment(item, findings))
            .collect();
    }
    let Some(table) = item.table(findings) else {
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for (key, value) in table.iter() {
        let value = value.scalar(findings);
        match field::variable_fault(&key.text) {
            Some(fault) => findings.mistake(table.at_key(key, Code::BadValue, fault)),
            None => pairs.extend(value.map(|value| (key.text.clone(), value.to_owned()))),
        }
    }
    pairs
}

fn working_dir(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.text(findings)?;
    if !text.starts_with('/') {
        let message = format!("`{}` is not an absolute path", shown(text));
        findings.mistake(item.finding(Code::BadValue, message).with_help("start it with `/`"));
        return None;
    }
    Some(text.to_owned())
}

/// `uid[:gid]` or `name[:group]`; a bare number will do.
fn user(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.scalar(findings)?;
    let word = |text: &str| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        !text.is_empty() && text.len() <= 64 && text.bytes().all(ok) && !text.starts_with('-')
    };
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    if word(user) && group.is_none_or(word) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` is not a user", shown(text));
    findings.mistake(
        item.finding(Code::BadValue, message)
            .with_help("write `uid[:gid]` or `name[:group]`"),
    );
    None
}

fn resources(table: &Table<'_>, findings: &mut Findings) -> Resources {
    let cpu = table
        .get("cpu")
        .and_then(|item| quantity(&item, "an amount of CPU", quantity::parse_cpu, findings));
    let memory = table
        .get("memory")
        .and_then(|item| quantity(&item, "an amount of memory", quantity::parse_memory, findings));
    Resources {
        cpu_millis: cpu.unwrap_or(DEFAULT_RESOURCES.cpu_millis),
        memory_bytes: memory.unwrap_or(DEFAULT_RESOURCES.memory_bytes),
    }
}

fn quantity(
    item: &Item<'_>,
    what: &str,
    parse: fn(&str) -> Result<u64, String>,
    findings: &mut Findings,
) -> Option<u64> {
    let text = item.scalar(findings)?;
    match parse(text) {
        Ok(value) => Some(value),
        Err(help) => {
            let out_of_range = help.starts_with("take from");
            let (code, is) = if out_of_range {
                (Code::OutOfRange, "is outside the limits for")
            } else {
                (Code::BadValue, "is not")
            };
            let message = format!("`{}` {is} {what}", shown(text));
            findings.mistake(item.finding(code, message).with_help(help));
            None
        }
    }
}

fn ports(item: &Item<'_>, findings: &mut Findings) -> Vec<PortMapping> {
    let items = item.list(findings).unwrap_or_default();
    let mut ports = Vec::new();
    for item in items {
        let Some(text) = item.scalar(findings) else { continue };
        match PortMapping::from_str(text) {
            Ok(port) => ports.push(port),
            Err(error) => findings.mistake(item.finding(Code::BadValue, error.to_string())),
        }
    }
    ports
}

/// One of `known`; the default if it is absent or wrong.
fn choice<T: Copy + Default>(item: Option<Item<'_>>, known: &[(&str, T)], findings: &mut Findings) -> T {
    let Some(item) = item else { return T::default() };
    let Some(text) = item.text(findings) else {
        return T::default();
    };
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return *value;
    }
    let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
    let message = format!("`{}` is not one of {}", shown(text), words.join(", "));
    let finding = item.finding(Code::BadValue, message);
    findings.mistake(match did_you_mean(text, words) {
        Some(help) => finding.with_help(help),
        None => finding,
    });
    T::default()
}

fn placement(item: &Item<'_>, findings: &mut Findings) -> Constraints {
    let Some(table) = item.table(findings) else {
        return Constraints::default();
    };
    table.refuse_unknown(&PLACEMENT_KEYS, &PLACEMENT_LATER, findings);
    let mut place = |key: &str| {
        let item = table.get(key)?;
        let text = item.text(findings)?;
        if text.is_empty() || text.len() > 253 {
            let message = format!("a {key} has a name of 1 to 253 characters");
            findings.mistake(
                item.finding(Code::BadValue, message)
                    .with_help("leave it out to allow every one"),
            );
            return None;
        }
        Some(text.to_owned())
    };
    let (cluster, node) = (place("cluster"), place("node"));
    Constraints {
        cluster,
        node,
        cluster_selector: selector(table.get("cluster_labels"), findings),
        node_selector: selector(table.get("node_labels"), findings),
        architectures: architectures(table.get("architectures"), findings),
    }
}

fn selector(item: Option<Item<'_>>, findings: &mut Findings) -> Selector {
    let Some(table) = item.and_then(|item| item.table(findings)) else {
        return Selector::default();
    };
    let mut selector = Selector::default();
    for (key, value) in table.iter() {
        let ok = |text: &str| text.len() <= 253 && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        let text = value.scalar(findings);
        if key.text.is_empty() || !ok(&key.text) {
            let message = "the key of a label has 1 to 253 characters and no white space";
            findings.mistake(table.at_key(key, Code::BadValue, message));
        } else if let Some(text) = text {
            if ok(text) {
                selector.0.insert(key.text.clone(), text.to_owned());
            } else {
                let message = "the value of a label has at most 253 characters and no white space";
                findings.mistake(value.finding(Code::BadValue, message));
            }
        }
    }
    selector
}

fn architectures(item: Option<Item<'_>>, findings: &mut Findings) -> Vec<String> {
    let mut architectures: Vec<String> = Vec::new();
    for item in item.and_then(|item| item.list(findings)).unwrap_or_default() {
        let Some(text) = item.text(findings) else { continue };
        if !field::ARCHITECTURES.contains(&text) {
            let message = format!("`{}` is not an architecture in OCI's names", shown(text));
            let help = match field::oci_architecture(text) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known: {}", field::ARCHITECTURES.join(", ")),
            };
            findings.mistake(item.finding(Code::BadValue, message).with_help(help));
        } else if !architectures.iter().any(|known| known == text) {
            architectures.push(text.to_owned());
        }
    }
    architectures
}

fn addresses(item: &Item<'_>, findings: &mut Findings) -> Addresses {
    let Some(table) = item.table(findings) else {
        return Addresses::default();
    };
    table.refuse_unknown(&ADDRESS_KEYS, &[], findings);
    let addresses = Addresses {
        round_robin: table
            .get("round_robin")
            .and_then(|item| field::address(&item, findings)),
        round_robin_v6: table
            .get("round_robin_v6")
            .and_then(|item| field::address(&item, findings)),
        closest: table.get("closest").and_then(|item| field::address(&item, findings)),
        closest_v6: table.get("closest_v6").and_then(|item| field::address(&item, findings)),
    };
    check::claim_addresses(&addresses, item, findings);
    addresses
}
