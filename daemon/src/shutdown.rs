//! One way to stop: a token that everything listens to, and a deadline after which waiting ends.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Told at every SIGHUP from now on: renew at once what is otherwise renewed in time.
///
/// # Errors
/// If the handler cannot be installed.
pub fn hangups() -> io::Result<Arc<Notify>> {
    let (mut hangup, told) = (signal(SignalKind::hangup())?, Arc::new(Notify::new()));
    let notify = told.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            notify.notify_one();
        }
    });
    Ok(told)
}

/// Work was still going on when the deadline passed; it was dropped.
#[derive(Debug, thiserror::Error)]
#[error("work did not end within {0:?} of the request to stop")]
pub struct DeadlinePassed(
    /// The time that was given.
    pub Duration,
);

/// The process's wish to stop. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
    deadline: Duration,
}

impl Shutdown {
    /// Nothing stops yet; once asked to, work has `deadline` to end.
    pub fn new(deadline: Duration) -> Self {
        Self {
            token: CancellationToken::new(),
            deadline,
        }
    }

    /// Starts a task that asks for the stop at the first SIGTERM or SIGINT.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn listen_for_signals(&self) -> io::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let token = self.token.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = token.cancelled() => return,
            };
            tracing::info!(signal = name, "stopping");
            token.cancel();
        });
        Ok(())
    }

    /// Asks everything to stop.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// The token to hand to tasks; cancelled at the request.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// How long work may take to end after the request.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Waits for the request.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Runs `work`, which should end soon after the request; drops it at the deadline.
    ///
    /// # Errors
    /// [`DeadlinePassed`].
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, DeadlinePassed> {
        tokio::select! {
            output = work => Ok(output),
            () = async { self.requested().await; tokio::time::sleep(self.deadline).await } => Err(DeadlinePassed(self.deadline)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signal_cancels_the_token() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        shutdown.listen_for_signals().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(10), shutdown.requested())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_hangup_is_told_and_does_not_end_the_process() {
        let told = hangups().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        tokio::time::timeout(Duration::from_secs(10), told.notified())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn work_that_hangs_is_dropped_at_the_deadline() {
        let shutdown = Shutdown::new(Duration::from_millis(1));
        assert_eq!(shutdown.run(async { 7 }).await.unwrap(), 7);
        shutdown.request();
        assert!(shutdown.run(std::future::pending::<()>()).await.is_err());
    }
}
