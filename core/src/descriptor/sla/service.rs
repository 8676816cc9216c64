//! One microservice of the SLA form.

use super::{constraint, full_name, note_unknown, texts};
use crate::descriptor::finding::{Code, Findings, shown};
use crate::descriptor::tree::{Item, Table, Value};
use crate::descriptor::{
    Addresses, DEFAULT_RESOURCES, DEFAULT_STOP_GRACE_MS, MAX_REPLICAS, ServiceDescriptor, check, field, quantity,
};
use crate::ports::PortMapping;
use crate::resources::Resources;
use crate::spec::{RestartPolicy, SecurityProfile, WhenCutOff};
use std::str::FromStr;

/// Every key that is read, honoured or not.
const KEYS: [&str; 36] = [
    "microservice_name",
    "microservice_namespace",
    "microserviceID",
    "virtualization",
    "code",
    "memory",
    "vcpus",
    "vgpus",
    "vtpus",
    "bandwidth_in",
    "bandwidth_out",
    "storage",
    "state",
    "port",
    "one_shot",
    "privileged",
    "cmd",
    "environment",
    "sla_violation_strategy",
    "target_node",
    "added_files",
    "args",
    "addresses",
    "volumes",
    "constraints",
    "connectivity",
    "arch",
    "platform",
    "vm_images",
    "description",
    "replicas",
    "_id",
    "action",
    "userId",
    "applicationID",
    "status",
];

/// What users write for a field that is called otherwise.
const MISSPELT: [(&str, &str); 10] = [
    ("vcpu", "vcpus"),
    ("cpu", "vcpus"),
    ("cpus", "vcpus"),
    ("vgpu", "vgpus"),
    ("image", "code"),
    ("env", "environment"),
    ("command", "cmd"),
    ("ports", "port"),
    ("oneshot", "one_shot"),
    ("name", "microservice_name"),
];

/// The type of a field that Oakestra checks and then never looks at.
#[derive(Clone, Copy)]
enum Unused {
    Integer,
    Text,
    Texts,
    Connectivity,
}

const UNUSED: [(&str, Unused); 10] = [
    ("vtpus", Unused::Integer),
    ("bandwidth_in", Unused::Integer),
    ("bandwidth_out", Unused::Integer),
    ("storage", Unused::Integer),
    ("state", Unused::Text),
    ("sla_violation_strategy", Unused::Text),
    ("target_node", Unused::Text),
    ("added_files", Unused::Texts),
    ("args", Unused::Texts),
    ("connectivity", Unused::Connectivity),
];

const MIB: u64 = 1024 * 1024;
/// Numbers of fields that are not used only have to be numbers.
const ANY_NUMBER: u64 = 1 << 53;

/// Walks a microservice; `None` if something is missing without which there is none.
pub(super) fn service(item: &Item<'_>, scope: &str, findings: &mut Findings) -> Option<ServiceDescriptor> {
    let table = item.table(findings)?;
    note_unknown(&table, &KEYS, &MISSPELT, &[], findings);
    let name = full_name(&table, "microservice_name", "microservice_namespace", findings);
    if let (Some(name), Some(at)) = (&name, table.get("microservice_name")) {
        check::claim_name(scope, name, &at, findings);
    }
    if let Some(id) = table
        .get("microserviceID")
        .filter(|id| id.text(findings).is_some_and(|text| !text.is_empty()))
    {
        let finding = id.finding(
            Code::BadValue,
            "`microserviceID` is given by the server and must be empty",
        );
        findings.mistake(finding.with_help("leave it out"));
    }
    let virtualization = field::virtualization(table.required("virtualization", findings), findings);
    let image = table
        .required("code", findings)
        .and_then(|item| field::image(&item, findings));
    refuse_unsupported(&table, findings);
    note_unused(&table, findings);
    let mut constraints = table
        .get("constraints")
        .map(|item| constraint::constraints(&item, findings))
        .unwrap_or_default();
    constraints.architectures = architectures(&table, findings);
    let service = ServiceDescriptor {
        name: name.clone().unwrap_or_default(),
        replicas: replicas(&table, findings),
        virtualization,
        image: String::new(),
        command: table.get("cmd").map(|item| texts(&item, findings)).unwrap_or_default(),
        args: Vec::new(),
        environment: table
            .get("environment")
            .map(|item| environment(&item, findings))
            .unwrap_or_default(),
        working_dir: None,
        user: None,
        resources: resources(&table, findings),
        ports: table.get("port").map(|item| ports(&item, findings)).unwrap_or_default(),
        restart: RestartPolicy::Always,
        one_shot: table
            .get("one_shot")
            .and_then(|item| item.boolean(findings))
            .unwrap_or_default(),
        stop_grace_ms: DEFAULT_STOP_GRACE_MS,
        when_cut_off: WhenCutOff::KeepRunning,
        security: SecurityProfile::Baseline,
        constraints,
        addresses: table
            .get("addresses")
            .map(|item| addresses(&item, findings))
            .unwrap_or_default(),
        allow: Vec::new(),
    };
    let service = ServiceDescriptor {
        name: name?,
        image: image?,
        ..service
    };
    check::service(&service, item, "port", findings);
    Some(service)
}

