"""Load from inside a caller's network: `load.py STREAMS FLOWS CALLS PORT ADDRESS...`, until its standard input ends.

Streams and datagrams go to port 8081 of the addresses in turn, calls to port 8080. Every block and datagram has a number; a block
also random bytes and a checksum, and all of it must come back. Prints a line for whatever happens: seconds of the clock, a word, more.
"""

import collections
import os
import select
import socket
import struct
import sys
import threading
import time
import zlib

ECHO, HTTP = 8081, 8080
BLOCK, WINDOW, PACE = 4096, 8, 0.02
# Answered later than this is lost.
LATE = 4.0
# A stream that is silent for so long is broken.
STALL = 30.0
# Between two answers of a flow, worth telling.
SILENCE = 0.25

ending = threading.Event()
lock = threading.Lock()


def say(at, *words):
    with lock:
        print(f"{at:.3f}", *words, flush=True)


def instance(greeting):
    """Of `hello from HOST instance 3`."""
    return greeting.split()[-1].decode()


def block(number):
    body = struct.pack("!Q", number) + os.urandom(BLOCK - 12)
    return body + struct.pack("!I", zlib.crc32(body))


class Corrupt(Exception):
    """What came back is not what was sent."""


def stream(address):
    while not ending.is_set():
        who, began = "?", time.time()
        pending, late = collections.deque(), collections.deque()
        sent = back = 0
        try:
            with socket.create_connection((address, ECHO), 5) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                buffer = b""
                while b"\n" not in buffer:
                    piece = connection.recv(1024)
                    if not piece:
                        raise EOFError
                    buffer += piece
                greeting, buffer = buffer.split(b"\n", 1)
                who = instance(greeting)
                say(time.time(), "open", who)
                connection.settimeout(STALL)
                due = heard = time.monotonic()
                number = 0
                while not ending.is_set() or pending:
                    now = time.monotonic()
                    if now - heard > STALL:
                        raise TimeoutError
                    if now >= due and len(pending) < WINDOW and not ending.is_set():
                        due = max(due + PACE, now)
                        data = block(number)
                        number += 1
                        pending.append(data)
                        sent += len(data)
                        connection.sendall(data)
                    wait = due - now if len(pending) < WINDOW else 1.0
                    if select.select([connection], [], [], max(wait, 0.0))[0]:
                        piece = connection.recv(65536)
                        if not piece:
                            raise EOFError
                        heard = time.monotonic()
                        buffer += piece
                        while len(buffer) >= BLOCK:
                            if not pending or buffer[:BLOCK] != pending.popleft():
                                raise Corrupt
                            buffer = buffer[BLOCK:]
                            back += BLOCK
                say(time.time(), "closed", who, sent, sent - back)
        except (OSError, EOFError, Corrupt) as error:
            kind = {ConnectionResetError: "reset", BrokenPipeError: "reset", ConnectionRefusedError: "refused"}
            kind.update({EOFError: "end", Corrupt: "corrupt", TimeoutError: "stalled"})
            kind = kind.get(type(error), str(error).replace(" ", "-") or type(error).__name__)
            say(time.time(), "broken", who, kind, sent - back, f"{began:.3f}")
            ending.wait(0.05)


def flow(address, port):
    """A stream of datagrams with fixed ports at both ends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("", port))
        datagrams.connect((address, ECHO))
        datagrams.setblocking(False)
        waiting = collections.OrderedDict()
        who, heard = "?", time.time()
        number, due = 0, time.monotonic()
        told = 0
        while waiting or not ending.is_set():
            now = time.monotonic()
            if now >= due and not ending.is_set():
                due = max(due + PACE, now)
                waiting[number] = (time.time(), who)
                try:
                    datagrams.send(struct.pack("!Q", number))
                except OSError:
                    pass  # An error of a datagram before, or of this one: it is not answered, and counted as that.
                number += 1
            if select.select([datagrams], [], [], max(due - now, 0.0) if not ending.is_set() else 0.05)[0]:
                try:
                    answer = datagrams.recv(2048)
                except OSError:
                    continue
                greeting, rest = answer.split(b"\n", 1)
                at, now_who = time.time(), instance(greeting)
                waiting.pop(struct.unpack("!Q", rest)[0], None)
                if at - heard > SILENCE:
                    say(heard, "silent", who, f"{at - heard:.3f}")
                if now_who != who:
                    say(at, "moved", who, now_who, f"{at - heard:.3f}")
                who, heard = now_who, at
            while waiting:
                first, (at, of) = next(iter(waiting.items()))
                if time.time() - at < LATE:
                    break
                del waiting[first]
                say(at, "lost", of, port, address)
            if number - told >= 50:
                say(time.time(), "sent", number - told)
                told = number


def call(address):
    while not ending.is_set():
        began = time.time()
        try:
            with socket.create_connection((address, HTTP), 3) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while piece := connection.recv(4096):
                    answer += piece
            if b"instance" not in answer:
                raise EOFError
            say(time.time(), "answered", instance(answer), f"{began:.3f}")
        except (OSError, EOFError) as error:
            say(time.time(), "failed", type(error).__name__, f"{began:.3f}")
        ending.wait(0.2)


streams, flows, calls, port = (int(word) for word in sys.argv[1:5])
addresses = sys.argv[5:]
work = [threading.Thread(target=stream, args=(addresses[n % len(addresses)],)) for n in range(streams)]
work += [threading.Thread(target=flow, args=(addresses[n % len(addresses)], port + n)) for n in range(flows)]
work += [threading.Thread(target=call, args=(addresses[n % len(addresses)],)) for n in range(calls)]
for thread in work:
    thread.start()
    # So that all take turns in one order.
    time.sleep(0.02)
sys.stdin.read()
ending.set()
for thread in work:
    thread.join()
say(time.time(), "done")
