"""Bodies of which two programs could see different ends, as request smuggling needs them."""

import gzip
import json
from functools import partial

from tests.hostile.http.registry import add, attack
from tests.hostile.http.target import CHAT, GONE, JSON, Answer, Target, asked

BODY = json.dumps(asked()).encode()
LENGTH = len(BODY)
CHUNKED = "Transfer-Encoding: chunked"
WHOLE_CHUNK = b"%x\r\n%s\r\n" % (LENGTH, BODY)
TRAILED = WHOLE_CHUNK + b"0\r\nHost: evil\r\n\r\n"
LAST = b"0\r\n\r\n"

LENGTHS = {
    "two lengths": f"Content-Length: {LENGTH}\r\nContent-Length: {LENGTH + 1}",
    "a list of lengths": f"Content-Length: {LENGTH}, {LENGTH + 1}",
    "a negative length": "Content-Length: -5",
    "a length with a plus": f"Content-Length: +{LENGTH}",
    "a length in base 16": "Content-Length: 0x5",
    "a length with a space": "Content-Length: 1 5",
    "a length with an underscore": "Content-Length: 1_0",
    "a length with a fraction": f"Content-Length: {LENGTH}.0",
    "a length that is empty": "Content-Length: ",
    "a length with a space before its colon": f"Content-Length : {LENGTH}",
    "a length of 300 digits": "Content-Length: 1" + "0" * 300,
    "a length in other digits": "Content-Length: \xb2",
    "a length shorter than the body": "Content-Length: 5",
}
ENCODINGS = {
    "a length and chunks": f"Content-Length: {LENGTH}\r\n{CHUNKED}",
    "chunks and a length": f"{CHUNKED}\r\nContent-Length: 0",
    "chunks after gzip": "Transfer-Encoding: gzip, chunked",
    "chunks by another name": "Transfer-Encoding: xchunked",
    "two encodings": f"{CHUNKED}\r\nTransfer-Encoding: identity",
    "a vertical tab in the encoding": "Transfer-Encoding: \x0bchunked",
}
CHUNKS = {
    "a chunk of negative size": b"-1\r\n" + LAST,
    "a chunk of size 0x5": b"0x5\r\nhello\r\n" + LAST,
    "a chunk of size +5": b"+5\r\nhello\r\n" + LAST,
    "a chunk that does not end": b"5\r\nhelloXX" + LAST,
    "a chunk with an extension of 8 MB": b"5;" + b"a" * 8_000_000 + b"\r\nhello\r\n" + LAST,
    "trailers of 1 MB": WHOLE_CHUNK + b"0\r\n" + b"X: y\r\n" * 170_000 + b"\r\n",
    "a broken trailer": WHOLE_CHUNK + b"0\r\nX\0: y\r\n\r\n",
    "chunks without an end": (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 200,
}


def post(header: str, body: bytes, target: Target) -> Answer:
    head = target.head(f"POST {CHAT} HTTP/1.1", JSON, *header.split("\r\n"))
    return target.raw(head + b"\r\n", body)


for name, header in LENGTHS.items():
    add(name, partial(post, header, BODY), 400)
for name, header in ENCODINGS.items():
    add(name, partial(post, header, WHOLE_CHUNK + LAST), 400)
for name, body in CHUNKS.items():
    add(name, partial(post, CHUNKED, body), 400, 413, GONE)
add("a length of 8 MiB and 1", partial(post, f"Content-Length: {(8 << 20) + 1}", BODY), 413)
add("a length of 10**18", partial(post, "Content-Length: 1" + "0" * 18, BODY), 413)
add(
    "a trailer that is a header",
    partial(post, CHUNKED, TRAILED),
    200,
)
# What is missing never comes.
for name, half in {
    "a chunk of 2**64": b"1" + b"0" * 16 + b"\r\nx",
    "chunks with lines of one byte": b"5\nhello\n0\n\n",
    "chunks of one byte each": b"1\r\n \r\n" * 100_000,
}.items():
    add(name, partial(post, CHUNKED, half), 400, 408, waits=True)
add("a length that lies", partial(post, f"Content-Length: {LENGTH + 9}", BODY), 408, waits=True)


@attack(400)
def chunks_in_the_oldest_protocol(target: Target) -> Answer:
    head = target.head(f"POST {CHAT} HTTP/1.0", JSON, CHUNKED)
    return target.raw(head + b"\r\n", WHOLE_CHUNK + LAST)


@attack(400)
def a_second_request_in_the_body_of_the_first(target: Target) -> list[Answer]:
    """The length ends within the body: what follows is a request, and gets no answer of ours."""
    inner = target.head("GET /v1/models HTTP/1.1") + b"\r\n"
    head = target.head(f"POST {CHAT} HTTP/1.1", JSON, "Content-Length: 0", CHUNKED)
    return [target.raw(head + b"\r\n" + LAST + inner)]


@attack(400)
def a_broken_body_of_a_request_without_one(target: Target) -> Answer:
    head = target.head(f"HEAD {CHAT} HTTP/1.1", CHUNKED)
    return target.raw(head + b"\r\nnoise\r\n", method="HEAD")


@attack(415)
def a_compressed_bomb(target: Target) -> Answer:
    return target.post(gzip.compress(bytes(20_000_000)), CHAT, "Content-Encoding: gzip")


@attack(415)
def a_body_in_an_unknown_encoding(target: Target) -> Answer:
    return target.post(BODY, CHAT, "Content-Encoding: identity, evil")
