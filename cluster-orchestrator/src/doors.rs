//! Questions to the tier from outside, and its answers back to whoever asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roble_core::registry::{Member, RegistryError};
use roble_daemon::refusal::Refusal;
use roble_proto::wire;
use roble_proto::wire::request::What;
use tokio::sync::{mpsc, oneshot};

use crate::tier::Event;

/// How long the tier may take; it answers at once unless a node is asked, which has 5 s.
const WITHIN: Duration = Duration::from_secs(15);

/// An answer of the tier.
#[derive(Debug)]
pub enum Reply {
    /// To a join or renewal.
    Joined(Result<Member, RegistryError>),
    /// To a local request.
    Answer(Result<Vec<u8>, wire::Failure>),
}

/// The tier does not answer: the daemon starts or stops, or is overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster orchestrator does not answer now; try again")]
pub struct NoAnswer;

impl From<NoAnswer> for Refusal {
    fn from(error: NoAnswer) -> Self {
        Self::new("unavailable", error.to_string())
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Doors {
    events: mpsc::Sender<Event>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
}

/// Forgets the question when nobody waits any more.
struct Waiting<'a>(&'a Doors, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

impl Doors {
    /// Questions go into `events`.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings an answer of the tier.
    pub fn reply(&self, asker: u64, reply: Reply) {
        if let Some(waiting) = self.waiting().remove(&asker) {
            // Whoever asked may have left.
            let _ = waiting.send(reply);
        }
    }

    async fn ask(&self, event: impl FnOnce(u64) -> Event) -> Result<Reply, NoAnswer> {
        let asker = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting().insert(asker, sender);
        let _waiting = Waiting(self, asker);
        let asking = async {
            self.events.send(event(asker)).await.map_err(|_| NoAnswer)?;
            answer.await.map_err(|_| NoAnswer)
        };
        tokio::time::timeout(WITHIN, asking).await.unwrap_or(Err(NoAnswer))
    }

    /// Asks about a member: `event` is a join or a renewal.
    ///
    /// # Errors
    /// [`NoAnswer`]; inside, why the tier refused.
    pub async fn member(&self, event: impl FnOnce(u64) -> Event) -> Result<Result<Member, RegistryError>, NoAnswer> {
        match self.ask(event).await? {
            Reply::Joined(joined) => Ok(joined),
            Reply::Answer(_) => Err(NoAnswer),
        }
    }

    /// Asks on behalf of somebody at the site. The answer is JSON.
    ///
    /// # Errors
    /// [`NoAnswer`]; inside, why the tier refused.
    pub async fn local(&self, what: What) -> Result<Result<Vec<u8>, wire::Failure>, NoAnswer> {
        match self.ask(|asker| Event::Local(asker, what)).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Joined(_) => Err(NoAnswer),
        }
    }
}
