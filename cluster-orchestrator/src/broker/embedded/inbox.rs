//! Events on their way to the cluster, bounded by bytes: per client, so that a flood makes only its sender wait, and in
//! total. The channel itself has no bound because nothing enters it without a ticket.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use super::BrokerEvent;

/// What an event costs besides its payload.
const EVENT_BYTES: usize = 512;

/// The room an event takes up until it is handed over.
pub(super) struct Ticket {
    _of_all: OwnedSemaphorePermit,
    _of_client: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    /// For an event without a payload.
    pub(super) fn of(room: OwnedSemaphorePermit) -> Self {
        Self {
            _of_all: room,
            _of_client: None,
        }
    }
}

pub(super) struct Inbox {
    sender: mpsc::UnboundedSender<(BrokerEvent, Ticket)>,
    receiver: Mutex<mpsc::UnboundedReceiver<(BrokerEvent, Ticket)>>,
    budget: Arc<Semaphore>,
    total_bytes: usize,
}

impl Inbox {
    pub(super) fn new(total_bytes: usize) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Mutex::new(receiver),
            budget: Arc::new(Semaphore::new(total_bytes)),
            total_bytes,
        }
    }

    pub(super) async fn next(&self) -> BrokerEvent {
        let (event, _ticket) = self
            .receiver
            .lock()
            .await
            .recv()
            .await
            .expect("the inbox holds a sender as long as it lives");
        event
    }

    pub(super) fn push(&self, event: BrokerEvent, ticket: Ticket) {
        // Cannot fail while the inbox lives: it holds the receiver.
        let _ = self.sender.send((event, ticket));
    }

    /// Waits for room for an event without a payload.
    pub(super) async fn room(&self) -> OwnedSemaphorePermit {
        acquire(&self.budget, EVENT_BYTES).await
    }

    /// Waits for room for a message, first on the client's own account.
    pub(super) async fn room_for(&self, payload_bytes: usize, client: &Budget) -> Ticket {
        let bytes = payload_bytes + EVENT_BYTES;
        let of_client = acquire(&client.budget, bytes.min(client.total_bytes)).await;
        let of_all = acquire(&self.budget, bytes.min(self.total_bytes)).await;
        Ticket {
            _of_all: of_all,
            _of_client: Some(of_client),
        }
    }
}

/// What one client may have waiting.
pub(super) struct Budget {
    budget: Arc<Semaphore>,
    total_bytes: usize,
}

impl Budget {
    pub(super) fn new(total_bytes: usize) -> Self {
        Self {
            budget: Arc::new(Semaphore::new(total_bytes)),
            total_bytes,
        }
    }
}

async fn acquire(budget: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    budget
        .clone()
        .acquire_many_owned(bytes)
        .await
        .expect("budgets are never closed")
}
