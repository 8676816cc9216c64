//! Datagrams between two fixed ports, begun by either side: media as RTSP and its like send it beside a connection to a service.
//! Needs root, `ip`, `nft`, `nsenter`.

#[allow(dead_code)] // Shared with other tests.
mod lab;
#[allow(dead_code)]
mod site;

use lab::inside;
use site::Site;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// What is sent: media by the server to the port that the caller has told it; by the caller to the server's port, at the address
/// of the service or at the server's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    Media,
    ToService,
    ToEndpoint,
}
use Sent::{Media, ToEndpoint, ToService};

const ORDERS: [[Sent; 6]; 5] = [
    [Media, ToService, Media, ToService, ToEndpoint, Media],
    [Media, ToEndpoint, Media, ToService, Media, ToEndpoint],
    [ToService, Media, ToService, Media, ToEndpoint, Media],
    [ToEndpoint, Media, ToService, Media, ToEndpoint, Media],
    [ToEndpoint, ToService, Media, ToService, ToEndpoint, Media],
];

fn socket(netns: &str, address: IpAddr, port: u16) -> UdpSocket {
    inside(netns, move || {
        let socket = UdpSocket::bind((address, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    })
}

/// The datagram that must come, and from where.
fn heard(socket: &UdpSocket, what: &str) -> SocketAddr {
    let mut buffer = [0; 256];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&buffer[..length], what.as_bytes());
    from
}

#[test]
fn media_and_what_is_sent_back_arrive_whoever_begins() {
    let mut site = Site::new(2);
    for (name, node) in [("caller", 0), ("near", 0), ("far", 1)] {
        site.add(name, node, Some(1));
    }
    site.service(1, 1, &[1]);
    site.service(2, 1, &[2]);
    site.apply();
    let mut port = 20_000;
    for (server, service) in [("near", 1), ("far", 2)] {
        let both = [site.v4(service), site.v6(service)];
        let ends = site.addresses("caller").into_iter().zip(site.addresses(server));
        for ((own, endpoint), service) in ends.zip(both) {
            for order in ORDERS {
                port += 2;
                let caller = socket(&site.name("caller"), own, port);
                let serving = socket(&site.name(server), endpoint, port + 1);
                // The address at which the caller sees the server is that of the first datagram.
                let seen = if order[0] == ToService { service } else { endpoint };
                for (number, sent) in order.into_iter().enumerate() {
                    let what = format!("{server} {endpoint} {order:?} {number}");
                    let to = match sent {
                        Media => {
                            serving.send_to(what.as_bytes(), (own, port)).unwrap();
                            assert_eq!(heard(&caller, &what), SocketAddr::new(seen, port + 1), "{what}");
                            continue;
                        }
                        ToService => service,
                        ToEndpoint => endpoint,
                    };
                    caller.send_to(what.as_bytes(), (to, port + 1)).unwrap();
                    let from = heard(&serving, &what);
                    assert_eq!(from.ip(), own, "{what}");
                    // Two flows cannot have the same ends: the one that came second is seen at another port.
                    assert_eq!(from.port() == port, to == seen, "{what}: {from}");
                    serving.send_to(what.as_bytes(), from).unwrap();
                    assert_eq!(heard(&caller, &what), SocketAddr::new(to, port + 1), "{what}");
                }
            }
        }
    }
}
