"""What a body may hold, and what all of them may take together."""

import asyncio
from typing import Any

import pytest

from d3cli.serve.bodies import MOST_CONTAINERS, SMALL_BYTES, Bodies, Body, check_containers
from d3cli.serve.errors import ApiError
from d3cli.serve.limits import Limits

SCOPE: dict[str, Any] = {"type": "http", "headers": []}
LARGE = bytes(2 * SMALL_BYTES)


async def arrives(*pieces: bytes) -> Any:
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


def read(body: Body, *pieces: bytes, **headers: str) -> bytes | None:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def ask() -> bytes | None:
        return await body.read(SCOPE | {"headers": named}, await arrives(*pieces))

    return asyncio.run(ask())


def test_only_lists_and_objects_outside_texts_count() -> None:
    many = MOST_CONTAINERS + 1
    for body in (b"[" * many, b"[" + b"{}," * many + b"0]", b'"a" ' + b"[" * many + b' "b"'):
        with pytest.raises(ApiError, match="lists and objects"):
            check_containers(body)
    for text in (b'"' + b"[{" * many + b'"', b'"\\"' + b"[" * many + b'\\\\"', b'"' + b"[" * many):
        check_containers(text)
    check_containers(b"[" * MOST_CONTAINERS)


def test_a_text_without_an_end_is_searched_once() -> None:
    """Each quote could begin a text: a second attempt at each would take hours."""
    check_containers(b'"' + b'\\"[' * 1_000_000)


def test_bodies_together_are_bounded_and_counted_until_they_are_left() -> None:
    among = Bodies(Limits(all_bodies_bytes=3 * SMALL_BYTES))
    with Body(among) as first:
        assert read(first, LARGE[:9], LARGE[9:]) == LARGE
        assert among.held == len(LARGE)
        with Body(among) as second:
            with pytest.raises(ApiError, match="too large together") as refused:
                read(second, LARGE)
            assert (refused.value.status, refused.value.retry_after) == (503, 5)
        with Body(among) as small:  # nobody is kept from a small request
            assert read(small, LARGE[:SMALL_BYTES]) == LARGE[:SMALL_BYTES]
    assert among.held == 0
    with Body(among) as third:
        assert read(third, LARGE) == LARGE


def test_a_body_is_refused_by_what_its_header_says() -> None:
    with Body(Bodies(Limits(body_bytes=5))) as body:
        with pytest.raises(ApiError, match="Content-Encoding"):
            read(body, b"x", content_encoding="gzip")
        with pytest.raises(ApiError, match="5 bytes"):
            read(body, b"x", content_length="6")
        assert read(body, b"x", content_encoding="Identity", content_length="1") == b"x"
