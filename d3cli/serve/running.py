"""Runs the application on a socket, until a signal ends it in order.

The first signal lets the present reply end while others are refused; the second ends everything.
"""

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from d3cli.serve.service import Service

LOG = logging.getLogger("d3cli.serve")
HEADER_BYTES, HEADER_S = 32 << 10, 15  # of one request, and how long it may take to arrive
IDLE_S, DELIVERY_S = 30, 30  # of a connection between requests; of the last replies on their way
STALLED_S = 60  # without a byte taken, where some wait to be sent
CONNECTIONS = 256
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _PatientProtocol(H11Protocol):
    """uvicorn's protocol, which ends a connection whose request or reply gets stuck.

    uvicorn itself waits for a first request, and for the rest of a header, without an end. So does
    a closed transport for a client that does not take what is left of its reply.
    """

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses until everything is sent
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._forget_stall()

    def _watch(self) -> None:
        """Begins to wait for a header, or ends that: one has arrived, and the guard goes on."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_S, self._end)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch_client(self, before: float = math.inf) -> None:
        """Ends the connection if no byte was taken since `before` waited."""
        waiting = self.transport.get_write_buffer_size()
        if waiting < before:
            self._stalled = self.loop.call_later(STALLED_S, self._watch_client, waiting)
        else:
            self.transport.abort()

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _end(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends in two steps."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.was_cut_off_by = 0
        self._ending: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals, in the event loop, while the server runs."""
        self._loop = asyncio.get_running_loop()
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Passes a signal on to the event loop, which may be waiting."""
        self._loop.call_soon_threadsafe(self._stop, sig)

    def _stop(self, number: int) -> None:
        worker = self._service.worker
        if self._ending is None:
            if worker.is_busy:
                LOG.info("stopping after the present reply; a second signal ends it")
            worker.stop()
            self._ending = asyncio.ensure_future(self._end())
            return
        self.was_cut_off_by = number if worker.is_alive else self.was_cut_off_by
        worker.stop_now()
        self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections and the application, also after a second signal."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would cancel the application, which logs a traceback
            await self.lifespan.shutdown()

    async def _end(self) -> None:
        await asyncio.to_thread(self._service.worker.join)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address; it does not listen yet.

    Raises:
        OSError: the address is in use, or is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def run(app: ASGIApp, service: Service, listener: socket.socket) -> int:
    """Serves until a signal.

    Returns:
        The number of the signal that cut a reply off; 0 if everything ended in order.
    """
    config = uvicorn.Config(
        app,
        http=_PatientProtocol,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DELIVERY_S,
    )
    server = _Server(config, service)
    asyncio.run(server.serve(sockets=[listener]))
    return server.was_cut_off_by
