//! What happens when there are no endpoint addresses left.

use roble_core::status::Phase;
use roble_proto::rest::InstanceView;
use roble_root::tier::Call;
use roble_sim::net::Weather;
use roble_sim::work::{Wanted, descriptor};
use roble_sim::world::{Plan, World};

fn web(world: &mut World, name: &str) -> InstanceView {
    let views: Vec<InstanceView> = world.read(0, Call::Instances(None)).expect("an answer");
    let found = views.into_iter().find(|view| view.path == format!("{name}/web.0"));
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn apply(world: &mut World, name: &str, wanted: &Wanted) {
    let call = Call::Apply {
        descriptor: descriptor(name, wanted).into_bytes(),
        dry_run: false,
    };
    world.announce(name);
    world.call(name.to_owned(), Some(wanted.clone()), call);
    let until = world.t + 30_000;
    world.run_until(until);
}

#[test]
fn where_there_are_no_addresses_nothing_is_placed_and_the_reason_is_told() {
    let mut plan = Plan {
        gentle: true,
        nodes: vec![1, 1],
        installed: 2,
        weather: Weather {
            latency_ms: 20,
            loss: 0,
            twice: 0,
            late: 0,
        },
        calm_at: 0,
        ..Plan::of(3, false)
    };
    // Enough for one cluster.
    plan.overlay.endpoints = ([10, 18, 0, 0].into(), [10, 18, 15, 255].into());
    let mut world = World::new(plan);
    world.run_until(10_000);
    for site in ["c0", "c1"] {
        apply(&mut world, site, &Wanted::plain(5, 1).on(site));
    }
    let mut found = ["c0", "c1"].map(|site| web(&mut world, site));
    found.sort_by_key(|view| view.phase != Phase::Running);
    let [running, pending] = &found;
    assert_eq!(running.phase, Phase::Running, "{running:#?}");
    assert_eq!(pending.phase, Phase::Pending, "{pending:#?}");
    let reason = pending.reason.clone().expect("a reason");
    assert!(reason.message.contains("no-block"), "{reason:?}");
    // Elsewhere there is room.
    apply(&mut world, "free", &Wanted::plain(5, 1));
    let free = web(&mut world, "free");
    assert_eq!(free.phase, Phase::Running, "{free:#?}");
}
