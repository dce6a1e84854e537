"""Connections whose client stands still, or stops sending."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from d3cli.serve import protocol
from d3cli.serve.guard import Guard
from d3cli.serve.limits import Limits

HANGS = 60
SHORT = 0.1
MORE_THAN_SOCKETS_HOLD = 32 << 20
HEADER = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(MORE_THAN_SOCKETS_HOLD)})


async def empty(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening(
    app: Any, lost: Callable[[], object] = lambda: None
) -> AsyncIterator[tuple[str, int]]:
    """A server with d3's protocol; `lost` is called when it has closed a connection."""

    class Watched(protocol.PatientProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost()

    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(lambda: Watched(config, state, {}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def answered(app: Any, *sent: bytes) -> bytes:
    """All that a client gets that sends this, each part after an answer, and then waits."""
    async with listening(app) as address:
        reader, writer = await asyncio.open_connection(*address)
        got = b""
        for at, part in enumerate(sent):
            if at:
                got += await reader.readuntil(b"\r\n\r\n")
            writer.write(part)
        got += await asyncio.wait_for(reader.read(), HANGS)
        writer.close()
        return got


@pytest.mark.parametrize("version", ["1.0", "1.1"])  # the server closes the connection, or keeps it
def test_a_client_that_takes_nothing_of_a_complete_reply_is_given_up(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALLED_S", SHORT)

    async def ask() -> None:
        lost = asyncio.Event()
        async with listening(large, lost.set) as address:
            with socket.create_connection(address) as client:
                client.sendall(f"GET / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
                await asyncio.wait_for(lost.wait(), HANGS)

    asyncio.run(ask())


@pytest.mark.parametrize("half", [b"", b"POST", HEADER, HEADER + b"X-"])
def test_half_a_header_is_given_up(half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_S", SHORT)
    assert asyncio.run(answered(empty, half)) == b""
    if half:  # also after a request on the same connection
        got = asyncio.run(answered(empty, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", half))
        assert got.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "half",
    [
        b"Content-Length: 9\r\n\r\n",
        b"Content-Length: 9\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    ],
)
def test_half_a_body_is_given_up(half: bytes) -> None:
    guard = Guard(empty, key=None, hosts=None, limits=Limits(body_s=SHORT))
    got = asyncio.run(answered(guard, HEADER + half)).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 408"), got
    assert b"took too long" in got


def test_a_client_that_closes_its_side_has_gone() -> None:
    """Nothing tells whether it would still read; `docs/serve.md` says so."""
    left = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def ask() -> bytes:
        async with listening(waiting) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEADER + b"Content-Length: 0\r\n\r\n")
            writer.write_eof()
            got = await asyncio.wait_for(reader.read(), HANGS)
            await asyncio.wait_for(left.wait(), HANGS)
            writer.close()
            return got

    assert asyncio.run(ask()) == b""


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_the_oldest_connection_without_a_request_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS", 2)

    async def ask() -> bytes:
        async with listening(empty) as address:
            first, _, third = [await asyncio.open_connection(*address) for _ in range(3)]
            assert await asyncio.wait_for(first[0].read(), HANGS) == b""
            third[1].write(GET)
            return await asyncio.wait_for(third[0].readuntil(b"\r\n\r\n"), HANGS)

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 200")


def test_a_connection_with_a_request_does_not_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are told that they are too many; those beyond that are closed."""
    monkeypatch.setattr(protocol, "CONNECTIONS", 1)
    monkeypatch.setattr(protocol, "TOLD_WHY", 1)
    asked = asyncio.Event()
    leave = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await leave.wait()
        await empty(scope, receive, send)

    async def ask() -> None:
        async with listening(waiting) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(GET)
            await asyncio.wait_for(asked.wait(), HANGS)
            told = await asyncio.open_connection(*address)
            told[1].write(GET)
            got = await asyncio.wait_for(told[0].readuntil(b"}}"), HANGS)
            assert got.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in got
            leave.set()
            got = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANGS)
            assert got.startswith(b"HTTP/1.1 200")

    asyncio.run(ask())


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"CONNECT"])
def test_a_broken_body_of_a_refused_request_is_no_internal_error(
    method: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Both arrive at once: the guard refuses when the connection has had its answer."""
    guard = Guard(empty, key="a-key-of-ours", hosts=None, limits=Limits())
    header = HEADER.replace(b"POST", method) + b"Transfer-Encoding: chunked\r\n\r\n"
    got = asyncio.run(answered(guard, header + b"noise\r\n"))
    assert got.startswith(b"HTTP/1.1 400") and got.count(b"HTTP/1.1 4") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_noise_gets_an_error_in_openais_form() -> None:
    got = asyncio.run(answered(empty, b"noise\r\n\r\n"))
    assert got.startswith(b"HTTP/1.1 400")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
