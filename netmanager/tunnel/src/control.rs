//! The worker's end of the control socket. One connection at a time, each with a few seconds: those who may connect are
//! root and the worker's own user.

use crate::types::{DeviceConfig, DeviceStatus};
use crate::uapi::{Answer, MAX_MESSAGE, Request, decode_request, encode_answer};
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;
use tracing::{debug, warn};

/// How long a caller may be silent.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is controlled.
pub trait Controlled {
    /// How it is.
    fn get(&self) -> DeviceStatus;

    /// Brings it there, as a whole or not at all.
    ///
    /// # Errors
    /// The errno for the caller.
    fn set(&self, config: &DeviceConfig) -> Result<(), Errno>;
}

/// Listens at `path`, mode 0600. A socket that nobody listens on any more is replaced.
///
/// # Errors
/// Somebody listens there, something else is there, or the folder is missing.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if path.metadata()?.file_type().is_socket() {
                std::fs::remove_file(path)?;
            }
        }
        Err(_) => {}
    }
    // Before the bind: nobody else may connect in between.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Serves until somebody asks to stop.
pub fn serve(listener: &UnixListener, controlled: &impl Controlled) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => match converse(stream, controlled) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => debug!(%error, "a caller left"),
            },
            Err(error) => {
                warn!(%error, "cannot accept a caller");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Answers one caller until it leaves. True if it asked to stop.
fn converse(mut stream: UnixStream, controlled: &impl Controlled) -> io::Result<bool> {
    let caller = getsockopt(&stream, PeerCredentials)?;
    if caller.uid() != 0 && caller.uid() != geteuid().as_raw() {
        warn!(uid = caller.uid(), "a caller who may not control the tunnel");
        return Ok(false);
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut waiting, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        while let Some(end) = waiting.windows(2).position(|pair| pair == b"\n\n") {
            let rest = waiting.split_off(end + 2);
            let (answer, stop) = answer(&waiting, controlled);
            stream.write_all(encode_answer(&answer).as_bytes())?;
            if stop {
                return Ok(true);
            }
            waiting = rest;
        }
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(false);
        }
        if waiting.len() + length > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        waiting.extend_from_slice(&buffer[..length]);
    }
}

/// The answer to one request, and whether it asks to stop.
fn answer(request: &[u8], controlled: &impl Controlled) -> (Answer, bool) {
    let refused = |errno: Errno| Answer::Done(-(errno as i32));
    let Ok(text) = std::str::from_utf8(request) else {
        return (refused(Errno::EPROTO), false);
    };
    match decode_request(text) {
        Ok(Request::Get) => (Answer::Status(Box::new(controlled.get())), false),
        Ok(Request::Set(config)) => match controlled.set(&config) {
            Ok(()) => (Answer::Done(0), false),
            Err(errno) => (refused(errno), false),
        },
        Ok(Request::Stop) => (Answer::Done(0), true),
        Err(error) => {
            warn!(%error, "a request that is not understood");
            (refused(Errno::EINVAL), false)
        }
    }
}
