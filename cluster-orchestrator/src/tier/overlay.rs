//! The overlay at a cluster: blocks of endpoint addresses for its nodes, and the tables between the root and them.

use super::{Act, ClusterTier, Note};
use prost::Message;
use roble_core::ids::{ChildId, ClusterId, InstanceId, NodeId};
use roble_core::overlay::block::Block;
use roble_core::overlay::blocks::{BlockRecord, Blocks, NODE_PREFIX};
use roble_core::overlay::row::{InstanceRow, NodeRow, Row, RowKey};
use roble_core::overlay::tables::Writer;
use roble_core::tier::{Output, Write};
use roble_core::time::Now;
use roble_link::Source;
use roble_link::child::{ChildEnd, ChildOutput};
use roble_link::tables::{TableServer, TablesOutput};
use roble_proto::rows::{decode_row, encode_row};
use roble_proto::topics::Branch;
use roble_proto::wire;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Kind of record: a row of the root, as received.
pub(super) const ROW: &str = "row";
/// Kind of record: a block that a node has or had.
pub(super) const BLOCK: &str = "block";

/// What the cluster gives and tells.
#[derive(Debug)]
pub(super) struct Overlay {
    /// The session with the root.
    pub uplink: ChildEnd,
    /// The tables and the nodes' sessions.
    pub server: TableServer,
    blocks: Blocks,
    /// What net managers say they have: they keep it if it is to be had.
    claims: BTreeMap<ChildId, Block>,
    /// Where they say their tunnels are reached.
    addresses: BTreeMap<ChildId, IpAddr>,
    /// Something changed of nodes or blocks: they are to be looked at.
    pub is_due: bool,
}

/// What the root is told.
struct Up<'a>(&'a TableServer);

impl Source for Up<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.tables().row_up(key.parse().ok()?).map(encode_row)
    }
}

impl Overlay {
    pub fn new(uplink: ChildEnd, server: TableServer) -> Self {
        Self {
            uplink,
            server,
            blocks: Blocks::new(NODE_PREFIX),
            claims: BTreeMap::new(),
            addresses: BTreeMap::new(),
            is_due: true,
        }
    }

    /// Takes up a stored row of the root. Returns what is wrong with it.
    pub fn restore_row(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        let row = decode_row(key, value).map_err(|error| format!("row {key}: {error}"))?;
        self.uplink.restore_order(key, value);
        self.hear_row(row.key(), Some(row));
        Ok(())
    }

    /// Takes up a stored block of a node; after the rows, which tell the ranges.
    pub fn restore_block(&mut self, record: &BlockRecord) {
        self.blocks.restore(record);
    }

    /// The root says this of a row. Its blocks are cut up for nodes; a block that it takes back stays with the nodes that have
    /// a part of it.
    fn hear_row(&mut self, key: RowKey, row: Option<Row>) {
        match (key, row) {
            (RowKey::Block(_), Some(Row::Block(block))) => {
                self.blocks.add_range(block.network(), block.last());
                self.is_due = true;
            }
            (RowKey::Block(_), _) => {}
            (key, row) => self.server.set(Writer::Parent, key, row),
        }
    }
}

impl ClusterTier {
    /// A node takes part, from now on or again.
    pub(super) fn add_to_overlay(&mut self, child: ChildId) {
        self.overlay.server.add_child(child);
        self.overlay.is_due = true;
        self.refresh_wants(child);
    }

    /// A node is gone for good.
    pub(super) fn remove_from_overlay(&mut self, child: ChildId, now: Now, out: &mut Output<Act>) {
        let overlay = &mut self.overlay;
        overlay.server.remove_child(child);
        overlay.server.set(Writer::Own, RowKey::Node(NodeId(child.0)), None);
        overlay.claims.remove(&child);
        overlay.addresses.remove(&child);
        for block in overlay.blocks.release(child, now.wall) {
            let holder = None;
            out.writes.extend(block_write(block, holder, now));
        }
    }

    /// What a node runs changed: so does what it is told of.
    pub(super) fn refresh_wants(&mut self, child: ChildId) {
        let applications = self.children.orchestrator().applications_on(child);
        self.overlay.server.set_wants(child, &applications);
    }

    /// What is known of where an instance is changed: the tables follow.
    pub(super) fn publish_instance(&mut self, instance: InstanceId) {
        let orchestrator = self.children.orchestrator();
        let row = orchestrator.holder(instance).and_then(|_| {
            let application = orchestrator.wish(instance)?.spec.application;
            InstanceRow::of(&orchestrator.view(instance)?, application)
        });
        self.overlay
            .server
            .set(Writer::Own, RowKey::Instance(instance), row.map(Row::Instance));
    }

