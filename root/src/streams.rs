//! Log streams: a user asks, the cluster is told an id that nobody can guess, and dials a stream with it.

use roble_proto::wire::StreamFrame;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// Pieces that wait for a slow reader; beyond that the cluster waits (HTTP/2 flow control).
const PIECES: usize = 8;

/// Streams that were asked for and not dialed yet. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct LogStreams(Arc<Mutex<HashMap<String, mpsc::Sender<StreamFrame>>>>);

/// The receiving end. Dropping it ends the stream.
#[derive(Debug)]
pub struct LogReceiver {
    streams: LogStreams,
    id: String,
    frames: mpsc::Receiver<StreamFrame>,
}

impl LogStreams {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<StreamFrame>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Expects a stream under a new id.
    pub fn expect(&self) -> LogReceiver {
        let id = hex::encode(roble_daemon::rng::secret_bytes::<24>());
        let (sender, frames) = mpsc::channel(PIECES);
        self.waiting().insert(id.clone(), sender);
        LogReceiver {
            streams: self.clone(),
            id,
            frames,
        }
    }

    /// The end to write to; works once per id.
    pub fn take(&self, id: &str) -> Option<mpsc::Sender<StreamFrame>> {
        self.waiting().remove(id)
    }
}

impl LogReceiver {
    /// The stream's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next frame, the one with the id first; `None` at the end.
    pub async fn next(&mut self) -> Option<StreamFrame> {
        self.frames.recv().await
    }
}

impl Drop for LogReceiver {
    fn drop(&mut self) {
        self.streams.waiting().remove(&self.id);
    }
}
