"""The prompt of d3 chat, without a terminal."""

import io
import os
import signal
from typing import Any

import pyte
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.output.vt100 import Vt100_Output

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


def test_a_line_above_that_comes_while_the_prompt_is_drawn_waits_for_the_next() -> None:
    """The prompt's height is known by then: with another line, what was typed would be cut off."""
    screen = pyte.Screen(80, 24)
    out = io.StringIO()
    output = Vt100_Output(out, lambda: Size(24, 80), term="dumb")
    with create_pipe_input() as keys, create_app_session(keys, output):
        prompt = ChatPrompt(Output(), history=None, vi=False, commands={})
        renderer, container = prompt._session.app.renderer, prompt._session.layout.container
        render, height = renderer.render, container.preferred_height
        lasts, come = [False], ["agreement with full depth: 98.5%"]

        def noted(app: Any, layout: Any, is_done: bool = False) -> None:
            lasts[:] = [is_done]
            render(app, layout, is_done)

        def and_a_line_comes(width: int, most: int) -> Dimension:
            found = height(width, most)
            if lasts[0] and come:
                prompt.show_above(come.pop())
            return found

        renderer.render = noted  # type: ignore[method-assign]
        container.preferred_height = and_a_line_comes  # type: ignore[method-assign]
        keys.send_text("one\r")
        assert prompt.read() == "one"
        assert not come
        keys.send_text("two\r")
        assert prompt.read() == "two"
    pyte.Stream(screen).feed(out.getvalue())
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown == [">>> one", "agreement with full depth: 98.5%", ">>> two"]


def test_a_colour_in_pasted_text_does_not_end_the_prompt() -> None:
    """prompt_toolkit takes it for the mouse, as `ESC [ 31 M` is."""
    output = Vt100_Output(io.StringIO(), lambda: Size(24, 80), term="dumb")
    with create_pipe_input() as keys, create_app_session(keys, output):
        prompt = ChatPrompt(Output(), history=None, vi=False, commands={})
        keys.send_text("a\x1b[31mred\x1b[0;1m and\x1b[<0m bold\r")
        assert prompt.read() == "ared and bold"


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
