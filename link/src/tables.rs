//! A tier's tables and one session of the net branch per child, joined. Root and cluster are built on it.
//!
//! Children also say what their applications want to know of the services of others ([`WantRow`]). Each want is answered as
//! long as it stands, under its own key: with the service that it is, whose rows are then told too, or that there is none. A tier
//! that cannot know passes the want on to its parent; while nothing is heard from there, there is no answer.

use crate::parent::{ParentClocks, ParentEnd, ParentOutput};
use crate::{Source, unknown_member};
use roble_core::ids::{ApplicationId, ChildId, ServiceId};
use roble_core::overlay::block::Block;
use roble_core::overlay::row::{Policy, Row, RowKey, WantRow};
use roble_core::overlay::tables::{Change, Tables, Writer};
use roble_core::time::Now;
use roble_proto::rows::{decode_row, encode_row};
use roble_proto::wire;
use std::collections::{BTreeMap, BTreeSet};

/// Wants of one child that are heard at a time.
pub const MAX_WANTS: usize = 1_024;

/// What the tier around must do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum TablesOutput {
    /// Send this frame of the net branch to the child; it may be lost.
    Send(ChildId, wire::Frame),
    /// A child says this of itself, or with `None` no longer: whether it may is the tier's to judge.
    Heard(ChildId, RowKey, Option<Row>),
    /// A child has said everything that it says of itself.
    HeardOut(ChildId),
    /// What the parent is told of this row changed.
    TellParent(RowKey),
    /// A child broke the protocol.
    Violation(ChildId, String),
}

/// What is known of a want.
struct Answer {
    service: Option<(ServiceId, Policy)>,
    /// Nobody above has to be heard first.
    is_final: bool,
}

/// The tables and their readers. See the module's text.
#[derive(Debug, Clone)]
pub struct TableServer {
    clocks: ParentClocks,
    complete: bool,
    tables: Tables,
    ends: BTreeMap<ChildId, ParentEnd>,
    blocks: BTreeMap<ChildId, Vec<Block>>,
    wants: Wants,
    /// Children that have said everything they say of themselves since this process began.
    heard: BTreeSet<ChildId>,
    out: Vec<TablesOutput>,
}

/// What children want to know, and the answers.
#[derive(Debug, Clone, Default)]
struct Wants {
    /// Nobody above knows more.
    is_top: bool,
    heard: BTreeMap<ChildId, BTreeMap<RowKey, WantRow>>,
    /// Of these, what was restored and the child has not said again.
    restored: BTreeMap<ChildId, BTreeSet<RowKey>>,
    /// Derived, as of `version` of the tables.
    answers: BTreeMap<ChildId, BTreeMap<RowKey, WantRow>>,
    /// What the parent is asked. Derived.
    up: BTreeMap<RowKey, WantRow>,
    /// Policies of services that somebody used by name and that have no IPv4 address under it. Derived.
    lacking: BTreeSet<(ServiceId, Policy)>,
    version: u64,
    is_changed: bool,
}

struct Told<'a>(
    &'a Tables,
    &'a BTreeMap<ChildId, Vec<Block>>,
    &'a BTreeMap<ChildId, BTreeMap<RowKey, WantRow>>,
    ChildId,
);

