"""What is refused before it is read: strange hosts, wrong keys, large and slow bodies."""

import asyncio
import hmac
import json
from types import SimpleNamespace
from typing import Any

import pytest

from d3cli.model.model import LoadedModel
from d3cli.serve.guard import LOCAL_HOSTS, Guard
from d3cli.serve.limits import Limits
from tests.serve.conftest import CHAT, Connect, chat, new_service, refusal

KEY = "a-key-of-our-own"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
def test_a_name_of_a_stranger_is_refused(connect: Connect, host: str) -> None:
    client = connect()
    for path in ("/v1/models", "/health", "/metrics", "/openapi.json"):
        refusal(client.get(path, headers={"Host": host}), 403, None, "Host")
    refusal(client.post(CHAT, json=chat(), headers={"Host": host}), 403, None, "Host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machines_names_are_answered(connect: Connect, host: str) -> None:
    assert connect().get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "given", [None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer \xff", "Bearer"]
)
def test_without_the_key_only_health_is_answered(connect: Connect, given: str | None) -> None:
    client = connect(key=KEY)
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        response = client.get(path, headers=headers)
        error = refusal(response, 401, None, "API key")
        assert error["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
    refusal(client.post(CHAT, json=chat(), headers=headers), 401, None)
    assert client.get("/health", headers=headers).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its scheme, length and beginning: how long a refusal takes tells nothing."""
    compared = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append(given)
        return hmac.compare_digest(given, key)

    monkeypatch.setattr("d3cli.serve.guard.hmac", SimpleNamespace(compare_digest=compare))
    guard = Guard(answer, key=KEY, hosts=None, limits=Limits())
    keys = (KEY[:5], KEY + "x", "x", "")
    for scheme in ("Bearer", "Basic"):
        for given in keys:
            headers = [(b"authorization", f"{scheme} {given}".encode())]
            assert call(guard, [part(b"", False)], headers=headers)[0]["status"] == 401
    assert compared == [given.encode() for given in keys] * 2


def test_with_the_key_any_host_is_answered(connect: Connect) -> None:
    headers = {"Authorization": f"bearer {KEY}", "Host": "my-server.example"}
    client = connect(key=KEY)
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200


def test_a_large_body_is_refused_whether_or_not_it_says_so(
    connect: Connect, builtin: LoadedModel
) -> None:
    client = connect(new_service(builtin, limits=Limits(body_bytes=2000)))
    body = json.dumps(chat("x" * 3000)).encode()
    refusal(client.post(CHAT, content=body, headers=JSON), 413, None, "2,000 bytes")
    parts = (body[at : at + 100] for at in range(0, len(body), 100))  # sent without a length
    refusal(client.post(CHAT, content=parts, headers=JSON), 413, None, "2,000 bytes")
    assert client.post(CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'"text"',
        b"[" * 200_000,
        b'{"model": ' + b'{"a":' * 100_000,
        b'{"model": "demo", "messages": "x"}',
        b'{"model": "demo", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "demo", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "alpha": Infinity, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_what_is_no_request_is_a_clear_400(connect: Connect, body: bytes) -> None:
    response = connect().post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_form_of_a_web_page_cannot_ask(connect: Connect, kind: str | None) -> None:
    """Browsers send these types to other origins without asking first."""
    headers = {} if kind is None else {"Content-Type": kind}
    response = connect().post(CHAT, content=json.dumps(chat()), headers=headers)
    refusal(response, 400, None, "application/json")


def test_no_page_of_another_origin_is_allowed_unless_asked(connect: Connect) -> None:
    page, asked = "http://localhost:3000", {"Access-Control-Request-Method": "POST"}
    alone = connect()
    response = alone.get("/v1/models", headers={"Origin": page})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert alone.options(CHAT, headers={"Origin": page} | asked).status_code == 405
    shared = connect(origins=(page,))
    response = shared.options(CHAT, headers={"Origin": page} | asked)
    assert response.headers["access-control-allow-origin"] == page
    response = shared.options(CHAT, headers={"Origin": "http://evil.example"} | asked)
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/../etc/passwd", "/docs", "/v1/embeddings"])
def test_other_paths_do_not_exist(connect: Connect, path: str) -> None:
    refusal(connect().get(path), 404, None, "/v1")


def test_a_models_name_is_never_a_path(connect: Connect) -> None:
    client = connect()
    for name in ("..%2f..%2fetc%2fpasswd", "org/name", "x" * 5000):
        refusal(client.get(f"/v1/models/{name}"), 404, "model", "demo")
    assert client.get("/v1/models/demo").json() == client.get("/v1/models").json()["data"][0]


def test_other_methods_are_refused(connect: Connect) -> None:
    response = connect().get(CHAT)
    refusal(response, 405, None)
    assert response.headers["allow"] == "POST"


def call(guard: Guard, messages: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """What a guard sends to a client that sends these messages, then nothing."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": CHAT, "headers": [(b"host", b"localhost")], "method": "POST"}
    asyncio.run(guard(scope | changes, receive, send))
    return sent


async def answer(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    guard = Guard(answer, key=None, hosts=LOCAL_HOSTS, limits=Limits(body_s=0.05))
    assert call(guard, [part(b"a", True), part(b"b", False)])[-1]["body"] == b"ab"
    assert call(guard, [part(b"a", True)])[0]["status"] == 408
    assert call(guard, [{"type": "http.disconnect"}]) == []


@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("1.1", ("transfer-encoding",), 200),
        ("1.1", ("content-length",), 200),
        ("1.0", ("content-length",), 200),
        ("1.1", ("transfer-encoding", "content-length"), 400),
        ("1.0", ("transfer-encoding",), 400),
        ("2.0", (), 505),
        ("0.9", (), 505),
    ],
)
def test_a_body_has_one_end_for_everybody(
    version: str, headers: tuple[str, ...], status: int
) -> None:
    """Else a proxy and this server could see different requests."""
    guard = Guard(answer, key=None, hosts=None, limits=Limits())
    named = [(name.encode(), b"1") for name in headers]
    sent = call(guard, [part(b"1", False)], http_version=version, headers=named)
    assert sent[0]["status"] == status


def test_a_client_that_takes_nothing_is_given_up() -> None:
    async def stuck(_: Any) -> None:
        await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        return part(b"", False)

    guard = Guard(answer, key=None, hosts=None, limits=Limits(send_s=0.05))
    with pytest.raises(TimeoutError):
        asyncio.run(guard({"type": "http", "path": "/", "headers": []}, receive, stuck))
