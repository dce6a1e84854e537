"""Refuses requests before anything reads them: by host, key, size and pace.

A page in a browser may send requests to this machine. Without a key, only requests that name this
machine as their host are answered: a name of a stranger that resolves to 127.0.0.1 (DNS rebinding)
is not.
"""

import asyncio
import hmac
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d3cli.serve.errors import ApiError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/health",)  # needs no key: it tells nothing


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: of a request's body.
        body_s: seconds in which a body must arrive.
        send_s: seconds after which a client that takes nothing of its reply is given up.
        reply_s: seconds that a request may take, waiting included.
    """

    body_bytes: int = 8 << 20
    body_s: float = 30.0
    send_s: float = 60.0
    reply_s: float = 600.0


class Guard:
    """An ASGI application around another one.

    Args:
        key: clients must send it as a bearer token; None: no key is needed.
        hosts: the names and addresses that a request may name as its host; None: any.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: Sequence[str] | None, limits: Limits
    ) -> None:
        self._app, self._limits = app, limits
        self._key = None if key is None else key.encode()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1003})
            return
        send = self._hurried(send)
        try:
            self._check(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            await _refuse(send, error)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError if the host or the key is not right."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            raise ApiError(
                403,
                "the Host header does not name this machine: use http://127.0.0.1 or localhost",
                code="wrong_host",
            )
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._key)  # in constant time
        if scheme.lower() != b"bearer" or not right:
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone.

        Raises:
            ApiError: it is too large or too slow.
        """
        most = self._limits.body_bytes
        too_large = ApiError(
            413, f"the request is larger than {most:,} bytes", code="request_too_large"
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408, "the request took too long to arrive", code="request_timeout"
            ) from None

    def _hurried(self, send: Send) -> Send:
        async def hurried(message: Message) -> None:
            async with asyncio.timeout(self._limits.send_s):
                await send(message)

        return hurried


def _host(header: bytes) -> str:
    """The host of a Host header, without its port."""
    host = header.decode("latin-1").strip().lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns the body at first, then whatever comes after it."""
    is_sent = False

    async def replayed() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    with suppress(TimeoutError):
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
