"""A server of its own, with the `openai` package and signals."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.request import urlopen

import pytest
from openai import APIConnectionError, AsyncOpenAI, AuthenticationError, OpenAI

from tests.conftest import D3
from tests.processes import d3_process
from tests.serve.conftest import STORY, user

HANGS = 120
KEY = "test-key-of-ours"


@contextmanager
def server(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Starts `d3 serve` on a free port; yields the process and its base URL."""
    process = d3_process("serve", "--port", "0", "--dtype", "float32", *options)
    try:
        url = ""
        while not url:
            line = process.stderr.readline().decode()
            assert line, "the server has ended"
            found = re.search(r"listening on (\S+)", line)
            url = found[1] if found else ""
        yield process, url
    finally:
        process.kill()
        process.wait(HANGS)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with server("--api-key", KEY) as found:
        yield found


@pytest.fixture
def url(served: tuple[subprocess.Popen[bytes], str]) -> str:
    return served[1]


def running(url: str) -> float:
    """The requests that are being answered."""
    from urllib.request import Request

    address = url.removesuffix("/v1") + "/metrics"
    request = Request(address, headers={"Authorization": f"Bearer {KEY}"})
    text = urlopen(request).read().decode()
    return float(re.search(r"^d3_running_requests (\S+)", text, re.MULTILINE)[1])  # type: ignore[index]


def test_openais_client_gets_generates_reply(url: str, d3: D3) -> None:
    options = ("--dtype", "float32", "--max-tokens", "20", "--temp", "0.8", "--seed", "3")
    expected = json.loads(d3("generate", STORY, "--json", *options).out)["text"]
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        (model,) = client.models.list().data
        given = {"model": model.id, "messages": user(STORY), "max_tokens": 20}
        reply = client.chat.completions.create(**given, temperature=0.8, seed=3)
        assert reply.choices[0].message.content == expected
        stream = client.chat.completions.create(
            **given, temperature=0.8, seed=3, stream=True, extra_body={"alpha": "auto"}
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == expected
        text = client.completions.create(model=model.id, prompt="Once upon", echo=True, logprobs=1)
        assert text.choices[0].text.startswith("Once upon")
        with pytest.raises(AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_many_async_requests_are_answered_and_one_can_be_left(url: str) -> None:
    async def ask() -> tuple[list[str | None], int]:
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            create = client.chat.completions.create
            messages = user(STORY)
            stream = await create(model="demo", messages=messages, stream=True)  # type: ignore[arg-type]
            read = 0
            async for _ in stream:
                read += 1
                if read == 3:
                    break
            await stream.close()
            replies = await asyncio.gather(
                *(create(model="demo", messages=messages, max_tokens=8) for _ in range(6))  # type: ignore[arg-type]
            )
            return [reply.choices[0].message.content for reply in replies], read

    texts, read = asyncio.run(ask())
    assert read == 3
    assert len(texts) == 6
    assert len(set(texts)) == 1
    deadline = time.monotonic() + HANGS
    while running(url) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running(url)


def test_half_a_request_does_not_hold_a_connection(url: str) -> None:
    """The server ends it by itself; its limit is a constant, and patience is what this needs."""
    host, port = url.split("//")[1].split("/")[0].split(":")
    with closing(socket.create_connection((host, int(port)), HANGS)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-")
        with closing(socket.create_connection((host, int(port)), HANGS)) as large:
            large.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (64 << 10))
            assert large.recv(100).startswith(b"HTTP/1.1 400")
        with urlopen(f"http://{host}:{port}/health") as healthy:
            assert healthy.status == 200


def test_sigterm_lets_the_reply_end(served: tuple[subprocess.Popen[bytes], str]) -> None:
    """The last test, since it ends the server."""
    process, url = served
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        given = {"model": "demo", "messages": user(STORY), "max_tokens": 150}
        whole = client.chat.completions.create(**given).choices[0].message.content
        stream = client.chat.completions.create(**given, stream=True)
        pieces = [next(stream).choices[0].delta.content]
        process.send_signal(signal.SIGTERM)
        pieces += [chunk.choices[0].delta.content for chunk in stream]
        assert "".join(filter(None, pieces)) == whole
        assert process.wait(HANGS) == 0
        said = process.stderr.read().decode()
        assert "stopping after the present reply" in said
        assert "Traceback" not in said and "internal" not in said
        with pytest.raises(APIConnectionError):
            client.models.list()
