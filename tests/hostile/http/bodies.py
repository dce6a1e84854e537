"""JSON that no honest client writes: not UTF-8, too deep, too many, too long."""

import json
from collections.abc import Iterator
from functools import partial

from tests.hostile.http.registry import add
from tests.hostile.http.target import CHAT, MARK, TEXT, Answer, Target, asked

GOOD = json.dumps(asked()).encode()
MANY = 2_700_000  # lists in 8 MiB
LONG = {"300,000 unknown names", "65,536 parts of a message"}


def with_field(name: bytes, value: bytes) -> bytes:
    """A good body with one field more, which JSON's own writers would not write."""
    return GOOD[:-1] + b', "' + name + b'": ' + value + b"}"


def message(field: bytes) -> bytes:
    """A body of one message, of which this is the rest."""
    return b'{"model": "demo", "max_tokens": 1, "messages": [{"role": "user", ' + field + b"}]}"


def messages(count: int) -> bytes:
    """A body of so many short messages."""
    return json.dumps(asked(messages=[{"role": "user", "content": "x"}] * count)).encode()


def lists(open_: bytes, close: bytes = b"") -> bytes:
    """100,000 lists or objects in each other."""
    return with_field(b"metadata", open_ * 100_000 + close * 100_000)


def names(count: int) -> Iterator[bytes]:
    return (b'"k%d": 1' % number for number in range(count))


REFUSED: dict[str, bytes] = {
    "an empty body": b"",
    "half a body": GOOD[:-9],
    "two bodies in one": GOOD + GOOD,
    "a body that is a list": b"[" + GOOD + b"]",
    "a body that is a text": json.dumps(GOOD.decode()).encode(),
    "a body of one digit": b"1",
    "a body of form fields": b"model=demo&messages=x",
    "a body of XML": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "a body that is a pickle": b"cos\nsystem\n(S'touch /tmp/evil'\ntR.",
    "bytes that are not UTF-8": message(b'"content": "\xff\xfe"'),
    "UTF-16 without its mark, cut": GOOD.decode().encode("utf-16-le")[:-1],
    "half a surrogate pair": message(b'"content": "\\ud800"'),
    "half a surrogate pair in bytes": message(b'"content": "\xed\xa0\x80"'),
    "half a surrogate pair as a name": with_field(b"\\udfff", b"1"),
    "half a surrogate pair as a name of a message": message(b'"content": "x", "\\udfff": 1'),
    "half a surrogate pair as a user": with_field(b"user", b'"\\ud83d"'),
    "half a surrogate pair as a model": b'{"model": "\\ud800", "messages": []}',
    "a comment": GOOD + b"// " + MARK.encode(),
    "a comma too many": GOOD[:-1] + b",}",
    "100,000 lists in each other": b"[" * 100_000,
    "100,000 objects in each other": lists(b'{"a":'),
    "100,000 lists in each other, closed": lists(b"[", b"]"),
    "2,700,000 lists beside each other": with_field(
        b"metadata", b'{"a":[' + b"[]," * MANY + b"0]}"
    ),
    "2,700,000 objects beside each other": message(
        b'"content": "x", "annotations": [' + b"{}," * MANY + b"0]"
    ),
    "a list in a text without an end": b'{"a": [' + b"[]," * 200_000 + b'"' + b'\\"[' * 1_000_000,
    "300,000 unknown names": b"{" + b",".join(names(300_000)) + b"}",
    "an unknown name of 1 MB": with_field(b"x" * 1_000_000, b"1"),
    "a number of 10,000 digits": with_field(b"seed", b"9" * 10_000),
    "a fraction beyond all numbers": with_field(b"temperature", b"1e999"),
    "not a number": with_field(b"temperature", b"NaN"),
    "minus infinity": with_field(b"alpha", b"-Infinity"),
    "a name twice, the last one wrong": with_field(b"max_tokens", b"-5"),
    "a name that Python knows": with_field(b"__class__", b'{"__init__": {"__globals__": 1}}'),
    "a name that JavaScript knows": with_field(b"__proto__", b'{"max_tokens": 1}'),
    "65,536 parts of a message": message(
        b'"content": [' + b",".join([b'{"type": "text", "text": ""}'] * 65_536) + b"]"
    ),
    "4,097 messages": messages(4097),
    "4,096 short messages": messages(4096),
}
PROMPTS: dict[str, str] = {
    "8 MB of one letter": "x" * 8_000_000,
    "8 MB of spaces": " " * 8_000_000,
    "8 MB of emoji": "\U0001f600" * 2_000_000,
    "8 MB without a space": "ab\u0301" * 2_000_000,
}
ANSWERED: dict[str, bytes] = {
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-8 with its mark": b"\xef\xbb\xbf" + GOOD,
    "a name twice": with_field(b"max_tokens", b"2"),
    "a fraction of 10,000 digits": with_field(b"temperature", b"0." + b"0" * 10_000),
    "text full of brackets": json.dumps(asked(metadata={"a": "[{" * 200_000})).encode(),
    "1,000 NULs": json.dumps(asked(messages=[{"role": "user", "content": "\0" * 300}])).encode(),
}


def post(body: bytes, target: Target) -> Answer:
    return target.post(body)


def complete(prompt: str, target: Target) -> Answer:
    return target.post(json.dumps(asked(TEXT, prompt=prompt), ensure_ascii=False).encode(), TEXT)


for name, body in REFUSED.items():
    add(name, partial(post, body), 400, is_slow=name in LONG)
for name, body in ANSWERED.items():
    add(name, partial(post, body), 200)
for name, prompt in PROMPTS.items():
    add(name, partial(complete, prompt), 400, is_slow=True)


def typed(kind: str, target: Target) -> Answer:
    return target.post(GOOD, CHAT, f"Content-Type: {kind}")


for kind in ("text/plain", "application/x-www-form-urlencoded", "text/html", "json", "\xff"):
    add(f"a body of type {kind!a}", partial(typed, kind), 400)
