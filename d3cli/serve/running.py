"""Runs the application on a socket, until a signal ends it in order.

The first signal lets the present reply end while others are refused; the second ends everything.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from d3cli.serve.protocol import HEADER_BYTES, PatientProtocol
from d3cli.serve.service import Service

LOG = logging.getLogger("d3cli.serve")
IDLE_S, DELIVERY_S = 30, 30  # of a connection between requests; of the last replies on their way
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=DELIVERY_S,
    )
    server = _Server(config, service)
    asyncio.run(server.serve(sockets=[listener]))
    return server.was_cut_off_by
