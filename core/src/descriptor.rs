//! Users' descriptors: Oakestra's SLA v2.0 and the native form, in JSON or YAML, to one model and on to specs.
//!
//! [`parse`] reads bytes into a tree that knows lines and columns, then walks it by hand, so that *all*
//! mistakes are told in one go, each with its path, place and advice. A descriptor that parses is complete: every
//! default is filled in, names are lower case, images are normalised, and nothing in it is unsupported.
//! The reference for users is `docs/descriptor.md`.
//!
//! Map: `finding` (mistakes and notices), `tree` with `json` and `yaml` (bytes to tree), `sla` and `native` (tree to
//! model), `field` (readers that both share), `check` (what fields must agree on), `print` (model to native YAML),
//! [`image`], `name`, `quantity`, `fuzz`.
//!
//! Invariants: no input panics; work and memory are bounded by [`MAX_BYTES`], [`MAX_DEPTH`] and a cap on what YAML
//! anchors expand to; `parse(to_native_yaml(d))` gives `d` back for a native `d`.

mod check;
mod field;
mod finding;
mod fuzz;
pub mod image;
mod json;
mod name;
mod native;
mod print;
mod quantity;
mod sla;
mod tree;
mod yaml;

pub use finding::{Code, Finding, Mistake, Notice};
pub use fuzz::fuzz_descriptor;
pub use print::to_native_yaml;

use crate::ids::{ApplicationId, OrganizationId};
use crate::ports::{PortMapping, PortRange};
use crate::resources::Resources;
use finding::Findings;
use tree::{Item, Node};

use crate::spec::{Constraints, InstanceSpec, RestartPolicy, SecurityProfile, ServiceSpec, WhenCutOff};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Bytes of a descriptor that are accepted at most.
pub const MAX_BYTES: usize = 256 * 1024;
/// Levels of lists and mappings inside one another that are accepted at most.
pub const MAX_DEPTH: usize = 32;
/// Entries of one list or mapping that are accepted at most.
pub const MAX_ENTRIES: usize = 1000;
/// Bytes of one text that are accepted at most, where nothing else is said.
pub const MAX_TEXT: usize = 4 * 1024;
/// Bytes of one element of a command, of arguments, or of an environment value that are accepted at most.
pub const MAX_LONG_TEXT: usize = 32 * 1024;
/// Instances of one service that are accepted at most.
pub const MAX_REPLICAS: u32 = 1000;
/// Rules in the `allow` of one service that are accepted at most.
pub const MAX_ALLOW_RULES: usize = 64;
/// Ranges of ports in one of these that are accepted at most.
pub const MAX_ALLOW_PORTS: usize = 32;
/// Bytes of the encoded spec of one instance that are accepted at most.
pub const MAX_SPEC_BYTES: usize = 96 * 1024;

/// What a service reserves that does not say: a tenth of a core and 64 MiB.
pub const DEFAULT_RESOURCES: Resources = Resources {
    cpu_millis: 100,
    memory_bytes: 64 * 1024 * 1024,
};
/// Milliseconds between the polite signal and the kill, for a service that does not say.
pub const DEFAULT_STOP_GRACE_MS: u64 = 10_000;

/// How the bytes of a descriptor are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML 1.2, of which JSON is nearly a part.
    Yaml,
    /// JSON if it starts with `{` or `[` and reads as JSON, else YAML.
    #[default]
    Auto,
}

/// Which of the two vocabularies a descriptor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Oakestra's SLA v2.0, recognised by `sla_version`.
    Sla,
    /// Roble's own.
    Native,
}

/// What [`parse`] gives for a descriptor without mistakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parsed {
    /// The model, complete with all defaults.
    pub descriptor: Descriptor,
    /// What the user should know: ignored fields, changed names, what a later version will honour. In document order.
    pub warnings: Vec<Notice>,
}

impl Parsed {
    /// The warnings about one service, by its place and its application's in the descriptor; with them those about its
    /// application or the whole document, which hold for it too.
    pub fn warnings_of(&self, application: usize, service: usize) -> Vec<&Notice> {
        let name = self.descriptor.applications.get(application);
        let name = name
            .and_then(|it| it.services.get(service))
            .map_or("", |it| it.name.as_str());
        let concerns = |path: &str| is_about(path, application, service, name);
        self.warnings.iter().filter(|warning| concerns(&warning.path)).collect()
    }
}

