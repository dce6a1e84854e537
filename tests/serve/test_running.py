"""Connections whose client stands still."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from d3cli.serve import running

HANGS = 60
MORE_THAN_SOCKETS_HOLD = 32 << 20


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(MORE_THAN_SOCKETS_HOLD)})


@pytest.mark.parametrize("version", ["1.0", "1.1"])  # the server closes the connection, or keeps it
def test_a_client_that_takes_nothing_of_a_complete_reply_is_given_up(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "STALLED_S", 0.1)

    async def ask() -> None:
        lost = asyncio.Event()

        class Watched(running._PatientProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                lost.set()

        config = uvicorn.Config(large, log_config=None, access_log=False)
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Watched(config, ServerState(), {}), "127.0.0.1", 0
        )
        async with server:
            address = server.sockets[0].getsockname()
            with socket.create_connection(address) as client:
                client.sendall(f"GET / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
                await asyncio.wait_for(lost.wait(), HANGS)

    asyncio.run(ask())
