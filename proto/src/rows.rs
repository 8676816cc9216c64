//! Rows of the overlay's tables on the link.

use crate::convert::{DecodeError, address};
use crate::wire::{self, table_row, want};
use prost::Message;
use roble_core::ids::ParseIdError;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{
    Allowed, InstanceRow, MAX_WANTED_NAME, NodeRow, Policy, RelayRow, Row, RowKey, SeenRow, ServiceRow, WantRow, Wanted,
};
use roble_core::overlay::tunnel::{MAX_ENDPOINTS, PublicKey, TunnelEnd};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// Encodes a row as the value of a set item; its key is [`Row::key`].
pub fn encode_row(row: &Row) -> Vec<u8> {
    let row = match row {
        Row::Plan(plan) => table_row::Row::Plan(wire::OverlayPlan {
            first_endpoint: plan.endpoints.0.to_string(),
            last_endpoint: plan.endpoints.1.to_string(),
            endpoints_v6: plan.endpoints_v6.to_string(),
            services: plan.services.to_string(),
            services_v6: u32::from(plan.services_v6),
        }),
        Row::Block(block) => table_row::Row::Block(block.to_string()),
        Row::Service(row) => table_row::Row::Service(wire::ServiceRow {
            organization: row.organization.to_string(),
            application: row.application.to_string(),
            path: row.path.clone(),
            v4: by_policy(&row.v4),
            v6: by_policy(&row.v6),
            allows: row.allows.iter().map(encode_allowed).collect(),
        }),
        Row::Instance(row) => table_row::Row::Instance(wire::InstanceRow {
            application: row.application.to_string(),
            node: row.node.to_string(),
            v4: row.v4.to_string(),
            v6: row.v6.to_string(),
            ready: row.ready,
        }),
        Row::Node(row) => table_row::Row::Node(wire::NodeRow {
            cluster: row.cluster.to_string(),
            address: row.address.map(|address| address.to_string()).unwrap_or_default(),
            block: row.block.to_string(),
            tunnel: row.tunnel.as_ref().map(|end| wire::TunnelEnd {
                key: end.key.0.to_vec(),
                previous: end.previous.map(|key| key.0.to_vec()).unwrap_or_default(),
                endpoints: end.endpoints.iter().map(ToString::to_string).collect(),
            }),
        }),
        Row::Relay(row) => table_row::Row::Relay(wire::RelayRow {
            address: row.address.to_string(),
            key: row.key.0.to_vec(),
        }),
        Row::Seen(row) => table_row::Row::Seen(wire::SeenRow {
            address: row.address.to_string(),
        }),
        Row::Want(row) => table_row::Row::Want(wire::Want {
            application: row.application.to_string(),
            wanted: Some(match &row.wanted {
                Wanted::Name(name) => want::Wanted::Name(name.clone()),
                Wanted::Address(address) => want::Wanted::Address(address.to_string()),
            }),
            service: row.service.map(|service| service.to_string()).unwrap_or_default(),
        }),
    };
    wire::TableRow { row: Some(row) }.encode_to_vec()
}

fn by_policy<A: Display>(addresses: &BTreeMap<Policy, A>) -> Vec<wire::Pair> {
    let pair = |(policy, address): (&Policy, &A)| wire::Pair {
        key: policy.to_string(),
        value: address.to_string(),
    };
    addresses.iter().map(pair).collect()
}

fn from_policies<A: FromStr>(pairs: &[wire::Pair]) -> Result<BTreeMap<Policy, A>, DecodeError> {
    let read = |pair: &wire::Pair| Ok((address("policy", &pair.key)?, address("address", &pair.value)?));
    pairs.iter().map(read).collect()
}

fn public_key(field: &'static str, bytes: &[u8]) -> Result<PublicKey, DecodeError> {
    let invalid = |_| DecodeError::Invalid {
        field,
        value: format!("{} bytes instead of 32", bytes.len()),
    };
    bytes.try_into().map(PublicKey).map_err(invalid)
}

fn tunnel_end(end: wire::TunnelEnd) -> Result<TunnelEnd, DecodeError> {
    let previous = (!end.previous.is_empty()).then(|| public_key("previous", &end.previous));
    let endpoints = end.endpoints.iter().take(MAX_ENDPOINTS);
    Ok(TunnelEnd {
        key: public_key("key", &end.key)?,
        previous: previous.transpose()?,
        endpoints: endpoints
            .map(|text| address("endpoints", text))
            .collect::<Result<_, _>>()?,
    })
}

