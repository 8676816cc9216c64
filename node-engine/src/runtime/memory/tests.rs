use super::*;
use crate::runtime::suite::{self, Behaviour, Fixture};
use roble_core::spec::InstanceSpec;

struct Memory(MemoryRuntime);

#[async_trait]
impl Fixture for Memory {
    async fn open(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.restarted())
    }

    fn spec(&self, behaviour: Behaviour) -> InstanceSpec {
        let image = format!("{behaviour:?}").to_lowercase().replace(['(', ')'], "");
        let script = match behaviour {
            Behaviour::Runs => ImageScript::default(),
            Behaviour::Ends(code) => ImageScript {
                exit: Some((Duration::from_millis(50), code)),
                ..ImageScript::default()
            },
            Behaviour::IgnoresStop => ImageScript {
                ignores_stop: true,
                ..ImageScript::default()
            },
            Behaviour::Prints => ImageScript {
                output: b"one\ntwo\nthree\n".to_vec(),
                ..ImageScript::default()
            },
        };
        self.0.set_image(&image, script);
        suite::plain_spec(&image)
    }

    fn missing_image(&self) -> String {
        "missing".to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn memory_runtime_keeps_the_contract() {
    suite::run(&Memory(MemoryRuntime::new())).await;
}

#[tokio::test(start_paused = true)]
async fn faults_happen_as_told() {
    let runtime = MemoryRuntime::new();
    let order = suite::order(&runtime, suite::plain_spec("hello")).await;
    runtime.fail_next(
        Operation::EnsureRunning,
        RuntimeError::Unavailable {
            detail: "told so".to_owned(),
        },
    );
    assert!(
        runtime
            .ensure_running(&order)
            .await
            .expect_err("told to fail")
            .is_retryable()
    );
    runtime.set_delay(Operation::EnsureRunning, Duration::from_secs(60));
    let early = tokio::time::timeout(Duration::from_secs(59), runtime.ensure_running(&order)).await;
    assert!(early.is_err(), "told to be slow");
    runtime.ensure_running(&order).await.expect("run");
    assert!(runtime.end_out_of_memory(order.instance));
    assert!(runtime.next_exit().await.reason.oom_killed);
    assert_eq!(runtime.starts(order.instance), 1);
    let wrong = ImageScript {
        architecture: "s390x".to_owned(),
        ..ImageScript::default()
    };
    runtime.set_image("mainframe", wrong);
    let request = ImageRequest {
        reference: "mainframe".to_owned(),
        digest: None,
    };
    assert_eq!(
        runtime.ensure_image(&request).await.expect_err("wrong").code(),
        "image-wrong-architecture"
    );
}
