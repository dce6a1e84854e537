"""Chats in this process (`desk`) and at a terminal of their own (`chat`)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from tests.cli.chat.at_terminal import StartChat
from tests.cli.chat.desk import Desk, NewDesk
from tests.terminal import Terminal
from tests.warm import Warm


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    return load_model(dtype="float32", device="cpu", threads=1)


@pytest.fixture
def desk(
    model: LoadedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[NewDesk]:
    """Makes chats in this process."""
    made: list[Desk] = []
    handlers = {number: signal.getsignal(number) for number in (1, 2, 15)}  # HUP, INT, TERM

    def make(*words: Any, **named: Any) -> Desk:
        made.append(Desk(model, capsys, *words, **named))
        return made[-1]

    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield make
    for one in made:
        one.saving.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def chat(home: Path, warm: Warm) -> Iterator[StartChat]:
    """Starts chats, waits for their prompt (unless not `loaded`), and ends them in the end."""
    started = []

    def start(
        *arguments: str | Path, ready: str = ">>>", loaded: bool = True, **options: Any
    ) -> Terminal:
        words = ["chat", "--dtype", "float32", "--threads", "1", *arguments]
        terminal = Terminal(*words, home=home, warm=warm, **options)
        started.append(terminal)
        terminal.wait(ready)
        terminal.wait(lambda: not loaded or terminal.takes_keys)
        return terminal

    yield start
    for terminal in started:
        terminal.close()
