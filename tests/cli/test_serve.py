"""`d3 serve`: what is refused before a model is loaded."""

import logging
import socket

import pytest

from d3cli.base.errors import D3Error
from d3cli.cli.output import Output
from d3cli.cli.serve import logs
from d3cli.cli.serve.access import is_own, listen, reserve
from d3cli.serve.guard import StuckError
from tests.conftest import D3, check


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "my-machine"])
def test_other_machines_need_a_key(d3: D3, host: str) -> None:
    check(d3("serve", "--host", host), 2, "needs a key")
    assert not is_own(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machines_own_addresses_need_none(host: str) -> None:
    assert is_own(host)


@pytest.mark.parametrize(
    "key", ["short", "", "a key of ümlauts", "ends with a space ", "new\nline-"]
)
def test_a_bad_key_is_refused_and_never_shown(d3: D3, key: str) -> None:
    result = d3("serve", "--api-key", key)
    check(result, 2, "--api-key")
    assert not key or key not in result.err


@pytest.mark.parametrize("origin", ["localhost:3000", "http://a/b", "http://a?b", "null", "*"])
def test_an_origin_is_checked(d3: D3, origin: str) -> None:
    check(d3("serve", "--allow-origin", origin), 2, "--allow-origin")


def test_a_port_in_use_is_said_before_a_model_is_loaded(d3: D3) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = d3("serve", "--port", port)
    check(result, 1, f"port {port}")
    assert "model:" not in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alpha", "2"), "--alpha"),
        (("--temp", "500"), "--temperature"),
        (("--lossless", "model"), "--draft-model"),
        (("--chat-template", "/nowhere"), "/nowhere"),
        (("--port", "70000"), "--port"),
        (("--queue", "-1"), "--queue"),
        (("no-such-model-here",), "no-such-model-here"),
    ],
)
def test_bad_options_are_refused(d3: D3, options: tuple[str, ...], message: str) -> None:
    check(d3("serve", "--port", "0", *options), 2, message)


def test_without_the_extra_it_says_what_to_install(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d3cli.cli.serve.command.find_spec", lambda _: None)
    result = d3("serve")
    check(result, 1, "FastAPI")
    assert "pip install 'd3cli[serve]'" in result.err


def test_an_address_is_free_until_someone_listens() -> None:
    """Two servers that load at once have both reserved it."""
    with reserve("127.0.0.1", 0) as first, reserve(*first.getsockname()) as second:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(first.getsockname())
        listen(first)
        socket.create_connection(first.getsockname()).close()
        with pytest.raises(D3Error, match="cannot listen on"):
            listen(second)
        with pytest.raises(D3Error, match="in use"):
            reserve(*first.getsockname())


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-machine.invalid"])
def test_an_address_of_another_machine_is_not_blamed_on_the_port(d3: D3, host: str) -> None:
    result = d3("serve", "--host", host, "--api-key", "12345678")
    check(result, 1, f"cannot listen on {host}, port 8000: ")
    assert "hint: give an address of this machine with --host" in result.err


def test_a_log_has_no_refused_requests_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("D3_DEBUG", raising=False)
    for name in ("d3cli.serve", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        for attribute in ("handlers", "level", "propagate"):  # to be as before
            monkeypatch.setattr(logger, attribute, getattr(logger, attribute))
        logger.handlers = []
    logs.log_to(Output())
    server = logging.getLogger("uvicorn.error")
    for _ in range(3):
        server.warning("Invalid HTTP request received.")  # answered with 400, as others are
        logging.getLogger("asyncio").error("accept failed", exc_info=OSError("private"))
    server.error("Exception in ASGI application", exc_info=StuckError())
    said = capsys.readouterr().err.splitlines()
    assert said == ["internal error: OSError"] * 3
