//! The contract and more, on a private containerd. These tests need root; they fail if containerd is not installed.

use super::cgroup;
use super::fixture::{Containerd, IMAGE, LOCAL_IMAGE, Registry, mounts_below};
use super::*;
use crate::runtime::suite::{self, Behaviour, Fixture, plain_spec, wait_exit_hint, wait_exited, wait_for};
use crate::runtime::{ExitReason, SandboxFiles};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roble_core::resources::Resources;
use roble_core::spec::{InstanceSpec, SecurityProfile};

#[async_trait]
impl Fixture for Containerd {
    async fn open(&self) -> Arc<dyn Runtime> {
        Arc::new(Containerd::open(self))
    }

    fn spec(&self, behaviour: Behaviour) -> InstanceSpec {
        match behaviour {
            Behaviour::Runs => script("trap 'exit 0' TERM; sleep 1000 & wait"),
            Behaviour::Ends(code) => script(&format!("exit {code}")),
            Behaviour::IgnoresStop => script("trap '' TERM; echo ready; sleep 1000"),
            Behaviour::Prints => script("trap 'exit 0' TERM; echo one; echo two; echo three; sleep 1000 & wait"),
        }
    }

    fn missing_image(&self) -> String {
        "127.0.0.1:1/no/such:image".to_owned()
    }
}

fn script(text: &str) -> InstanceSpec {
    let mut spec = plain_spec(LOCAL_IMAGE);
    spec.command = vec!["/bin/sh".to_owned(), "-c".to_owned()];
    spec.args = vec![text.to_owned()];
    spec
}

