//! The contract of [`Runtime`], run on every implementation. A case panics where the contract is broken.

use super::{ContainerState, Exit, ImageRequest, LogRequest, RunOrder, RunningInstance, Runtime, SandboxFiles};
use async_trait::async_trait;
use futures_util::StreamExt;
use roble_core::ids::{ApplicationId, InstanceId, OrganizationId, RawId, ServiceId};
use roble_core::resources::Resources;
use roble_core::spec::{Constraints, InstanceSpec, RestartPolicy, SecurityProfile, WhenCutOff};
use roble_core::version::{Epochs, Generation, Version};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a case waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What a container of the suite does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs until the polite signal, then ends at once.
    Runs,
    /// Ends by itself soon, with this code.
    Ends(i32),
    /// Runs and does not react to the polite signal.
    IgnoresStop,
    /// Writes the lines `one`, `two`, `three`, then runs until the polite signal.
    Prints,
}

/// What the suite needs from an implementation.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The runtime as a new process of the engine would see it; containers of earlier calls still run.
    async fn open(&self) -> Arc<dyn Runtime>;
    /// A spec that behaves so.
    fn spec(&self, behaviour: Behaviour) -> InstanceSpec;
    /// An image reference that does not exist anywhere.
    fn missing_image(&self) -> String;
}

/// Runs all cases, one after the other.
pub async fn run(fixture: &dyn Fixture) {
    assert!(!fixture.open().await.check().await.expect("check").is_empty());
    image_is_present_and_pinned(fixture).await;
    missing_image_is_reported(fixture).await;
    running_twice_is_running_once(fixture).await;
    concurrent_orders_make_one_container(fixture).await;
    newer_version_replaces_and_older_is_refused(fixture).await;
    exit_code_is_reported(fixture).await;
    ended_instance_can_be_run_again(fixture).await;
    gone_is_repeatable(fixture).await;
    stop_is_polite_then_firm(fixture).await;
    containers_survive_the_engine(fixture).await;
    logs_are_kept_followed_and_cut(fixture).await;
    let left = fixture.open().await.list().await.expect("list");
    assert!(left.is_empty(), "the suite left {left:?}");
}

/// Waits until `probe` gives something; panics with `what` after [`DEADLINE`].
pub async fn wait_for<T, F, P>(what: &str, mut probe: P) -> T
where
    P: FnMut() -> F,
    F: Future<Output = Option<T>>,
{
    let poll = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, poll)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A fresh instance id.
pub fn new_instance() -> InstanceId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let mut bytes = [7_u8; 12];
    bytes[..4].copy_from_slice(&std::process::id().to_be_bytes());
    bytes[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    InstanceId {
        service: ServiceId(RawId::from_bytes(bytes)),
        number: 3,
    }
}

/// The version of this generation, placed once by two tiers.
pub fn version(generation: u64) -> Version {
    Version {
        generation: Generation(generation),
        epochs: Epochs(vec![1, 1]),
    }
}

/// A spec of this image with small limits and defaults for the rest.
pub fn plain_spec(image: &str) -> InstanceSpec {
    InstanceSpec {
        organization: OrganizationId(RawId::from_bytes([1; 12])),
        application: ApplicationId(RawId::from_bytes([2; 12])),
        path: "app/suite".to_owned(),
        virtualization: "container".to_owned(),
        image: image.to_owned(),
        image_digest: None,
        command: Vec::new(),
        args: Vec::new(),
        environment: Vec::new(),
        working_dir: None,
        user: None,
        resources: Resources {
            cpu_millis: 200,
            memory_bytes: 64 << 20,
        },
        ports: Vec::new(),
        restart: RestartPolicy::Always,
        one_shot: false,
        stop_grace_ms: 5_000,
        when_cut_off: WhenCutOff::KeepRunning,
        security: SecurityProfile::Baseline,
        constraints: Constraints::default(),
    }
}

/// Makes the image present and the order for it: generation 1, no network.
pub async fn order(runtime: &dyn Runtime, spec: InstanceSpec) -> RunOrder {
    let image = runtime.ensure_image(&ImageRequest::of(&spec)).await.expect("image");
    RunOrder {
        instance: new_instance(),
        version: version(1),
        spec: Arc::new(spec),
        image_digest: image.digest,
        netns: None,
        files: SandboxFiles::default(),
    }
}

/// The entry of `instance` in the list, if any; panics on two.
pub async fn find(runtime: &dyn Runtime, instance: InstanceId) -> Option<RunningInstance> {
    let mut found: Vec<_> = runtime.list().await.expect("list");
    found.retain(|entry| entry.instance == instance);
    assert!(found.len() <= 1, "two containers of one instance: {found:?}");
    found.pop()
}

