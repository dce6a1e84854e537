"""The built-in model behind the API, in this process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.serve.app import create_app
from d3cli.serve.guard import LOCAL_HOSTS
from d3cli.serve.limits import Limits
from d3cli.serve.plans import Defaults
from d3cli.serve.service import Capacity, Service

STORY = "Tell me a story about a fox."
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="session")
def builtin() -> LoadedModel:
    return load_model(dtype="float32", device="cpu")


def new_service(
    model: LoadedModel,
    *,
    waiting: int = 8,
    sessions: int = 3,
    kv_bytes: int = 1 << 28,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
) -> Service:
    capacity = Capacity(waiting=waiting, sessions=sessions, kv_bytes=kv_bytes)
    return Service(model, "demo", version="1", capacity=capacity, defaults=defaults, limits=limits)


Connect = Callable[..., TestClient]


@pytest.fixture
def connect(builtin: LoadedModel) -> Iterator[Connect]:
    """Starts a server and returns a client of it."""
    with ExitStack() as ending:

        def start(
            service: Service | None = None,
            key: str | None = None,
            origins: tuple[str, ...] = (),
        ) -> TestClient:
            hosts = LOCAL_HOSTS if key is None else None
            app = create_app(service or new_service(builtin), key=key, hosts=hosts, origins=origins)
            client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            return ending.enter_context(client)

        yield start


@pytest.fixture(scope="module")
def client(builtin: LoadedModel) -> Iterator[TestClient]:
    """A client of one server for all tests of a module."""
    app = create_app(new_service(builtin), hosts=LOCAL_HOSTS)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as found:
        yield found


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(text: str = STORY, **fields: Any) -> dict[str, Any]:
    """The body of a request for a short reply."""
    return {"model": "demo", "messages": user(text), "max_tokens": 12} | fields


def alone(model: LoadedModel, messages: Any, **given: Any) -> str:
    """The reply of an engine that has done nothing else, as `d3 generate` makes it."""
    alpha, max_tokens = given.pop("alpha", "auto"), given.pop("max_tokens", None)
    reply = Engine(model).stream(
        messages,
        schedule=model.schedule(alpha),
        sampling=SamplingParams.resolve(given, model.text.generation_settings),
        max_tokens=max_tokens,
    )
    for _ in reply:
        pass
    return reply.text


def refusal(response: Any, status: int, param: str | None, word: str = "") -> dict[str, Any]:
    """Checks that a response is an error in OpenAI's form; returns it."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert word in error["message"]
    assert "--" not in error["message"]
    return error
