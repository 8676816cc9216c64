//! As much of HTTP/1.1 as is needed: persistent connections, bodies with a length.

use crate::{Hello, IO_TIMEOUT, MAX_BODY, MAX_HEAD};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Requests served on one connection, so that no client keeps a worker for ever.
const MAX_REQUESTS: u32 = 1000;

/// A request whose head and body have arrived.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    target: String,
    body: Vec<u8>,
    keep_alive: bool,
}

/// Why there is no request.
#[derive(Debug)]
enum Refusal {
    /// The other side is done, or gone.
    Closed,
    /// It is not a request that is served here: the status to answer with.
    Status(u16),
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Serves one connection to its end.
pub fn serve(stream: &TcpStream, peer: &str, hello: &Hello) {
    // A socket that takes no settings is gone; reading it says so.
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(IO_TIMEOUT));
    let _ = stream.set_write_timeout(Some(IO_TIMEOUT));
    let (mut reader, mut writer) = (stream, stream);
    let mut buffer = Vec::new();
    for served in 1..=MAX_REQUESTS {
        let request = match read(&mut reader, &mut buffer, &mut writer) {
            Ok(request) => request,
            Err(Refusal::Closed) => return,
            Err(Refusal::Status(status)) => {
                let _ = write(&mut writer, status, reason(status).as_bytes(), false);
                return;
            }
        };
        hello.busy.fetch_add(1, Ordering::SeqCst);
        let (status, body) = answer(&request, hello);
        let keep_alive = request.keep_alive && served < MAX_REQUESTS;
        let is_head = request.method == "HEAD";
        let written = write(&mut writer, status, if is_head { b"" } else { &body }, keep_alive);
        hello.busy.fetch_sub(1, Ordering::SeqCst);
        let target: String = request
            .target
            .chars()
            .take(200)
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        crate::say(&format!("{peer} {} {target} {status}", request.method));
        if written.is_err() || !keep_alive {
            return;
        }
    }
}

fn answer(request: &Request, hello: &Hello) -> (u16, Vec<u8>) {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match (request.method.as_str(), path) {
        ("GET" | "HEAD", "/") => (200, hello.greeting_line().into_bytes()),
        ("GET" | "HEAD", "/healthz") => (200, b"ok\n".to_vec()),
        ("GET" | "HEAD", "/echo") => (200, query.as_bytes().to_vec()),
        ("POST" | "PUT", "/echo") => (200, request.body.clone()),
        (_, "/" | "/healthz" | "/echo") => (405, b"method not allowed\n".to_vec()),
        _ => (404, b"not found\n".to_vec()),
    }
}

/// Reads one request; `buffer` keeps what has come beyond it.
fn read(stream: &mut impl Read, buffer: &mut Vec<u8>, reply: &mut impl Write) -> Result<Request, Refusal> {
    let started = Instant::now();
    let head_end = loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            break end + 4;
        }
        if buffer.len() > MAX_HEAD {
            return Err(Refusal::Status(431));
        }
        more(stream, buffer, started)?;
    };
    let head: Vec<u8> = buffer.drain(..head_end).collect();
    let mut request = parse(&head)?;
    let length = request.length;
    if length > MAX_BODY {
        return Err(Refusal::Status(413));
    }
    if request.expects_continue && buffer.len() < length {
        reply.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    while buffer.len() < length {
        more(stream, buffer, started)?;
    }
    request.request.body = buffer.drain(..length).collect();
    Ok(request.request)
}

fn more(stream: &mut impl Read, buffer: &mut Vec<u8>, started: Instant) -> Result<(), Refusal> {
    // The socket's own timeout is per read; a byte now and then would last for ever.
    if started.elapsed() > 2 * IO_TIMEOUT {
        return Err(Refusal::Status(408));
    }
    let mut piece = [0; 8192];
    match stream.read(&mut piece)? {
        0 => Err(Refusal::Closed),
        length => {
            buffer.extend_from_slice(&piece[..length]);
            Ok(())
        }
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

struct Head {
    request: Request,
    length: usize,
    expects_continue: bool,
}

fn parse(head: &[u8]) -> Result<Head, Refusal> {
    let bad = Refusal::Status(400);
    let Ok(text) = std::str::from_utf8(head) else {
        return Err(bad);
    };
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad);
    };
    if !version.starts_with("HTTP/1.") || method.is_empty() || !target.starts_with('/') {
        return Err(bad);
    }
    let mut keep_alive = version == "HTTP/1.1";
    let (mut length, mut expects_continue) = (None, false);
    for line in lines.filter(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else {
            return Err(bad);
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            // Two lengths that differ are a smuggler's tool.
            "content-length" => match value.parse::<usize>() {
                Ok(number)
                    if length.is_none_or(|other| other == number) && value.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    length = Some(number);
                }
                _ => return Err(bad),
            },
            "transfer-encoding" => return Err(Refusal::Status(501)),
            "connection" if value.eq_ignore_ascii_case("close") => keep_alive = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => keep_alive = true,
            "expect" if value.eq_ignore_ascii_case("100-continue") => expects_continue = true,
            _ => {}
        }
    }
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        body: Vec::new(),
        keep_alive,
    };
    Ok(Head {
        request,
        length: length.unwrap_or(0),
        expects_continue,
    })
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Not Implemented",
    }
}

fn write(stream: &mut impl Write, status: u16, body: &[u8], keep_alive: bool) -> io::Result<()> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut answer = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
        reason(status),
        body.len()
    )
    .into_bytes();
    // One write, one packet for small answers.
    answer.extend_from_slice(body);
    stream.write_all(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Vec<Result<Request, u16>> {
        let (mut stream, mut buffer, mut found) = (text.as_bytes(), Vec::new(), Vec::new());
        loop {
            match read(&mut stream, &mut buffer, &mut io::sink()) {
                Ok(request) => found.push(Ok(request)),
                Err(Refusal::Closed) => return found,
                Err(Refusal::Status(status)) => {
                    found.push(Err(status));
                    return found;
                }
            }
        }
    }

    #[test]
    fn requests_in_a_row_are_told_apart() {
        let found =
            read_all("POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        let bodies: Vec<_> = found
            .iter()
            .flatten()
            .map(|r| (r.body.as_slice(), r.keep_alive))
            .collect();
        assert_eq!(bodies, [(b"abc".as_slice(), true), (b"".as_slice(), false)]);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let cases = [
            ("nonsense\r\n\r\n", 400),
            ("GET / HTTP/2\r\n\r\n", 400),
            ("GET http://x/ HTTP/1.1\r\n\r\n", 400),
            ("POST /echo HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400),
            (
                "POST /echo HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
                400,
            ),
            ("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        ];
        for (text, status) in cases {
            assert_eq!(read_all(text), [Err(status)], "{text}");
        }
        assert_eq!(
            read_all(&format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(40_000))),
            [Err(431)]
        );
    }
}