fn encode_allowed(allowed: &Allowed) -> wire::Allowed {
    wire::Allowed {
        application: allowed.application.to_string(),
        service: allowed.service.map(|service| service.to_string()).unwrap_or_default(),
        ports: allowed.ports.iter().map(ToString::to_string).collect(),
    }
}

fn decode_allowed(allowed: &wire::Allowed) -> Result<Allowed, DecodeError> {
    let ports = allowed.ports.iter().map(|range| address("ports", range));
    Ok(Allowed {
        application: allowed.application.parse()?,
        service: optional(&allowed.service)?,
        ports: ports.collect::<Result<_, _>>()?,
    })
}

fn decode_want(want: wire::Want) -> Result<WantRow, DecodeError> {
    let wanted = match want.wanted.ok_or(DecodeError::Missing("wanted"))? {
        want::Wanted::Name(name) if name.len() <= MAX_WANTED_NAME => Wanted::Name(name),
        want::Wanted::Name(name) => {
            return Err(DecodeError::Invalid {
                field: "name",
                value: name.chars().take(64).collect(),
            });
        }
        want::Wanted::Address(text) => Wanted::Address(address("address", &text)?),
    };
    Ok(WantRow {
        application: want.application.parse()?,
        wanted,
        service: optional(&want.service)?,
    })
}

/// An id that may be left out.
fn optional<T: FromStr<Err = ParseIdError>>(text: &str) -> Result<Option<T>, DecodeError> {
    Ok((!text.is_empty()).then(|| text.parse()).transpose()?)
}