/// Waits until the list shows that the instance ended.
pub async fn wait_exited(runtime: &dyn Runtime, instance: InstanceId) -> super::ExitReason {
    wait_for("the container to end", || async move {
        match find(runtime, instance).await?.state {
            ContainerState::Exited(reason) => Some(reason),
            _ => None,
        }
    })
    .await
}

/// Waits until the runtime tells the end of `instance`.
pub async fn wait_exit_hint(runtime: &dyn Runtime, instance: InstanceId) -> Exit {
    let told = async {
        loop {
            let exit = runtime.next_exit().await;
            if exit.instance == instance {
                return exit;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("no exit was told")
}

/// The whole log as text, without following.
pub async fn read_log(runtime: &dyn Runtime, instance: InstanceId, tail_lines: Option<u32>) -> String {
    let request = LogRequest {
        follow: false,
        tail_lines,
    };
    let mut stream = runtime.logs(instance, request).await.expect("logs");
    let mut text = Vec::new();
    while let Some(chunk) = stream.next().await {
        text.extend_from_slice(&chunk.expect("log chunk"));
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn gone(runtime: &dyn Runtime, instance: InstanceId) {
    runtime
        .ensure_gone(instance, Duration::from_secs(5))
        .await
        .expect("gone");
    assert_eq!(find(runtime, instance).await, None);
}

async fn image_is_present_and_pinned(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let spec = fixture.spec(Behaviour::Runs);
    let first = runtime.ensure_image(&ImageRequest::of(&spec)).await.expect("image");
    assert!(super::reference::is_digest(&first.digest), "{first:?}");
    let pinned = ImageRequest {
        reference: spec.image.clone(),
        digest: Some(first.digest.clone()),
    };
    assert_eq!(runtime.ensure_image(&pinned).await.expect("pinned image"), first);
    let other = format!("sha256:{}", "0".repeat(64));
    let wrong = ImageRequest {
        reference: spec.image,
        digest: Some(other),
    };
    let error = runtime
        .ensure_image(&wrong)
        .await
        .expect_err("another digest was pinned");
    assert_eq!(error.code(), "digest-mismatch");
    assert!(!error.is_retryable());
}

async fn missing_image_is_reported(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let request = ImageRequest {
        reference: fixture.missing_image(),
        digest: None,
    };
    let error = runtime
        .ensure_image(&request)
        .await
        .expect_err("the image does not exist");
    assert_eq!(error.code(), "image-not-found", "{error}");
    let request = ImageRequest {
        reference: "Not A Reference".to_owned(),
        digest: None,
    };
    assert_eq!(
        runtime.ensure_image(&request).await.expect_err("bad").code(),
        "image-bad-reference"
    );
}

async fn running_twice_is_running_once(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let order = order(&*runtime, fixture.spec(Behaviour::Runs)).await;
    let first = runtime.ensure_running(&order).await.expect("run");
    assert_eq!(runtime.ensure_running(&order).await.expect("run again"), first);
    let entry = find(&*runtime, order.instance).await.expect("listed");
    assert_eq!(entry.version, order.version);
    assert_eq!(entry.spec_hash, order.spec_hash());
    assert_eq!(entry.image_digest, order.image_digest);
    assert_eq!(entry.state, ContainerState::Running(first));
    gone(&*runtime, order.instance).await;
}

async fn concurrent_orders_make_one_container(fixture: &dyn Fixture) {
    let (one, two) = (fixture.open().await, fixture.open().await);
    let order = order(&*one, fixture.spec(Behaviour::Runs)).await;
    let (a, b) = tokio::join!(one.ensure_running(&order), one.ensure_running(&order));
    assert_eq!(a.expect("first"), b.expect("second"));
    find(&*two, order.instance).await.expect("listed");
    gone(&*one, order.instance).await;
}

async fn newer_version_replaces_and_older_is_refused(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let mut order = order(&*runtime, fixture.spec(Behaviour::Runs)).await;
    let first = runtime.ensure_running(&order).await.expect("generation 1");
    order.version = version(2);
    let second = runtime.ensure_running(&order).await.expect("generation 2");
    assert_ne!(first.pid, second.pid);
    assert_eq!(
        find(&*runtime, order.instance).await.expect("listed").version,
        version(2)
    );
    order.version = version(1);
    let error = runtime.ensure_running(&order).await.expect_err("outdated");
    assert_eq!(error.code(), "outdated");
    let entry = find(&*runtime, order.instance).await.expect("listed");
    assert_eq!(
        (entry.version, entry.state),
        (version(2), ContainerState::Running(second))
    );
    gone(&*runtime, order.instance).await;
}

async fn exit_code_is_reported(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    for code in [0, 7] {
        let order = order(&*runtime, fixture.spec(Behaviour::Ends(code))).await;
        runtime.ensure_running(&order).await.expect("run");
        let told = wait_exit_hint(&*runtime, order.instance).await;
        assert_eq!(
            (told.reason.code, told.reason.signal, told.reason.oom_killed),
            (code, None, false)
        );
        assert_eq!(told.version, order.version);
        assert_eq!(wait_exited(&*runtime, order.instance).await.code, code);
        gone(&*runtime, order.instance).await;
    }
}

async fn ended_instance_can_be_run_again(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let order = order(&*runtime, fixture.spec(Behaviour::Ends(4))).await;
    let first = runtime.ensure_running(&order).await.expect("run");
    wait_exited(&*runtime, order.instance).await;
    let second = runtime.ensure_running(&order).await.expect("run again");
    assert_ne!(first.pid, second.pid);
    assert_eq!(wait_exited(&*runtime, order.instance).await.code, 4);
    gone(&*runtime, order.instance).await;
}

async fn gone_is_repeatable(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    gone(&*runtime, new_instance()).await;
    let order = order(&*runtime, fixture.spec(Behaviour::Runs)).await;
    runtime.ensure_running(&order).await.expect("run");
    let started = std::time::Instant::now();
    runtime.ensure_gone(order.instance, DEADLINE).await.expect("gone");
    assert!(
        started.elapsed() < DEADLINE,
        "the whole grace was waited for a process that ends at once"
    );
    gone(&*runtime, order.instance).await;
    let error = runtime
        .logs(order.instance, LogRequest::default())
        .await
        .err()
        .expect("no log is left");
    assert_eq!(error.code(), "no-such-instance");
}

async fn stop_is_polite_then_firm(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let order = order(&*runtime, fixture.spec(Behaviour::IgnoresStop)).await;
    runtime.ensure_running(&order).await.expect("run");
    runtime
        .ensure_gone(order.instance, Duration::from_millis(300))
        .await
        .expect("gone");
    assert_eq!(find(&*runtime, order.instance).await, None);
    let told = wait_exit_hint(&*runtime, order.instance).await;
    assert_eq!((told.reason.code, told.reason.signal), (137, Some(9)));
}

async fn containers_survive_the_engine(fixture: &dyn Fixture) {
    let before = fixture.open().await;
    let stays = order(&*before, fixture.spec(Behaviour::Runs)).await;
    let ends = order(&*before, fixture.spec(Behaviour::Ends(9))).await;
    let started = before.ensure_running(&stays).await.expect("run");
    before.ensure_running(&ends).await.expect("run");
    drop(before);
    let after = fixture.open().await;
    assert_eq!(after.ensure_running(&stays).await.expect("adopted"), started);
    assert_eq!(wait_exited(&*after, ends.instance).await.code, 9);
    gone(&*after, ends.instance).await;
    gone(&*after, stays.instance).await;
    assert!(wait_exit_hint(&*after, stays.instance).await.reason.at >= started.started_at);
}

async fn logs_are_kept_followed_and_cut(fixture: &dyn Fixture) {
    let runtime = fixture.open().await;
    let order = order(&*runtime, fixture.spec(Behaviour::Prints)).await;
    runtime.ensure_running(&order).await.expect("run");
    let whole = "one\ntwo\nthree\n";
    let shared = &*runtime;
    let instance = order.instance;
    wait_for("three lines in the log", || async move {
        (read_log(shared, instance, None).await == whole).then_some(())
    })
    .await;
    assert_eq!(read_log(shared, instance, Some(2)).await, "two\nthree\n");
    assert_eq!(read_log(shared, instance, Some(0)).await, "");
    let mut followed = runtime
        .logs(
            instance,
            LogRequest {
                follow: true,
                tail_lines: Some(1),
            },
        )
        .await
        .expect("follow");
    assert_eq!(followed.next().await.expect("chunk").expect("bytes"), "three\n");
    let rest = async { while followed.next().await.is_some() {} };
    let (removed, ended) = tokio::join!(
        runtime.ensure_gone(instance, Duration::from_secs(5)),
        tokio::time::timeout(DEADLINE, rest)
    );
    removed.expect("gone");
    ended.expect("a followed log ends with its instance");
}
