use super::super::{Act, RootConfig};
use super::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use roble_core::ids::{ChildId, RawId};
use roble_core::liveness::Clocks;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{Policy, Row, RowKey, WantRow, Wanted};
use roble_core::tier::Output;
use roble_core::time::{Boottime, Now, Timestamp};
use roble_proto::rest::{Applied, Change};
use std::net::IpAddr;

const DB: &str =
    "application: db\nservices:\n  pg:\n    image: a\n    allow:\n      - {from: shop/web, ports: [5432]}\n";
const ALL: &str = "application: db\nservices:\n  pg:\n    image: a\n    allow:\n      - {organization: root}\n      - {organization: else, from: shop}\n";
const SHOP: &str = "application: shop\nservices:\n  web: {image: a}\n  job: {image: a}\n";

struct Bench {
    tier: RootTier,
    own: OrganizationId,
    now: Now,
    rng: SmallRng,
    out: Output<Act>,
}

impl Bench {
    fn new() -> Self {
        let now = Now {
            boot: Boottime::from_millis(1_000),
            wall: Timestamp::from_millis(1_700_000_000_000),
        };
        let mut rng = SmallRng::seed_from_u64(7);
        let config = RootConfig {
            clocks: Clocks::CLUSTERS,
            software: "test".to_owned(),
            pin: String::new(),
            session_ms: 1,
            audit: Default::default(),
            plan: Plan::default(),
        };
        let (tier, ..) = RootTier::new(config, &[], now, &mut rng);
        let own = *tier.organizations.keys().next().unwrap();
        Self {
            tier,
            own,
            now,
            rng,
            out: Output::default(),
        }
    }

    fn apply(&mut self, text: &str) -> Applied {
        let (now, own) = (self.now, self.own);
        let answer = self
            .tier
            .apply(own, text.as_bytes(), false, now, &mut self.rng, &mut self.out);
        self.tier.settle(now, &mut self.rng, &mut self.out);
        serde_json::from_value(answer.unwrap()).unwrap()
    }

    fn delete(&mut self, application: &str) {
        let (now, own) = (self.now, self.own);
        self.tier
            .delete_application(own, application, now, &mut self.rng, &mut self.out)
            .unwrap();
        let mut gone: Vec<_> = self.tier.wished.keys().copied().collect();
        gone.retain(|instance| {
            self.tier
                .services
                .get(&instance.service)
                .is_some_and(|service| service.deleting)
        });
        for instance in gone {
            self.tier.forget(instance, now, &mut self.rng, &mut self.out);
        }
        self.tier.settle(now, &mut self.rng, &mut self.out);
    }

    /// Who may call `db/pg`, by names.
    fn callers(&self) -> Vec<String> {
        let service = self.tier.tenant(self.own).service("db/pg").unwrap().id;
        let row = self.tier.overlay.server.tables().service(service).unwrap();
        let named = row.allows.iter().map(|allowed| {
            let application = &self.tier.applications[&allowed.application].name;
            let only = allowed.service.map(|only| self.tier.services[&only].path.clone());
            format!("{} {:?}", only.unwrap_or_else(|| application.clone()), allowed.ports)
        });
        named.collect()
    }
}

#[test]
fn names_become_ids_as_those_that_they_name_come_and_go() {
    let mut bench = Bench::new();
    let applied = bench.apply(DB);
    assert_eq!(applied.warnings.len(), 1);
    assert_eq!(applied.warnings[0].path, "services.pg.allow[0].from");
    assert!(applied.warnings[0].message.contains("`shop/web`"), "{applied:?}");
    assert!(bench.callers().is_empty());
    bench.apply(SHOP);
    let port = "5432/tcp".parse::<roble_core::ports::PortRange>().unwrap();
    assert_eq!(bench.callers(), [format!("shop/web {:?}", [port])]);

    // Other rules: nothing is restarted.
    let applied = bench.apply(ALL);
    assert!(applied.warnings.is_empty(), "of others nothing is said: {applied:?}");
    assert_eq!(
        (applied.services[0].change, applied.services[0].generation),
        (Change::Updated, 1)
    );
    assert_eq!(bench.apply(ALL).services[0].change, Change::Unchanged);
    assert_eq!(bench.callers(), ["shop []"], "all but its own application");
    bench.apply(&SHOP.replace("shop", "mail"));
    assert_eq!(bench.callers().len(), 2);
    bench.delete("shop");
    assert_eq!(bench.callers(), ["mail []"]);
    bench.apply(DB);
    assert!(bench.callers().is_empty());
    bench.apply(SHOP);
    assert_eq!(bench.callers().len(), 1);
    // In one descriptor, whatever comes first.
    let both = "applications:\n  - {application: a, services: {x: {image: a, allow: [{from: b/y}, {from: c}]}}}\n  - {application: b, services: {y: {image: a}}}\n";
    let warnings = bench.apply(both).warnings;
    let paths: Vec<_> = warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(paths, ["applications[0].services.x.allow[1].from"]);
}

#[test]
fn a_policy_gets_its_ipv4_address_when_it_is_first_used_and_keeps_it() {
    let mut bench = Bench::new();
    bench.apply(SHOP);
    let web = bench.tier.tenant(bench.own).service("shop/web").unwrap().clone();
    assert!(!web.addresses.contains_key(&Policy::Closest));
    let cluster = ChildId(RawId::from_bytes([9; 12]));
    let server = &mut bench.tier.overlay.server;
    server.add_child(cluster);
    server.set_wants(cluster, &[web.application].into());
    let want = WantRow {
        application: web.application,
        wanted: Wanted::Name("closest.web.shop".to_owned()),
        service: None,
    };
    let ask = |bench: &mut Bench, is_wanted: bool| {
        let (now, server) = (bench.now, &mut bench.tier.overlay.server);
        assert!(server.set_wanted(cluster, want.key(), is_wanted.then(|| want.clone())));
        bench.tier.settle_overlay(now, &mut bench.out);
    };
    ask(&mut bench, true);
    let given = |bench: &Bench| {
        let service = bench.tier.tenant(bench.own).service("shop/web").unwrap();
        service.addresses.get(&Policy::Closest).copied()
    };
    let address = given(&bench).expect("given");
    assert!(Plan::default().is_service(IpAddr::from(address)));
    let row = bench.tier.overlay.server.tables().row(RowKey::Service(web.id)).cloned();
    assert!(matches!(row, Some(Row::Service(row)) if row.v4[&Policy::Closest] == address));
    assert_eq!(
        bench
            .tier
            .overlay
            .server
            .answer_to(cluster, want.key())
            .unwrap()
            .service,
        Some(web.id)
    );
    // It stays the service's: when nobody asks, and when the descriptor is applied again.
    ask(&mut bench, false);
    bench.apply(&SHOP.replace("image: a", "image: b"));
    assert_eq!(given(&bench), Some(address));
    // And is given back with it.
    bench.delete("shop");
    let rested = bench.out.writes.iter().any(|write| {
        write.kind == super::super::overlay::RESTED && write.id == address.to_string() && write.value.is_some()
    });
    assert!(rested);
}