/// Whether a finding at `path` is about this service or what it is in.
fn is_about(path: &str, application: usize, service: usize, name: &str) -> bool {
    let index = |rest: &'_ str| rest.split_once(']').and_then(|(index, _)| index.parse::<usize>().ok());
    let rest = match path.strip_prefix("applications[") {
        Some(rest) if index(rest) != Some(application) => return false,
        Some(rest) => rest.split_once("].").map_or("", |(_, rest)| rest),
        None => path,
    };
    for list in ["microservices[", "services["] {
        if let Some(rest) = rest.strip_prefix(list) {
            return index(rest) == Some(service);
        }
    }
    match rest.strip_prefix("services.") {
        Some(rest) => rest.split(['.', '[']).next() == Some(name),
        None => true,
    }
}

/// A whole descriptor; at the root, the stored form of what a user submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The vocabulary it was written in.
    pub form: Form,
    /// `customerID` of the SLA form. Not used to decide anything; the root says so if it is not the caller's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// In document order; names are unique.
    pub applications: Vec<ApplicationDescriptor>,
}

/// One application: a named group of services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationDescriptor {
    /// `name` or `name.namespace`, lower case.
    pub name: String,
    /// Free text for people; empty if none.
    #[serde(default)]
    pub description: String,
    /// `applicationID` of the SLA form: the existing application that the services are added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_id: Option<ApplicationId>,
    /// In document order; names are unique within the application.
    pub services: Vec<ServiceDescriptor>,
}

/// One service, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDescriptor {
    /// `name` or `name.namespace`, lower case.
    pub name: String,
    /// How many instances, 0 to [`MAX_REPLICAS`].
    pub replicas: u32,
    /// How it is run: `container` is the only one so far.
    pub virtualization: String,
    /// OCI image reference, normalised: registry, repository, then tag or digest or both.
    pub image: String,
    /// Replaces the image's entry point, if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments, if not empty.
    pub args: Vec<String>,
    /// `KEY`, `value`, in document order; later ones win.
    pub environment: Vec<(String, String)>,
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// `uid[:gid]` or `name[:group]`; replaces the image's user.
    pub user: Option<String>,
    /// Reserved and enforced.
    pub resources: Resources,
    /// Ports of the node that lead to it; no host port twice.
    pub ports: Vec<PortMapping>,
    /// When to start it again.
    pub restart: RestartPolicy,
    /// Exit code 0 completes it.
    pub one_shot: bool,
    /// Milliseconds between the polite signal and the kill.
    pub stop_grace_ms: u64,
    /// What to do while nobody above answers.
    pub when_cut_off: WhenCutOff,
    /// Confinement.
    pub security: SecurityProfile,
    /// Where it may run.
    pub constraints: Constraints,
    /// Wished service addresses.
    #[serde(default, skip_serializing_if = "Addresses::is_empty")]
    pub addresses: Addresses,
    /// Who outside of the application may call it, at most [`MAX_ALLOW_RULES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AllowRule>,
}

/// Somebody outside of an application who may call one of its services. Names need not exist: the rule takes effect when
/// they do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowRule {
    /// `APPLICATION` or `APPLICATION/SERVICE`; without it, all of the organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whose; without it, the service's own organisation. One of the two is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Which ports, at most [`MAX_ALLOW_PORTS`]; none: all, and ICMP too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
}

impl AllowRule {
    /// The name of the application that may call, and of the only service of it.
    pub fn caller(&self) -> Option<(&str, Option<&str>)> {
        let from = self.from.as_deref()?;
        Some(match from.split_once('/') {
            Some((application, service)) => (application, Some(service)),
            None => (from, None),
        })
    }
}