fn refuse_unsupported(table: &Table<'_>, findings: &mut Findings) {
    let refuse = |item: &Item<'_>, what: &str, findings: &mut Findings| {
        let finding = item.finding(Code::NotSupportedYet, format!("{what} are not supported yet"));
        findings.mistake(finding.with_help("leave them out for now"));
    };
    if let Some(item) = table.get("volumes")
        && item.list(findings).is_some_and(|list| !list.is_empty())
    {
        refuse(&item, "volumes", findings);
    }
    if let Some(item) = table.get("vgpus")
        && item.integer(ANY_NUMBER, findings).is_some_and(|number| number > 0)
    {
        refuse(&item, "GPUs (`vgpus`)", findings);
    }
    if let Some(item) = table.get("privileged")
        && item.boolean(findings) == Some(true)
    {
        refuse(&item, "privileged containers", findings);
    }
}

fn note_unused(table: &Table<'_>, findings: &mut Findings) {
    for (key, kind) in UNUSED {
        let Some(item) = table.get(key) else { continue };
        let ok = match kind {
            Unused::Integer => item.integer(ANY_NUMBER, findings).is_some(),
            Unused::Text => item.text(findings).is_some(),
            Unused::Texts => item
                .list(findings)
                .is_some_and(|items| items.iter().all(|i| i.text(findings).is_some())),
            Unused::Connectivity => constraint::connectivity(&item, findings),
        };
        // Oakestra's clients fill unused fields with nothing; only what says something is worth a notice.
        if ok && !item.is_void() {
            let message = format!("`{key}` is ignored, as Oakestra itself ignores it");
            let finding = item.finding(Code::Ignored, message);
            findings.notice(match key {
                "target_node" => finding.with_help("use a constraint of type `direct`"),
                "args" => finding.with_help("put arguments into `cmd`, after the program"),
                _ => finding,
            });
        }
    }
    if let Some(item) = table.get("vm_images").filter(|item| !item.is_void()) {
        findings.notice(item.finding(Code::Ignored, "`vm_images` is ignored, as Oakestra itself ignores it"));
    }
}

/// Not in Oakestra's schema, where instances are started one by one: ours, so that a file can say it.
fn replicas(table: &Table<'_>, findings: &mut Findings) -> u32 {
    let Some(item) = table.get("replicas") else { return 1 };
    let Some(number) = item.integer(u64::from(MAX_REPLICAS), findings) else {
        return 1;
    };
    let message = format!("Oakestra ignores `replicas`; here it asks for {number}");
    findings.notice(item.finding(Code::Consequence, message));
    u32::try_from(number).unwrap_or(MAX_REPLICAS)
}

/// `vcpus` in cores and `memory` in MB (counted as MiB); 0 and absent mean the defaults.
fn resources(table: &Table<'_>, findings: &mut Findings) -> Resources {
    let read = |key: &str, max, findings: &mut Findings| {
        let item = table.get(key)?;
        item.integer(max, findings)
            .filter(|number| *number > 0)
            .map(|number| (item, number))
    };
    let cpu = read("vcpus", quantity::MAX_CPU_MILLIS / 1000, findings);
    let memory = read("memory", quantity::MAX_MEMORY / MIB, findings).map(|(item, megabytes)| {
        let bytes = megabytes * MIB;
        if bytes < quantity::MIN_MEMORY {
            let message =
                format!("memory is enforced here, and {megabytes} MB do not hold a container: 4 MB are reserved");
            findings.notice(item.finding(Code::Changed, message));
        }
        bytes.max(quantity::MIN_MEMORY)
    });
    Resources {
        cpu_millis: cpu.map_or(DEFAULT_RESOURCES.cpu_millis, |(_, cores)| cores * 1000),
        memory_bytes: memory.unwrap_or(DEFAULT_RESOURCES.memory_bytes),
    }
}

