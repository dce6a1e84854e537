"""The prompt of d3 chat, without a terminal."""

import pytest

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
