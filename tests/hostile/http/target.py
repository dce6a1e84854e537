"""A client that sends what no honest one would, byte for byte, and reads what comes back."""

import http.client
import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATIENCE = 60.0  # seconds after which a server hangs; an attack takes 10 at most
MARK = "xyzzy-of-a-prompt"  # in every message: no log may have it
GONE = 0  # the "status" of a connection that was closed without an answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sent.

    Attributes:
        status: of HTTP; GONE if it only closed the connection.
    """

    status: int
    headers: dict[str, str]
    body: bytes


CLOSED = Answer(GONE, {}, b"")


@dataclass(frozen=True, slots=True)
class Target:
    """One server that is attacked.

    Attributes:
        key: what clients must send; empty if the server needs none.
    """

    port: int
    key: str = ""

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A connection that waits until the server must hang."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            yield client

    def raw(self, *pieces: bytes, method: str = "GET", pause: float = 0) -> Answer:
        """Sends bytes as they are, with a pause after each piece, and reads one answer."""
        with self.connected() as client:
            send(client, pieces, pause)
            return read(client, method)

    def head(self, line: str = f"POST {CHAT} HTTP/1.1", *headers: str, host: str = "x") -> bytes:
        """The beginning of a request, with the key, and without the blank line."""
        named = [f"Host: {host}"] if host else []
        key = [f"Authorization: Bearer {self.key}"] if self.key else []
        return "\r\n".join([line, *named, *key, *headers, ""]).encode("latin-1")

    def get(self, path: str, *headers: str) -> Answer:
        """Sends a GET with some headers more."""
        return self.raw(self.head(f"GET {path} HTTP/1.1", *headers) + b"\r\n")

    def post(self, body: bytes, path: str = CHAT, *headers: str) -> Answer:
        """Sends a body as JSON, with its true length."""
        typed = () if any("Content-Type" in one for one in headers) else (JSON,)
        length = f"Content-Length: {len(body)}"
        head = self.head(f"POST {path} HTTP/1.1", length, *typed, *headers)
        return self.raw(head + b"\r\n", body)

    def ask(self, path: str = CHAT, **fields: Any) -> Answer:
        """A request with good fields but for some; None leaves one out."""
        return self.post(json.dumps(asked(path, **fields)).encode(), path)


JSON = "Content-Type: application/json"


def asked(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The fields of a good and short request, but for some."""
    prompt: dict[str, Any] = {"prompt": MARK}
    if path == CHAT:
        prompt = {"messages": [{"role": "user", "content": MARK}]}
    whole = {"model": "demo", "max_tokens": 4} | prompt | fields
    return {name: value for name, value in whole.items() if value is not None}


def send(client: socket.socket, pieces: Iterable[bytes], pause: float = 0) -> int:
    """Sends until the server has closed the connection; returns how much it took."""
    sent = 0
    with suppress(OSError):
        for piece in pieces:
            client.sendall(piece)
            sent += len(piece)
            if pause:
                time.sleep(pause)
    return sent


def read(client: socket.socket, method: str = "GET") -> Answer:
    """Reads one answer; `CLOSED` if there is none."""
    try:
        response = http.client.HTTPResponse(client, method=method)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    except (http.client.HTTPException, ConnectionError):
        return CLOSED