/// Wished service addresses, by policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// Round robin, IPv4 (`rr_ip`).
    pub round_robin: Option<Ipv4Addr>,
    /// Round robin, IPv6 (`rr_ip_v6`).
    pub round_robin_v6: Option<Ipv6Addr>,
    /// The closest instance, IPv4 (`closest_ip`).
    pub closest: Option<Ipv4Addr>,
    /// The closest instance, IPv6 (`closest_ip_v6`).
    pub closest_v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Whether no address is wished for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ServiceDescriptor {
    /// The service as the tiers below see it.
    ///
    /// `application_name`: of the application it is in; the two names make the path. A digest in the image reference
    /// pins the image. `addresses` and `allow` stay behind: they are the overlay's.
    pub fn to_spec(
        &self,
        organization: OrganizationId,
        application_id: ApplicationId,
        application_name: &str,
    ) -> ServiceSpec {
        let image_digest = self.image.split_once('@').map(|(_, digest)| digest.to_owned());
        let template = InstanceSpec {
            organization,
            application: application_id,
            path: format!("{application_name}/{}", self.name),
            virtualization: self.virtualization.clone(),
            image: self.image.clone(),
            image_digest,
            command: self.command.clone(),
            args: self.args.clone(),
            environment: self.environment.clone(),
            working_dir: self.working_dir.clone(),
            user: self.user.clone(),
            resources: self.resources,
            ports: self.ports.clone(),
            restart: self.restart,
            one_shot: self.one_shot,
            stop_grace_ms: self.stop_grace_ms,
            when_cut_off: self.when_cut_off,
            security: self.security,
            constraints: self.constraints.clone(),
        };
        ServiceSpec {
            replicas: self.replicas,
            template: Arc::new(template),
        }
    }
}

/// Reads a descriptor of either form.
///
/// # Errors
/// All mistakes found, in document order, never empty; capped at a thousand.
pub fn parse(bytes: &[u8], format: Format) -> Result<Parsed, Vec<Mistake>> {
    let mut findings = Findings::default();
    let descriptor = match read(bytes, format, &mut findings) {
        Ok(node) => walk(&Item::root(&node), &mut findings),
        Err(fatal) => {
            findings.mistake(fatal);
            None
        }
    };
    let warnings = findings.finish()?;
    // A walker that gives nothing has said why; this only guards against one that forgot to.
    let descriptor = descriptor.ok_or_else(|| vec![Finding::whole(Code::Syntax, "this is not a descriptor")])?;
    Ok(Parsed { descriptor, warnings })
}

fn read(bytes: &[u8], format: Format, findings: &mut Findings) -> Result<Node, Mistake> {
    if bytes.len() > MAX_BYTES {
        let message = format!(
            "the descriptor has {} bytes; at most {MAX_BYTES} are accepted",
            bytes.len()
        );
        return Err(Finding::whole(Code::TooLarge, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|b| **b == b'\n').count() + 1;
        let finding = Finding::whole(Code::Syntax, "the descriptor is not UTF-8 text");
        Finding {
            line: u32::try_from(line).ok(),
            ..finding
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let looks_like_json = text.trim_start().starts_with(['{', '[']);
    match format {
        Format::Json => json::read(text, findings),
        Format::Auto if looks_like_json => {
            let mut of_yaml = Findings::default();
            match json::read(text, findings) {
                // What is no JSON may be YAML in flow style; if it is neither, the mistake of JSON tells more.
                Err(mistake) if mistake.code == Code::Syntax => yaml::read(text, &mut of_yaml)
                    .inspect(|_| *findings = of_yaml)
                    .map_err(|_| mistake),
                other => other,
            }
        }
        Format::Auto | Format::Yaml => yaml::read(text, findings),
    }
}

fn walk(root: &Item<'_>, findings: &mut Findings) -> Option<Descriptor> {
    let table = root.table(findings)?;
    if table.get("sla_version").is_some() {
        return sla::walk(&table, findings);
    }
    if ["customerID", "customer_id", "slaVersion", "sla-version"]
        .iter()
        .any(|key| table.get(key).is_some())
    {
        let finding = root.finding(
            Code::Missing,
            "this looks like Oakestra's SLA form, but `sla_version` is missing",
        );
        findings.mistake(finding.with_help("add `\"sla_version\": \"v2.0\"`"));
        return None;
    }
    Some(native::walk(&table, findings))
}
