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

    fn open_with(&self, range: &str) -> Result<NetService, OpenError> {
        let clock = Arc::new(ManualClock::new(7));
        NetService::open(
            self.folder.path(),
            range.parse().unwrap(),
            self.datapath.clone(),
            clock,
            NetMetrics::default(),
        )
    }

    fn open(&self) -> NetService {
        self.open_with("10.18.0.0/29").unwrap()
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
    let service = bench.open();
    let first = service.attach("a", &wish("a", "80")).await.unwrap();
    service.attach("b", &wish("b", "")).await.unwrap();
    drop(service);
    bench.datapath.state().config = None;
    bench.datapath.state().missing.insert("/run/netns/b".into());
    let service = bench.open();
    service.reconcile().await.unwrap();
    assert_eq!(service.list().await, [first]);
    assert_eq!(bench.datapath.state().config.as_ref().unwrap().endpoints.len(), 1);
}

#[tokio::test]
async fn failed_attach_leaves_no_trace() {
    let bench = Bench::new();
    let service = bench.open();
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
    assert!(service.list().await.is_empty() && bench.open().list().await.is_empty());
    service.attach("c", &wish("c", "80")).await.unwrap();
}

#[tokio::test]
async fn ports_of_programs_are_refused_but_not_our_own() {
    let bench = Bench::new();
    let service = bench.open();
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
    let service = bench.open();
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
    bench.open().attach("a", &wish("a", "")).await.unwrap();
    assert!(matches!(
        bench.open_with("10.19.0.0/29"),
        Err(OpenError::RangeChanged { .. })
    ));
    let path = bench.folder.path().join("attachments.json");
    std::fs::write(&path, r#"{"schema":99,"later":true}"#).unwrap();
    assert!(matches!(
        bench.open_with("10.18.0.0/29"),
        Err(OpenError::Newer { found: 99, .. })
    ));
    std::fs::write(&path, "{\"schema\":1,").unwrap();
    assert!(bench.open().list().await.is_empty());
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
    let service = bench.open();
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
    let service = bench.open();
    service.reconcile().await.unwrap();
    assert_eq!(
        bench.datapath.state().config.as_ref().unwrap().endpoints[0].tenant,
        Some(tenant)
    );
}
