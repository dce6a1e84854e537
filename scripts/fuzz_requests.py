"""What reads a request to `d3 serve`, for ``scripts/fuzz.py``: its bytes, and its JSON."""

import asyncio
import contextlib
import json
import logging
from typing import Any

SECONDS = 3600  # that no fuzzer waits: what is missing never comes
ROUNDS = 200  # of the event loop until every request is answered or left


class Findings(logging.Handler):
    """Collects what a server would log as an error, and what asyncio found."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


class Transport(asyncio.Transport):
    """A connection without a network."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.sent = b""
        self.is_over = False

    def write(self, data: Any) -> None:
        if not self.is_over:
            self.sent += bytes(data)

    def close(self) -> None:
        self.is_over = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_over

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(_: Any, receive: Any, send: Any) -> None:
    """An application that reads a body and sends its length."""
    body = (await receive())["body"]
    told = str(len(body)).encode()
    headers = [(b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


_PARTS: list[Any] = []


def http_request(data: bytes) -> object:
    """One connection: the first byte says in which pieces the others arrive."""
    if not _PARTS:
        import uvicorn

        from d3cli.serve.guard import LOCAL_HOSTS, Guard
        from d3cli.serve.limits import Limits

        limits = Limits(body_s=SECONDS, send_s=SECONDS, body_bytes=4096)
        guard = Guard(answer, key=None, hosts=LOCAL_HOSTS, limits=limits)
        config = uvicorn.Config(
            guard, log_config=None, access_log=False, h11_max_incomplete_event_size=4096
        )
        config.load()
        findings = Findings()
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: findings.found.append(repr(context)))
        for name in ("uvicorn.error", "asyncio"):
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = [findings], False
        _PARTS.extend((config, loop, findings))
    config, loop, findings = _PARTS
    sent = loop.run_until_complete(_connection(config, data[1:], 1 + (data[:1] or b"\0")[0] ** 2))
    assert not findings.found, findings.found
    assert not sent or sent.startswith(b"HTTP/1.1 "), sent[:100]
    return sent


async def _connection(config: Any, data: bytes, size: int) -> bytes:
    from uvicorn.server import ServerState

    from d3cli.serve.protocol import PatientProtocol

    state, transport = ServerState(), Transport()
    protocol = PatientProtocol(config, state, {})
    protocol.connection_made(transport)
    for at in range(0, len(data), size):
        if transport.is_over:
            break
        protocol.data_received(data[at : at + size])
        await asyncio.sleep(0)
    for _ in range(ROUNDS // 20):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    for _ in range(ROUNDS):
        if not state.tasks:
            return transport.sent
        await asyncio.sleep(0)
    raise AssertionError("a request of a client that has gone does not end")


_PLANNERS: list[Any] = []


def planner() -> Any:
    """What plans the replies of the built-in model."""
    if not _PLANNERS:
        from d3cli.model.load import load_model
        from d3cli.serve.plans import Defaults, Planner

        _PLANNERS.append(Planner(load_model(device="cpu", threads=1), Defaults()))
    return _PLANNERS[0]


def chat_request(data: bytes) -> object:
    """The JSON of a request, up to the plan of its reply, and the error that it gets."""
    from pydantic import ValidationError

    from d3cli.base.errors import D3Error
    from d3cli.serve.bodies import check_containers
    from d3cli.serve.error_handlers import of_validation
    from d3cli.serve.errors import ApiError, as_api_error
    from d3cli.serve.fields import ChatFields, TextFields

    results, plans = list[object](), planner()
    with contextlib.suppress(ApiError):
        check_containers(data)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):  # FastAPI refuses it
        return None
    for fields, plan in ((ChatFields, plans.chat), (TextFields, plans.text)):
        try:
            results.append(plan(fields.model_validate(body)))
        except ValidationError as error:
            found = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
            results.append(_sent(of_validation(found)))
        except (ApiError, D3Error) as error:
            results.append(_sent(as_api_error(error, "prompt")))
    return results


def _sent(error: Any) -> bytes:
    """An error as the client gets it."""
    assert 400 <= error.status < 500, error.body()
    return json.dumps(error.body(), ensure_ascii=False, allow_nan=False).encode()


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"
SIZED, CHUNKED = b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"
SEEDS = {
    "http_request": [
        b"\x20" + GET + b"\r\n" + GET + b"Accept: */*\r\n\r\n",
        b"\xff" + POST + SIZED + b"\r\n{}GET /health HTTP/1.0\r\nHost: [::1]\r\n\r\n",
        b"\x08" + POST + CHUNKED + b"\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX: y\r\n\r\n",
        b"\xff" + POST + SIZED + b"Expect: 100-continue\r\nConnection: close\r\n\r\n{}",
        b"\x02" + GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"\xff" + POST + SIZED + CHUNKED + b"\r\n0\r\n\r\n" + GET + b"\r\n",
    ],
    "chat_request": [
        b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "alpha": 0.99}',
        b'{"model": "demo", "messages": [{"role": "system", "content": [{"type": "text",'
        b' "text": "x"}]}], "stream": true, "stream_options": {"include_usage": true}}',
        b'{"model": "demo", "prompt": [1, 2], "max_tokens": -1, "echo": true, "logprobs": 5}',
        b'{"model": "demo", "prompt": "x", "stop": ["a"], "seed": 3, "temperature": 0.5,'
        b' "top_k": 3, "start": "20%", "core_first": 1, "units": "plane", "lossless": "auto"}',
    ],
}
