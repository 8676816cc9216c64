//! Between the tier and the world: calls go in and wait for their answer, acts come out and are performed.

use crate::link::Links;
use crate::metrics::RootMetrics;
use crate::tier::{Act, Answer, Call, Caller, Event, OrganizationScope};
use roble_daemon::pki::Identity;
use roble_daemon::refusal::Refusal;
use roble_daemon::shell::Hands;
use roble_daemon::tls::Revocations;
use roble_proto::rest::EventView;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// How long a call may take; longer than the tier waits for clusters.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Events that wait for the tier; who sends waits beyond that.
pub const EVENT_QUEUE: usize = 1_024;
/// Happenings kept for who follows too slowly.
pub const FOLLOW_QUEUE: usize = 256;

/// Something that happened, and whose business it is.
#[derive(Debug)]
pub struct Happened {
    /// What users see.
    pub view: EventView,
    /// Who may see it; `None`: operators.
    pub scope: OrganizationScope,
}

/// Calls without an answer yet, by number. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<CallsInner>);

#[derive(Debug, Default)]
struct CallsInner {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Calls {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.0.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn answer(&self, number: u64, answer: Answer) {
        if let Some(caller) = self.waiting().remove(&number) {
            // Who asked may have left.
            let _ = caller.send(answer);
        }
    }
}

/// Forgets a call whose caller gave up.
struct Waiting<'a>(&'a Calls, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

/// Calls the tier. Clones share it.
#[derive(Debug, Clone)]
pub struct ApiHandle {
    events: mpsc::Sender<Event>,
    calls: Calls,
}

impl ApiHandle {
    /// Calls the tier that reads `events`; answers come through [`RootHands`] made with the same `calls`.
    pub const fn new(events: mpsc::Sender<Event>, calls: Calls) -> Self {
        Self { events, calls }
    }

    /// Asks the tier and waits. Dropping the future forgets the answer, not the call.
    ///
    /// # Errors
    /// The tier's refusal, 504 `timeout`, or 503 `stopping`.
    pub async fn call(&self, caller: Caller, call: Call) -> Answer {
        let number = self.calls.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.calls.waiting().insert(number, sender);
        let _waiting = Waiting(&self.calls, number);
        let stopping = || Refusal::new("stopping", "the root is stopping; try again");
        let answered = async {
            let sent = self.events.send(Event::Call(number, caller, call)).await;
            sent.map_err(|_| stopping())?;
            receiver.await.map_err(|_| stopping())?
        };
        let late = || {
            Refusal::new(
                "timeout",
                "the root did not answer in time; it may still do what was asked",
            )
        };
        tokio::time::timeout(CALL_TIMEOUT, answered)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

/// Performs the tier's acts.
#[derive(Debug)]
pub struct RootHands {
    /// Who waits for answers.
    pub calls: Calls,
    /// The clusters' streams.
    pub links: Links,
    /// Whom to refuse.
    pub revocations: Arc<Revocations>,
    /// Who follows events.
    pub happened: broadcast::Sender<Arc<Happened>>,
    /// What is counted.
    pub metrics: RootMetrics,
}

impl Hands<Act> for RootHands {
    fn act(&mut self, act: Act) {
        match act {
            Act::Answer(number, answer) => self.calls.answer(number, answer),
            Act::Send(cluster, frame) => self.links.send(cluster, frame),
            Act::Expel(cluster) => {
                self.links.close(cluster);
                let closed = self.revocations.deny(Identity::Cluster(cluster.to_string()));
                tracing::info!(%cluster, connections = closed, "cluster expelled");
            }
            Act::Happened(view, scope) => {
                tracing::info!(about = %view.about, code = %view.code, text = %view.message, "event");
                // Without followers there is nobody to tell.
                let _ = self.happened.send(Arc::new(Happened { view: *view, scope }));
            }
            Act::Violation(what) => {
                self.metrics.violations.inc();
                tracing::warn!(%what, "protocol violation");
            }
        }
    }
}
