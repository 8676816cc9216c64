//! The overlay at a cluster: blocks of endpoint addresses for its nodes, and the tables between the root and them.

use super::{Act, ClusterTier, Note};
use prost::Message;
use roble_core::ids::{ChildId, InstanceId, NodeId};
use roble_core::overlay::block::Block;
use roble_core::overlay::blocks::{BlockRecord, Blocks, NODE_PREFIX};
use roble_core::overlay::row::{InstanceRow, NodeRow, RelayRow, Row, RowKey, SeenRow};
use roble_core::overlay::tables::Writer;
use roble_core::overlay::tunnel::{PublicKey, TunnelEnd};
use roble_core::planted::{Bug, is_planted};
use roble_core::tier::{Output, Write};
use roble_core::time::Now;
use roble_link::Source;
use roble_link::child::{ChildEnd, ChildOutput};
use roble_link::tables::{MAX_WANTS, TableServer, TablesOutput};
use roble_proto::rows::{decode_row, encode_row};
use roble_proto::topics::Branch;
use roble_proto::wire;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Kind of record: a row of the root, as received.
pub(super) const ROW: &str = "row";
/// Kind of record: what a node wants to know. Without it a cluster that starts would ask the root for less than before, and
/// take back from its nodes what they use.
pub(super) const WANT: &str = "want";
/// Kind of record: a block that a node has or had.
pub(super) const BLOCK: &str = "block";

/// What the cluster gives and tells.
#[derive(Debug)]
pub(super) struct Overlay {
    /// The session with the root.
    pub uplink: ChildEnd,
    /// The tables and the nodes' sessions.
    pub server: TableServer,
    /// The rows of the root are all here.
    pub is_whole: bool,
    /// The transport to the root is up.
    is_up: bool,
    /// What nodes say was heard since the start: before, what is not known may be there all the same.
    is_heard: bool,
    blocks: Blocks,
    /// What net managers say they have: they keep it if it is to be had.
    claims: BTreeMap<ChildId, Block>,
    /// Where they say their tunnels are reached.
    ends: BTreeMap<ChildId, (Option<IpAddr>, Option<TunnelEnd>)>,
    /// This cluster has a relay.
    is_relay: bool,
    /// A node's key may have changed: the relay is to be told.
    is_relay_due: bool,
    /// Something changed of nodes or blocks: they are to be looked at.
    pub is_due: bool,
}

/// What the root is told.
struct Up<'a>(&'a TableServer);

impl Source for Up<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        Some(encode_row(&self.0.row_up(key.parse().ok()?)?))
    }
}

