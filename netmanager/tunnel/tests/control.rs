//! Client and control socket together, over a device that only remembers.

use nix::errno::Errno;
use roble_tunnel::control::{Controlled, listen, serve};
use roble_tunnel::{Client, Device as _, DeviceConfig, DeviceError, DeviceStatus};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

#[derive(Default)]
struct Remembers(Mutex<DeviceStatus>);

impl Controlled for Remembers {
    fn get(&self) -> DeviceStatus {
        self.0.lock().unwrap().clone()
    }

    fn set(&self, config: &DeviceConfig) -> Result<(), Errno> {
        match config.listen_port {
            Some(0) => Err(Errno::EADDRINUSE),
            port => {
                self.0.lock().unwrap().listen_port = port.unwrap_or(0);
                Ok(())
            }
        }
    }
}

#[test]
fn a_client_sets_gets_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.sock");
    // What a killed worker leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = listen(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(listen(&path).is_err(), "somebody listens there");
    let server = std::thread::spawn(move || serve(&listener, &Remembers::default()));
    let client = Client::new(&path);
    let port = |listen_port| DeviceConfig {
        listen_port: Some(listen_port),
        ..DeviceConfig::default()
    };
    client.set(&port(7)).unwrap();
    assert_eq!(client.get().unwrap().listen_port, 7);
    let refused = client.set(&port(0)).unwrap_err();
    assert!(
        matches!(refused, DeviceError::Refused { errno } if errno == Errno::EADDRINUSE as i32),
        "{refused:?}"
    );
    for (question, answer) in [("set=1\nnonsense\n\n", "errno=-22\n\n"), ("\n\n", "errno=-22\n\n")] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(question.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, answer);
    }
    client.stop().unwrap();
    server.join().unwrap();
    assert!(matches!(client.get(), Err(DeviceError::Socket { .. })));
}
