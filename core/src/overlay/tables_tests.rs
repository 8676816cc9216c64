use super::super::block::Block;
use super::super::plan::Plan;
use super::super::row::{Allowed, InstanceRow, NodeRow, RelayRow, SeenRow, ServiceRow};
use super::super::tunnel::PublicKey;
use super::*;
use crate::ids::{ClusterId, InstanceId, OrganizationId, RawId, ServiceId};
use proptest::prelude::*;

const fn raw(kind: u8, number: u8) -> RawId {
    RawId::from_bytes([kind, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn service(number: u8) -> Row {
    Row::Service(ServiceRow {
        service: ServiceId(raw(1, number)),
        organization: OrganizationId(raw(2, 0)),
        application: ApplicationId(raw(3, number % 3)),
        path: format!("app{}/web{number}", number % 3),
        v4: BTreeMap::from([(Policy::RoundRobin, [10, 30, 0, number].into())]),
        v6: BTreeMap::new(),
        allows: Vec::new(),
    })
}

/// The same service, open to application `caller`, or to one service of it only.
fn open_service(number: u8, caller: u8, only: Option<u8>) -> Row {
    let Row::Service(row) = service(number) else {
        unreachable!()
    };
    let allowed = Allowed {
        application: ApplicationId(raw(3, caller)),
        service: only.map(|only| ServiceId(raw(1, only))),
        ports: Vec::new(),
    };
    Row::Service(ServiceRow {
        allows: vec![allowed],
        ..row
    })
}

fn instance(number: u8, copy: u32, node: u8, ready: bool) -> Row {
    Row::Instance(InstanceRow {
        instance: InstanceId {
            service: ServiceId(raw(1, number)),
            number: copy,
        },
        application: ApplicationId(raw(3, number % 3)),
        node: NodeId(raw(4, node)),
        v4: [10, 18, node, 2].into(),
        v6: Plan::default().endpoint_v6([10, 18, node, 2].into()),
        ready,
    })
}

fn node(number: u8) -> Row {
    Row::Node(NodeRow {
        node: NodeId(raw(4, number)),
        cluster: ClusterId(raw(5, 0)),
        address: Some([192, 0, 2, number].into()),
        block: Block::new([10, 18, number, 0].into(), 26),
        tunnel: None,
    })
}

fn relay(of: u8) -> Row {
    Row::Relay(RelayRow {
        cluster: ClusterId(raw(6, of)),
        address: ([192, 0, 2, of], 50_104).into(),
        key: PublicKey([of; 32]),
    })
}

fn seen(number: u8, by: u8) -> Row {
    Row::Seen(SeenRow {
        node: NodeId(raw(4, number)),
        relay: ClusterId(raw(6, by)),
        address: ([203, 0, 113, number], 4096).into(),
    })
}

fn child(number: u8) -> ChildId {
    ChildId(raw(6, number))
}

fn told(tables: &Tables, to: ChildId) -> BTreeSet<RowKey> {
    tables
        .rows()
        .filter(|(key, ..)| tables.row_for(to, *key).is_some())
        .map(|(key, ..)| key)
        .collect()
}

#[test]
fn a_child_is_told_of_what_it_runs_and_of_the_nodes_that_it_is_on() {
    let mut tables = Tables::default();
    tables.set(Writer::Own, RowKey::Plan, Some(Row::Plan(Plan::default())));
    tables.add_child(child(0));
    for row in [
        service(0),
        service(1),
        instance(0, 0, 0, true),
        instance(1, 0, 1, true),
        node(0),
        node(1),
    ] {
        tables.set(Writer::Own, row.key(), Some(row));
    }
    tables.take_changes();
    assert_eq!(told(&tables, child(0)), BTreeSet::from([RowKey::Plan]));
    tables.set_want(child(0), ApplicationId(raw(3, 1)), true);
    let expected = BTreeSet::from([
        RowKey::Plan,
        service(1).key(),
        instance(1, 0, 1, true).key(),
        node(1).key(),
    ]);
    assert_eq!(told(&tables, child(0)), expected);
    let changes = tables.take_changes();
    assert!(changes.contains(&Change::Tell(child(0), node(1).key())));
    tables.set_want(child(0), ApplicationId(raw(3, 1)), false);
    assert_eq!(told(&tables, child(0)), BTreeSet::from([RowKey::Plan]));
}

#[test]
fn nodes_go_up_unless_they_came_from_above_and_nothing_goes_back_to_its_writer() {
    let mut tables = Tables::default();
    tables.add_child(child(0));
    tables.add_child(child(1));
    tables.set_want(child(0), ApplicationId(raw(3, 0)), true);
    tables.set_want(child(1), ApplicationId(raw(3, 0)), true);
    let own = node(0);
    tables.set(Writer::Own, own.key(), Some(own.clone()));
    assert!(tables.row_up(own.key()).is_some());
    tables.set(Writer::Parent, own.key(), Some(own.clone()));
    assert!(tables.row_up(own.key()).is_none());
    let row = instance(0, 0, 0, true);
    tables.set(Writer::Child(child(0)), row.key(), Some(row.clone()));
    assert!(tables.row_for(child(0), row.key()).is_none() && tables.row_for(child(1), row.key()).is_some());
    tables.set(Writer::Parent, row.key(), None);
    assert!(tables.row(row.key()).is_some(), "it is not the parent's to remove");
    tables.remove_child(child(0));
    assert!(tables.row(row.key()).is_none());
}

#[test]
fn a_relay_is_told_to_all_and_is_told_of_all_nodes() {
    let mut tables = Tables::default();
    tables.add_child(child(0));
    tables.add_child(child(1));
    for row in [node(0), node(1), instance(0, 0, 0, true)] {
        tables.set(Writer::Own, row.key(), Some(row));
    }
    tables.set_want(child(1), ApplicationId(raw(3, 0)), true);
    assert_eq!(told(&tables, child(0)), BTreeSet::new());
    for row in [relay(0), seen(0, 0), seen(1, 0)] {
        tables.set(Writer::Child(child(0)), row.key(), Some(row));
    }
    assert_eq!(told(&tables, child(0)), BTreeSet::from([node(0).key(), node(1).key()]));
    let expected = [instance(0, 0, 0, true), node(0), relay(0), seen(0, 0)].map(|row| row.key());
    assert_eq!(told(&tables, child(1)), BTreeSet::from(expected));
}

#[test]
fn callers_are_told_to_who_runs_the_called_and_the_called_to_who_asks() {
    let mut tables = Tables::default();
    let (destination, caller) = (child(0), child(1));
    tables.add_child(destination);
    tables.add_child(caller);
    // Services 0 and 3 are of application 0, 1 and 4 of application 1; each with an instance on a node of its own.
    for row in [
        service(0),
        service(3),
        service(1),
        service(4),
        instance(0, 0, 0, true),
        instance(1, 0, 1, true),
        instance(4, 0, 2, true),
        node(0),
        node(1),
        node(2),
    ] {
        tables.set(Writer::Parent, row.key(), Some(row));
    }
    tables.set_want(destination, ApplicationId(raw(3, 0)), true);
    tables.set_want(caller, ApplicationId(raw(3, 1)), true);
    let keys = |rows: &[Row]| rows.iter().map(Row::key).collect::<BTreeSet<_>>();
    let own = keys(&[service(0), service(3), instance(0, 0, 0, true), node(0)]);
    let callers = keys(&[
        service(1),
        service(4),
        instance(1, 0, 1, true),
        instance(4, 0, 2, true),
        node(1),
        node(2),
    ]);
    let ask = |tables: &mut Tables| {
        let asker = BTreeSet::from([ApplicationId(raw(3, 1))]);
        tables.set_asked(caller, BTreeMap::from([(ServiceId(raw(1, 0)), asker)]));
    };
    ask(&mut tables);
    assert_eq!(told(&tables, destination), own);
    assert_eq!(told(&tables, caller), callers, "asking is not being let in");

    // One service of the application may call: of it the destination is told, and the caller of what it asked for.
    tables.set(Writer::Parent, service(0).key(), Some(open_service(0, 1, Some(4))));
    let one = keys(&[instance(4, 0, 2, true), node(2)]);
    assert_eq!(told(&tables, destination), own.union(&one).copied().collect());
    let called = keys(&[service(0), instance(0, 0, 0, true), node(0)]);
    assert_eq!(told(&tables, caller), callers.union(&called).copied().collect());
    tables.set_asked(caller, BTreeMap::new());
    assert_eq!(told(&tables, caller), callers, "nothing of others without asking");
    ask(&mut tables);

    // All of it may; then nobody.
    tables.set(Writer::Parent, service(0).key(), Some(open_service(0, 1, None)));
    let both = keys(&[instance(1, 0, 1, true), instance(4, 0, 2, true), node(1), node(2)]);
    assert_eq!(told(&tables, destination), own.union(&both).copied().collect());
    tables.set(Writer::Parent, service(0).key(), Some(service(0)));
    assert_eq!(told(&tables, destination), own);
    assert_eq!(told(&tables, caller), callers);
}

#[test]
fn names_and_addresses_are_found_by_whom_they_are_open_to() {
    let mut tables = Tables::default();
    tables.add_child(child(0));
    for row in [service(1), open_service(0, 1, None), service(2)] {
        tables.set(Writer::Own, row.key(), Some(row));
    }
    let [own, one, stranger] = [0, 1, 2].map(|number| ApplicationId(raw(3, number)));
    let called = ServiceId(raw(1, 0));
    let name = |name: &str| Wanted::Name(name.to_owned());
    let derived = Plan::default().service_v6(Policy::Instance(7), called).unwrap();
    for (wanted, policy) in [
        (name("web0.app0"), Policy::RoundRobin),
        (name("closest.web0.app0"), Policy::Closest),
        (name("least.web0.app0"), Policy::LeastUsed),
        (name("7.web0.app0"), Policy::Instance(7)),
        (Wanted::Address([10, 30, 0, 0].into()), Policy::RoundRobin),
        (Wanted::Address(derived.into()), Policy::Instance(7)),
    ] {
        for application in [own, one] {
            let found = tables.resolve(application, &wanted);
            assert_eq!(found, Some((called, policy)), "{wanted:?}");
        }
        assert_eq!(tables.resolve(stranger, &wanted), None, "{wanted:?}");
    }
    for nobody in [
        name("web2.app2"),
        name("web0"),
        name(""),
        name("07.web0.app0"),
        Wanted::Address([10, 30, 9, 9].into()),
    ] {
        assert_eq!(tables.resolve(one, &nobody), None, "{nobody:?}");
    }
    let version = tables.version();
    tables.set(Writer::Own, service(0).key(), Some(service(0)));
    assert!(tables.version() > version && tables.resolve(one, &name("web0.app0")).is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Relay(u8, bool),
    Seen(u8, u8, bool),
    Open(u8, u8, Option<u8>),
    Ask(u8, u8, u8, bool),
    Service(u8, bool),
    Instance(u8, u32, u8, bool, bool),
    Node(u8, bool),
    Want(u8, u8, bool),
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6_u8, any::<bool>()).prop_map(|(number, is_there)| Step::Service(number, is_there)),
        (0..6_u8, 0..3_u8, proptest::option::of(0..6_u8)).prop_map(|(number, app, only)| Step::Open(number, app, only)),
        (0..2_u8, 0..6_u8, 0..3_u8, any::<bool>()).prop_map(|(to, number, app, asks)| Step::Ask(to, number, app, asks)),
        (0..6_u8, 0..2_u32, 0..3_u8, any::<bool>(), any::<bool>())
            .prop_map(|(number, copy, node, ready, is_there)| Step::Instance(number, copy, node, ready, is_there)),
        (0..3_u8, any::<bool>()).prop_map(|(number, is_there)| Step::Node(number, is_there)),
        (0..2_u8, any::<bool>()).prop_map(|(of, is_there)| Step::Relay(of, is_there)),
        (0..3_u8, 0..2_u8, any::<bool>()).prop_map(|(number, by, is_there)| Step::Seen(number, by, is_there)),
        (0..2_u8, 0..3_u8, any::<bool>()).prop_map(|(child, app, is_wanted)| Step::Want(child, app, is_wanted)),
        (0..2_u8).prop_map(Step::Remove),
    ]
}

proptest! {
    /// Whoever follows the changes has at every instant what the tables say.
    #[test]
    fn following_the_changes_is_knowing_the_table(steps in proptest::collection::vec(step(), 0..120)) {
        let mut tables = Tables::default();
        let mut followers: BTreeMap<ChildId, BTreeMap<RowKey, Row>> = BTreeMap::new();
        let mut above: BTreeMap<RowKey, Row> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Service(number, is_there) => {
                    let row = service(number);
                    tables.set(Writer::Parent, row.key(), is_there.then_some(row));
                }
                Step::Open(number, app, only) => {
                    let row = open_service(number, app, only);
                    tables.set(Writer::Parent, row.key(), Some(row));
                }
                Step::Ask(to, number, app, asks) => {
                    let asker = BTreeSet::from([ApplicationId(raw(3, app))]);
                    let asked = asks.then(|| (ServiceId(raw(1, number)), asker)).into_iter();
                    tables.set_asked(child(to), asked.collect());
                }
                Step::Instance(number, copy, on, ready, is_there) => {
                    let row = instance(number, copy, on, ready);
                    let writer = if copy == 0 { Writer::Own } else { Writer::Child(child(on % 2)) };
                    tables.set(writer, row.key(), is_there.then_some(row));
                }
                Step::Node(number, is_there) => {
                    let row = node(number);
                    tables.set(Writer::Own, row.key(), is_there.then_some(row));
                }
                Step::Relay(of, is_there) => {
                    let row = relay(of);
                    tables.set(Writer::Child(child(of)), row.key(), is_there.then_some(row));
                }
                Step::Seen(number, by, is_there) => {
                    let row = seen(number, by);
                    tables.set(Writer::Child(child(by)), row.key(), is_there.then_some(row));
                }
                Step::Want(to, app, is_wanted) => {
                    followers.entry(child(to)).or_default();
                    tables.add_child(child(to));
                    tables.set_want(child(to), ApplicationId(raw(3, app)), is_wanted);
                }
                Step::Remove(to) => {
                    tables.remove_child(child(to));
                    followers.remove(&child(to));
                }
            }
            for change in tables.take_changes() {
                match change {
                    Change::Tell(to, key) => {
                        let follower = followers.entry(to).or_default();
                        match tables.row_for(to, key) {
                            Some(row) => drop(follower.insert(key, row.clone())),
                            None => drop(follower.remove(&key)),
                        }
                    }
                    Change::TellParent(key) => match tables.row_up(key) {
                        Some(row) => drop(above.insert(key, row.clone())),
                        None => drop(above.remove(&key)),
                    },
                }
            }
            for (to, follower) in &followers {
                let expected: BTreeMap<RowKey, Row> = told(&tables, *to)
                    .into_iter()
                    .filter_map(|key| Some((key, tables.row(key)?.clone())))
                    .collect();
                prop_assert_eq!(follower, &expected);
            }
            let expected: BTreeMap<RowKey, Row> = tables
                .rows()
                .filter_map(|(key, ..)| Some((key, tables.row_up(key)?.clone())))
                .collect();
            prop_assert_eq!(&above, &expected);
        }
    }
}