impl Overlay {
    pub fn new(uplink: ChildEnd, server: TableServer, is_whole: bool) -> Self {
        Self {
            uplink,
            server,
            is_whole,
            is_up: false,
            is_heard: false,
            blocks: Blocks::new(NODE_PREFIX),
            claims: BTreeMap::new(),
            ends: BTreeMap::new(),
            is_relay: false,
            is_relay_due: false,
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

    /// Takes up what a node wanted to know. Returns what is wrong with it.
    pub fn restore_want(&mut self, id: &str, value: &[u8]) -> Result<(), String> {
        let bad = || format!("want {id}");
        let (child, key) = id.split_once('.').ok_or_else(bad)?;
        let child = child.parse().map_err(|_| bad())?;
        match decode_row(key, value) {
            Ok(Row::Want(want)) => self.server.restore_wanted(child, want),
            Ok(_) => return Err(bad()),
            Err(error) => return Err(format!("want {id}: {error}")),
        }
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
            (key, row) => {
                self.is_relay_due |= matches!(key, RowKey::Node(_));
                self.server.set(Writer::Parent, key, row);
            }
        }
    }

    /// Whom the relay serves: all nodes that have a tunnel.
    fn relayed(&self) -> Vec<(NodeId, TunnelEnd)> {
        let rows = self.server.tables().rows();
        rows.filter_map(|(.., row)| match row {
            Row::Node(node) => Some((node.node, node.tunnel.clone()?)),
            _ => None,
        })
        .collect()
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
        let wants = overlay
            .server
            .wanted(child)
            .map(|key| Write::delete(WANT, want_id(child, key)));
        out.writes.extend(wants);
        overlay.server.remove_child(child);
        overlay.server.set(Writer::Own, RowKey::Node(NodeId(child.0)), None);
        overlay.claims.remove(&child);
        overlay.ends.remove(&child);
        overlay.is_relay_due = true;
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
        if let Some(Row::Instance(row)) = self.overlay.server.tables().row(RowKey::Instance(instance))
            && orchestrator.keeps_row(instance, row.node.into(), row.node)
        {
            return;
        }
        let row = orchestrator.holder(instance).and_then(|_| {
            let application = orchestrator.wish(instance)?.spec.application;
            InstanceRow::of(&orchestrator.view(instance)?, application)
        });
        self.overlay
            .server
            .set(Writer::Own, RowKey::Instance(instance), row.map(Row::Instance));
    }

    /// Every node has a block, if there is one: the one that it says it has before any other. While it is not known who
    /// had what, only that; and what somebody says he has is nobody else's, whoever comes first.
    fn give_blocks(&mut self, now: Now, out: &mut Output<Act>) {
        let is_settled = self.children.is_settled() || self.config.is_new;
        let nodes: Vec<ChildId> = self.children.orchestrator().child_ids().collect();
        let overlay = &mut self.overlay;
        let has_none = |overlay: &Overlay, child: &ChildId| overlay.blocks.of(*child).is_empty();
        for child in nodes.iter().copied().filter(|_| !is_planted(Bug::ForgetBlocks)) {
            if let Some(block) = overlay.claims.get(&child).copied()
                && has_none(overlay, &child)
                && overlay.blocks.claim(block, child)
            {
                out.writes.extend(block_write(block, Some(child), now));
            }
        }
        for child in nodes {
            let overlay = &mut self.overlay;
            let is_heard = is_settled && overlay.server.has_heard(child);
            if has_none(overlay, &child) && (is_heard || is_planted(Bug::ForgetBlocks)) {
                let block = overlay.blocks.lease(child, now.wall);
                if block.is_none() {
                    self.children.set_addresses(child, Some(0));
                }
                out.writes
                    .extend(block.and_then(|block| block_write(block, Some(child), now)));
            }
            let blocks = overlay.blocks.of(child);
            if !blocks.is_empty() {
                let addresses: usize = blocks.iter().map(Block::capacity).sum();
                self.children.set_addresses(child, u32::try_from(addresses).ok());
            }
            overlay.server.set_blocks(child, blocks.clone());
            let node = NodeId(child.0);
            let (address, tunnel) = overlay.ends.get(&child).cloned().unwrap_or_default();
            let is_heard = overlay.server.has_heard(child);
            let row = blocks.first().filter(|_| is_heard).map(|block| {
                Row::Node(NodeRow {
                    node,
                    cluster: self.config.id,
                    address,
                    block: *block,
                    tunnel,
                })
            });
            overlay.server.set(Writer::Own, RowKey::Node(node), row);
        }
        self.overlay.is_relay_due = true;
    }

    /// The relay serves: everybody is told.
    pub(super) fn set_relay(&mut self, address: SocketAddr, key: PublicKey) {
        let row = Row::Relay(RelayRow {
            cluster: self.config.id,
            address,
            key,
        });
        let overlay = &mut self.overlay;
        (overlay.is_relay, overlay.is_relay_due) = (true, true);
        overlay.server.set(Writer::Own, row.key(), Some(row));
    }

    /// Where the relay sees nodes: those who talk to them are told.
    pub(super) fn set_seen(&mut self, seen: &BTreeMap<NodeId, SocketAddr>) {
        let (relay, server) = (self.config.id, &mut self.overlay.server);
        let own = server.tables().written_by(Writer::Own).into_iter();
        let before: BTreeSet<NodeId> = own
            .filter_map(|key| match key {
                RowKey::Seen(node, by) if by == relay => Some(node),
                _ => None,
            })
            .collect();
        for node in before.into_iter().filter(|node| !seen.contains_key(node)) {
            server.set(Writer::Own, RowKey::Seen(node, relay), None);
        }
        for (node, address) in seen {
            let row = Row::Seen(SeenRow {
                node: *node,
                relay,
                address: *address,
            });
            server.set(Writer::Own, row.key(), Some(row));
        }
    }

    /// Passes on what the tables have for nodes and root, and hears what nodes say.
    pub(super) fn settle_overlay(&mut self, now: Now, out: &mut Output<Act>) {
        let overlay = &mut self.overlay;
        if !overlay.is_heard {
            let orchestrator = self.children.orchestrator();
            overlay.is_heard = orchestrator.has_heard_all(|child| overlay.server.has_heard(child));
            if overlay.is_heard && overlay.is_up {
                overlay.uplink.transport_up(now);
            }
        }
        if overlay.is_heard && overlay.is_whole && self.children.is_complete() {
            overlay.server.set_complete();
        }
        self.settle_tables(now, out);
        let outputs = self.overlay.uplink.flush(&Up(&self.overlay.server));
        self.handle_net_up(outputs, now, out);
        if std::mem::take(&mut self.overlay.is_relay_due) && self.overlay.is_relay {
            out.acts.push(Act::RelayFor(self.overlay.relayed()));
        }
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
                    Some(Row::Node(row)) => drop(self.overlay.ends.insert(child, (row.address, row.tunnel))),
                    _ => drop(self.overlay.ends.remove(&child)),
                }
                self.overlay.is_due = true;
            }
            TablesOutput::HeardOut(_) => self.overlay.is_due = true,
            TablesOutput::Heard(child, key @ RowKey::Want(..), None) => {
                self.overlay.server.set_wanted(child, key, None);
                out.writes.push(Write::delete(WANT, want_id(child, key)));
            }
            TablesOutput::Heard(child, key @ RowKey::Want(..), Some(Row::Want(want))) => {
                let value = encode_row(&Row::Want(want.clone()));
                if self.overlay.server.set_wanted(child, key, Some(want)) {
                    out.writes
                        .push(Write::put(WANT, want_id(child, key), value).retold(true));
                } else {
                    let what = format!("node {child} wants to know more than {MAX_WANTS} things");
                    out.acts.push(Act::Note(Note::Violation(what)));
                }
            }
            TablesOutput::Heard(child, key, _) => {
                let what = format!("node {child}: row {key} is not its to write");
                out.acts.push(Act::Note(Note::Violation(what)));
            }
            TablesOutput::TellParent(key) => {
                let value = self.overlay.server.row_up(key).map(|row| encode_row(&row));
                self.overlay.uplink.set_status(&key.to_string(), value.as_deref());
            }
            TablesOutput::Violation(child, what) => {
                out.acts
                    .push(Act::Note(Note::Violation(format!("node {child}: {what}"))));
            }
        }
    }

    /// The transport to the root came up. Before the nodes were heard nothing is said: what would be missing would be taken
    /// for gone.
    pub(super) fn net_up(&mut self, now: Now) {
        self.overlay.is_up = true;
        if self.overlay.is_heard {
            self.overlay.uplink.transport_up(now);
        }
    }

    /// It went down.
    pub(super) fn net_down(&mut self, now: Now, out: &mut Output<Act>) {
        self.overlay.is_up = false;
        let outputs = self.overlay.uplink.transport_down();
        self.handle_net_up(outputs, now, out);
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
                        // On disk before nodes hear it: after a crash they would be told again what was before.
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
                ChildOutput::Complete => self.overlay.is_whole = true,
                // What the work branch hears is enough.
                ChildOutput::Request(_) | ChildOutput::Connected(_) | ChildOutput::Unknown => {}
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

fn want_id(child: ChildId, key: RowKey) -> String {
    format!("{child}.{key}")
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
