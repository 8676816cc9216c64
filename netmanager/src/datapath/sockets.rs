//! Who on the node listens on a port, from /proc: a published port would silently take its traffic.

use roble_core::ports::Protocol;
use std::fs;

/// State of a listening TCP socket in /proc/net/tcp (`TCP_LISTEN`), and of an unconnected UDP one (`TCP_CLOSE`).
const LISTENING: [&str; 2] = ["0A", "07"];

/// Describes the program that listens on `port`; `None` if nobody does or /proc cannot tell.
pub fn listener(protocol: Protocol, port: u16) -> Option<String> {
    let (files, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], LISTENING[0]),
        Protocol::Udp => (["udp", "udp6"], LISTENING[1]),
    };
    files.iter().find_map(|file| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
        let inode = inode_of(&table, state, port)?;
        Some(program_of(&inode).unwrap_or_else(|| "a program of the node".into()))
    })
}

/// Inode of the first socket in `table` (as in proc(5)) with this state and local port.
fn inode_of(table: &str, state: &str, port: u16) -> Option<String> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let matches = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == state;
        matches.then(|| fields.get(9).map(ToString::to_string)).flatten()
    })
}

fn program_of(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let is_owner =
            |link: fs::DirEntry| fs::read_link(link.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str());
        if descriptors.flatten().any(is_owner) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("program {} (process {pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_listener_is_found_and_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let owner = listener(Protocol::Tcp, port).unwrap();
        assert!(owner.contains(&format!("process {}", std::process::id())), "{owner}");
        assert_eq!(listener(Protocol::Udp, port), None);
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert!(listener(Protocol::Udp, socket.local_addr().unwrap().port()).is_some());
    }
}
