//! How a controller speaks with a device: the trait [`Device`], and [`Client`] for a worker behind its socket.

use crate::types::{DeviceConfig, DeviceStatus};
use crate::uapi::{Answer, MAX_MESSAGE, Request, UapiError, decode_answer, encode_request};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker may take until it answers for the first time.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// A WireGuard device, of whatever kind. Calls block, for milliseconds; give up after 5 s; may be repeated.
pub trait Device: Send + Sync {
    /// Brings the device to `config`, as [`DeviceConfig`] says.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing has changed, unless the answer got lost.
    fn set(&self, config: &DeviceConfig) -> Result<(), DeviceError>;

    /// How it is.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn get(&self) -> Result<DeviceStatus, DeviceError>;
}

/// Why a device does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nobody listens on the socket, or they stopped listening.
    #[error("speak with the tunnel's worker on {socket}")]
    Socket {
        /// Its path.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It says something that is no answer.
    #[error("read the answer of the tunnel's worker")]
    Answer(#[source] UapiError),
    /// It does not do it.
    #[error("the tunnel's worker refuses: errno {errno}")]
    Refused {
        /// An errno of Linux, positive.
        errno: i32,
    },
    /// The kernel does not do it.
    #[error("{attempt}")]
    Kernel {
        /// What was tried.
        attempt: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("start the tunnel's worker {program}")]
    Start {
        /// Its path.
        program: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The program ended instead of serving.
    #[error("the tunnel's worker did not begin to serve: {state}")]
    NotServing {
        /// Exit status, or that it still runs.
        state: String,
    },
}

/// A worker's socket. Each call is a connection of its own, so it also reaches a worker that was started anew.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Removes the device and ends the worker. Returns when it has said that it will.
    ///
    /// # Errors
    /// [`DeviceError`]; of kind [`io::ErrorKind::ConnectionRefused`] or `NotFound` if none runs.
    pub fn stop(&self) -> Result<(), DeviceError> {
        self.done(&Request::Stop)
    }

    fn done(&self, request: &Request) -> Result<(), DeviceError> {
        match self.ask(request)? {
            Answer::Done(0) => Ok(()),
            Answer::Done(errno) => Err(DeviceError::Refused { errno: errno.abs() }),
            Answer::Status(_) => Err(DeviceError::Answer(UapiError::UnknownRequest)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer, DeviceError> {
        let failed = |source| DeviceError::Socket {
            socket: self.socket.clone(),
            source,
        };
        let text = self.exchange(&encode_request(request)).map_err(failed)?;
        decode_answer(&text).map_err(DeviceError::Answer)
    }

    fn exchange(&self, request: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 16 << 10]);
        while !answer.ends_with(b"\n\n") {
            let length = stream.read(&mut buffer)?;
            if length == 0 || answer.len() + length > MAX_MESSAGE {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(answer).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl Device for Client {
    fn set(&self, config: &DeviceConfig) -> Result<(), DeviceError> {
        self.done(&Request::Set(Box::new(config.clone())))
    }

    fn get(&self) -> Result<DeviceStatus, DeviceError> {
        match self.ask(&Request::Get)? {
            Answer::Status(status) => Ok(*status),
            Answer::Done(errno) => Err(DeviceError::Refused { errno: errno.abs() }),
        }
    }
}

/// How a worker is started. It knows nothing before the first [`Device::set`].
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program `roble-tunnel`.
    pub program: PathBuf,
    /// Name of its TUN device; one that a worker before it left behind is taken over, with addresses and routes.
    pub device: String,
    /// Path of its socket.
    pub socket: PathBuf,
}

impl Launch {
    /// Starts a worker unless one answers on the socket already, and waits until it does. It has a process group of its
    /// own and outlives its parent. Returns the child if it was started now; who gets it must wait for its end some time.
    ///
    /// # Errors
    /// [`DeviceError::Start`], [`DeviceError::NotServing`].
    pub fn ensure_running(&self) -> Result<(Client, Option<Child>), DeviceError> {
        let client = Client::new(&self.socket);
        if client.get().is_ok() {
            return Ok((client, None));
        }
        let mut command = Command::new(&self.program);
        command
            .args(["--device", &self.device])
            .arg("--socket")
            .arg(&self.socket);
        let started = command.stdin(Stdio::null()).process_group(0).spawn();
        let mut child = started.map_err(|source| DeviceError::Start {
            program: self.program.clone(),
            source,
        })?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if client.get().is_ok() {
                return Ok((client, Some(child)));
            }
            let ended = child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline {
                let state = ended.map_or_else(|| "it runs, but is silent".to_owned(), |status| status.to_string());
                // One that is silent would hold the device.
                let _ = child.kill();
                let _ = child.wait();
                return Err(DeviceError::NotServing { state });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
