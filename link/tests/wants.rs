//! What is asked for at first use: a node's want through the tables of its cluster and of the root, and back.

use roble_core::ids::{ApplicationId, ChildId, InstanceId, NodeId, OrganizationId, RawId, ServiceId};
use roble_core::overlay::row::{Allowed, InstanceRow, Policy, Row, RowKey, ServiceRow, WantRow, Wanted};
use roble_core::overlay::tables::Writer;
use roble_link::parent::ParentClocks;
use roble_link::tables::{MAX_WANTS, TableServer, TablesOutput};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const fn raw(kind: u8, number: u8) -> RawId {
    RawId::from_bytes([kind, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5])
}

const NODE: ChildId = ChildId(raw(1, 1));
const CLUSTER: ChildId = ChildId(raw(1, 2));
const SHOP: ApplicationId = ApplicationId(raw(2, 1));
const MAIL: ApplicationId = ApplicationId(raw(2, 2));
const SERVICE: ServiceId = ServiceId(raw(3, 2));

/// A service of an application of the same number, open to those.
fn service(number: u8, open_to: &[ApplicationId], v4: &[(Policy, u8)]) -> Row {
    Row::Service(ServiceRow {
        service: ServiceId(raw(3, number)),
        organization: OrganizationId(raw(4, 0)),
        application: ApplicationId(raw(2, number)),
        path: format!("app{number}/web"),
        v4: v4
            .iter()
            .map(|(policy, last)| (*policy, [10, 30, 0, *last].into()))
            .collect(),
        v6: BTreeMap::new(),
        allows: open_to
            .iter()
            .map(|application| Allowed {
                application: *application,
                service: None,
                ports: Vec::new(),
            })
            .collect(),
    })
}

fn instance(number: u8) -> Row {
    Row::Instance(InstanceRow {
        instance: InstanceId {
            service: ServiceId(raw(3, number)),
            number: 0,
        },
        application: ApplicationId(raw(2, number)),
        node: NodeId(raw(5, number)),
        v4: [10, 18, number, 2].into(),
        v6: "fc00::1".parse().unwrap(),
        ready: true,
    })
}

/// Root, one cluster, one node; what one settles reaches the other at once, if they are not cut off.
struct Tree {
    root: TableServer,
    cluster: TableServer,
    is_cut_off: bool,
}

impl Tree {
    /// The cluster and its node run something of the shop.
    fn new() -> Self {
        let clocks = ParentClocks {
            beat_ms: 60_000,
            fence_ms: 30_000,
        };
        let mut tree = Self {
            root: TableServer::new(clocks, true).at_the_top(),
            cluster: TableServer::new(clocks, true),
            is_cut_off: false,
        };
        tree.root.add_child(CLUSTER);
        tree.cluster.add_child(NODE);
        tree.run(&[SHOP], &[SHOP]);
        tree.set(&service(1, &[], &[(Policy::RoundRobin, 1)]));
        tree.set(&instance(2));
        tree
    }

    fn run(&mut self, cluster: &[ApplicationId], node: &[ApplicationId]) {
        self.root.set_wants(CLUSTER, &cluster.iter().copied().collect());
        self.cluster.set_wants(NODE, &node.iter().copied().collect());
        self.settle();
    }

    fn set(&mut self, row: &Row) {
        self.root.set(Writer::Own, row.key(), Some(row.clone()));
        self.settle();
    }

    fn want(&mut self, wanted: &Wanted, is_wanted: bool) -> RowKey {
        let want = want(wanted);
        let key = want.key();
        assert!(self.cluster.set_wanted(NODE, key, is_wanted.then_some(want)));
        self.settle();
        key
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            let mut asked = Vec::new();
            for output in self.cluster.settle() {
                match output {
                    TablesOutput::TellParent(key @ RowKey::Want(..)) => asked.push(key),
                    TablesOutput::Violation(_, what) => panic!("{what}"),
                    _ => {}
                }
            }
            self.root.settle();
            if self.is_cut_off {
                return;
            }
            for key in asked {
                let want = self.cluster.row_up(key).map(|row| match row {
                    Row::Want(want) => want,
                    other => panic!("{other:?}"),
                });
                assert!(self.root.set_wanted(CLUSTER, key, want));
            }
            self.root.settle();
            // What the root tells the cluster, whole.
            let tables = self.root.tables();
            let rows = tables
                .rows()
                .filter_map(|(key, ..)| Some((key, tables.row_for(CLUSTER, key)?.clone())));
            let answers = self.root.wanted(CLUSTER).filter_map(|key| {
                let answer = self.root.answer_to(CLUSTER, key)?;
                Some((key, Row::Want(answer.clone())))
            });
            let told: BTreeMap<RowKey, Row> = rows.chain(answers).collect();
            for key in self.cluster.tables().written_by(Writer::Parent) {
                if !told.contains_key(&key) {
                    self.cluster.set(Writer::Parent, key, None);
                }
            }
            for (key, row) in told {
                self.cluster.set(Writer::Parent, key, Some(row));
            }
        }
    }

    /// What the node is told: of the service, its instance, and its want.
    fn told(&self, key: RowKey) -> (bool, bool, Option<Option<ServiceId>>) {
        let tables = self.cluster.tables();
        let is_told = |row: &Row| tables.row_for(NODE, row.key()).is_some();
        (
            is_told(&service(2, &[], &[])),
            is_told(&instance(2)),
            self.cluster.answer_to(NODE, key).map(|answer| answer.service),
        )
    }
}