/// Runs to the end and returns how it ended and what it wrote.
async fn run_out(runtime: &dyn Runtime, order: &RunOrder) -> (ExitReason, String) {
    runtime.ensure_running(order).await.expect("run");
    let exit = wait_exited(runtime, order.instance).await;
    let log = suite::read_log(runtime, order.instance, None).await;
    runtime.ensure_gone(order.instance, Duration::ZERO).await.expect("gone");
    (exit, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_keeps_the_contract_and_leaves_nothing() {
    let containerd = Containerd::start();
    suite::run(&containerd).await;
    assert_eq!(containerd.ctr(&["tasks", "list", "-q"]), "");
    assert_eq!(containerd.ctr(&["containers", "list", "-q"]), "");
    assert_eq!(containerd.ctr(&["leases", "list", "-q"]), "");
    let snapshots = containerd.ctr(&["snapshots", "list"]);
    assert_eq!(
        snapshots
            .lines()
            .skip(1)
            .filter(|line| !line.contains("Committed"))
            .count(),
        0,
        "{snapshots}"
    );
    assert_eq!(mounts_below(containerd.folder()), Vec::<PathBuf>::new());
    let folders = std::fs::read_dir(containerd.config().state_dir.join("instances"))
        .expect("state")
        .count();
    assert_eq!(folders, 0, "folders of instances are left");
    let cgroup = cgroup::folder("memory", &containerd.config().cgroup_parent);
    let left = std::fs::read_dir(cgroup)
        .expect("cgroup")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .count();
    assert_eq!(left, 0, "control groups are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_gets_what_its_spec_says() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let (_, log) = {
        let order = suite::order(&runtime, plain_spec(IMAGE)).await;
        run_out(&runtime, &order).await
    };
    assert_eq!(log, "image\n", "the image's own command");

    let mut spec =
        script("pwd; id -u; id -g; id -G; echo $FROM_IMAGE $SHADOWED $OWN; hostname; cat /etc/hosts /etc/resolv.conf");
    spec.environment = vec![
        ("SHADOWED".into(), "first".into()),
        ("SHADOWED".into(), "service".into()),
        ("OWN".into(), "a b".into()),
    ];
    spec.working_dir = Some("/tmp".to_owned());
    spec.user = Some("app".to_owned());
    let mut order = suite::order(&runtime, spec).await;
    order.files = SandboxFiles {
        hostname: Some("web-0".to_owned()),
        hosts: Some("10.0.0.1 peer\n".to_owned()),
        resolv_conf: Some("nameserver 10.0.0.2\n".to_owned()),
    };
    let (exit, log) = run_out(&runtime, &order).await;
    assert_eq!(exit.code, 0, "{log}");
    assert_eq!(
        log,
        "/tmp\n1000\n1001\n1001 50\nyes service a b\nweb-0\n10.0.0.1 peer\nnameserver 10.0.0.2\n"
    );

    let mut spec = script("id -u; id -g");
    spec.user = Some("nobody".to_owned());
    let order = suite::order(&runtime, spec).await;
    let error = runtime.ensure_running(&order).await.expect_err("no such user");
    assert!(error.to_string().contains("no user `nobody`"), "{error}");
    assert!(
        runtime.list().await.expect("list").is_empty(),
        "a failed start leaves nothing"
    );

    let mut spec = plain_spec(IMAGE);
    spec.command = vec!["/bin/no-such-program".to_owned()];
    let order = suite::order(&runtime, spec).await;
    assert_eq!(
        runtime
            .ensure_running(&order)
            .await
            .expect_err("no such program")
            .code(),
        "create-failed"
    );
    assert!(
        runtime.list().await.expect("list").is_empty(),
        "a failed start leaves nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_confined() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let look = "while read key value; do case $key in CapBnd:|CapEff:|NoNewPrivs:|Seccomp:) echo $key $value;; esac; \
                done </proc/self/status; wc -c </proc/interrupts; (echo x >/proc/sysrq-trigger) 2>/dev/null || echo denied; \
                (echo x >/etc/hosts) 2>/dev/null || echo denied; (echo x >/file) 2>/dev/null && echo written";
    let order = suite::order(&runtime, script(look)).await;
    let (_, log) = run_out(&runtime, &order).await;
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10.
    let expected =
        "CapEff: 00000000000004fb\nCapBnd: 00000000000004fb\nNoNewPrivs: 1\nSeccomp: 2\n0\ndenied\ndenied\nwritten\n";
    assert_eq!(log, expected);

    let mut spec = script(&format!("{look}; echo x >/tmp/file && echo temporary"));
    spec.security = SecurityProfile::Restricted;
    let mut order = suite::order(&runtime, spec.clone()).await;
    for root in [None, Some("0"), Some("root:app")] {
        spec.user = root.map(str::to_owned);
        order.spec = Arc::new(spec.clone());
        let error = runtime
            .ensure_running(&order)
            .await
            .expect_err("root under `restricted`");
        assert_eq!(error.code(), "security-refused", "{root:?}: {error}");
        assert!(!error.is_retryable());
    }
    spec.user = Some("1000:1001".to_owned());
    order.spec = Arc::new(spec);
    let (_, log) = run_out(&runtime, &order).await;
    let capabilities = "CapEff: 0000000000000400\nCapBnd: 0000000000000400\nNoNewPrivs: 1\nSeccomp: 2\n";
    assert!(log.starts_with(capabilities), "{log}");
    assert!(log.ends_with("temporary\n") && !log.contains("written"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_the_kernels() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let mut spec = containerd.spec(Behaviour::Runs);
    spec.resources = Resources {
        cpu_millis: 250,
        memory_bytes: 48 << 20,
    };
    let order = suite::order(&runtime, spec).await;
    let started = runtime.ensure_running(&order).await.expect("run");
    let group = format!("{}/{}", containerd.config().cgroup_parent, order.instance);
    let read = |controller: &str, v1: &str, v2: &str| {
        let file = if cgroup::is_unified() { v2 } else { v1 };
        std::fs::read_to_string(cgroup::folder(controller, &group).join(file))
            .expect(file)
            .trim()
            .to_owned()
    };
    assert_eq!(
        read("memory", "memory.limit_in_bytes", "memory.max"),
        (48 << 20).to_string()
    );
    if cgroup::is_unified() {
        assert_eq!(read("cpu", "", "cpu.max"), "25000 100000");
        assert_eq!(read("memory", "", "memory.swap.max"), "0");
    } else {
        assert_eq!(read("cpu", "cpu.cfs_quota_us", ""), "25000");
        assert_eq!(read("cpu", "cpu.cfs_period_us", ""), "100000");
        if cgroup::limits_swap() {
            assert_eq!(
                read("memory", "memory.memsw.limit_in_bytes", ""),
                (48 << 20).to_string()
            );
        }
    }
    assert_eq!(read("pids", "pids.max", "pids.max"), "512");
    let members = read("memory", "cgroup.procs", "cgroup.procs");
    assert!(members.lines().any(|pid| pid == started.pid.to_string()), "{members}");
    runtime
        .ensure_gone(order.instance, Duration::from_secs(5))
        .await
        .expect("gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_say_signal_and_want_of_memory() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let order = suite::order(&runtime, containerd.spec(Behaviour::Runs)).await;
    let started = runtime.ensure_running(&order).await.expect("run");
    kill(Pid::from_raw(i32::try_from(started.pid).expect("pid")), Signal::SIGKILL).expect("kill");
    let told = wait_exit_hint(&runtime, order.instance).await.reason;
    assert_eq!((told.code, told.signal, told.oom_killed), (137, Some(9), false));
    assert!(told.at >= started.started_at);
    runtime.ensure_gone(order.instance, Duration::ZERO).await.expect("gone");

    let mut spec = script("exec tail /dev/zero");
    spec.resources.memory_bytes = 16 << 20;
    let order = suite::order(&runtime, spec).await;
    runtime.ensure_running(&order).await.expect("run");
    let told = wait_exit_hint(&runtime, order.instance).await.reason;
    assert_eq!((told.code, told.oom_killed), (137, true));
    assert_eq!(
        wait_exited(&runtime, order.instance).await,
        told,
        "the list says the same"
    );
    drop(runtime);
    assert_eq!(
        wait_exited(&containerd.open(), order.instance).await,
        told,
        "and so after a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_survive_a_crash_of_containerd() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let stays = suite::order(&runtime, containerd.spec(Behaviour::Runs)).await;
    let ends = suite::order(&runtime, containerd.spec(Behaviour::Runs)).await;
    let started = runtime.ensure_running(&stays).await.expect("run");
    let ending = runtime.ensure_running(&ends).await.expect("run");
    containerd.kill_daemon();
    let error = runtime.list().await.expect_err("containerd is away");
    assert_eq!((error.code(), error.is_retryable()), ("runtime-unavailable", true));
    assert!(runtime.check().await.is_err());
    kill(Pid::from_raw(i32::try_from(ending.pid).expect("pid")), Signal::SIGKILL).expect("kill");
    containerd.start_daemon();
    wait_for("the runtime to answer", || async { runtime.check().await.ok() }).await;
    // The end that happened meanwhile is told; none is told of the one that runs.
    let told = tokio::time::timeout(suite::DEADLINE, runtime.next_exit())
        .await
        .expect("no exit told");
    assert_eq!((told.instance, told.reason.signal), (ends.instance, Some(9)));
    assert_eq!(runtime.ensure_running(&stays).await.expect("still there"), started);
    for order in [stays, ends] {
        runtime
            .ensure_gone(order.instance, Duration::from_secs(5))
            .await
            .expect("gone");
    }
    assert!(runtime.list().await.expect("list").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_bounded_and_stay_after_the_end() {
    let containerd = Containerd::start();
    let mut config = containerd.config();
    config.log_bytes = 64 << 10;
    let runtime = ContainerdRuntime::new(config.clone()).expect("runtime");
    let text = "trap 'echo last >&2; exit 0' TERM; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; sleep 1000 & wait";
    let order = suite::order(&runtime, script(text)).await;
    runtime.ensure_running(&order).await.expect("run");
    let folder = folder::Folder::new(&config.state_dir, order.instance);
    let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let bounded = || async { (size(folder.old_log()) > 0 && size(folder.log()) <= 64 << 10).then_some(()) };
    wait_for("a rotation", bounded).await;
    let (shared, instance) = (&runtime, order.instance);
    wait_for("the last line", || async move {
        suite::read_log(shared, instance, Some(1))
            .await
            .contains("line 19999")
            .then_some(())
    })
    .await;
    wait_for("a rotation", bounded).await;
    assert!(suite::read_log(&runtime, instance, None).await.len() <= 128 << 10);
    let started = runtime.list().await.expect("list");
    let ContainerState::Running(Started { pid, .. }) = started[0].state else {
        panic!("{started:?}")
    };
    kill(Pid::from_raw(i32::try_from(pid).expect("pid")), Signal::SIGTERM).expect("kill");
    wait_exited(&runtime, instance).await;
    // The shim tells the end before it has written the last bytes.
    wait_for("the last line after the end", || async move {
        (suite::read_log(shared, instance, Some(1)).await == "last\n").then_some(())
    })
    .await;
    runtime.ensure_gone(instance, Duration::ZERO).await.expect("gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_namespace_is_joined() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let name = format!("roble-rt-{}", std::process::id());
    let ip = |arguments: &[&str]| {
        std::process::Command::new("ip")
            .args(arguments)
            .status()
            .expect("ip runs")
    };
    assert!(ip(&["netns", "add", &name]).success());
    assert!(ip(&["-n", &name, "link", "add", "mark0", "type", "veth", "peer", "mark1"]).success());
    let mut order = suite::order(&runtime, script("ls /sys/class/net; cat /proc/net/dev")).await;
    order.netns = Some(PathBuf::from(format!("/run/netns/{name}")));
    runtime.ensure_running(&order).await.expect("run");
    assert_eq!(runtime.list().await.expect("list")[0].netns, order.netns);
    let (_, log) = run_out(&runtime, &order).await;
    ip(&["netns", "delete", &name]);
    assert!(log.contains("mark0"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_a_registry() {
    let containerd = Containerd::start();
    let registry = Registry::start(containerd.folder());
    let machine = crate::runtime::reference::machine_architecture();
    let other = if machine == "s390x" { "amd64" } else { "s390x" };
    registry.push(&containerd.make_image("pushed", machine), "org/app:1");
    registry.push(&containerd.make_image("foreign", other), "org/foreign:1");
    registry.push(&containerd.make_image("foreign", other), "org/app:foreign");
    let open = |password: Option<&str>, insecure: bool| {
        let mut config = containerd.config();
        config.registry.credentials_file = password.map(|text| registry.credentials(containerd.folder(), text));
        config.registry.insecure_registries = if insecure {
            vec![registry.host.clone()]
        } else {
            Vec::new()
        };
        ContainerdRuntime::new(config).expect("runtime")
    };
    let host = registry.host.clone();
    let request = |name: &str, digest: Option<&str>| ImageRequest {
        reference: format!("{host}/{name}"),
        digest: digest.map(str::to_owned),
    };
    let code = |result: Result<ImageInfo, RuntimeError>| result.expect_err("must fail").code();
    assert_eq!(
        code(open(None, true).ensure_image(&request("org/app:1", None)).await),
        "registry-unauthorized"
    );
    assert_eq!(
        code(
            open(Some("wrong"), true)
                .ensure_image(&request("org/app:1", None))
                .await
        ),
        "registry-unauthorized"
    );
    let tls = open(Some(Registry::PASSWORD), false)
        .ensure_image(&request("org/app:1", None))
        .await;
    assert_eq!(code(tls), "registry-unreachable", "no plain HTTP unless listed");

    let runtime = open(Some(Registry::PASSWORD), true);
    assert_eq!(
        code(runtime.ensure_image(&request("org/none:1", None)).await),
        "image-not-found"
    );
    assert_eq!(
        code(runtime.ensure_image(&request("org/foreign:1", None)).await),
        "image-wrong-architecture"
    );

    // Broken off again and again, each time a little later: in the end it is complete.
    let mut patience = Duration::from_millis(1);
    let info = loop {
        match tokio::time::timeout(patience, runtime.ensure_image(&request("org/app:1", None))).await {
            Ok(done) => break done.expect("pull"),
            Err(_) => patience = patience * 3 / 2,
        }
    };
    let mut spec = plain_spec(&request("org/app:1", None).reference);
    spec.image_digest = Some(info.digest.clone());
    let order = suite::order(&runtime, spec).await;
    assert_eq!(run_out(&runtime, &order).await.1, "image\n");
    let pinned = runtime
        .ensure_image(&request("org/app:2", Some(&info.digest)))
        .await
        .expect("by digest, no such tag");
    assert_eq!(pinned.digest, info.digest);
    let absent = format!("sha256:{}", "1".repeat(64));
    assert_eq!(
        code(runtime.ensure_image(&request("org/app:1", Some(&absent))).await),
        "image-not-found"
    );
    assert_eq!(
        containerd.ctr(&["images", "check", "-q"]).lines().count(),
        3,
        "complete images"
    );
    let index = registry
        .push_index("org/app", &[(machine, "1"), (other, "foreign")], "multi")
        .await;
    let multi = runtime
        .ensure_image(&request("org/app:multi", None))
        .await
        .expect("multi");
    assert_eq!(multi.digest, info.digest, "this machine's entry is chosen");
    let pinned = runtime
        .ensure_image(&request("org/app:gone", Some(&index)))
        .await
        .expect("pinned to the index");
    assert_eq!(pinned.digest, info.digest);
    registry
        .push_index("org/app", &[(other, "foreign")], "only-foreign")
        .await;
    assert_eq!(
        code(runtime.ensure_image(&request("org/app:only-foreign", None)).await),
        "image-wrong-architecture"
    );
    assert_eq!(
        containerd.ctr(&["leases", "list", "-q"]),
        "",
        "no lease is left, whatever went wrong"
    );
    drop(registry);
    assert_eq!(
        runtime
            .ensure_image(&request("org/app:1", None))
            .await
            .expect("present")
            .digest,
        info.digest
    );
}

/// Found by killing engines at random: containerd ended a creation only after the next engine had removed its record.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_record_does_not_stand_in_the_way() {
    let containerd = Containerd::start();
    let runtime = containerd.open();
    let order = suite::order(&runtime, script("trap 'exit 0' TERM; sleep 1000 & wait")).await;
    let stray = runtime.ensure_running(&order).await.expect("run").pid;
    let client = &runtime.shared.client;
    let forget = || async {
        let id = order.instance.to_string();
        let request = client.request(containerd_client::services::v1::DeleteContainerRequest { id });
        let deleted = client.containers().delete(request).await;
        deleted.expect("the record alone is removed");
    };
    forget().await;
    let listed = runtime.list().await.expect("list");
    assert_eq!(listed.len(), 1, "it is shown, so that the engine removes it");
    assert_eq!(listed[0].state, ContainerState::Created);

    let started = runtime.ensure_running(&order).await.expect("it starts all the same");
    assert_ne!(started.pid, stray);
    wait_for("the stray process to be gone", || {
        let alive = std::path::Path::new(&format!("/proc/{stray}/root")).exists();
        async move { (!alive).then_some(()) }
    })
    .await;

    // And if the instance is not wanted any more, it goes with it.
    forget().await;
    let gone = runtime.ensure_gone(order.instance, Duration::ZERO).await;
    gone.expect("gone");
    assert_eq!(containerd.ctr(&["tasks", "list", "-q"]), "");
    assert_eq!(containerd.ctr(&["containers", "list", "-q"]), "");
}
