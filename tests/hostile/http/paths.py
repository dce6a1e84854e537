"""Paths, methods and protocols that are not the API's."""

from functools import partial

from tests.hostile.http.registry import add
from tests.hostile.http.target import CHAT, GONE, Answer, Target

PATHS = {
    "a path with two slashes": "//v1/models",
    "a path of another host": "//evil.example/v1/models",
    "a path with a slash at its end": "/health/",
    "a path upwards": "/../../etc/passwd",
    "a path upwards from a model": "/v1/models/../../../etc/passwd",
    "a path upwards, encoded": "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "a path upwards, encoded twice": "/v1/models/%252e%252e%252fetc%252fpasswd",
    "a path with backslashes": "/v1/models/..\\..\\etc\\passwd",
    "a path with an encoded NUL": "/v1/models/demo%00",
    "a path with an encoded line": "/v1/models/demo%0d%0aX-Evil:%20yes",
    "a path of broken escapes": "/v1/models/%zz%ff%",
    "a path of 30 kB": "/" + "a" * 30_000,
    "a file's path as a model": "/v1/models//etc/passwd",
    "a URL as a model": "/v1/models/http://127.0.0.1:9/model",
    "a URL instead of a path": "http://evil.example/v1/models",
    "a file URL instead of a path": "file:///etc/passwd",
}
METHODS = ("PUT", "DELETE", "PATCH", "TRACE", "HEAD", "OPTIONS", "BREW", "get", "POST\x0b")


def get(path: str, target: Target) -> Answer:
    return target.get(path)


def call(method: str, target: Target) -> Answer:
    line = f"{method} /v1/models HTTP/1.1"
    return target.raw(target.head(line) + b"\r\n", method=method)


def first_line(line: str, target: Target) -> Answer:
    return target.raw(target.head(line) + b"\r\n")


def bytes_only(data: bytes, target: Target) -> Answer:
    return target.raw(data)


for name, path in PATHS.items():
    add(name, partial(get, path), 404)
add("a path of 1 MB", partial(get, "/" + "a" * 1_000_000), 400, GONE)
add("a path with a NUL", partial(get, "/v1/models/demo\0"), 400)
add("a path that is not ASCII", partial(get, "/v1/models/\xff"), 400)
for method in METHODS:
    add(f"the method {method.strip()}", partial(call, method), 400, 405)
add("a method of 20 kB", partial(call, "A" * 20_000), 400, 405)
add("a proxy's CONNECT", partial(first_line, "CONNECT evil.example:443 HTTP/1.1"), 404)
add("a target that is a star", partial(first_line, "OPTIONS * HTTP/1.1"), 404)
add("no target at all", partial(first_line, "GET  HTTP/1.1"), 400)
add("HTTP/2.0 in the words of 1.1", partial(first_line, "GET /v1/models HTTP/2.0"), 505)
add("HTTP/9.9", partial(first_line, f"POST {CHAT} HTTP/9.9"), 505)
add("a version that is a word", partial(first_line, "GET /v1/models HTTP/one"), 400)
for name, data, statuses in (
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", (400,)),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0", (400, 505)),
    ("the hello of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(512), (400,)),
    ("noise", bytes(range(256)) * 400, (400, GONE)),
    ("empty lines without an end", b"\r\n" * 100_000, (400, GONE)),
):
    add(name, partial(bytes_only, data), *statuses)


def upgrade(protocol: str, target: Target) -> Answer:
    """Offers to speak another protocol; the answer comes in this one."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    asked = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", key)
    answer = target.get("/v1/models", *asked, "Sec-WebSocket-Version: 13", "HTTP2-Settings: AAMA")
    assert "upgrade" not in answer.headers
    return answer


for protocol in ("websocket", "h2c", "evil/1"):
    add(f"an upgrade to {protocol}", partial(upgrade, protocol), 200)