fn want(wanted: &Wanted) -> WantRow {
    WantRow {
        application: SHOP,
        wanted: wanted.clone(),
        service: None,
    }
}

#[test]
fn what_is_open_is_told_as_long_as_it_is_wanted_and_open() {
    let address: IpAddr = [10, 30, 0, 2].into();
    for wanted in [
        Wanted::Name("web.app2".to_owned()),
        Wanted::Name("0.web.app2".to_owned()),
        Wanted::Address(address),
    ] {
        let mut tree = Tree::new();
        let key = tree.want(&wanted, true);
        assert_eq!(tree.told(key), (false, false, Some(None)), "it is not there");
        tree.set(&service(2, &[], &[(Policy::RoundRobin, 2)]));
        assert_eq!(tree.told(key), (false, false, Some(None)), "it is closed");
        tree.set(&service(2, &[SHOP], &[(Policy::RoundRobin, 2)]));
        assert_eq!(tree.told(key), (true, true, Some(Some(SERVICE))), "{wanted:?}");
        tree.set(&service(2, &[MAIL], &[(Policy::RoundRobin, 2)]));
        assert_eq!(tree.told(key), (false, false, Some(None)));
        tree.set(&service(2, &[SHOP], &[(Policy::RoundRobin, 2)]));
        assert_eq!(tree.told(key), (true, true, Some(Some(SERVICE))));
        // Nobody here runs the shop any more: nobody may ask for it.
        tree.run(&[], &[]);
        assert_eq!(tree.told(key), (false, false, Some(None)));
        tree.run(&[SHOP], &[SHOP]);
        assert_eq!(tree.told(key), (true, true, Some(Some(SERVICE))));
        tree.want(&wanted, false);
        assert_eq!(tree.told(key), (false, false, None));
        let left = tree.cluster.tables().row(service(2, &[], &[]).key());
        assert!(left.is_none() && tree.root.wanted(CLUSTER).next().is_none());
    }
}

#[test]
fn a_cluster_that_is_cut_off_says_what_it_knows_and_no_more() {
    let mut tree = Tree::new();
    tree.set(&service(2, &[SHOP], &[(Policy::RoundRobin, 2)]));
    tree.is_cut_off = true;
    let name = Wanted::Name("web.app2".to_owned());
    let key = tree.want(&name, true);
    assert_eq!(
        tree.told(key),
        (false, false, None),
        "nobody has said that it is not there"
    );
    tree.is_cut_off = false;
    tree.want(&Wanted::Name("again".to_owned()), true);
    // The link repeats what was said while it was down: here by hand.
    assert!(tree.root.set_wanted(CLUSTER, key, Some(want(&name))));
    tree.settle();
    assert_eq!(tree.told(key), (true, true, Some(Some(SERVICE))));
    tree.is_cut_off = true;
    let address = Wanted::Address([10, 30, 0, 2].into());
    let other = tree.want(&address, true);
    assert_eq!(tree.told(other), (true, true, Some(Some(SERVICE))), "it is known here");

    // What runs at the site itself is not asked for above.
    let mut tree = Tree::new();
    tree.set(&service(2, &[SHOP], &[(Policy::RoundRobin, 2)]));
    tree.run(&[SHOP, MAIL], &[SHOP]);
    tree.cluster.add_child(ChildId(raw(1, 9)));
    tree.cluster.set_wants(ChildId(raw(1, 9)), &BTreeSet::from([MAIL]));
    let key = tree.want(&name, true);
    assert_eq!(tree.told(key), (true, true, Some(Some(SERVICE))));
    assert!(tree.root.wanted(CLUSTER).next().is_none());
}

#[test]
fn an_address_that_is_given_at_first_use_is_waited_for() {
    let mut tree = Tree::new();
    let name = Wanted::Name("closest.web.app1".to_owned());
    let own = ServiceId(raw(3, 1));
    tree.is_cut_off = true;
    let key = tree.want(&name, true);
    assert_eq!(
        tree.cluster.answer_to(NODE, key),
        None,
        "the service is known, its address is the root's to give"
    );
    tree.is_cut_off = false;
    assert!(
        tree.root
            .set_wanted(CLUSTER, key, tree.cluster.row_up(key).map(|_| want(&name)))
    );
    tree.settle();
    assert_eq!(tree.root.lacking(), &BTreeSet::from([(own, Policy::Closest)]));
    tree.set(&service(1, &[], &[(Policy::RoundRobin, 1), (Policy::Closest, 7)]));
    assert!(tree.root.lacking().is_empty());
    assert_eq!(tree.cluster.answer_to(NODE, key).unwrap().service, Some(own));
}

#[test]
fn a_child_wants_no_more_than_it_may() {
    let mut tree = Tree::new();
    for number in 0..MAX_WANTS + 5 {
        let want = want(&Wanted::Name(format!("web{number}.app2")));
        let is_heard = tree.cluster.set_wanted(NODE, want.key(), Some(want));
        assert_eq!(is_heard, number < MAX_WANTS);
    }
    tree.settle();
    assert_eq!(tree.cluster.wanted(NODE).count(), MAX_WANTS);
}
