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

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d3cli.serve.bodies import Bodies, Body
from d3cli.serve.errors import ApiError
from d3cli.serve.limits import Limits

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/health",)  # needs no key: it tells nothing


class StuckError(TimeoutError):
    """A client takes nothing of its reply."""


class Guard:
    """An ASGI application around another one.

    Args:
        key: clients must send it as a bearer token; None: no key is needed.
        hosts: the names and addresses that a request may name as its host; None: any.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: Sequence[str] | None, limits: Limits
    ) -> None:
        self._app, self._send_s = app, limits.send_s
        self._bodies = Bodies(limits)
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
        with Body(self._bodies) as arriving:
            try:
                check_framing(scope)
                self._check(scope)
                body = await arriving.read(scope, receive)
            except ApiError as error:
                await refuse(send, error)
                return
            if body is not None:
                receive = _replay(body, receive)
                del body  # the application alone keeps it
                await self._app(scope, receive, send)

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

    def _hurried(self, send: Send) -> Send:
        async def hurried(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_s):
                    await send(message)
            except TimeoutError:
                raise StuckError from None

        return hurried


def check_framing(scope: Scope) -> None:
    """Refuses requests that another program, such as a proxy, may see end somewhere else.

    Raises:
        ApiError: such a request.
    """
    if scope.get("http_version", "1.1") not in ("1.0", "1.1"):
        raise ApiError(505, "this server speaks HTTP/1.1", code="http_version")
    names = {name for name, _ in scope["headers"]}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names or scope.get("http_version") == "1.0":
        raise ApiError(
            400,
            "the length of the body is given twice: use Content-Length or Transfer-Encoding",
            code="invalid_http",
        )


def _host(header: bytes) -> str:
    """The host of a Host header, without its port."""
    host = header.strip().lower()
    name, colon, port = host.rpartition(b":")
    return (name if colon and port.isdigit() else host).decode("latin-1")


def _replay(body: bytes | None, receive: Receive) -> Receive:
    """Returns the body at first, then whatever comes after it."""

    async def replayed() -> Message:
        nonlocal body
        if body is None:
            return await receive()
        whole, body = body, None
        return {"type": "http.request", "body": whole, "more_body": False}

    return replayed


async def refuse(send: Send, error: ApiError) -> None:
    """Answers with an error, and ends the connection."""
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
