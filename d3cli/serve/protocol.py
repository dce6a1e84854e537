"""One connection: uvicorn's protocol, made to last among clients that stand still or flood.

Knows nothing of what a request asks for; the guard checks that.
"""

import asyncio
import json
import math
from typing import Any, cast

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from d3cli.serve.errors import ApiError, overloaded
from d3cli.serve.guard import refuse

HEADER_BYTES, HEADER_S = 32 << 10, 15  # of one request, and how long it may take to arrive
READ_BYTES = 16 << 10  # at once: what one client has sent is parsed before others get their turn
STALLED_S = 60  # without a byte taken, where some wait to be sent
CONNECTIONS, TOLD_WHY = 256, 64  # open at once; how many more are told that they are too many
RETRY_S = 5


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which ends a connection whose request or reply gets stuck.

    uvicorn itself waits for a first request, and for the rest of a header, without an end. So does
    a closed transport for a client that does not take what is left of its reply. And uvicorn keeps
    any number of connections open.
    """

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _made = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses until everything is sent
        transport.max_size = READ_BYTES
        self._made = self.loop.time()
        self._make_way()
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

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuses what is no request, in OpenAI's form; ends the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a response has begun
            self.transport.abort()
            return
        if self.cycle is not None:  # of a request whose body broke: nobody hears its answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        told = "this is not a request of HTTP/1.1, or its header is larger than 32 KiB"
        body = json.dumps(ApiError(400, told, code="invalid_http").body()).encode()
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        headers.append(("Content-Length", str(len(body))))
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        for event in (response, *([] if is_head else [h11.Data(data=body)]), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing: a client that offers another protocol is answered in this one."""

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered, and none of a response is left to send."""
        is_done = self.cycle is None or self.cycle.response_complete
        return is_done and not self.transport.get_write_buffer_size()

    def _make_way(self) -> None:
        """Where too many connections are open, ends the oldest one without a request, or this."""
        if len(self.connections) <= CONNECTIONS:
            return
        others = cast("set[PatientProtocol]", self.connections) - {self}
        idle = [one for one in others if one._is_idle]
        if idle:
            min(idle, key=lambda one: one._made)._abort()
        elif len(self.connections) <= CONNECTIONS + TOLD_WHY:
            self.app = _crowded
        else:
            self._abort()

    def _abort(self) -> None:
        self.connections.discard(self)  # now: asyncio says only later that it is lost
        self.transport.abort()

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


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Answers requests of connections that are too many."""
    await refuse(send, overloaded(f"{CONNECTIONS} connections are open already", RETRY_S))
