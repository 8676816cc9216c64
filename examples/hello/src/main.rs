//! A small HTTP/1.1 server, the example image: it shows who answers, and misbehaves on request.
//!
//! | request | answer |
//! | --- | --- |
//! | GET `/` | `GREETING from HOSTNAME instance $ROBLE_INSTANCE` |
//! | GET `/healthz` | `ok` |
//! | POST, PUT `/echo` | the body; GET `/echo?text` the text |
//!
//! With `--echo PORT` streams and datagrams come back there too, see [`echo`].
//!
//! Standard library and signals only, so that the image is this one static file. It may be process 1.
//! Bounds: [`WORKERS`] connections are served at a time, as many more wait in the accept queue; a request has
//! [`IO_TIMEOUT`] to arrive, heads [`MAX_HEAD`] and bodies [`MAX_BODY`] bytes.

mod echo;
mod flags;
mod http;

use flags::Flags;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Connections served at a time.
const WORKERS: usize = 32;
/// Stack of a worker: small, since nothing here recurses.
const STACK: usize = 128 * 1024;
/// Time for a whole request, or for silence between two of them.
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// Longest body of a request.
const MAX_BODY: usize = 8 << 20;
/// Time for requests under way after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// What every answer needs.
pub struct Hello {
    greeting: String,
    host: String,
    instance: String,
    busy: AtomicUsize,
}

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(message) => {
            eprintln!("hello: {message}\n\n{}", flags::USAGE);
            return ExitCode::from(2);
        }
    };
    // Before any thread starts, so that all inherit it: the signals wait for `stop_on_signal`, also if this is process 1,
    // which otherwise ignores signals without a handler.
    let signals = block_signals();
    let hello = Arc::new(Hello {
        greeting: variable("GREETING", "hello"),
        host: host_name(),
        instance: variable("ROBLE_INSTANCE", "?"),
        busy: AtomicUsize::new(0),
    });
    say(hello.greeting_line().trim_end());
    // Kept until the process ends: that is the purpose.
    let _memory = touch(flags.memory_mib);
    if let Some(address) = &flags.callback {
        call_back(address, &hello);
    }
    if let Some(code) = flags.exit {
        return ExitCode::from(code);
    }
    if let Some(after) = flags.crash_after {
        thread::spawn(move || {
            thread::sleep(after);
            eprintln!("hello: crashes as asked for");
            std::process::exit(101);
        });
    }
    if let Some(address) = flags.call {
        thread::spawn(move || call(&address));
    }
    if let Some(port) = flags.echo
        && let Err(error) = echo::start(port, &hello.greeting_line())
    {
        eprintln!("hello: echo at port {port}: {error}");
        return ExitCode::FAILURE;
    }
    match listen() {
        Ok(listener) => serve(listener, &hello, signals),
        Err(message) => {
            eprintln!("hello: {message}");
            ExitCode::FAILURE
        }
    }
}

impl Hello {
    fn greeting_line(&self) -> String {
        format!("{} from {} instance {}\n", self.greeting, self.host, self.instance)
    }
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| variable("HOSTNAME", "localhost"))
}

/// A line to standard output. Nobody reading it is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn touch(mib: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; mib << 20];
    // A page counts only once it is written to.
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}

/// Connects once and says who this is: whoever listens there sees to the millisecond when the process ran.
fn call_back(address: &str, hello: &Hello) {
    let connect = || {
        let address = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(hello.greeting_line().as_bytes())
    };
    if let Err(error) = connect() {
        eprintln!("hello: call back {address}: {error}");
    }
}

/// Asks who is there, again and again, each time over a connection of its own: one line for each answer.
fn call(address: &str) {
    let ask = || -> std::io::Result<String> {
        let target = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.take(MAX_BODY as u64).read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
        Ok(format!("{target} says: {body}"))
    };
    loop {
        match ask() {
            Ok(answer) => say(&answer),
            Err(error) => say(&format!("{address} does not answer: {error}")),
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn block_signals() -> Option<nix::sys::signal::SigSet> {
    use nix::sys::signal::{SigSet, Signal};
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().ok().map(|()| signals)
}

fn listen() -> Result<TcpListener, String> {
    let text = variable("PORT", "8080");
    let port: u16 = text
        .parse()
        .map_err(|_| format!("PORT is `{text}`, a number from 0 to 65535 expected"))?;
    // Both families at once where there is IPv6.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    listener.map_err(|error| format!("listen on port {port}: {error}"))
}

fn serve(listener: TcpListener, hello: &Arc<Hello>, signals: Option<nix::sys::signal::SigSet>) -> ExitCode {
    match listener.local_addr() {
        Ok(address) => say(&format!("listening on {address}")),
        Err(error) => eprintln!("hello: {error}"),
    }
    let listener = Arc::new(listener);
    for _ in 0..WORKERS {
        let (listener, hello) = (listener.clone(), hello.clone());
        let worker = thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || work(&listener, &hello));
        if let Err(error) = worker {
            eprintln!("hello: start a thread: {error}");
            return ExitCode::FAILURE;
        }
    }
    match signals.map(|signals| signals.wait()) {
        Some(Ok(signal)) => say(&format!("{signal}: ends")),
        // Without signals there is only the kill.
        _ => loop {
            thread::park();
        },
    }
    let deadline = Instant::now() + DRAIN;
    while hello.busy.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    ExitCode::SUCCESS
}

fn work(listener: &TcpListener, hello: &Hello) {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => http::serve(&stream, &peer.to_string(), hello),
            // Out of descriptors, most likely: not to be tried in a tight loop.
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
