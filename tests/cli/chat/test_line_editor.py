"""The prompt of d3 chat, without a terminal."""

import os
import signal

import pytest

from d3cli.cli import signals
from d3cli.cli.chat.line_editor import ChatPrompt
from d3cli.cli.output import Output


def test_a_line_above_a_prompt_that_ends_meanwhile_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """prompt_toolkit looks for the event loop of its prompt, which may just have gone."""
    prompt = ChatPrompt(Output(), history=None, vi=False, commands={})

    def no_loop() -> None:
        raise RuntimeError("no running event loop")

    monkeypatch.setattr(prompt._session.app, "invalidate", no_loop)
    prompt.show_above("agreement with full depth: 98.5%")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_just_before_the_prompt_is_not_forgotten(name: str) -> None:
    number = getattr(signal, name)
    handlers = {one: signal.getsignal(getattr(signal, one)) for one in signals.NAMES}
    told: list[int] = []

    def callback(number: int) -> bool:
        told.append(number)
        return True

    try:
        signals.tell(lambda _: False)  # as after a prompt has ended
        os.kill(os.getpid(), number)
        signals.tell(callback)
        assert told == [number]
        assert signals.arrived() == ()
    finally:
        for one, handler in handlers.items():
            signal.signal(getattr(signal, one), handler)
