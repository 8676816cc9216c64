//! Every conversion between wire and core types.

use crate::wire;
use prost::Message;
use roble_core::ids::{InstanceId, ParseIdError};
use roble_core::labels::{Labels, Selector};
use roble_core::placement::{Offer, Profile};
use roble_core::ports::{ParsePortError, PortMapping};
use roble_core::resources::Resources;
use roble_core::spec::{Assignment, Constraints, InstanceSpec, RestartPolicy, SecurityProfile, WhenCutOff};
use roble_core::status::{InstanceStatus, Phase, Reason};
use roble_core::time::Timestamp;
use roble_core::version::{Epochs, Generation, Version};
use std::net::IpAddr;
use std::sync::Arc;

/// Why a message could not be understood. The message is counted and dropped.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf of this message.
    #[error("decode protobuf")]
    Protobuf(#[from] prost::DecodeError),
    /// A field must be there.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field is not what it should be.
    #[error("field `{field}` is `{value}`")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What was there.
        value: String,
    },
    /// An id has the wrong shape.
    #[error(transparent)]
    Id(#[from] ParseIdError),
    /// A port mapping has the wrong shape.
    #[error(transparent)]
    Port(#[from] ParsePortError),
}

fn pairs<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<wire::Pair> {
    map.into_iter()
        .map(|(key, value)| wire::Pair {
            key: key.clone(),
            value: value.clone(),
        })
        .collect()
}

fn labels(pairs: Vec<wire::Pair>) -> Labels {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

fn ports(texts: &[String]) -> Result<Vec<PortMapping>, ParsePortError> {
    texts.iter().map(|text| text.parse()).collect()
}

pub(crate) fn address<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, DecodeError> {
    text.parse().map_err(|_| DecodeError::Invalid {
        field,
        value: text.chars().take(64).collect(),
    })
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, DecodeError> {
    texts.iter().map(|text| address("addresses", text)).collect()
}

fn word<T: serde::de::DeserializeOwned>(field: &'static str, value: &str) -> Result<T, DecodeError> {
    serde_json::from_value(serde_json::Value::String(value.to_owned())).map_err(|_| DecodeError::Invalid {
        field,
        value: value.chars().take(64).collect(),
    })
}

fn as_word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

impl From<&Version> for wire::Version {
    fn from(version: &Version) -> Self {
        Self {
            generation: version.generation.0,
            epochs: version.epochs.0.clone(),
        }
    }
}

impl From<wire::Version> for Version {
    fn from(version: wire::Version) -> Self {
        Self {
            generation: Generation(version.generation),
            epochs: Epochs(version.epochs),
        }
    }
}

impl From<Resources> for wire::Resources {
    fn from(resources: Resources) -> Self {
        Self {
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
        }
    }
}

impl From<wire::Resources> for Resources {
    fn from(resources: wire::Resources) -> Self {
        Self {
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
        }
    }
}

impl From<&Profile> for wire::Profile {
    fn from(profile: &Profile) -> Self {
        let offers = profile.offers.iter().map(|offer| wire::Offer {
            labels: pairs(&offer.labels),
            count: offer.count,
            allocatable: Some(offer.allocatable.into()),
            largest_free: offer.largest_free.iter().map(|free| (*free).into()).collect(),
        });
        Self {
            name: profile.name.clone(),
            labels: pairs(&profile.labels),
            address: profile.address.clone(),
            virtualizations: profile.virtualizations.clone(),
            offers: offers.collect(),
            software: profile.software.clone(),
            revision: profile.revision,
        }
    }
}

impl From<wire::Profile> for Profile {
    fn from(profile: wire::Profile) -> Self {
        let offers = profile.offers.into_iter().map(|offer| Offer {
            labels: labels(offer.labels),
            count: offer.count,
            allocatable: offer.allocatable.unwrap_or_default().into(),
            largest_free: offer.largest_free.into_iter().map(Into::into).collect(),
        });
        Self {
            name: profile.name,
            labels: labels(profile.labels),
            address: profile.address,
            virtualizations: profile.virtualizations,
            offers: offers.collect(),
            software: profile.software,
            revision: profile.revision,
        }
    }
}

/// Encodes an order as the value of a set item; its key is the instance.
pub fn encode_assignment(assignment: &Assignment) -> Vec<u8> {
    let spec = &assignment.spec;
    let constraints = &spec.constraints;
    wire::Assignment {
        version: Some((&assignment.version).into()),
        spec: Some(wire::InstanceSpec {
            organization: spec.organization.to_string(),
            application: spec.application.to_string(),
            path: spec.path.clone(),
            virtualization: spec.virtualization.clone(),
            image: spec.image.clone(),
            image_digest: spec.image_digest.clone().unwrap_or_default(),
            command: spec.command.clone(),
            args: spec.args.clone(),
            environment: pairs(spec.environment.iter().map(|(key, value)| (key, value))),
            working_dir: spec.working_dir.clone(),
            user: spec.user.clone(),
            resources: Some(spec.resources.into()),
            ports: spec.ports.iter().map(ToString::to_string).collect(),
            restart: as_word(&spec.restart),
            one_shot: spec.one_shot,
            stop_grace_ms: spec.stop_grace_ms,
            when_cut_off: as_word(&spec.when_cut_off),
            security: as_word(&spec.security),
            constraints: Some(wire::Constraints {
                cluster: constraints.cluster.clone(),
                node: constraints.node.clone(),
                cluster_selector: pairs(&constraints.cluster_selector.0),
                node_selector: pairs(&constraints.node_selector.0),
                architectures: constraints.architectures.clone(),
            }),
        }),
    }
    .encode_to_vec()
}

/// Decodes the value of an item of the orders.
///
/// # Errors
/// [`DecodeError`] naming the field.
pub fn decode_assignment(key: &str, value: &[u8]) -> Result<Assignment, DecodeError> {
    let message = wire::Assignment::decode(value)?;
    let spec = message.spec.ok_or(DecodeError::Missing("spec"))?;
    let constraints = spec.constraints.unwrap_or_default();
    let spec = InstanceSpec {
        organization: spec.organization.parse()?,
        application: spec.application.parse()?,
        path: spec.path,
        virtualization: spec.virtualization,
        image: spec.image,
        image_digest: Some(spec.image_digest).filter(|digest| !digest.is_empty()),
        command: spec.command,
        args: spec.args,
        environment: spec
            .environment
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect(),
        working_dir: spec.working_dir,
        user: spec.user,
        resources: spec.resources.ok_or(DecodeError::Missing("resources"))?.into(),
        ports: ports(&spec.ports)?,
        restart: word::<RestartPolicy>("restart", &spec.restart)?,
        one_shot: spec.one_shot,
        stop_grace_ms: spec.stop_grace_ms,
        when_cut_off: word::<WhenCutOff>("when_cut_off", &spec.when_cut_off)?,
        security: word::<SecurityProfile>("security", &spec.security)?,
        constraints: Constraints {
            cluster: constraints.cluster,
            node: constraints.node,
            cluster_selector: Selector(labels(constraints.cluster_selector)),
            node_selector: Selector(labels(constraints.node_selector)),
            architectures: constraints.architectures,
        },
    };
    Ok(Assignment {
        instance: key.parse::<InstanceId>()?,
        version: message.version.ok_or(DecodeError::Missing("version"))?.into(),
        spec: Arc::new(spec),
    })
}

/// Encodes a report as the value of a set item; its key is the instance.
pub fn encode_status(status: &InstanceStatus) -> Vec<u8> {
    wire::InstanceStatus {
        version: Some((&status.version).into()),
        phase: status.phase.as_str().to_owned(),
        reason: status.reason.as_ref().map(|r| wire::Reason {
            code: r.code.clone(),
            message: r.message.clone(),
        }),
        restarts: status.restarts,
        exit_code: status.exit_code,
        started_at_ms: status.started_at.map(Timestamp::as_millis),
        node: status.node.map(|node| node.to_string()),
        node_name: status.node_name.clone(),
        node_address: status.node_address.clone(),
        ports: status.ports.iter().map(ToString::to_string).collect(),
        image_digest: status.image_digest.clone(),
        addresses: status.addresses.iter().map(ToString::to_string).collect(),
    }
    .encode_to_vec()
}

/// Decodes the value of an item of the statuses. `cluster` is left empty: the receiver knows it from the link.
///
/// # Errors
/// [`DecodeError`] naming the field.
pub fn decode_status(key: &str, value: &[u8]) -> Result<InstanceStatus, DecodeError> {
    let message = wire::InstanceStatus::decode(value)?;
    let version = message.version.ok_or(DecodeError::Missing("version"))?.into();
    Ok(InstanceStatus {
        instance: key.parse()?,
        version,
        phase: word::<Phase>("phase", &message.phase)?,
        reason: message.reason.map(|reason| Reason {
            code: reason.code,
            message: reason.message,
        }),
        restarts: message.restarts,
        exit_code: message.exit_code,
        started_at: message.started_at_ms.map(Timestamp::from_millis),
        cluster: None,
        node: message.node.map(|node| node.parse()).transpose()?,
        node_name: message.node_name,
        node_address: message.node_address,
        ports: ports(&message.ports)?,
        image_digest: message.image_digest,
        addresses: addresses(&message.addresses)?,
    })
}
