//! What comes goes back: a stream after the greeting's line, a datagram behind it. Who asks sees by that which instance it talks to.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Streams at a time; more are closed at once.
const STREAMS: usize = 128;

/// Listens at `port` by TCP and UDP, over both families where there is IPv6; goes on in threads.
///
/// # Errors
/// The port is taken.
pub fn start(port: u16, greeting: &str) -> io::Result<()> {
    let (v6, v4) = ((Ipv6Addr::UNSPECIFIED, port), (Ipv4Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(v6).or_else(|_| TcpListener::bind(v4))?;
    let socket = UdpSocket::bind(v6).or_else(|_| UdpSocket::bind(v4))?;
    let greeting: Arc<[u8]> = greeting.as_bytes().into();
    let of_datagrams = greeting.clone();
    let small = || thread::Builder::new().stack_size(super::STACK);
    small().spawn(move || datagrams(&socket, &of_datagrams))?;
    small().spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::SeqCst) >= STREAMS {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (greeting, ended) = (greeting.clone(), open.clone());
            let begun = small().spawn(move || {
                // Whoever is gone is gone.
                let _ = streamed(stream, &greeting);
                ended.fetch_sub(1, Ordering::SeqCst);
            });
            if begun.is_err() {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })?;
    Ok(())
}

fn streamed(mut stream: TcpStream, greeting: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting)?;
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            length => stream.write_all(&piece[..length])?,
        }
    }
}

fn datagrams(socket: &UdpSocket, greeting: &[u8]) {
    let mut piece = [0; 2048];
    loop {
        // An error is that of a datagram before: its sender no longer listens.
        let Ok((length, from)) = socket.recv_from(&mut piece) else {
            continue;
        };
        let _ = socket.send_to(&[greeting, &piece[..length]].concat(), from);
    }
}
