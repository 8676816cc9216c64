//! A tier's tables: rows from the parent, of its own and from its children, and what each child is told of them. Root and
//! cluster have the same; only where rows come from differs.
//!
//! A child is told of
//! - the applications that it was given something of: their services and instances;
//! - the instances of other applications that the rules of these services allow to call them: without these, nobody could
//!   tell there who is let in;
//! - the services of other applications that it asked for, if they are open to the application that it asked for;
//! - the nodes that all these instances are on, relays, and the plan. A child that has a relay is told of every node, as it must
//!   know them.
//!
//! Rows that a child itself wrote are not told back to it.

use super::plan::Plan;
use super::row::{NodeRow, Policy, Row, RowKey, SeenRow, ServiceRow, Wanted};
use crate::ids::{ApplicationId, ChildId, ClusterId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use crate::planted::{Bug, is_planted};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

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
    /// Services of other applications, and for which of its own it asked.
    asked: BTreeMap<ServiceId, BTreeSet<ApplicationId>>,
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
    /// Services of others that somebody of an application may call: derived.
    open_to: BTreeMap<ApplicationId, BTreeSet<ServiceId>>,
    /// Services by owner and name below the domain: derived.
    named: BTreeMap<(OrganizationId, String), BTreeSet<ServiceId>>,
    /// Services by addresses that do not follow from their ids: derived.
    addressed: BTreeMap<IpAddr, BTreeSet<(ServiceId, Policy)>>,
    readers: BTreeMap<ChildId, Reader>,
    changes: BTreeSet<Change>,
    /// How often a service, an answer of the parent or what a child runs has changed: wants may have another answer now.
    version: u64,
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
        let both = [before.map(|(_, row)| row), row.as_ref()];
        let nodes: Vec<NodeId> = both.into_iter().filter_map(|row| node_of(row?)).collect();
        let callers = both.map(|row| row.map(callers_of).unwrap_or_default());
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
        if let RowKey::Want(..) = key {
            self.version += 1;
        }
        if let RowKey::Service(service) = key {
            self.version += 1;
            // Whom its rules name is told of to others than before, and so is it itself to those who asked for it.
            if callers.iter().any(|callers| !callers.is_empty()) {
                let about = self.about_service(service).into_iter();
                let callers = callers.into_iter().flatten().flat_map(|caller| self.members_of(caller));
                let keys: BTreeSet<RowKey> = about.chain(callers).collect();
                let children: Vec<ChildId> = self.readers.keys().copied().collect();
                children.into_iter().for_each(|child| self.refresh_all(child, &keys));
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
        if let Row::Service(row) = row {
            for caller in callers(&row) {
                remove_from(&mut self.open_to, &caller, &row.service);
            }
            remove_from(&mut self.named, &name_key(&row), &row.service);
            for (address, policy) in addresses(&row) {
                remove_from(&mut self.addressed, &address, &(row.service, policy));
            }
        }
    }

    fn link(&mut self, key: RowKey, row: &Row) {
        if let Some(application) = application_of(row) {
            self.of_application.entry(application).or_default().insert(key);
        }
        if let Some(node) = node_of(row) {
            self.on_node.entry(node).or_default().insert(key);
        }
        if let Row::Service(row) = row {
            for caller in callers(row) {
                self.open_to.entry(caller).or_default().insert(row.service);
            }
            self.named.entry(name_key(row)).or_default().insert(row.service);
            for (address, policy) in addresses(row) {
                self.addressed.entry(address).or_default().insert((row.service, policy));
            }
        }
    }

    /// A row, whoever wrote it.
    pub fn row(&self, key: RowKey) -> Option<&Row> {
        self.rows.get(&key).map(|(_, row)| row)
    }

    /// A service's row.
    pub fn service(&self, service: ServiceId) -> Option<&ServiceRow> {
        match self.row(RowKey::Service(service)) {
            Some(Row::Service(row)) => Some(row),
            _ => None,
        }
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

    /// The tree's ranges; the defaults until they are known.
    pub fn plan(&self) -> Plan {
        match self.row(RowKey::Plan) {
            Some(Row::Plan(plan)) => *plan,
            _ => Plan::default(),
        }
    }

    /// Changes with every change of a service, of an answer of the parent, or of what a child runs.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// What an application finds at a name or address, as far as it is known here: its own services, and those of others that
    /// are open to it. By name, those of its own organisation. Of several the youngest.
    pub fn resolve(&self, application: ApplicationId, wanted: &Wanted) -> Option<(ServiceId, Policy)> {
        let is_open = |service: &ServiceId| self.service(*service).is_some_and(|row| row.is_open_to(application));
        match wanted {
            Wanted::Address(address) => {
                let derived = match address {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(v6) => self.plan().service_of_v6(*v6),
                };
                let given = self.addressed.get(address).into_iter().flatten().rev().copied();
                given.chain(derived).find(|(service, _)| is_open(service))
            }
            Wanted::Name(name) => {
                let organization = self.organization_of(application)?;
                let find = |name: &str| {
                    let named = self.named.get(&(organization, name.to_owned()))?;
                    named.iter().rev().copied().find(is_open)
                };
                if let Some(service) = find(name) {
                    return Some((service, Policy::RoundRobin));
                }
                let (label, rest) = name.split_once('.')?;
                Some((find(rest)?, Policy::of_label(label)?))
            }
        }
    }

    fn organization_of(&self, application: ApplicationId) -> Option<OrganizationId> {
        self.of_application(application).find_map(|row| match row {
            Row::Service(row) => Some(row.organization),
            _ => None,
        })
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
        self.version += 1;
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
        self.version += 1;
        let asked: Vec<ServiceId> = reader.asked.keys().copied().collect();
        let own = self.of_application.get(&application).into_iter().flatten().copied();
        let callers: BTreeSet<ApplicationId> = self.of_application(application).flat_map(callers_of).collect();
        let callers = callers.into_iter().flat_map(|caller| self.members_of(caller));
        let asked = asked.into_iter().flat_map(|service| self.about_service(service));
        let keys: BTreeSet<RowKey> = own.chain(callers).chain(asked).collect();
        self.refresh_all(child, &keys);
    }

    /// Whether a child has something of an application.
    pub fn is_run_by(&self, child: ChildId, application: ApplicationId) -> bool {
        let reader = self.readers.get(&child);
        reader.is_some_and(|reader| reader.wants.contains(&application))
    }

    /// Whether any child has something of an application.
    pub fn is_run(&self, application: ApplicationId) -> bool {
        self.readers.values().any(|reader| reader.wants.contains(&application))
    }

    /// The services of other applications that a child asks for, each with those of its own for which it does.
    pub fn set_asked(&mut self, child: ChildId, asked: BTreeMap<ServiceId, BTreeSet<ApplicationId>>) {
        let Some(reader) = self.readers.get_mut(&child) else {
            return;
        };
        let before = std::mem::replace(&mut reader.asked, asked.clone());
        let services: BTreeSet<ServiceId> = before.keys().chain(asked.keys()).copied().collect();
        let changed = services
            .into_iter()
            .filter(|service| before.get(service) != asked.get(service));
        let keys: BTreeSet<RowKey> = changed.flat_map(|service| self.about_service(service)).collect();
        self.refresh_all(child, &keys);
    }

    /// A service and its instances.
    fn about_service(&self, service: ServiceId) -> Vec<RowKey> {
        let first = RowKey::Instance(InstanceId { service, number: 0 });
        let last = RowKey::Instance(InstanceId {
            service,
            number: u32::MAX,
        });
        let instances = self.rows.range(first..=last).map(|(key, _)| *key);
        [RowKey::Service(service)].into_iter().chain(instances).collect()
    }

    /// Instances of an application.
    fn members_of(&self, application: ApplicationId) -> Vec<RowKey> {
        let keys = self.of_application.get(&application).into_iter().flatten();
        keys.filter(|key| matches!(key, RowKey::Instance(_))).copied().collect()
    }

    /// Whether a row is about what a reader is told of, whoever wrote it.
    fn is_about(&self, reader: &Reader, row: &Row) -> bool {
        let is_asked_for = |service: &ServiceRow| {
            let askers = reader.asked.get(&service.service).into_iter().flatten();
            askers
                .filter(|asker| reader.wants.contains(asker))
                .any(|asker| service.is_open_to(*asker))
        };
        match row {
            Row::Plan(_) | Row::Relay(_) => true,
            Row::Block(_) | Row::Want(_) => false,
            Row::Service(row) => reader.wants.contains(&row.application) || is_asked_for(row),
            Row::Instance(row) => {
                let (application, service) = (row.application, row.instance.service);
                let called = self.open_to.get(&application).into_iter().flatten();
                let is_caller = |called: &ServiceRow| {
                    let is_let_in = || {
                        called
                            .allows
                            .iter()
                            .any(|allowed| allowed.is_about(application, service))
                    };
                    reader.wants.contains(&called.application) && is_let_in()
                };
                reader.wants.contains(&application)
                    || self.service(service).is_some_and(is_asked_for)
                    || called.filter_map(|called| self.service(*called)).any(is_caller)
            }
            Row::Node(NodeRow { node, .. }) | Row::Seen(SeenRow { node, .. }) => {
                let mut instances = self.on_node.get(node).into_iter().flatten();
                instances.any(|key| self.row(*key).is_some_and(|row| self.is_about(reader, row)))
            }
        }
    }

    /// What a child is told of a row; `None`: nothing, or no longer.
    pub fn row_for(&self, child: ChildId, key: RowKey) -> Option<&Row> {
        let (writer, row) = self.rows.get(&key)?;
        let reader = self.readers.get(&child)?;
        let is_told = self.is_about(reader, row)
            || (matches!(row, Row::Node(_)) && self.is_relay(child))
            || (matches!(row, Row::Service(_)) && is_planted(Bug::TellStrangers));
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

    /// Refreshes rows, and what is told of the nodes that instances among them are on.
    fn refresh_all(&mut self, child: ChildId, keys: &BTreeSet<RowKey>) {
        let nodes = keys.iter().filter_map(|key| self.row(*key).and_then(node_of));
        let nodes: BTreeSet<NodeId> = nodes.collect();
        let nodes: BTreeSet<RowKey> = nodes.into_iter().flat_map(|node| self.keys_of_node(node)).collect();
        for key in keys.union(&nodes) {
            self.refresh(child, *key);
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
        if is_told || was_told && !is_planted(Bug::ForgetWithdrawal) {
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
        Row::Plan(_) | Row::Block(_) | Row::Node(_) | Row::Relay(_) | Row::Seen(_) | Row::Want(_) => None,
    }
}

const fn node_of(row: &Row) -> Option<NodeId> {
    match row {
        Row::Instance(row) => Some(row.node),
        _ => None,
    }
}

/// Applications that the rules of a row name.
fn callers_of(row: &Row) -> BTreeSet<ApplicationId> {
    match row {
        Row::Service(row) => callers(row),
        _ => BTreeSet::new(),
    }
}

fn callers(row: &ServiceRow) -> BTreeSet<ApplicationId> {
    row.allows.iter().map(|allowed| allowed.application).collect()
}

fn name_key(row: &ServiceRow) -> (OrganizationId, String) {
    (row.organization, row.name().to_ascii_lowercase())
}

/// Addresses of a service that do not follow from its id.
fn addresses(row: &ServiceRow) -> impl Iterator<Item = (IpAddr, Policy)> + '_ {
    let v4 = row.v4.iter().map(|(policy, address)| (IpAddr::from(*address), *policy));
    v4.chain(row.v6.iter().map(|(policy, address)| (IpAddr::from(*address), *policy)))
}

fn remove_from<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
