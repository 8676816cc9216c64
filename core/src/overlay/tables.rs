//! A tier's tables: rows from the parent, of its own and from its children, and what each child is told of them. Root and
//! cluster have the same; only where rows come from differs.
//!
//! A child is told of the applications that it was given something of: their services and instances, the nodes that these
//! are on, and the plan. All are told of relays; a child that has one is told of every node, as it must know them. Rows that
//! a child itself wrote are not told back to it.

use super::row::{Row, RowKey};
use crate::ids::{ApplicationId, ChildId, ClusterId, NodeId, RawId};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Who wrote a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writer {
    /// The tier above.
    Parent,
    /// This tier.
    Own,
    /// A tier below.
    Child(ChildId),
}

/// A change to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// What this child is told of the row changed: send [`Tables::row_for`], or its absence.
    Tell(ChildId, RowKey),
    /// What the parent is told of the row changed: send [`Tables::row_up`], or its absence.
    TellParent(RowKey),
}

/// What a child is told of now.
#[derive(Debug, Clone, Default)]
struct Reader {
    wants: BTreeSet<ApplicationId>,
    told: BTreeSet<RowKey>,
}

/// The tables. See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    rows: BTreeMap<RowKey, (Writer, Row)>,
    /// Rows of each application: derived.
    of_application: BTreeMap<ApplicationId, BTreeSet<RowKey>>,
    /// Instances on each node: derived.
    on_node: BTreeMap<NodeId, BTreeSet<RowKey>>,
    readers: BTreeMap<ChildId, Reader>,
    changes: BTreeSet<Change>,
}

impl Tables {
    /// Sets or, with `None`, removes a row as `writer` has it. A row that another writer has is not touched by a removal; one
    /// that is set belongs to who set it last.
    pub fn set(&mut self, writer: Writer, key: RowKey, row: Option<Row>) {
        let before = self.rows.get(&key);
        match &row {
            Some(row) if before == Some(&(writer, row.clone())) => return,
            None if before.is_none_or(|(owner, _)| *owner != writer) => return,
            _ => {}
        }
        let nodes: Vec<NodeId> = [before.map(|(_, row)| row), row.as_ref()]
            .into_iter()
            .filter_map(|row| node_of(row?))
            .collect();
        self.unlink(key);
        if let Some(row) = row {
            self.link(key, &row);
            self.rows.insert(key, (writer, row));
        }
        self.touch(key);
        for node in nodes {
            for key in self.keys_of_node(node) {
                self.touch(key);
            }
        }
        if let (RowKey::Relay(_), Writer::Child(child)) = (key, writer) {
            let nodes: Vec<RowKey> = self
                .rows
                .keys()
                .copied()
                .filter(|key| matches!(key, RowKey::Node(_)))
                .collect();
            for key in nodes {
                self.refresh(child, key);
            }
        }
    }

    /// Keys of what is told together with a node's row, and of that.
    fn keys_of_node(&self, node: NodeId) -> Vec<RowKey> {
        let seen = RowKey::Seen(node, ClusterId(RawId::MIN))..=RowKey::Seen(node, ClusterId(RawId::MAX));
        let seen = self.rows.range(seen).map(|(key, _)| *key);
        [RowKey::Node(node)].into_iter().chain(seen).collect()
    }

    fn unlink(&mut self, key: RowKey) {
        let Some((_, row)) = self.rows.remove(&key) else { return };
        if let Some(application) = application_of(&row)
            && let Some(keys) = self.of_application.get_mut(&application)
        {
            keys.remove(&key);
        }
        if let Some(node) = node_of(&row)
            && let Some(keys) = self.on_node.get_mut(&node)
        {
            keys.remove(&key);
        }
    }

    fn link(&mut self, key: RowKey, row: &Row) {
        if let Some(application) = application_of(row) {
            self.of_application.entry(application).or_default().insert(key);
        }
        if let Some(node) = node_of(row) {
            self.on_node.entry(node).or_default().insert(key);
        }
    }

    /// A row, whoever wrote it.
    pub fn row(&self, key: RowKey) -> Option<&Row> {
        self.rows.get(&key).map(|(_, row)| row)
    }

    /// Who wrote a row.
    pub fn writer(&self, key: RowKey) -> Option<Writer> {
        self.rows.get(&key).map(|(writer, _)| *writer)
    }

