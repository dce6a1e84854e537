"""Clients of a server under a fault, for ``scripts/faults.py``: good ones, and ones that vanish."""

import json
import random
import re
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

PATIENCE = 60.0  # seconds
# Visits a port; returns what is wrong.
Client = Callable[[int, random.Random], str]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
STORY = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}]}


class GoneError(Exception):
    """The server has ended, or refuses connections."""


def connect(port: int) -> socket.socket:
    """A connection to the server; raises GoneError."""
    try:
        return socket.create_connection(("127.0.0.1", port), PATIENCE)
    except OSError as error:
        raise GoneError from error


def request(path: str, fields: dict[str, object]) -> bytes:
    """A request whose answer ends with the connection."""
    body = json.dumps({"model": "demo"} | fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_to(port: int, asked: bytes) -> tuple[int, bytes]:
    """Status and body.

    Raises:
        GoneError: the server ended before it answered.
        TimeoutError: nothing comes.
    """
    with connect(port) as connection:
        found = b""
        try:
            connection.sendall(asked)
            while piece := connection.recv(1 << 16):
                found += piece
        except TimeoutError:
            raise
        except OSError as error:
            raise GoneError from error
    head, _, body = found.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        raise GoneError
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if length and len(body) < int(length[1]):
        raise GoneError  # in the middle of its answer
    return int(head.split()[1]), body


def is_ready(port: int) -> bool:
    """Whether the server answers."""
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with suppress(GoneError):
        return answer_to(port, asked)[0] == 200
    return False


def whole(port: int, rng: random.Random) -> str:
    """Asks for a reply; returns what is wrong with the answer."""
    fields = STORY | {"max_tokens": rng.randint(1, 60), "lossless": rng.random() < 0.3}
    status, body = answer_to(port, request(CHAT, fields))
    return _wrong(status, body, "choices")


def scores(port: int, rng: random.Random) -> str:
    """Asks for the log-probabilities of a text."""
    fields: dict[str, object] = {"prompt": "Once upon a time", "echo": True, "logprobs": 2}
    status, body = answer_to(port, request(TEXT, fields | {"max_tokens": rng.randint(0, 3)}))
    return _wrong(status, body, "choices")


def _wrong(status: int, body: bytes, wanted: str) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return f"{status} with half a body: {body[-100:]!r}"
    if status == 200 and wanted in found:
        return ""
    if status in (400, 499, 503, 504) and found.get("error", {}).get("message"):
        return ""
    return f"{status}: {body[:300]!r}"


def streamed(port: int, rng: random.Random) -> str:
    """Reads a stream to its end, which is [DONE] or an error."""
    fields = STORY | {"max_tokens": rng.randint(1, 60), "stream": True}
    status, body = answer_to(port, request(CHAT, fields))
    if status != 200:
        return _wrong(status, body, "choices")
    if b"data: [DONE]" not in body and b'"error"' not in body:
        raise GoneError  # cut off
    return ""


def leaves(port: int, rng: random.Random) -> str:
    """Goes away in the middle of its request or of its reply, sometimes by a reset."""
    asked = request(CHAT, STORY | {"max_tokens": 200, "stream": rng.random() < 0.7})
    with connect(port) as connection, suppress(OSError):
        if rng.random() < 0.3:
            connection.sendall(asked[: rng.randrange(len(asked))])
        else:
            connection.sendall(asked)
            for _ in range(rng.randint(0, 3)):
                connection.recv(200)
        time.sleep(rng.uniform(0, 0.3))
        if rng.random() < 0.5:
            reset = struct.pack("ii", 1, 0)  # closes without the usual farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    return ""


def keeps(port: int, rng: random.Random) -> str:
    """Sends half a request, or reads nothing of its reply, and stays until the server ends it."""
    asked = request(CHAT, STORY | {"max_tokens": 200, "stream": True})
    with connect(port) as connection:
        try:
            connection.sendall(asked if rng.random() < 0.5 else asked[: rng.randrange(len(asked))])
            time.sleep(rng.uniform(0, 2))
            while connection.recv(1 << 16):
                pass
        except TimeoutError:
            return "the server keeps half a request for ever"
        except OSError:
            pass
    return ""


CLIENTS: tuple[Client, ...] = (whole, scores, streamed, leaves, keeps)
