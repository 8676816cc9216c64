//! The net manager's tier: what its cluster tells it, kept for a start without anybody. No I/O.

use prost::Message;
use rand::RngCore;
use roble_core::overlay::block::Block;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{InstanceRow, NodeRow, Row, RowKey, ServiceRow};
use roble_core::tier::{Output, Record, Tier, Write};
use roble_core::time::{Boottime, Now};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_proto::rows::{decode_row, encode_row};
use roble_proto::wire;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Kind of record: a row as received.
const ROW: &str = "row";

/// Everything that the cluster has told: whole, as of one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    rows: BTreeMap<RowKey, Row>,
}

impl Told {
    /// With these rows.
    #[cfg(test)]
    pub fn of(rows: impl IntoIterator<Item = Row>) -> Self {
        Self {
            rows: rows.into_iter().map(|row| (row.key(), row)).collect(),
        }
    }

    /// The tree's ranges; the defaults until they are known.
    pub fn plan(&self) -> Plan {
        match self.rows.get(&RowKey::Plan) {
            Some(Row::Plan(plan)) => *plan,
            _ => Plan::default(),
        }
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// This node's block of endpoint addresses, if it has one: the lowest.
    pub fn block(&self) -> Option<Block> {
        self.rows.values().find_map(|row| match row {
            Row::Block(block) => Some(*block),
            _ => None,
        })
    }

    /// Services of the applications that this node runs something of.
    pub fn services(&self) -> impl Iterator<Item = &ServiceRow> {
        self.rows.values().filter_map(|row| match row {
            Row::Service(row) => Some(row),
            _ => None,
        })
    }

    /// Their instances, wherever they are.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceRow> {
        self.rows.values().filter_map(|row| match row {
            Row::Instance(row) => Some(row),
            _ => None,
        })
    }

    /// The nodes that these are on.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.rows.values().filter_map(|row| match row {
            Row::Node(row) => Some(row),
            _ => None,
        })
    }
}

/// What happens to the net manager.
#[derive(Debug)]
pub enum Event {
    /// The transport to the cluster came up.
    LinkUp,
    /// It went down.
    LinkDown,
    /// A message of the cluster.
    Message(Vec<u8>),
    /// What this node says of itself, whole: its block, and where its tunnel is reached.
    Says(Vec<Row>),
}

/// What it asks of its shell.
#[derive(Debug)]
pub enum Act {
    /// Send this to the cluster; it may be lost.
    Send(Vec<u8>),
    /// What the cluster tells changed.
    Told(Arc<Told>),
    /// A session with the cluster stands, or is lost.
    Connected(bool),
    /// The cluster broke the protocol.
    Violation(String),
}

/// The net manager. See the module's text.
#[derive(Debug)]
pub struct NetTier {
    link: ChildEnd,
    told: Told,
    says: BTreeMap<String, Vec<u8>>,
    is_changed: bool,
}

struct Says<'a>(&'a BTreeMap<String, Vec<u8>>);

impl Source for Says<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
}

impl NetTier {
    /// Takes up what was stored; it is told at the first tick. Returns the records that could not be read, for the log.
    pub fn new(clocks: ChildClocks, software: &str, records: &[Record], rng: &mut dyn RngCore) -> (Self, Vec<String>) {
        let mut link = ChildEnd::new(clocks, rng.next_u64(), software);
        let (mut told, mut bad) = (Told::default(), Vec::new());
        for record in records.iter().filter(|record| record.kind == ROW) {
            match decode_row(&record.id, &record.value) {
                Ok(row) => {
                    link.restore_order(&record.id, &record.value);
                    told.rows.insert(row.key(), row);
                }
                Err(error) => bad.push(format!("row {}: {error}", record.id)),
            }
        }
        let tier = Self {
            link,
            told,
            says: BTreeMap::new(),
            is_changed: true,
        };
        (tier, bad)
    }

    /// What is known, to be looked at.
    pub const fn told(&self) -> &Told {
        &self.told
    }

    /// Whether a session with the cluster stands.
    pub const fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    fn hear_says(&mut self, rows: Vec<Row>) {
        let says: BTreeMap<String, Vec<u8>> = rows
            .iter()
            .map(|row| (row.key().to_string(), encode_row(row)))
            .collect();
        for key in self.says.keys().filter(|key| !says.contains_key(*key)) {
            self.link.set_status(key, None);
        }
        for (key, value) in &says {
            self.link.set_status(key, Some(value));
        }
        self.says = says;
    }

    fn handle(&mut self, outputs: Vec<ChildOutput>, out: &mut Output<Act>) {
        for output in outputs {
            match output {
                ChildOutput::Send(frame) => out.acts.push(Act::Send(frame.encode_to_vec())),
                ChildOutput::Order { key, value } => match decode_row(&key, &value) {
                    Ok(row) => {
                        out.writes
                            .push(Write::put(ROW, &key, value).retold(!row.gives_addresses()));
                        self.told.rows.insert(row.key(), row);
                        self.is_changed = true;
                    }
                    Err(error) => out.acts.push(Act::Violation(format!("row {key}: {error}"))),
                },
                ChildOutput::Withdraw(key) => {
                    if let Ok(key) = key.parse() {
                        self.is_changed |= self.told.rows.remove(&key).is_some();
                    }
                    out.writes.push(Write::delete(ROW, &key));
                }
                ChildOutput::Connected(connected) => out.acts.push(Act::Connected(connected)),
                // The node engine looks after its membership.
                ChildOutput::Complete | ChildOutput::Request(_) | ChildOutput::Unknown => {}
            }
        }
    }

    fn settle(&mut self, out: &mut Output<Act>) {
        let outputs = self.link.flush(&Says(&self.says));
        self.handle(outputs, out);
        if std::mem::take(&mut self.is_changed) {
            out.acts.push(Act::Told(Arc::new(self.told.clone())));
        }
    }
}

impl Tier for NetTier {
    type Event = Event;
    type Act = Act;

    fn on(&mut self, event: Event, now: Now, _rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        match event {
            Event::LinkUp => self.link.transport_up(now),
            Event::LinkDown => {
                let outputs = self.link.transport_down();
                self.handle(outputs, &mut out);
            }
            Event::Message(bytes) => match wire::Frame::decode(bytes.as_slice()) {
                Ok(frame) => {
                    let outputs = self.link.receive(frame, &Says(&self.says), now);
                    self.handle(outputs, &mut out);
                }
                Err(error) => out.acts.push(Act::Violation(error.to_string())),
            },
            Event::Says(rows) => self.hear_says(rows),
        }
        self.settle(&mut out);
        out
    }

    fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        let outputs = self.link.tick(now, rng);
        self.handle(outputs, &mut out);
        self.settle(&mut out);
        out
    }

    fn next_due(&self) -> Option<Boottime> {
        self.link.next_due()
    }
}

#[cfg(test)]
#[path = "tier_tests.rs"]
mod tests;
