"""Wrong keys, strange hosts, and web pages of other origins."""

from functools import partial

from tests.hostile.http.registry import add, attack
from tests.hostile.http.target import CHAT, Answer, Target

KEYS = {
    "no key": "",
    "an empty key": "Authorization: Bearer ",
    "a wrong key": "Authorization: Bearer wrong-key-of-theirs",
    "a key of another scheme": "Authorization: Basic {key}",
    "a key without a scheme": "Authorization: {key}",
    "the beginning of the key": "Authorization: Bearer {half}",
    "the key and more": "Authorization: Bearer {key}x",
    "the key in capitals": "Authorization: Bearer {upper}",
    "two keys in one": "Authorization: Bearer wrong {key}",
    "a key of 30 kB": "Authorization: Bearer " + "x" * 30_000,
    "a key that is not ASCII": "Authorization: Bearer \xc3\xa9\xff{key}",
    "two headers with keys": "Authorization: Bearer {key}\r\nAuthorization: Bearer wrong",
    "the key in another header": "X-Api-Key: {key}",
    "the key in a cookie": "Cookie: api_key={key}",
    "the key for a proxy": "Proxy-Authorization: Bearer {key}",
}
HOSTS = (
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("evil.example#localhost", "localhost@evil.example", "evil.example:localhost", "localhost."),
    *("localhost:", "localhost:80:80", "localhost:-1", "localhost:0x50", "127.1", "0.0.0.0"),
    *("2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "[::]", "[::1", "::1]", "[::1%lo]"),
    *("local\xadhost", "localhost\xa0", "localhost, evil.example", "x" * 30_000),
)
OWN_HOSTS = ("localhost", "LOCALHOST:1", "127.0.0.1:99999", "[::1]:8000")
PAGES = (
    *("null", "http://evil.example", "http://localhost:3000.evil.example", "http://localhost"),
    *("https://localhost:3000", "HTTP://LOCALHOST:3000", "http://localhost:3000, http://x"),
)


def with_key(header: str, target: Target) -> list[Answer]:
    """Asks with a wrong key for what exists, what does not, and a reply."""
    key = target.key
    header = header.format(key=key, half=key[: len(key) // 2], upper=key.upper())
    stranger = Target(target.port)
    paths = ("/v1/models", "/metrics", "/nothing", "/openapi.json")
    return [stranger.get(path, header) for path in paths] + [stranger.post(b"{", CHAT, header)]


def with_host(host: str, target: Target) -> list[Answer]:
    """Asks as a page does whose name resolves to this machine."""
    lines = [f"{method} HTTP/1.1" for method in ("GET /v1/models", "GET /health", f"POST {CHAT}")]
    return [target.raw(target.head(line, host=host) + b"\r\n") for line in lines]


def from_page(page: str, target: Target) -> Answer:
    """Asks as a browser does for a page of another origin; no answer may let it read."""
    asks = (f"Origin: {page}", "Access-Control-Request-Method: POST")
    first = target.head(f"OPTIONS {CHAT} HTTP/1.1", *asks, host="localhost")
    reads = target.head("GET /v1/models HTTP/1.1", asks[0], host="localhost")
    refused, answer = [target.raw(head + b"\r\n") for head in (first, reads)]
    assert refused.status == 400
    for one in (refused, answer):
        assert "access-control-allow-origin" not in one.headers
    return answer


for name, header in KEYS.items():
    add(name, partial(with_key, header), 401)
for host in HOSTS:
    add(f"the host {host[:40]!a}", partial(with_host, host), 403, key=False)
for host in OWN_HOSTS:
    add(f"the own host {host}", partial(with_host, host), 200, 400, key=False)
for page in PAGES:
    add(f"a page of {page}", partial(from_page, page), 200, key=False)


@attack(403, key=False)
def no_host_in_the_oldest_protocol(target: Target) -> Answer:
    return target.raw(b"GET /v1/models HTTP/1.0\r\n\r\n")


@attack(400, key=False)
def two_hosts_of_which_one_is_ours(target: Target) -> Answer:
    head = target.head("GET /v1/models HTTP/1.1", "Host: evil.example", host="localhost")
    return target.raw(head + b"\r\n")


@attack(404, key=False)
def a_strange_url_with_our_host(target: Target) -> Answer:
    return target.raw(
        target.head("GET http://evil.example/v1/models HTTP/1.1", host="localhost") + b"\r\n"
    )


@attack(400, key=False)
def a_form_of_a_page(target: Target) -> Answer:
    """What a page can send without asking first."""
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "a": "="}'
    head = target.head(
        f"POST {CHAT} HTTP/1.1",
        *("Content-Type: text/plain", "Origin: http://evil.example"),
        f"Content-Length: {len(body)}",
        host="localhost",
    )
    return target.raw(head + b"\r\n", body)


@attack(400, 401)
def a_broken_chunk_of_a_stranger(target: Target) -> Answer:
    head = Target(target.port).head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked")
    return target.raw(head + b"\r\nnoise\r\n")
