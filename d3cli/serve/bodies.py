"""Reads the bodies of requests within bounds: of one, and of all together.

A body is held until its request is answered, also while that waits for its turn.
"""

import asyncio
import re
from typing import Self

from starlette.types import Receive, Scope

from d3cli.serve.errors import ApiError, overloaded
from d3cli.serve.limits import Limits

MOST_CONTAINERS = 100_000  # an empty list of two bytes takes 64 in memory
SMALL_BYTES = 64 << 10  # a body of this size always finds room
RETRY_S = 5
# A string of JSON, also one without an end. It never tries a second way to match.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


class Bodies:
    """The bodies of all requests that one server answers at the moment."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0  # bytes


class Body:
    """The body of one request: counts among all of them until it is left.

    Use it as a context manager, and `read` it inside.
    """

    def __init__(self, among: Bodies) -> None:
        self._among, self._size = among, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._among.held -= self._size

    async def read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone.

        Raises:
            ApiError: it is too large or too slow, no plain JSON, or too much is held already.
        """
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            told = "Content-Encoding is not supported: send the body as it is"
            raise ApiError(415, told, code="unsupported_encoding")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit():
            self._check_size(int(declared[:20]))
        body = bytearray()
        try:
            async with asyncio.timeout(self._among.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += self._counted(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ApiError(
                408, "the request took too long to arrive", code="request_timeout"
            ) from None
        check_containers(body)
        return bytes(body)

    def _counted(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._among.held += len(piece)
        self._check_size(self._size)
        is_full = self._among.held > self._among.limits.all_bodies_bytes
        if is_full and self._size > SMALL_BYTES:
            raise overloaded("the requests that wait are too large together", RETRY_S)
        return piece

    def _check_size(self, size: int) -> None:
        most = self._among.limits.body_bytes
        if size > most:
            raise ApiError(
                413, f"the request is larger than {most:,} bytes", code="request_too_large"
            )


def check_containers(body: bytes | bytearray) -> None:
    """Refuses JSON of more lists and objects than any request needs; brackets in texts are none.

    Raises:
        ApiError: it has.
    """
    if _containers(body) > MOST_CONTAINERS and _containers(_STRING.sub(b"", body)) > (
        MOST_CONTAINERS
    ):
        raise ApiError(
            400,
            f"the body has more than {MOST_CONTAINERS:,} lists and objects",
            code="invalid_json",
        )


def _containers(body: bytes | bytearray) -> int:
    return body.count(b"[") + body.count(b"{")
