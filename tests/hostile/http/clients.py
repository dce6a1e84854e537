"""Clients that are slow, many, half open, or gone."""

import json
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.hostile.http.registry import attack
from tests.hostile.http.target import (
    CHAT,
    CLOSED,
    GONE,
    JSON,
    MARK,
    PATIENCE,
    Answer,
    Target,
    asked,
    read,
    send,
)

BODY = json.dumps(asked()).encode()
TOO_MANY = 400  # connections; a server keeps 256
RESET = struct.pack("ii", 1, 0)  # closing ends a connection without a goodbye


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def post(target: Target, length: int = len(BODY), host: str = "localhost") -> bytes:
    head = target.head(f"POST {CHAT} HTTP/1.1", JSON, f"Content-Length: {length}", host=host)
    return head + b"\r\n"


def ended(client: socket.socket) -> Answer:
    """Waits until the server has ended a connection, without taking a byte of it."""
    poll = select.poll()
    poll.register(client, select.POLLHUP | select.POLLERR)
    assert poll.poll(1000 * PATIENCE), "the server holds the connection"
    return CLOSED


@contextmanager
def many(target: Target, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that have all said the same and wait."""
    with ExitStack() as opened:
        clients = []
        for _ in range(count):
            clients.append(opened.enter_context(target.connected()))
            send(clients[-1], [said])
        yield clients


@attack(GONE, waits=True)
def a_header_byte_by_byte(target: Target) -> Answer:
    return target.raw(*bytewise(target.head("GET /v1/models HTTP/1.1") * 5), pause=0.02)


@attack(408, GONE, waits=True)
def a_body_byte_by_byte(target: Target) -> Answer:
    return target.raw(post(target), *bytewise(BODY), pause=0.05)


@attack(GONE, waits=True)
def a_client_that_says_nothing(target: Target) -> Answer:
    return target.raw()


@attack(GONE, waits=True)
def a_client_that_only_begins(target: Target) -> Answer:
    return target.raw(b"GET /health HT")


@attack(408, waits=True)
def a_body_that_stops_before_its_end(target: Target) -> Answer:
    return target.raw(post(target, len(BODY) + 1), BODY)


@attack(408, waits=True)
def a_chunk_that_stops_before_its_end(target: Target) -> Answer:
    head = target.head(f"POST {CHAT} HTTP/1.1", JSON, "Transfer-Encoding: chunked")
    return target.raw(head + b"\r\n", b"ff\r\nhalf")


@attack(GONE, waits=True)
def a_reader_that_takes_nothing(target: Target) -> Answer:
    """Asks for a long document, over and over."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", target.port))
        client.settimeout(0.5)
        send(client, [(target.head("GET /openapi.json HTTP/1.1") + b"\r\n") * 1000])
        return ended(client)


@attack(GONE)
def a_thousand_requests_at_once(target: Target) -> Answer:
    """All are answered, one after the other."""
    got = b""
    with target.connected() as client:
        send(client, [(target.head("GET /health HTTP/1.1") + b"\r\n") * 1000])
        while got.count(b"HTTP/1.1 200") < 1000:
            piece = client.recv(1 << 16)
            assert piece, "the server has ended the connection"
            got += piece
    return CLOSED


@attack(200)
def more_connections_than_fit(target: Target) -> list[Answer]:
    """The oldest ones that say nothing have to go: others are answered meanwhile."""
    with many(target, TOO_MANY):
        return [target.ask() for _ in range(3)]


@attack(200)
def half_a_header_on_each_connection(target: Target) -> list[Answer]:
    with many(target, TOO_MANY, b"GET / HTTP/1.1\r\nX: "):
        return [target.ask() for _ in range(3)]


@attack(408, 503, GONE)
def half_a_body_on_each_connection(target: Target) -> list[Answer]:
    """A request that has begun may end: those that come too late are told so, or closed."""
    half = post(target) + b"{"
    with many(target, 256, half) as clients:
        time.sleep(0.3)  # until most have been read
        with many(target, 100, half) as others:
            late = [read(client) for client in others]
        answers = late + [read(client) for client in clients]
        assert any(answer.status in (503, GONE) for answer in answers)
        return answers


@attack(408, 503, GONE, waits=True)
def more_bodies_than_fit(target: Target) -> list[Answer]:
    """Twelve of 8 MiB, each without its last byte."""
    whole = 8 << 20
    with many(target, 12, post(target, whole)) as clients:
        for client in clients:
            send(client, [b" " * (whole - 1)])
        return [read(client) for client in clients]


@attack(GONE)
def connections_that_are_reset(target: Target) -> Answer:
    for at in range(300):
        with target.connected() as client:
            send(client, [post(target)[: 3 * at]])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return CLOSED


@attack(GONE)
def clients_that_leave_their_replies(target: Target) -> Answer:
    """Each asks for a long reply and goes when it begins, or before."""
    body = json.dumps(asked(max_tokens=500, stream=True, user=MARK)).encode()
    for at in range(12):
        with target.connected() as client:
            send(client, [post(target, len(body)), body])
            if at % 2:
                client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return CLOSED


@attack(400, GONE)
def noise_after_a_request(target: Target) -> Answer:
    """What follows a request that is being answered is not read before its reply is over."""
    with target.connected() as client:
        send(client, [target.head("GET /health HTTP/1.1") + b"\r\n" + bytes(range(256)) * 40])
        assert read(client).status == 200
        return read(client)


@attack(401, GONE)
def a_body_of_a_stranger(target: Target) -> Answer:
    """It is refused by its header: the body is not read to its end."""
    return target.raw(post(Target(target.port), 8 << 20), *[b" " * 65_536] * 128)


@attack(200, 503, is_slow=True)
def more_requests_than_wait(target: Target) -> list[Answer]:
    """Of one client, all at once: the queue has an end, and says so."""
    with ExitStack() as opened:
        clients = [opened.enter_context(target.connected()) for _ in range(60)]
        for client in clients:
            send(client, [post(target) + BODY])
        answers = [read(client) for client in clients]
        assert any(answer.status == 503 for answer in answers)
        return answers