    /// Every node has a block, if there is one: the one that it says it has before any other. While it is not known who
    /// had what, only that.
    fn give_blocks(&mut self, now: Now, out: &mut Output<Act>) {
        let is_settled = self.children.is_settled() || self.config.is_new;
        let nodes: Vec<ChildId> = self.children.orchestrator().child_ids().collect();
        for child in nodes {
            let overlay = &mut self.overlay;
            if overlay.blocks.of(child).is_empty() {
                let claimed = overlay
                    .claims
                    .get(&child)
                    .copied()
                    .filter(|block| overlay.blocks.claim(*block, child));
                let given = claimed.or_else(|| is_settled.then(|| overlay.blocks.lease(child, now.wall)).flatten());
                out.writes
                    .extend(given.and_then(|block| block_write(block, Some(child), now)));
            }
            let blocks = overlay.blocks.of(child);
            overlay.server.set_blocks(child, blocks.clone());
            let node = NodeId(child.0);
            let row = blocks.first().map(|block| {
                Row::Node(NodeRow {
                    node,
                    cluster: ClusterId(self.config.id.0),
                    address: overlay.addresses.get(&child).copied(),
                    block: *block,
                })
            });
            overlay.server.set(Writer::Own, RowKey::Node(node), row);
        }
    }

    /// Passes on what the tables have for nodes and root, and hears what nodes say.
    pub(super) fn settle_overlay(&mut self, now: Now, out: &mut Output<Act>) {
        if self.children.is_complete() {
            self.overlay.server.set_complete();
        }
        self.settle_tables(now, out);
        let outputs = self.overlay.uplink.flush(&Up(&self.overlay.server));
        self.handle_net_up(outputs, now, out);
    }

    fn handle_tables(&mut self, output: TablesOutput, out: &mut Output<Act>) {
        match output {
            TablesOutput::Send(child, mut frame) => {
                // The topic says which branch it is.
                frame.branch = wire::Branch::Work.into();
                out.acts
                    .push(Act::SendNode(NodeId(child.0), Branch::Net, frame.encode_to_vec()));
            }
            TablesOutput::Heard(child, RowKey::Block(_), Some(Row::Block(block))) => {
                self.overlay.claims.insert(child, block);
                self.overlay.is_due = true;
            }
            TablesOutput::Heard(_, RowKey::Block(_), _) => {}
            TablesOutput::Heard(child, RowKey::Node(node), row) if node.0 == child.0 => {
                match row {
                    Some(Row::Node(NodeRow {
                        address: Some(address), ..
                    })) => drop(self.overlay.addresses.insert(child, address)),
                    _ => drop(self.overlay.addresses.remove(&child)),
                }
                self.overlay.is_due = true;
            }
            TablesOutput::Heard(child, key, _) => {
                let what = format!("node {child}: row {key} is not its to write");
                out.acts.push(Act::Note(Note::Violation(what)));
            }
            TablesOutput::TellParent(key) => {
                let value = self.overlay.server.tables().row_up(key).map(encode_row);
                self.overlay.uplink.set_status(&key.to_string(), value.as_deref());
            }
            TablesOutput::Violation(child, what) => {
                out.acts
                    .push(Act::Note(Note::Violation(format!("node {child}: {what}"))));
            }
        }
    }

    /// A frame of the root on the net branch.
    pub(super) fn receive_net_up(&mut self, frame: wire::Frame, now: Now, out: &mut Output<Act>) {
        let outputs = self.overlay.uplink.receive(frame, &Up(&self.overlay.server), now);
        self.handle_net_up(outputs, now, out);
    }

    pub(super) fn handle_net_up(&mut self, outputs: Vec<ChildOutput>, now: Now, out: &mut Output<Act>) {
        let mut is_changed = false;
        for output in outputs {
            match output {
                ChildOutput::Send(mut frame) => {
                    frame.branch = wire::Branch::Net.into();
                    out.acts.push(Act::SendUp(frame));
                }
                ChildOutput::Order { key, value } => match decode_row(&key, &value) {
                    Ok(row) => {
                        self.overlay.hear_row(row.key(), Some(row));
                        out.writes.push(Write::put(ROW, &key, value));
                        is_changed = true;
                    }
                    Err(error) => out.acts.push(Act::Note(Note::Violation(format!("row {key}: {error}")))),
                },
                ChildOutput::Withdraw(key) => {
                    if let Ok(key) = key.parse() {
                        self.overlay.hear_row(key, None);
                    }
                    out.writes.push(Write::delete(ROW, &key));
                    is_changed = true;
                }
                // What the work branch hears is enough.
                ChildOutput::Complete | ChildOutput::Request(_) | ChildOutput::Connected(_) | ChildOutput::Unknown => {}
            }
        }
        if is_changed {
            self.settle_tables(now, out);
        }
    }

    /// What the root said reaches the nodes.
    fn settle_tables(&mut self, now: Now, out: &mut Output<Act>) {
        loop {
            if std::mem::take(&mut self.overlay.is_due) {
                self.give_blocks(now, out);
            }
            let outputs = self.overlay.server.settle();
            if outputs.is_empty() && !self.overlay.is_due {
                return;
            }
            for output in outputs {
                self.handle_tables(output, out);
            }
        }
    }
}

fn block_write(block: Block, holder: Option<ChildId>, now: Now) -> Option<Write> {
    let record = BlockRecord {
        block,
        holder,
        since: now.wall,
    };
    let value = serde_json::to_vec(&record).ok()?;
    Some(Write::put(BLOCK, block.network(), value))
}