    /// All rows, in order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = (RowKey, Writer, &Row)> {
        self.rows.iter().map(|(key, (writer, row))| (*key, *writer, row))
    }

    /// Rows of an application's services and instances.
    pub fn of_application(&self, application: ApplicationId) -> impl Iterator<Item = &Row> {
        let keys = self.of_application.get(&application).into_iter().flatten();
        keys.filter_map(|key| self.row(*key))
    }

    /// Keys of the rows that `writer` has.
    pub fn written_by(&self, writer: Writer) -> Vec<RowKey> {
        let own = |(key, (owner, _)): (&RowKey, &(Writer, Row))| (*owner == writer).then_some(*key);
        self.rows.iter().filter_map(own).collect()
    }

    /// A child is there, and is told what all are told; repeating it changes nothing.
    pub fn add_child(&mut self, child: ChildId) {
        if let Entry::Vacant(place) = self.readers.entry(child) {
            place.insert(Reader::default());
            let keys: Vec<RowKey> = self.rows.keys().copied().collect();
            for key in keys {
                self.refresh(child, key);
            }
        }
    }

    /// A child is gone for good, and what it wrote with it.
    pub fn remove_child(&mut self, child: ChildId) {
        for key in self.written_by(Writer::Child(child)) {
            self.set(Writer::Child(child), key, None);
        }
        self.readers.remove(&child);
        self.changes
            .retain(|change| !matches!(change, Change::Tell(to, _) if *to == child));
    }

    /// The applications that a child has something of.
    pub fn set_wants(&mut self, child: ChildId, applications: &BTreeSet<ApplicationId>) {
        let Some(reader) = self.readers.get(&child) else { return };
        let changed: Vec<ApplicationId> = reader.wants.symmetric_difference(applications).copied().collect();
        for application in changed {
            self.set_want(child, application, applications.contains(&application));
        }
    }

    /// A child has something of an application, or no longer.
    fn set_want(&mut self, child: ChildId, application: ApplicationId, is_wanted: bool) {
        let Some(reader) = self.readers.get_mut(&child) else {
            return;
        };
        let changed = if is_wanted {
            reader.wants.insert(application)
        } else {
            reader.wants.remove(&application)
        };
        if !changed {
            return;
        }
        let keys: Vec<RowKey> = self
            .of_application
            .get(&application)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        for key in keys {
            self.refresh(child, key);
            if let Some(node) = self.row(key).and_then(node_of) {
                for key in self.keys_of_node(node) {
                    self.refresh(child, key);
                }
            }
        }
    }

    /// What a child is told of a row; `None`: nothing, or no longer.
    pub fn row_for(&self, child: ChildId, key: RowKey) -> Option<&Row> {
        let (writer, row) = self.rows.get(&key)?;
        let reader = self.readers.get(&child)?;
        let is_wanted = |row: &Row| application_of(row).is_some_and(|application| reader.wants.contains(&application));
        let is_talked_to = |node: NodeId| {
            let mut instances = self.on_node.get(&node).into_iter().flatten();
            instances.any(|key| self.row(*key).is_some_and(is_wanted))
        };
        let is_told = match row {
            Row::Plan(_) | Row::Relay(_) => true,
            Row::Block(_) => false,
            Row::Service(_) | Row::Instance(_) => is_wanted(row),
            Row::Node(node) => is_talked_to(node.node) || self.is_relay(child),
            Row::Seen(seen) => is_talked_to(seen.node),
        };
        (is_told && *writer != Writer::Child(child)).then_some(row)
    }

    /// Whether a child passes on sealed datagrams.
    fn is_relay(&self, child: ChildId) -> bool {
        self.writer(RowKey::Relay(ClusterId(child.0))) == Some(Writer::Child(child))
    }

    /// What the parent is told of a row: nodes and relays, unless it wrote them. Of instances it hears by their statuses.
    pub fn row_up(&self, key: RowKey) -> Option<&Row> {
        let (writer, row) = self.rows.get(&key)?;
        (goes_up(row.key()) && *writer != Writer::Parent).then_some(row)
    }

    /// What is to be passed on since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<Change> {
        std::mem::take(&mut self.changes)
    }

    fn touch(&mut self, key: RowKey) {
        let children: Vec<ChildId> = self.readers.keys().copied().collect();
        for child in children {
            self.refresh(child, key);
        }
        if goes_up(key) {
            self.changes.insert(Change::TellParent(key));
        }
    }

    /// Tells a child of a row if it is told of it now, or was before.
    fn refresh(&mut self, child: ChildId, key: RowKey) {
        let is_told = self.row_for(child, key).is_some();
        let Some(reader) = self.readers.get_mut(&child) else {
            return;
        };
        let was_told = if is_told {
            !reader.told.insert(key)
        } else {
            reader.told.remove(&key)
        };
        if is_told || was_told {
            self.changes.insert(Change::Tell(child, key));
        }
    }
}

const fn goes_up(key: RowKey) -> bool {
    matches!(key, RowKey::Node(_) | RowKey::Relay(_) | RowKey::Seen(..))
}

const fn application_of(row: &Row) -> Option<ApplicationId> {
    match row {
        Row::Service(row) => Some(row.application),
        Row::Instance(row) => Some(row.application),
        Row::Plan(_) | Row::Block(_) | Row::Node(_) | Row::Relay(_) | Row::Seen(_) => None,
    }
}

const fn node_of(row: &Row) -> Option<NodeId> {
    match row {
        Row::Instance(row) => Some(row.node),
        _ => None,
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
