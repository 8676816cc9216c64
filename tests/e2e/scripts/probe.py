"""Inside an instance's network.

- `serve`: answers what the others ask; says `ready` when it listens.
- `call NAME ENDPOINT4 ENDPOINT6 SERVICE4 SERVICE6` prints a line per cell: protocol, family and kind of address; at its end how many
  of its calls were answered.
- `reach ADDRESS...` prints a line per protocol and address: `1` at its end if it was answered, else `0`.
- `resolve NAME...` prints a line per name: its IPv4 and IPv6 address, `-` without one.
- `scan ADDRESS...` prints a line per address: the TCP ports that take a connection.
"""

import concurrent.futures
import errno
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time

PORT = 9000
CALLS = 5


def serve():
    tcp = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", PORT))

    def streams():
        while True:
            with tcp.accept()[0] as stream:
                stream.sendall(stream.recv(65536))

    threading.Thread(target=streams, daemon=True).start()
    print("ready", flush=True)
    while True:
        data, caller = udp.recvfrom(65536)
        udp.sendto(data, caller)


def tcp(address):
    with socket.create_connection((address, PORT), 3) as stream:
        stream.sendall(b"there and back")
        return stream.recv(64) == b"there and back"


def udp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(3)
        datagrams.connect((address, PORT))
        datagrams.send(b"there and back")
        return datagrams.recv(64) == b"there and back"


def icmp(address):
    is_v6 = ":" in address
    family, protocol = (socket.AF_INET6, 58) if is_v6 else (socket.AF_INET, 1)
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(3)
        packet = struct.pack("!BBHHH", 128 if is_v6 else 8, 0, 0, 7, 7)
        total = sum(struct.unpack("!4H", packet))
        total = ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF
        raw.sendto(packet[:2] + struct.pack("!H", total) + packet[4:], (address, 0))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            answer, sender = raw.recvfrom(512)
            kind = answer[0] if is_v6 else answer[(answer[0] & 15) * 4]
            if sender[0] == address and kind == (129 if is_v6 else 0):
                return True
    return False


def resolve(name, kind):
    """The first address of a name, asked of the node's name server: the default route's gateway."""
    route = subprocess.run(["ip", "route", "show", "default"], capture_output=True, text=True).stdout
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0" + struct.pack("!HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(3)
        server.sendto(query, (route.split()[2], 53))
        answer = server.recv(512)
    if answer[3] & 15 or not answer[7]:
        raise OSError(f"no address of {name}")
    # One record behind the question: name as a pointer, type, class, time to live, length.
    at = len(query) + 12
    family = socket.AF_INET if kind == 1 else socket.AF_INET6
    return socket.inet_ntop(family, answer[at : at + (4 if kind == 1 else 16)])


def call(name, *addresses):
    ways = dict(zip([("endpoint", 4), ("endpoint", 6), ("service", 4), ("service", 6)], addresses))
    ways = {way: lambda address=address: address for way, address in ways.items()}
    ways[("name", 4)] = lambda: resolve(name, 1)
    ways[("name", 6)] = lambda: resolve(name, 28)
    for protocol, probe in [("TCP", tcp), ("UDP", udp), ("ICMP", icmp)]:
        for (kind, family), address in ways.items():
            answered = 0
            for _ in range(CALLS):
                try:
                    answered += probe(address())
                except OSError as error:
                    print(f"{protocol} IPv{family} {kind}: {error}", file=sys.stderr)
            print(f"{protocol} IPv{family} {kind} {answered}", flush=True)


def reach(*addresses):
    def one(probe, address):
        try:
            return probe(address)
        except OSError:
            return False

    cells = [(name, probe, address) for name, probe in [("TCP", tcp), ("UDP", udp), ("ICMP", icmp)] for address in addresses]
    with concurrent.futures.ThreadPoolExecutor(len(cells)) as pool:
        for (name, _, address), answered in zip(cells, pool.map(lambda cell: one(*cell[1:]), cells)):
            print(name, address, int(answered), flush=True)


def resolve_all(*names):
    for name in names:
        found = []
        for kind in (1, 28):
            try:
                found.append(resolve(name, kind))
            except OSError:
                found.append("-")
        print(name, *found, flush=True)


def open_ports(address, at_once):
    """So many at a time, half a second each."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    taken = []
    for first in range(1, 65536, at_once):
        poll, asked = select.epoll(), {}
        for port in range(first, min(first + at_once, 65536)):
            one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if one.connect_ex((address, port)) in (0, errno.EINPROGRESS):
                poll.register(one, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
            asked[one.fileno()] = (one, port)
        until = time.monotonic() + 0.5
        while (wait := until - time.monotonic()) > 0:
            for number, _ in poll.poll(wait):
                one, port = asked[number]
                poll.unregister(number)
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    taken.append(port)
        for one, _ in asked.values():
            one.close()
        poll.close()
    # Of one's own ports, an attempt may have met itself or another one.
    return [port for port in sorted(taken) if listens(family, address, port)]


def listens(family, address, port):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(0.5)
        return one.connect_ex((address, port)) == 0 and one.getsockname() != one.getpeername()


def scan(*addresses):
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    at_once = min(4000, most // len(addresses) - 20)
    with concurrent.futures.ThreadPoolExecutor(len(addresses)) as pool:
        for address, taken in zip(addresses, pool.map(lambda one: open_ports(one, at_once), addresses)):
            print(address, *taken, flush=True)


modes = {"serve": serve, "call": call, "reach": reach, "resolve": resolve_all, "scan": scan}
modes[sys.argv[1]](*sys.argv[2:])
