//! Telling systemd what the process does (sd_notify(3)), by one plain datagram.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says `READY=1` to the supervisor if the process environment names one (`NOTIFY_SOCKET`). Failure is logged only.
pub fn ready() {
    from_environment("READY=1");
}

/// Says `STOPPING=1` to the supervisor if the process environment names one.
pub fn stopping() {
    from_environment("STOPPING=1");
}

fn from_environment(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket.to_string_lossy(), state) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            state,
            "supervisor was not told"
        );
    }
}

/// Sends `state` to `socket`: a path, or `@name` for the abstract name space.
///
/// # Errors
/// If there is no such socket or it does not take the datagram.
pub fn send(socket: &str, state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        assert!(send("/nowhere/at/all", "READY=1").is_err());
    }
}