impl Told<'_> {
    fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        if let RowKey::Block(first) = key {
            let block = self.1.get(&self.3)?.iter().find(|block| block.network() == first)?;
            return Some(encode_row(&Row::Block(*block)));
        }
        if let RowKey::Want(..) = key {
            let answer = self.2.get(&self.3)?.get(&key)?;
            return Some(encode_row(&Row::Want(answer.clone())));
        }
        self.0.row_for(self.3, key).map(encode_row)
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
            wants: Wants::default(),
            heard: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// The same at the top of the tree: what is not known here is not there.
    #[must_use]
    pub fn at_the_top(mut self) -> Self {
        self.wants.is_top = true;
        self
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
        self.heard.remove(&child);
        self.wants.heard.remove(&child);
        self.wants.restored.remove(&child);
        self.wants.answers.remove(&child);
        self.wants.is_changed = true;
    }

    /// A child wants to know something, or no longer. `false`: it wants more than it may, and is not heard.
    pub fn set_wanted(&mut self, child: ChildId, key: RowKey, want: Option<WantRow>) -> bool {
        let heard = self.wants.heard.entry(child).or_default();
        let changed = match want {
            Some(_) if heard.len() >= MAX_WANTS && !heard.contains_key(&key) => return false,
            Some(want) => heard.insert(key, want.clone()) != Some(want),
            None => heard.remove(&key).is_some(),
        };
        self.wants.is_changed |= changed;
        true
    }

    /// What a child wanted to know before this process began; it stands until the child has said everything, and not this.
    pub fn restore_wanted(&mut self, child: ChildId, want: WantRow) {
        let key = want.key();
        if self.set_wanted(child, key, Some(want)) {
            self.wants.restored.entry(child).or_default().insert(key);
        }
    }

    /// What a child wants to know.
    pub fn wanted(&self, child: ChildId) -> impl Iterator<Item = RowKey> + '_ {
        let heard = self.wants.heard.get(&child);
        heard.into_iter().flat_map(BTreeMap::keys).copied()
    }

    /// What a child is told of something that it wants to know; `None`: not yet.
    pub fn answer_to(&self, child: ChildId, key: RowKey) -> Option<&WantRow> {
        self.wants.answers.get(&child)?.get(&key)
    }

    /// What the parent is told of a row, or asked: see [`Tables::row_up`].
    pub fn row_up(&self, key: RowKey) -> Option<Row> {
        match key {
            RowKey::Want(..) => self.wants.up.get(&key).cloned().map(Row::Want),
            _ => self.tables.row_up(key).cloned(),
        }
    }

    /// Policies under which services are used by name, and have no IPv4 address yet: it is the root's to give.
    pub const fn lacking(&self) -> &BTreeSet<(ServiceId, Policy)> {
        &self.wants.lacking
    }

    /// Answers all wants anew if something changed that they depend on; [`settle`](Self::settle) does so too. Whoever gives
    /// addresses for what is [`lacking`](Self::lacking) does that between the two.
    pub fn answer_wants(&mut self) {
        let version = self.tables.version();
        if !std::mem::take(&mut self.wants.is_changed) && self.wants.version == version {
            return;
        }
        self.wants.version = version;
        self.wants.lacking.clear();
        let mut up = BTreeMap::new();
        for (child, heard) in &self.wants.heard {
            let mut asked: BTreeMap<ServiceId, BTreeSet<ApplicationId>> = BTreeMap::new();
            let mut answers = BTreeMap::new();
            // Who runs nothing of an application has nothing to ask for it, as far as that is known.
            for (key, want) in heard {
                let Answer { service, is_final } = match self.tables.is_run_by(*child, want.application) {
                    true => self.answer(*key, want),
                    false => Answer {
                        service: None,
                        is_final: self.complete,
                    },
                };
                // What is here only because it was asked for must go on being asked for, and so must an address.
                let is_known_here = service.is_some_and(|found| {
                    let row = self.tables.service(found.0);
                    !self.lacks(found) && row.is_some_and(|row| self.tables.is_run(row.application))
                });
                if let Some(found) = service {
                    asked.entry(found.0).or_default().insert(want.application);
                    if self.lacks(found) {
                        self.wants.lacking.insert(found);
                    }
                }
                let service = service.map(|(service, _)| service);
                if is_final {
                    let answer = WantRow {
                        service,
                        ..want.clone()
                    };
                    answers.insert(*key, answer);
                }
                let is_for_others = !self.wants.is_top && !is_known_here;
                if is_for_others && self.tables.is_run_by(*child, want.application) {
                    up.insert(
                        *key,
                        WantRow {
                            service: None,
                            ..want.clone()
                        },
                    );
                }
            }
            self.tables.set_asked(*child, asked);
            let before = self.wants.answers.insert(*child, answers.clone()).unwrap_or_default();
            let Some(end) = self.ends.get_mut(child) else { continue };
            for key in before.keys().filter(|key| !answers.contains_key(*key)) {
                end.set_order(&key.to_string(), None);
            }
            for (key, answer) in answers {
                end.set_order(&key.to_string(), Some(&encode_row(&Row::Want(answer))));
            }
        }
        let before = std::mem::replace(&mut self.wants.up, up);
        let keys: BTreeSet<RowKey> = before.keys().chain(self.wants.up.keys()).copied().collect();
        let changed = keys.into_iter().filter(|key| before.get(key) != self.wants.up.get(key));
        self.out.extend(changed.map(TablesOutput::TellParent));
    }

    /// Whether an IPv4 address is given at first use, and was not yet.
    fn lacks(&self, (service, policy): (ServiceId, Policy)) -> bool {
        let is_first_use = matches!(policy, Policy::Closest | Policy::LeastUsed);
        let row = self.tables.service(service);
        is_first_use && row.is_some_and(|row| !row.v4.contains_key(&policy))
    }

    /// What is known here of a want.
    fn answer(&self, key: RowKey, want: &WantRow) -> Answer {
        let service = self.tables.resolve(want.application, &want.wanted);
        let above = match self.tables.row(key) {
            Some(Row::Want(above)) => Some(above),
            _ => None,
        };
        let is_final = match service {
            // An address that only the root gives may be on its way; it has none left if it says so.
            Some(found) => self.wants.is_top || !self.lacks(found) || above.is_some(),
            None => self.wants.is_top || above.is_some_and(|above| above.service.is_none()),
        };
        Answer { service, is_final }
    }

    /// Whether a child has said everything that it says of itself.
    pub fn has_heard(&self, child: ChildId) -> bool {
        self.heard.contains(&child)
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
            self.wants.is_changed = true;
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
        let told = Told(&self.tables, &self.blocks, &self.wants.answers, child);
        for output in end.receive(frame, &told, now) {
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
                Ok(row) => {
                    if let Some(restored) = self.wants.restored.get_mut(&child) {
                        restored.remove(&row.key());
                    }
                    TablesOutput::Heard(child, row.key(), Some(row))
                }
                Err(error) => TablesOutput::Violation(child, format!("row {key}: {error}")),
            }),
            ParentOutput::StatusRemoved(key) => {
                if let Ok(key) = key.parse() {
                    self.out.push(TablesOutput::Heard(child, key, None));
                }
            }
            ParentOutput::HeardOut => {
                self.heard.insert(child);
                let unsaid = self.wants.restored.remove(&child).into_iter().flatten();
                self.out.extend(unsaid.map(|key| TablesOutput::Heard(child, key, None)));
                self.out.push(TablesOutput::HeardOut(child));
            }
            ParentOutput::Violation(what) => self.out.push(TablesOutput::Violation(child, what.to_owned())),
            // Signs of life, profiles and requests are of the other branch.
            _ => {}
        }
    }

    /// Hands out everything that is to be done. Call after every event.
    pub fn settle(&mut self) -> Vec<TablesOutput> {
        self.answer_wants();
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
            for output in end.flush(&Told(&self.tables, &self.blocks, &self.wants.answers, child)) {
                self.handle(child, output);
            }
        }
        std::mem::take(&mut self.out)
    }
}
