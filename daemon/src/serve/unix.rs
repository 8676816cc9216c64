//! Local APIs: a Unix socket that only root and the daemon's own user may use.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use http::Extensions;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Limits, ServeError, accept, requests};

/// The process at the other end, as the kernel says (`SO_PEERCRED`): request extension on Unix sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixPeer {
    /// Its effective user id when it connected.
    pub uid: u32,
    /// Its process id, if the kernel knows one.
    pub pid: Option<i32>,
}

/// Binds a socket at `path` (0600), in place of a socket that a dead process left there. Hold the state folder's
/// [`FileLock`](crate::files::FileLock) first: it tells dead from alive. The folder must exist.
///
/// # Errors
/// [`ServeError::Bind`], also if something else than a socket is there.
pub fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let bind = || {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source| ServeError::Bind {
        address: path.display().to_string(),
        source,
    })
}

/// Serves `router` to processes of user 0 and of our own user; others are closed at once. Requests carry [`UnixPeer`] and
/// [`Draining`](super::Draining). Ends after the drain that `shutdown` starts.
///
/// # Errors
/// None so far.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let own = nix::unistd::geteuid().as_raw();
    serve_if(listener, router, limits, shutdown, move |uid| uid == 0 || uid == own).await
}

pub(super) async fn serve_if(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
    allowed: impl Fn(u32) -> bool,
) -> Result<(), ServeError> {
    let limits = Arc::new(limits);
    let gate = accept::Gate::new(&Limits {
        connections_per_peer: usize::MAX,
        ..(*limits).clone()
    });
    let drain = accept::Drain::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            stream = next(&listener) => stream,
        };
        let Some(peer) = peer(&stream).filter(|peer| allowed(peer.uid)) else {
            tracing::warn!("local connection of another user refused");
            continue;
        };
        let Some(permit) = gate.admit(std::net::Ipv4Addr::LOCALHOST.into()) else {
            continue;
        };
        let (router, limits, shutdown) = (router.clone(), limits.clone(), shutdown.clone());
        drain.spawn(async move {
            let _permit = permit;
            let mut extensions = Extensions::new();
            extensions.insert(peer);
            requests::serve(stream, router, &limits, extensions, shutdown).await;
        });
    }
    drop(listener);
    drain.finish(limits.drain).await;
    Ok(())
}

fn peer(stream: &UnixStream) -> Option<UnixPeer> {
    let credentials = stream.peer_cred().ok()?;
    Some(UnixPeer {
        uid: credentials.uid(),
        pid: credentials.pid(),
    })
}

async fn next(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => accept::paused(&error).await,
        }
    }
}
