//! A tier's tables and one session of the net branch per child, joined. Root and cluster are built on it.

use crate::parent::{ParentClocks, ParentEnd, ParentOutput};
use crate::{Source, unknown_member};
use roble_core::ids::{ApplicationId, ChildId};
use roble_core::overlay::block::Block;
use roble_core::overlay::row::{Row, RowKey};
use roble_core::overlay::tables::{Change, Tables, Writer};
use roble_core::time::Now;
use roble_proto::rows::{decode_row, encode_row};
use roble_proto::wire;
use std::collections::{BTreeMap, BTreeSet};

/// What the tier around must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum TablesOutput {
    /// Send this frame of the net branch to the child; it may be lost.
    Send(ChildId, wire::Frame),
    /// A child says this of itself, or with `None` no longer: whether it may is the tier's to judge.
    Heard(ChildId, RowKey, Option<Row>),
    /// What the parent is told of this row changed.
    TellParent(RowKey),
    /// A child broke the protocol.
    Violation(ChildId, String),
}

/// The tables and their readers. See the module's text.
#[derive(Debug, Clone)]
pub struct TableServer {
    clocks: ParentClocks,
    complete: bool,
    tables: Tables,
    ends: BTreeMap<ChildId, ParentEnd>,
    blocks: BTreeMap<ChildId, Vec<Block>>,
    out: Vec<TablesOutput>,
}

struct Told<'a>(&'a Tables, &'a BTreeMap<ChildId, Vec<Block>>, ChildId);

impl Told<'_> {
    fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        if let RowKey::Block(first) = key {
            let block = self.1.get(&self.2)?.iter().find(|block| block.network() == first)?;
            return Some(encode_row(&Row::Block(*block)));
        }
        self.0.row_for(self.2, key).map(encode_row)
    }
}

impl Source for Told<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.row(key.parse().ok()?)
    }
}

impl TableServer {
    /// Empty tables. `complete`: what is known here is whole, so that children may drop what is not in it.
    pub fn new(clocks: ParentClocks, complete: bool) -> Self {
        Self {
            clocks,
            complete,
            tables: Tables::default(),
            ends: BTreeMap::new(),
            blocks: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    /// The rows, to be looked at.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// See [`Tables::set`].
    pub fn set(&mut self, writer: Writer, key: RowKey, row: Option<Row>) {
        self.tables.set(writer, key, row);
    }

    /// A child is there, and may open sessions.
    pub fn add_child(&mut self, child: ChildId) {
        self.tables.add_child(child);
        self.ends
            .entry(child)
            .or_insert_with(|| ParentEnd::new(self.clocks, self.complete));
    }

    /// A child is gone for good, and what it wrote with it.
    pub fn remove_child(&mut self, child: ChildId) {
        self.tables.remove_child(child);
        self.ends.remove(&child);
        self.blocks.remove(&child);
    }

    /// See [`Tables::set_wants`].
    pub fn set_wants(&mut self, child: ChildId, applications: &BTreeSet<ApplicationId>) {
        self.tables.set_wants(child, applications);
    }

    /// The blocks of endpoint addresses that a child may give away.
    pub fn set_blocks(&mut self, child: ChildId, blocks: Vec<Block>) {
        let before = self.blocks.insert(child, blocks.clone()).unwrap_or_default();
        let Some(end) = self.ends.get_mut(&child) else { return };
        for block in before.iter().filter(|block| !blocks.contains(block)) {
            end.set_order(&RowKey::Block(block.network()).to_string(), None);
        }
        for block in blocks {
            let row = Row::Block(block);
            end.set_order(&row.key().to_string(), Some(&encode_row(&row)));
        }
    }

    /// The blocks that a child may give away.
    pub fn blocks(&self, child: ChildId) -> &[Block] {
        self.blocks.get(&child).map_or(&[], Vec::as_slice)
    }

    /// What is known here is whole from now on.
    pub fn set_complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.ends.values_mut().for_each(ParentEnd::set_complete);
        }
    }

    /// The transport lost the child.
    pub fn transport_down(&mut self, child: ChildId) {
        if let Some(end) = self.ends.get_mut(&child) {
            end.transport_down();
        }
    }

    /// A frame of the net branch. `child` comes from its certificate.
    pub fn receive(&mut self, child: ChildId, frame: wire::Frame, now: Now) {
        let Some(end) = self.ends.get_mut(&child) else {
            if matches!(frame.body, Some(wire::frame::Body::Hello(_))) {
                self.send(child, unknown_member(frame.session));
            }
            return;
        };
        for output in end.receive(frame, &Told(&self.tables, &self.blocks, child), now) {
            self.handle(child, output);
        }
    }

    fn send(&mut self, child: ChildId, mut frame: wire::Frame) {
        frame.branch = wire::Branch::Net.into();
        self.out.push(TablesOutput::Send(child, frame));
    }

    fn handle(&mut self, child: ChildId, output: ParentOutput) {
        match output {
            ParentOutput::Send(frame) => self.send(child, frame),
            ParentOutput::Status { key, value } => self.out.push(match decode_row(&key, &value) {
                Ok(row) => TablesOutput::Heard(child, row.key(), Some(row)),
                Err(error) => TablesOutput::Violation(child, format!("row {key}: {error}")),
            }),
            ParentOutput::StatusRemoved(key) => {
                if let Ok(key) = key.parse() {
                    self.out.push(TablesOutput::Heard(child, key, None));
                }
            }
            ParentOutput::Violation(what) => self.out.push(TablesOutput::Violation(child, what.to_owned())),
            // Signs of life, profiles and requests are of the other branch.
            _ => {}
        }
    }

    /// Hands out everything that is to be done. Call after every event.
    pub fn settle(&mut self) -> Vec<TablesOutput> {
        for change in self.tables.take_changes() {
            match change {
                Change::Tell(child, key) => {
                    let value = self.tables.row_for(child, key).map(encode_row);
                    if let Some(end) = self.ends.get_mut(&child) {
                        end.set_order(&key.to_string(), value.as_deref());
                    }
                }
                Change::TellParent(key) => self.out.push(TablesOutput::TellParent(key)),
            }
        }
        let children: BTreeSet<ChildId> = self.ends.keys().copied().collect();
        for child in children {
            let Some(end) = self.ends.get_mut(&child) else { continue };
            for output in end.flush(&Told(&self.tables, &self.blocks, child)) {
                self.handle(child, output);
            }
        }
        std::mem::take(&mut self.out)
    }
}