/// Decodes the value of an item of the net branch.
///
/// # Errors
/// [`DecodeError`] naming the field; also if key and value are of different kinds.
pub fn decode_row(key: &str, value: &[u8]) -> Result<Row, DecodeError> {
    let row = wire::TableRow::decode(value)?.row.ok_or(DecodeError::Missing("row"))?;
    let mismatch = || DecodeError::Invalid {
        field: "key",
        value: key.chars().take(64).collect(),
    };
    let parsed: RowKey = key.parse().map_err(|_| mismatch())?;
    let row = match (parsed, row) {
        (RowKey::Plan, table_row::Row::Plan(plan)) => Row::Plan(Plan {
            endpoints: (
                address("first_endpoint", &plan.first_endpoint)?,
                address("last_endpoint", &plan.last_endpoint)?,
            ),
            endpoints_v6: address("endpoints_v6", &plan.endpoints_v6)?,
            services: address("services", &plan.services)?,
            services_v6: u16::try_from(plan.services_v6).map_err(|_| DecodeError::Invalid {
                field: "services_v6",
                value: plan.services_v6.to_string(),
            })?,
        }),
        (RowKey::Block(_), table_row::Row::Block(block)) => Row::Block(address("block", &block)?),
        (RowKey::Service(service), table_row::Row::Service(row)) => Row::Service(ServiceRow {
            service,
            organization: row.organization.parse()?,
            application: row.application.parse()?,
            path: row.path,
            v4: from_policies(&row.v4)?,
            v6: from_policies(&row.v6)?,
            allows: row.allows.iter().map(decode_allowed).collect::<Result<_, _>>()?,
        }),
        (RowKey::Instance(instance), table_row::Row::Instance(row)) => Row::Instance(InstanceRow {
            instance,
            application: row.application.parse()?,
            node: row.node.parse()?,
            v4: address("v4", &row.v4)?,
            v6: address("v6", &row.v6)?,
            ready: row.ready,
        }),
        (RowKey::Node(node), table_row::Row::Node(row)) => Row::Node(NodeRow {
            node,
            cluster: row.cluster.parse()?,
            address: (!row.address.is_empty())
                .then(|| address("address", &row.address))
                .transpose()?,
            block: address("block", &row.block)?,
            tunnel: row.tunnel.map(tunnel_end).transpose()?,
        }),
        (RowKey::Relay(cluster), table_row::Row::Relay(row)) => Row::Relay(RelayRow {
            cluster,
            address: address("address", &row.address)?,
            key: public_key("key", &row.key)?,
        }),
        (RowKey::Seen(node, relay), table_row::Row::Seen(row)) => Row::Seen(SeenRow {
            node,
            relay,
            address: address("address", &row.address)?,
        }),
        (RowKey::Want(..), table_row::Row::Want(want)) => Row::Want(decode_want(want)?),
        _ => return Err(mismatch()),
    };
    if row.key() == parsed { Ok(row) } else { Err(mismatch()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::overlay::block::Block;

    #[test]
    fn rows_read_back_what_they_wrote_and_only_under_their_own_key() {
        let id = "0123456789abcdef01234567";
        let instance: RowKey = format!("i-{id}.3").parse().unwrap();
        let RowKey::Instance(instance) = instance else { panic!() };
        let rows = [
            Row::Plan(Plan::default()),
            Row::Block("10.18.4.64/26".parse().unwrap()),
            Row::Service(ServiceRow {
                service: instance.service,
                organization: id.parse().unwrap(),
                application: id.parse().unwrap(),
                path: "shop/web".to_owned(),
                v4: BTreeMap::from([
                    (Policy::RoundRobin, [10, 30, 55, 55].into()),
                    (Policy::Instance(4), [10, 30, 0, 1].into()),
                ]),
                v6: BTreeMap::from([(Policy::Closest, "fdff:1000::7".parse().unwrap())]),
                allows: vec![
                    Allowed {
                        application: id.parse().unwrap(),
                        service: None,
                        ports: Vec::new(),
                    },
                    Allowed {
                        application: id.parse().unwrap(),
                        service: Some(instance.service),
                        ports: vec!["5432/tcp".parse().unwrap(), "6000-6010/udp".parse().unwrap()],
                    },
                ],
            }),
            Row::Instance(InstanceRow {
                instance,
                application: id.parse().unwrap(),
                node: id.parse().unwrap(),
                v4: [10, 18, 0, 2].into(),
                v6: "fc00::a12:2".parse().unwrap(),
                ready: true,
            }),
            Row::Node(NodeRow {
                node: id.parse().unwrap(),
                cluster: id.parse().unwrap(),
                address: None,
                block: Block::new([10, 18, 0, 0].into(), 26),
                tunnel: Some(TunnelEnd {
                    key: PublicKey([1; 32]),
                    previous: Some(PublicKey([2; 32])),
                    endpoints: vec![([192, 0, 2, 1], 50_103).into(), "[2001:db8::1]:1".parse().unwrap()],
                }),
            }),
            Row::Relay(RelayRow {
                cluster: id.parse().unwrap(),
                address: ([192, 0, 2, 9], 50_104).into(),
                key: PublicKey([3; 32]),
            }),
            Row::Seen(SeenRow {
                node: id.parse().unwrap(),
                relay: id.parse().unwrap(),
                address: ([203, 0, 113, 1], 4096).into(),
            }),
            Row::Want(WantRow {
                application: id.parse().unwrap(),
                wanted: Wanted::Name("web.shop".to_owned()),
                service: None,
            }),
            Row::Want(WantRow {
                application: id.parse().unwrap(),
                wanted: Wanted::Address([10, 30, 0, 7].into()),
                service: Some(instance.service),
            }),
        ];
        for row in &rows {
            let key = row.key().to_string();
            assert_eq!(&decode_row(&key, &encode_row(row)).unwrap(), row);
            for other in &rows {
                let is_own = other.key() == row.key();
                assert_eq!(decode_row(&key, &encode_row(other)).is_ok(), is_own, "{key} {other:?}");
            }
        }
        assert!(decode_row("p", b"nonsense").is_err());
    }

    /// Bytes of the release before rules: a row of a service without them.
    #[test]
    fn rows_of_before_there_were_rules_are_read() {
        let id = "0123456789abcdef01234567";
        let row = Row::Service(ServiceRow {
            service: id.parse().unwrap(),
            organization: id.parse().unwrap(),
            application: id.parse().unwrap(),
            path: "shop/web".to_owned(),
            v4: BTreeMap::from([(Policy::RoundRobin, [10, 30, 55, 55].into())]),
            v6: BTreeMap::new(),
            allows: Vec::new(),
        });
        let text = |tag: u8, text: &str| [&[tag << 3 | 2, text.len() as u8], text.as_bytes()].concat();
        let pair = [text(1, "round-robin"), text(2, "10.30.55.55")].concat();
        let pair = [&[4 << 3 | 2, pair.len() as u8], pair.as_slice()].concat();
        let fields = [text(1, id), text(2, id), text(3, "shop/web"), pair].concat();
        let old = [&[3 << 3 | 2, fields.len() as u8], fields.as_slice()].concat();
        assert_eq!(decode_row(&format!("s-{id}"), &old).unwrap(), row);
        assert_eq!(encode_row(&row), old, "and an older peer reads ours");
    }
}
