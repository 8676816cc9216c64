use super::*;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use roble_core::ids::{ApplicationId, ChildId, ClusterId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::row::{Allowed, WantRow, Wanted};
use roble_core::overlay::tables::Writer;
use roble_core::time::Timestamp;
use roble_link::parent::ParentClocks;
use roble_link::tables::{TableServer, TablesOutput};
use std::collections::BTreeSet;

const STEP_MS: u64 = 100;

const fn raw(kind: u8, number: u8) -> RawId {
    RawId::from_bytes([kind, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9])
}

const CHILD: ChildId = ChildId(raw(1, 0));

const fn application(number: u8) -> ApplicationId {
    ApplicationId(raw(2, number))
}

/// What one of the applications may want to know.
fn want(rng: &mut SmallRng) -> Row {
    Row::Want(WantRow {
        application: application(rng.random_range(0..2)),
        wanted: Wanted::Name(format!("web{}.app", rng.random_range(0..4))),
        service: None,
    })
}

fn row(rng: &mut SmallRng) -> Row {
    let number = rng.random_range(0..6_u8);
    let service = ServiceId(raw(3, number));
    let node = NodeId(raw(4, rng.random_range(0..3)));
    match rng.random_range(0..3) {
        0 => Row::Service(ServiceRow {
            service,
            organization: OrganizationId(raw(5, 0)),
            application: application(number % 2),
            path: format!("app/web{}", rng.random_range(0..3)),
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
            allows: (0..rng.random_range(0..2))
                .map(|_| Allowed {
                    application: application(rng.random_range(0..2)),
                    service: None,
                    ports: Vec::new(),
                })
                .collect(),
        }),
        1 => Row::Instance(InstanceRow {
            instance: InstanceId {
                service,
                number: rng.random_range(0..3),
            },
            application: application(number % 2),
            node,
            v4: [10, 18, 0, rng.random()].into(),
            v6: "fc00::1".parse().unwrap(),
            ready: rng.random(),
        }),
        _ => Row::Node(NodeRow {
            node,
            cluster: ClusterId(raw(6, 0)),
            address: Some([192, 0, 2, rng.random()].into()),
            block: Block::new([10, 18, 4, 0].into(), 26),
            tunnel: None,
        }),
    }
}

/// Both ends, and what is on its way between them: (arrives at, bytes).
struct Pair {
    server: TableServer,
    tier: NetTier,
    store: BTreeMap<String, Vec<u8>>,
    up: Vec<(u64, Vec<u8>)>,
    down: Vec<(u64, Vec<u8>)>,
    heard: BTreeMap<RowKey, Row>,
    /// Frames lost, in percent.
    loss: u32,
    at: u64,
    rng: SmallRng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let clocks = ParentClocks {
            beat_ms: 60_000,
            fence_ms: 30_000,
        };
        let mut server = TableServer::new(clocks, true).at_the_top();
        server.add_child(CHILD);
        Self {
            server,
            tier: tier(&BTreeMap::new(), &mut rng),
            store: BTreeMap::new(),
            up: Vec::new(),
            down: Vec::new(),
            heard: BTreeMap::new(),
            loss: 0,
            at: 1_000,
            rng,
        }
    }

    fn now(&self) -> Now {
        Now {
            boot: Boottime::from_millis(self.at),
            wall: Timestamp::from_millis(self.at),
        }
    }

    fn take(&mut self, out: Output<Act>) {
        for write in out.writes {
            match write.value {
                Some(value) => drop(self.store.insert(write.id, value)),
                None => drop(self.store.remove(&write.id)),
            }
        }
        for act in out.acts {
            if let Act::Send(bytes) = act
                && !self.rng.random_ratio(self.loss, 100)
            {
                let arrives = self.at + self.rng.random_range(0..300);
                self.up.push((arrives, bytes));
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let (now, mut rng) = (self.now(), SmallRng::seed_from_u64(self.at));
        let out = self.tier.on(event, now, &mut rng);
        self.take(out);
    }

    fn settle(&mut self) {
        for output in self.server.settle() {
            match output {
                TablesOutput::Send(_, frame) if !self.rng.random_ratio(self.loss, 100) => {
                    let arrives = self.at + self.rng.random_range(0..300);
                    self.down.push((arrives, frame.encode_to_vec()));
                }
                TablesOutput::Heard(_, key, row) => {
                    if let RowKey::Want(..) = key {
                        let want = row.clone().and_then(|row| match row {
                            Row::Want(want) => Some(want),
                            _ => None,
                        });
                        assert!(self.server.set_wanted(CHILD, key, want));
                    }
                    match row {
                        Some(row) => drop(self.heard.insert(key, row)),
                        None => drop(self.heard.remove(&key)),
                    }
                }
                TablesOutput::Violation(_, what) => panic!("{what}"),
                TablesOutput::Send(..) | TablesOutput::TellParent(_) | TablesOutput::HeardOut(_) => {}
            }
        }
    }

    /// Everything that arrives by now, in an order of its own.
    fn step(&mut self) {
        self.at += STEP_MS;
        let at = self.at;
        let due = |queue: &mut Vec<(u64, Vec<u8>)>| -> Vec<Vec<u8>> {
            let (due, later) = std::mem::take(queue)
                .into_iter()
                .partition(|(arrives, _)| *arrives <= at);
            *queue = later;
            due.into_iter().map(|(_, bytes)| bytes).collect()
        };
        for bytes in due(&mut self.up) {
            let frame = wire::Frame::decode(bytes.as_slice()).unwrap();
            let now = self.now();
            self.server.receive(CHILD, frame, now);
            self.settle();
        }
        for bytes in due(&mut self.down) {
            self.happen(Event::Message(bytes));
        }
        let (now, mut rng) = (self.now(), SmallRng::seed_from_u64(self.at));
        let out = self.tier.tick(now, &mut rng);
        self.take(out);
        self.settle();
    }

    fn break_link(&mut self) {
        self.up.clear();
        self.down.clear();
        self.server.transport_down(CHILD);
        self.happen(Event::LinkDown);
        self.happen(Event::LinkUp);
    }

    /// The process dies and starts again from its store.
    fn restart(&mut self) {
        self.up.clear();
        self.down.clear();
        self.server.transport_down(CHILD);
        let told = self.tier.told().clone();
        self.tier = tier(&self.store, &mut self.rng);
        assert_eq!(*self.tier.told(), told, "what was told is in the store");
        self.happen(Event::LinkUp);
    }

    fn change(&mut self) {
        let row = row(&mut self.rng);
        let is_there = self.rng.random_bool(0.7);
        self.server.set(Writer::Own, row.key(), is_there.then_some(row));
        if self.rng.random_bool(0.2) {
            let all = [application(0), application(1)];
            let wants: BTreeSet<ApplicationId> = all.into_iter().filter(|_| self.rng.random()).collect();
            self.server.set_wants(CHILD, &wants);
        }
        if self.rng.random_bool(0.1) {
            let blocks = (0..self.rng.random_range(0..3_u8)).map(|n| Block::new([10, 18, n, 0].into(), 26));
            self.server.set_blocks(CHILD, blocks.collect());
        }
        self.settle();
    }
}

fn tier(store: &BTreeMap<String, Vec<u8>>, rng: &mut SmallRng) -> NetTier {
    let records: Vec<Record> = store
        .iter()
        .map(|(id, value)| Record {
            organization: None,
            kind: ROW.to_owned(),
            id: id.clone(),
            value: value.clone(),
        })
        .collect();
    let clocks = ChildClocks {
        beat_ms: 60_000,
        silence_ms: 6_000,
    };
    let (tier, bad) = NetTier::new(clocks, "test", &records, rng);
    assert!(bad.is_empty(), "{bad:?}");
    tier
}

/// A cluster that has just started tells what it knows, and takes nothing away before it knows everything.
#[test]
fn who_does_not_know_everything_yet_takes_nothing_away() {
    let mut pair = Pair::new(1);
    let rows: Vec<Row> = (0..2).map(|number| service(4, number)).collect();
    pair.happen(Event::LinkUp);
    let set = |server: &mut TableServer, row: &Row| {
        let all = [application(0), application(1)].into();
        server.set(Writer::Own, row.key(), Some(row.clone()));
        server.set_wants(CHILD, &all);
    };
    rows.iter().for_each(|row| set(&mut pair.server, row));
    (0..100).for_each(|_| pair.step());
    assert_eq!(pair.tier.told().rows().count(), 2);
    let clocks = ParentClocks {
        beat_ms: 60_000,
        fence_ms: 30_000,
    };
    pair.server = TableServer::new(clocks, false);
    pair.server.add_child(CHILD);
    let new = service(4, 2);
    [&rows[1], &new].into_iter().for_each(|row| set(&mut pair.server, row));
    pair.break_link();
    (0..1_500).for_each(|_| pair.step());
    assert_eq!(
        pair.tier.told().rows().count(),
        3,
        "what is known here is told, the rest stays"
    );
    pair.server.set_complete();
    (0..1_500).for_each(|_| pair.step());
    let told: Vec<&Row> = pair.tier.told().rows().collect();
    assert_eq!(told, [&rows[1], &new]);
}

/// A service of one of two applications.
fn service(kind: u8, number: u8) -> Row {
    Row::Service(ServiceRow {
        service: ServiceId(raw(kind, number)),
        organization: OrganizationId(raw(5, 0)),
        application: application(number % 2),
        path: format!("app/web{number}"),
        v4: BTreeMap::new(),
        v6: BTreeMap::new(),
        allows: Vec::new(),
    })
}

/// Frames are lost and overtake each other, links break, the process dies: once that ends, it knows exactly what it is told.
#[test]
fn whatever_is_lost_on_the_way_the_tables_are_the_same_in_the_end() {
    for seed in 0..60 {
        let mut pair = Pair::new(seed);
        pair.happen(Event::LinkUp);
        pair.loss = 20;
        for _ in 0..400 {
            if pair.rng.random_bool(0.3) {
                pair.change();
            }
            match pair.rng.random_range(0..100) {
                0 => pair.break_link(),
                1 => pair.restart(),
                2 => {
                    let count = pair.rng.random_range(0..3);
                    let mut says: Vec<Row> = (0..count).map(|_| row(&mut pair.rng)).collect();
                    says.extend((0..count).map(|_| want(&mut pair.rng)));
                    pair.happen(Event::Says(says));
                }
                _ => {}
            }
            pair.step();
        }
        pair.loss = 0;
        pair.break_link();
        let wants: BTreeMap<RowKey, Row> = (0..4)
            .map(|_| want(&mut pair.rng))
            .map(|want| (want.key(), want))
            .collect();
        let mut says: Vec<Row> = vec![Row::Block(Block::new([10, 18, 9, 0].into(), 26))];
        says.extend(wants.into_values());
        pair.happen(Event::Says(says.clone()));
        // Some beats and what follows from them: what is overtaken counts as lost.
        for _ in 0..6_000 {
            pair.step();
        }
        let tables = pair.server.tables();
        let mut told: BTreeMap<RowKey, Row> = tables
            .rows()
            .filter_map(|(key, ..)| Some((key, tables.row_for(CHILD, key)?.clone())))
            .collect();
        told.extend(
            pair.server
                .blocks(CHILD)
                .iter()
                .map(|block| (Row::Block(*block).key(), Row::Block(*block))),
        );
        let answers = pair.server.wanted(CHILD).filter_map(|key| {
            let answer = pair.server.answer_to(CHILD, key)?;
            Some((key, Row::Want(answer.clone())))
        });
        told.extend(answers);
        assert_eq!(pair.tier.told().rows, told, "seed {seed}");
        let heard: Vec<Row> = pair.heard.values().cloned().collect();
        assert_eq!(heard, says, "seed {seed}");
        assert!(pair.tier.is_connected(), "seed {seed}");
    }
}
