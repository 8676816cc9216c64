//! `roble network`: which name and which address leads to whom.

use super::node::Here;
use super::{Session, trace};
use crate::api;
use crate::failure::Failure;
use crate::output::{self, Page, View};
use crate::reference::path;
use crate::text;
use clap::Subcommand;
use roble_core::overlay::row::{Policy, name_of};
use roble_core::status::Phase;
use roble_core::time::Timestamp;
use roble_proto::rest::{InstanceView, ServiceView};
use serde::Serialize;
use std::net::IpAddr;

/// The domain of all names.
const DOMAIN: &str = "roble";

/// Verbs of `network`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List services with their names and addresses.
    Ls,
    /// Show what a name or an address leads to: `web.shop`, `closest.web.shop.roble`, `0.web.shop`, `10.30.55.55`.
    Resolve {
        /// The name, as containers use it, or an address of a service or an instance.
        #[arg(value_name = "NAME|ADDRESS")]
        name: String,
    },
    /// Show the way from an instance to a service, hop by hop, and what keeps a packet from it.
    Trace(trace::Trace),
    /// On a node: list the other nodes that it talks to, and which way: direct or relayed, round-trip time, bytes.
    Routes(Here),
}

/// One service as it is called.
#[derive(Debug, Serialize)]
struct Called {
    service: String,
    name: String,
    round_robin: Vec<IpAddr>,
    running: u32,
    replicas: u32,
}

impl View for Called {
    const PLURAL: &'static str = "services";
    const HEADERS: &'static [&'static str] = &["SERVICE", "NAME", "ADDRESSES", "RUNNING"];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn row(&self, _: Timestamp) -> Vec<String> {
        vec![
            self.service.clone(),
            self.name.clone(),
            text::or_dash(text::addresses(&self.round_robin)),
            format!("{}/{}", self.running, self.replicas),
        ]
    }

    fn describe(&self, page: &mut Page, _: Timestamp) {
        page.entry("Service", &self.service);
        page.entry("Name", &self.name);
    }
}

/// Whom a name or an address leads to.
#[derive(Debug, Serialize)]
struct Target {
    instance: String,
    phase: Phase,
    node: Option<String>,
    /// What the name stands for.
    via: String,
    addresses: Vec<IpAddr>,
}

impl View for Target {
    const PLURAL: &'static str = "instances behind it";
    const HEADERS: &'static [&'static str] = &["INSTANCE", "PHASE", "NODE", "VIA", "ENDPOINT"];

    fn name(&self) -> String {
        self.instance.clone()
    }

    fn row(&self, _: Timestamp) -> Vec<String> {
        vec![
            self.instance.clone(),
            self.phase.to_string(),
            text::or_dash(self.node.as_ref()),
            self.via.clone(),
            text::or_dash(text::addresses(&self.addresses)),
        ]
    }

    fn describe(&self, page: &mut Page, _: Timestamp) {
        page.entry("Instance", &self.instance);
    }
}

pub(crate) async fn run(verb: Verb, session: Session<'_>) -> Result<(), Failure> {
    if let Verb::Trace(trace) = verb {
        return trace::run(&trace, session).await;
    }
    let Session { api, console, format } = session;
    let services: Vec<ServiceView> = api::get(api, path(&["services"])).await?;
    match verb {
        Verb::Ls => {
            let called: Vec<Called> = services.into_iter().map(called).collect();
            output::list(console, format, &called)
        }
        Verb::Resolve { name } => {
            let instances: Vec<InstanceView> = api::get(api, path(&["instances"])).await?;
            let targets = resolve(&name, &services, &instances)?;
            output::list(console, format, &targets)
        }
        Verb::Routes(_) | Verb::Trace(_) => Err(Failure::Usage("this verb needs no root".into())),
    }
}

fn called(service: ServiceView) -> Called {
    Called {
        name: format!("{}.{DOMAIN}", name_of(&service.path)),
        round_robin: service.addresses.get(&Policy::RoundRobin).cloned().unwrap_or_default(),
        running: service.running,
        replicas: service.replicas,
        service: service.path,
    }
}

/// The instances behind a name or an address.
fn resolve(name: &str, services: &[ServiceView], instances: &[InstanceView]) -> Result<Vec<Target>, Failure> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return by_address(address, services, instances).ok_or_else(|| nobody_at(address));
    }
    let (service, policy) = by_name(name, services)?;
    Ok(behind(service, policy, instances))
}

pub(crate) fn nobody_at(address: IpAddr) -> Failure {
    Failure::Usage(format!("no service or instance of yours has the address {address}"))
}

/// The service that a name stands for, and how it chooses.
pub(crate) fn by_name<'a>(name: &str, services: &'a [ServiceView]) -> Result<(&'a ServiceView, Policy), Failure> {
    let full = name.trim_end_matches('.').to_lowercase();
    let full = full.strip_suffix(&format!(".{DOMAIN}")).unwrap_or(&full);
    let found = services.iter().find_map(|service| {
        let policy = match full.strip_suffix(&name_of(&service.path).to_lowercase())? {
            "" => Policy::RoundRobin,
            front => match front.strip_suffix('.')? {
                "closest" => Policy::Closest,
                "least" => Policy::LeastUsed,
                number => Policy::Instance(number.parse().ok()?),
            },
        };
        Some((service, policy))
    });
    found.ok_or_else(|| {
        Failure::Usage(format!(
            "no service of yours is called `{name}`; `roble network ls` shows names, such as web.shop.{DOMAIN}"
        ))
    })
}

fn by_address(address: IpAddr, services: &[ServiceView], instances: &[InstanceView]) -> Option<Vec<Target>> {
    let of_service = services.iter().find_map(|service| {
        let policies = service.addresses.iter();
        let policy = policies.into_iter().find(|(_, all)| all.contains(&address))?.0;
        Some(behind(service, *policy, instances))
    });
    of_service.or_else(|| {
        let is_it = |instance: &&InstanceView| {
            instance.addresses.contains(&address) || instance.service_addresses.contains(&address)
        };
        let instance = instances.iter().find(is_it)?;
        let via = if instance.addresses.contains(&address) {
            "endpoint"
        } else {
            "instance"
        };
        Some(vec![target(instance, via.to_owned())])
    })
}

fn behind(service: &ServiceView, policy: Policy, instances: &[InstanceView]) -> Vec<Target> {
    let is_chosen = |instance: &&InstanceView| {
        let number = instance
            .path
            .strip_prefix(&service.path)
            .and_then(|rest| rest.strip_prefix('.'));
        match (number, policy) {
            (Some(number), Policy::Instance(wanted)) => number.parse() == Ok(wanted),
            (Some(number), _) => number.bytes().all(|byte| byte.is_ascii_digit()),
            (None, _) => false,
        }
    };
    let via = match policy {
        Policy::Instance(_) => "instance".to_owned(),
        other => other.to_string(),
    };
    instances
        .iter()
        .filter(is_chosen)
        .map(|instance| target(instance, via.clone()))
        .collect()
}

fn target(instance: &InstanceView, via: String) -> Target {
    Target {
        instance: instance.path.clone(),
        phase: instance.phase,
        node: instance.node_name.clone(),
        via,
        addresses: instance.addresses.clone(),
    }
}
