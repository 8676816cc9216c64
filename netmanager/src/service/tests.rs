use super::*;
use crate::datapath::memory::MemoryDatapath;
use roble_core::ports::PortMapping;
use roble_daemon::clock::ManualClock;

struct Bench {
    folder: tempfile::TempDir,
    datapath: Arc<MemoryDatapath>,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            datapath: Arc::default(),
        }
    }

    fn try_open(&self) -> Result<NetService, OpenError> {
        let clock = Arc::new(ManualClock::new(7));
        NetService::open(self.folder.path(), self.datapath.clone(), clock, NetMetrics::default())
    }

    async fn open_with(&self, block: &str) -> NetService {
        let service = self.try_open().unwrap();
        let block = Some(block.parse().unwrap());
        let overlay = Overlay {
            block,
            ..Overlay::default()
        };
        service.set_overlay(overlay).await.unwrap();
        service
    }

    async fn open(&self) -> NetService {
        self.open_with("10.18.0.0/29").await
    }
}

fn wish(netns: &str, ports: &str) -> Attach {
    Attach {
        netns: format!("/run/netns/{netns}").into(),
        ports: PortMapping::parse_list(ports).unwrap(),
        instance: None,
    }
}

#[tokio::test]
async fn attachments_survive_a_restart_and_gone_namespaces_do_not() {
    let bench = Bench::new();
    let service = bench.open().await;
    let first = service.attach("a", &wish("a", "80")).await.unwrap();
    service.attach("b", &wish("b", "")).await.unwrap();
    drop(service);
    bench.datapath.state().config = None;
    bench.datapath.state().missing.insert("/run/netns/b".into());
    let service = bench.open().await;
    service.reconcile().await.unwrap();
    assert_eq!(service.list().await, [first]);
    assert_eq!(bench.datapath.state().config.as_ref().unwrap().endpoints.len(), 1);
}

#[tokio::test]
async fn failed_attach_leaves_no_trace() {
    let bench = Bench::new();
    let service = bench.open().await;
    bench.datapath.state().missing.insert("/run/netns/a".into());
    assert_eq!(
        service.attach("a", &wish("a", "80")).await.unwrap_err().code(),
        "netns-missing"
    );
    bench.datapath.state().fails = true;
    assert_eq!(
        service.attach("b", &wish("b", "80")).await.unwrap_err().code(),
        "internal"
    );
    bench.datapath.state().fails = false;
    assert!(service.list().await.is_empty() && bench.open().await.list().await.is_empty());
    service.attach("c", &wish("c", "80")).await.unwrap();
}

#[tokio::test]
async fn ports_of_programs_are_refused_but_not_our_own() {
    let bench = Bench::new();
    let service = bench.open().await;
    service.attach("a", &wish("a", "80")).await.unwrap();
    bench
        .datapath
        .state()
        .listeners
        .extend([80, 81].map(|port| ((Protocol::Tcp, port), "program x".to_owned())));
    service.attach("a", &wish("a", "80")).await.unwrap();
    let error = service.attach("b", &wish("b", "81")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("port-taken", "port 81/tcp is in use by program x")
    );
}

#[tokio::test]
async fn detach_and_clean_up_may_be_repeated() {
    let bench = Bench::new();
    let service = bench.open().await;
    let first = service.attach("a", &wish("a", "80")).await.unwrap();
    for _ in 0..2 {
        service.detach("a").await.unwrap();
        assert!(bench.datapath.state().config.as_ref().unwrap().endpoints.is_empty());
        assert_eq!(bench.datapath.state().config.as_ref().unwrap().resting.len(), 1);
    }
    assert_eq!(service.attach("a", &wish("a", "80")).await.unwrap(), first);
    service.clean_up().await.unwrap();
    service.clean_up().await.unwrap();
    assert!(service.list().await.is_empty() && bench.datapath.state().config.is_none());
}

#[tokio::test]
async fn damaged_newer_and_foreign_state_is_told() {
    let bench = Bench::new();
    let unknown = bench.try_open().unwrap().attach("a", &wish("a", "")).await.unwrap_err();
    assert_eq!(unknown.code(), "no-block");
    let first = bench.open().await.attach("a", &wish("a", "")).await.unwrap();
    let moved = bench.open_with("10.19.0.0/29").await;
    assert_eq!(moved.list().await[0].address, first.address);
    let beside = moved.attach("b", &wish("b", "")).await.unwrap();
    assert!(
        beside.address.to_string().starts_with("10.18.0."),
        "the block is kept while a container is in it"
    );
    moved.detach("a").await.unwrap();
    moved.detach("b").await.unwrap();
    let moved = bench.open_with("10.19.0.0/29").await;
    let there = moved.attach("a", &wish("a", "")).await.unwrap();
    assert!(there.address.to_string().starts_with("10.19.0."));
    let path = bench.folder.path().join("attachments.json");
    std::fs::write(&path, r#"{"schema":99,"later":true}"#).unwrap();
    assert!(matches!(bench.try_open(), Err(OpenError::Newer { found: 99, .. })));
    std::fs::write(&path, "{\"schema\":1,").unwrap();
    assert!(bench.open().await.list().await.is_empty());
    assert!(bench.folder.path().join("attachments.damaged-7").exists());
}

#[tokio::test]
async fn instances_and_tables_reach_the_datapath_and_instances_are_stored() {
    use crate::datapath::Service;
    use roble_core::ids::{ApplicationId, InstanceId, OrganizationId, RawId, ServiceId};
    use roble_proto::local_net::Tenant;
    let raw = RawId::from_bytes([7; 12]);
    let tenant = Tenant {
        instance: InstanceId {
            service: ServiceId(raw),
            number: 3,
        },
        application: ApplicationId(raw),
        organization: OrganizationId(raw),
        path: "shop/web".into(),
    };
    let bench = Bench::new();
    let service = bench.open().await;
    let wish = Attach {
        instance: Some(tenant.clone()),
        ..wish("a", "")
    };
    let attached = service.attach("a", &wish).await.unwrap();
    assert_eq!(attached.address_v6, Some("fc00::a12:2".parse().unwrap()));
    let overlay = Overlay {
        services: vec![Service {
            service: ServiceId(raw),
            application: ApplicationId(raw),
            addresses: [].into(),
            backends: Vec::new(),
            allows: Vec::new(),
        }],
        ..Overlay::default()
    };
    service.set_overlay(overlay.clone()).await.unwrap();
    let sets = bench.datapath.state().sets;
    service.set_overlay(overlay.clone()).await.unwrap();
    assert_eq!(bench.datapath.state().sets, sets, "nothing new, nothing done");
    assert_eq!(
        bench.datapath.state().config.as_ref().unwrap().services,
        overlay.services
    );
    drop(service);
    let service = bench.open().await;
    service.reconcile().await.unwrap();
    assert_eq!(
        bench.datapath.state().config.as_ref().unwrap().endpoints[0].tenant,
        Some(tenant)
    );
}
