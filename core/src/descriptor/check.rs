//! What fields must agree on: within a service, between services and between applications.

use super::finding::{Code, Findings};
use super::tree::{Item, Table};
use super::{Addresses, MAX_SPEC_BYTES, ServiceDescriptor};
use crate::ids::{ApplicationId, OrganizationId, RawId};
use crate::spec::SecurityProfile;
use std::collections::HashMap;
use std::net::IpAddr;

/// Checks a service by itself. `port_key`: the field of `item` that holds the ports.
pub(super) fn service(service: &ServiceDescriptor, item: &Item<'_>, port_key: &str, findings: &mut Findings) {
    let table = item.table(&mut Findings::default());
    let field = |key: &str| {
        table
            .as_ref()
            .and_then(|table| Table::get(table, key))
            .unwrap_or_else(|| item.clone())
    };
    let mut taken = HashMap::new();
    for port in &service.ports {
        if let Some(before) = taken.insert(port.host_key(), port) {
            let message = format!(
                "host port {}/{} is published twice: `{before}` and `{port}`",
                port.host, port.protocol
            );
            findings.mistake(
                field(port_key)
                    .finding(Code::PortClash, message)
                    .with_help("give each host port and protocol once"),
            );
        }
    }
    if service.replicas > 1 && !service.ports.is_empty() {
        let message = match &service.constraints.node {
            Some(node) => format!(
                "only one of the {} replicas can have its host ports on `{node}`",
                service.replicas
            ),
            None => format!(
                "each of the {} replicas needs a node of its own for its host ports",
                service.replicas
            ),
        };
        findings.notice(field(port_key).finding(Code::Consequence, message));
    }
    let user = service
        .user
        .as_deref()
        .map(|user| user.split_once(':').map_or(user, |(user, _)| user));
    if service.security == SecurityProfile::Restricted && matches!(user, Some("root" | "0")) {
        let finding = field("user").finding(Code::BadValue, "`restricted` does not let a service run as root");
        findings.mistake(finding.with_help("give another user, or leave out `security: restricted`"));
    }
    let nobody = RawId::from_bytes([0; 12]);
    // The longest possible path is added, so that the limit does not depend on the application's name.
    let spec = service.to_spec(
        OrganizationId(nobody),
        ApplicationId(nobody),
        &"a".repeat(2 * super::name::MAX_NAME + 1),
    );
    let bytes = serde_json::to_vec(&*spec.template).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_SPEC_BYTES {
        let message = format!("the service takes {bytes} bytes when encoded; at most {MAX_SPEC_BYTES} are accepted");
        findings.mistake(
            item.finding(Code::TooLarge, message)
                .with_help("shorten the environment or the command"),
        );
    }
}

/// Takes a name for the value at `item`; a mistake if another one of `scope` has it.
pub(super) fn claim_name(scope: &str, name: &str, item: &Item<'_>, findings: &mut Findings) {
    if let Some(other) = findings.claim(format!("name {scope}/{name}"), &item.path) {
        let message = format!("the name `{name}` is taken by `{other}`");
        findings.mistake(
            item.finding(Code::Clash, message)
                .with_help("names differ by more than upper and lower case"),
        );
    }
}

/// Takes the wished addresses for the value at `item`.
pub(super) fn claim_addresses(addresses: &Addresses, item: &Item<'_>, findings: &mut Findings) {
    if addresses.is_empty() {
        return;
    }
    let v4 = [addresses.round_robin, addresses.closest]
        .into_iter()
        .flatten()
        .map(IpAddr::V4);
    let v6 = [addresses.round_robin_v6, addresses.closest_v6]
        .into_iter()
        .flatten()
        .map(IpAddr::V6);
    for address in v4.chain(v6) {
        if let Some(other) = findings.claim(format!("address {address}"), &item.path) {
            let message = format!("the address {address} is wished for in `{other}` too");
            findings.mistake(item.finding(Code::Clash, message));
        }
    }
}
