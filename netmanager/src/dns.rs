//! Names for containers: the server on this node's gateway addresses.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`zone`] | a snapshot of the tables by name and by address, and what a caller sees of it |
//! | [`message`] | one query to one answer, without I/O |
//! | [`upstream`] | asks the host's servers for every name that is not ours |
//! | [`server`] | sockets, and what a client may use of them |
//! | [`metrics`] | what is counted |
//!
//! Invariants:
//! - A caller is known by its source address; nobody else gets more than a refusal.
//! - What another organisation owns does not exist: the answer is the same as for a name that nobody has.
//! - Names of ours and addresses of our ranges are never asked of anybody else, and are answered without anybody else.

pub mod message;
pub mod metrics;
pub mod server;
pub mod upstream;
pub mod zone;

#[cfg(test)]
mod server_tests;

pub use message::{Answer, Transport, answer};
pub use metrics::DnsMetrics;
pub use server::{BindError, Listeners, Views, serve};
pub use upstream::Upstream;
pub use zone::{Caller, Callers, Zone};

use std::fmt::Write as _;
use std::net::IpAddr;

/// The domain below which all names of ours are.
pub const DOMAIN: &str = "roble";

/// Where the server listens on each gateway address.
pub const PORT: u16 = 53;

/// The text of a container's `/etc/resolv.conf`.
///
/// `gateways`: the node's gateway addresses that the container reaches, the one to be asked first in front. One is enough:
/// some resolvers ask all of them at once. `application`: the name of the container's application.
pub fn resolv_conf(gateways: &[IpAddr], application: &str) -> String {
    let mut text = String::new();
    for gateway in gateways {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "nameserver {gateway}");
    }
    // Two dots: `closest.web` and `0.web` are tried in the application before they are tried as they are.
    let _ = writeln!(text, "search {application}.{DOMAIN}\noptions ndots:2");
    text
}

/// For fuzzing: any bytes as a query, over both transports.
///
/// # Panics
/// An answer is not one to the query, or is longer than it may be.
pub fn fuzz_query(data: &[u8]) {
    let (zone, caller) = zone::sample();
    for transport in [Transport::Udp, Transport::Tcp] {
        match answer(data, &caller, &zone, transport) {
            Answer::Reply(reply) => {
                assert_eq!(reply[..2], data[..2], "the query's id");
                assert!(reply[2] & 0x80 != 0, "an answer");
                assert!(
                    reply.len() <= message::reply_limit(data, transport),
                    "no longer than asked"
                );
            }
            Answer::Upstream => drop(message::failure(data, transport)),
            Answer::Drop => {}
        }
    }
    message::is_reply_to(data, data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_asks_its_gateway_and_searches_its_application() {
        let gateways = ["10.18.0.1".parse().unwrap(), "fc00::a12:1".parse().unwrap()];
        assert_eq!(
            resolv_conf(&gateways, "shop.test"),
            "nameserver 10.18.0.1\nnameserver fc00::a12:1\nsearch shop.test.roble\noptions ndots:2\n"
        );
    }
}