fn environment(item: &Item<'_>, findings: &mut Findings) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for item in item.list(findings).unwrap_or_default() {
        let Some(text) = item.long_text(findings) else { continue };
        if text.contains('=') {
            pairs.extend(field::assignment(&item, findings));
        } else {
            let message = format!("`{}` has no `=` and is ignored", shown(text));
            findings.notice(item.finding(Code::Ignored, message).with_help("write `KEY=value`"));
        }
    }
    pairs
}

fn ports(item: &Item<'_>, findings: &mut Findings) -> Vec<PortMapping> {
    let Some(text) = item.text(findings) else {
        return Vec::new();
    };
    match PortMapping::parse_list(text) {
        Ok(ports) => ports,
        Err(errors) => {
            for error in errors {
                findings.mistake(item.finding(Code::BadValue, error.to_string()));
            }
            Vec::new()
        }
    }
}

/// From `platform` (`linux/arm64`), else from `arch`. Oakestra pulls for them and places anywhere; here they also
/// keep the service off nodes that can not run it.
fn architectures(table: &Table<'_>, findings: &mut Findings) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut add = |item: &Item<'_>, text: &str, findings: &mut Findings| match field::oci_architecture(text) {
        Some(name) => {
            if name != text {
                let message = format!("`{}` is called `{name}` here", shown(text));
                findings.notice(item.finding(Code::Changed, message));
            }
            if !found.iter().any(|known| known == name) {
                found.push(name.to_owned());
            }
        }
        None => {
            let message = format!("`{}` is not an architecture", shown(text));
            let help = format!("known: {}", field::ARCHITECTURES.join(", "));
            findings.mistake(item.finding(Code::BadValue, message).with_help(help));
        }
    };
    let arch = table.get("arch");
    if let Some(platform) = table
        .get("platform")
        .filter(|item| item.node.value != Value::Text(String::new()))
    {
        let Some(text) = platform.text(findings) else {
            return found;
        };
        let mut parts = text.split('/');
        match (parts.next(), parts.next()) {
            (Some("linux"), Some(name)) => add(&platform, name, findings),
            _ => {
                let message = format!("`{}` is not a platform that is run here", shown(text));
                let finding = platform.finding(Code::NotSupportedYet, message);
                findings.mistake(finding.with_help("write `linux/` and an architecture, e.g. `linux/arm64`"));
            }
        }
        if let Some(arch) = arch.filter(|arch| !arch.is_void()) {
            findings.notice(arch.finding(Code::Ignored, "`arch` is ignored because `platform` says it"));
        }
        return found;
    }
    for item in arch.and_then(|arch| arch.list(findings)).unwrap_or_default() {
        if let Some(text) = item.text(findings) {
            add(&item, text, findings);
        }
    }
    found
}

fn addresses(item: &Item<'_>, findings: &mut Findings) -> Addresses {
    let Some(table) = item.table(findings) else {
        return Addresses::default();
    };
    let known = ["rr_ip", "rr_ip_v6", "closest_ip", "closest_ip_v6", "instances"];
    note_unknown(&table, &known, &[], &[], findings);
    let filled = |key: &str| {
        table
            .get(key)
            .filter(|item| item.node.value != Value::Text(String::new()))
    };
    let addresses = Addresses {
        round_robin: filled("rr_ip").and_then(|item| field::address(&item, findings)),
        round_robin_v6: filled("rr_ip_v6").and_then(|item| field::address(&item, findings)),
        closest: filled("closest_ip").and_then(|item| unread_address(&item, findings)),
        closest_v6: filled("closest_ip_v6").and_then(|item| unread_address(&item, findings)),
    };
    if let Some(instances) = table.get("instances")
        && instances.list(findings).is_some_and(|list| !list.is_empty())
    {
        findings.notice(instances.finding(Code::Ignored, "`instances` is ignored, as Oakestra itself ignores it"));
    }
    check::claim_addresses(&addresses, item, findings);
    addresses
}

/// An address that Oakestra never reads, so that any text passes there; what is no address is ignored here too.
fn unread_address<T: FromStr>(item: &Item<'_>, findings: &mut Findings) -> Option<T> {
    let text = item.text(findings)?;
    let address = text.parse().ok();
    if address.is_none() {
        let message = format!(
            "`{}` is not an address and is ignored, as Oakestra itself ignores it",
            shown(text)
        );
        findings.notice(item.finding(Code::Ignored, message));
    }
    address
}
