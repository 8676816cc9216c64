use super::*;
use crate::spec::{Constraints, RestartPolicy, SecurityProfile, WhenCutOff};
use proptest::prelude::*;

pub(crate) fn spec(cpu_millis: u64, memory_bytes: u64) -> InstanceSpec {
    InstanceSpec {
        organization: "0123456789abcdef01234567".parse().unwrap(),
        application: "0123456789abcdef01234567".parse().unwrap(),
        path: "app/web".to_owned(),
        virtualization: "container".to_owned(),
        image: "image".to_owned(),
        image_digest: None,
        command: Vec::new(),
        args: Vec::new(),
        environment: Vec::new(),
        working_dir: None,
        user: None,
        resources: Resources {
            cpu_millis,
            memory_bytes,
        },
        ports: Vec::new(),
        restart: RestartPolicy::Always,
        one_shot: false,
        stop_grace_ms: 10_000,
        when_cut_off: WhenCutOff::KeepRunning,
        security: SecurityProfile::Baseline,
        constraints: Constraints::default(),
    }
}

pub(crate) fn child(number: usize) -> ChildId {
    format!("{number:024x}").parse().unwrap()
}

fn resources(cpu_millis: u64, memory_bytes: u64) -> Resources {
    Resources {
        cpu_millis,
        memory_bytes,
    }
}

pub(crate) fn node(number: usize, zone: &str, cpu_millis: u64, memory_bytes: u64) -> Profile {
    let allocatable = resources(cpu_millis, memory_bytes);
    Profile {
        name: format!("n{number}"),
        virtualizations: vec!["container".to_owned()],
        offers: vec![Offer {
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            count: 1,
            allocatable,
            largest_free: vec![allocatable],
        }],
        ..Profile::default()
    }
}

fn candidate<'a>(id: usize, profile: &'a Profile, ports: &'a BTreeSet<(Protocol, u16)>) -> Candidate<'a> {
    Candidate {
        id: child(id),
        profile,
        reserved: Resources::ZERO,
        unaccounted: Vec::new(),
        ports,
        siblings: 0,
        readiness: Readiness::Ready,
    }
}

#[test]
fn a_cluster_is_not_full_for_what_its_other_classes_hold() {
    let mut cluster = node(0, "edge", 1_000, 100);
    let big = Offer {
        labels: [("zone".to_owned(), "core".to_owned())].into(),
        count: 1,
        allocatable: resources(4_000, 400),
        largest_free: vec![resources(2_000, 200)],
    };
    cluster.offers.push(big);
    let none = BTreeSet::new();
    let mut candidate = candidate(1, &cluster, &none);
    candidate.reserved = resources(2_000, 200);
    let mut wanted = spec(800, 80);
    wanted
        .constraints
        .node_selector
        .0
        .insert("zone".to_owned(), "edge".to_owned());
    assert!(assess(Level::Clusters, &wanted, &candidate).is_ok());
}

#[test]
fn any_of_a_clusters_free_nodes_will_do_not_only_that_with_most_memory() {
    let mut cluster = node(0, "edge", 5_000, 500);
    cluster.offers[0].count = 2;
    cluster.offers[0].largest_free = vec![resources(100, 400), resources(2_000, 100)];
    let none = BTreeSet::new();
    assert!(assess(Level::Clusters, &spec(1_000, 50), &candidate(1, &cluster, &none)).is_ok());
}

proptest! {
    /// Against brute force: the winner passes every filter, and no child that does has a better rank.
    #[test]
    fn the_best_of_all_that_fit_is_chosen(
        request in (1..6_u64, 1..6_u64, 0..3_u8),
        nodes in proptest::collection::vec((1..8_u64, 1..8_u64, 0..8_u64, 0..8_u64, 0..2_u8, 0..3_u32, 0..4_u8), 0..=6),
    ) {
        let mut wanted = spec(request.0 * 100, request.1);
        if request.2 > 0 {
            let zone = ["", "a", "b"][usize::from(request.2)];
            wanted.constraints.node_selector.0.insert("zone".to_owned(), zone.to_owned());
        }
        let profiles: Vec<Profile> = nodes.iter().enumerate()
            .map(|(i, n)| node(i, ["a", "b"][usize::from(n.4)], n.0 * 100, n.1)).collect();
        let none = BTreeSet::new();
        let candidates: Vec<Candidate<'_>> = nodes.iter().enumerate().map(|(i, n)| Candidate {
            reserved: resources(n.2.min(n.0) * 100, n.3.min(n.1)),
            siblings: n.5,
            readiness: if n.6 == 0 { Readiness::Cordoned } else { Readiness::Ready },
            ..candidate(i, &profiles[i], &none)
        }).collect();
        let fits = |i: usize| {
            let (n, candidate) = (&nodes[i], &candidates[i]);
            let free = profiles[i].offers[0].allocatable.minus(&candidate.reserved);
            n.6 != 0 && free.covers(&wanted.resources) && (request.2 == 0 || request.2 == n.4 + 1)
        };
        let rank = |i: usize| {
            let (allocatable, n) = (profiles[i].offers[0].allocatable, &nodes[i]);
            let left = allocatable.minus(&candidates[i].reserved).minus(&wanted.resources);
            let cpu = left.cpu_millis * 1000 / allocatable.cpu_millis;
            let memory = left.memory_bytes * 1000 / allocatable.memory_bytes;
            (n.5, u64::midpoint(cpu, memory), child(i))
        };
        let best = (0..nodes.len()).filter(|i| fits(*i)).min_by_key(|i| rank(*i)).map(child);
        let (chosen, explanation) = place(Level::Nodes, &wanted, &candidates);
        prop_assert_eq!(chosen, best);
        prop_assert_eq!(explanation.considered as usize, nodes.len());
        let refused: u32 = explanation.refused.values().sum();
        prop_assert_eq!(refused as usize, (0..nodes.len()).filter(|i| !fits(*i)).count());
    }
}
