"""A chat in this process: lines are handed to its loop, and what they show is returned."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from d3cli.cli import signals
from d3cli.cli.chat.drafts import Drafts
from d3cli.cli.chat.keyboard import Keyboard
from d3cli.cli.chat.loop import ChatLoop
from d3cli.cli.chat.model_switch import Models
from d3cli.cli.chat.saving import Saving
from d3cli.cli.chat.screen import Screen
from d3cli.cli.chat.session import Chat
from d3cli.cli.chat.settings import ChatSettings, spell_setting
from d3cli.cli.chat.writer import Replies
from d3cli.cli.depth import calibrate_command
from d3cli.cli.output import Output
from d3cli.decode import transcript
from d3cli.decode.conversation import Conversation
from d3cli.decode.transcript import ChatMessage
from d3cli.files.names import find_model
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel


def loop_of_links(directory: Path) -> str:
    """A name that leads nowhere: a link to itself."""
    loop = directory / "loop"
    loop.symlink_to(loop)
    return str(loop)


class Desk:
    """One chat.

    Args:
        settings: fields of `ChatSettings`.
        record: what was said before.
        save: whether the conversation is saved.
        drafts: what drafts lossless replies.

    Attributes:
        code: the exit code, once a line has ended the chat.
    """

    def __init__(
        self,
        model: LoadedModel,
        capsys: pytest.CaptureFixture[str],
        record: list[ChatMessage] | None = None,
        *,
        save: bool = True,
        width: int = 200,
        drafts: Drafts | None = None,
        **settings: Any,
    ) -> None:
        self._capsys, self._stdout = capsys, io.StringIO()
        self.code: int | None = None
        self._output = Output(spell_setting)
        screen = Screen(Console(file=self._stdout, width=width))
        self.saving = Saving(transcript.new_id() if save else None)
        self.chat = Chat(
            self._output,
            screen,
            Replies(self._output, screen, self.saving, show_above=self._output.note),
            self.saving,
            Models(
                load=lambda name, *_: load_model(
                    find_model(name), dtype="float32", device="cpu", threads=1
                ),
                calibrate_with=calibrate_command,
                revision_of=lambda _: None,
            ),
            Conversation(model, record or []),
            ChatSettings(**{"max_tokens": 5} | settings),
            "demo",
            drafts or Drafts(),
        )
        self._loop = ChatLoop(self.chat, Keyboard(None, self._output))  # type: ignore[arg-type]
        self.shown()

    def type(self, line: str) -> str:
        """Hands over what the user has typed, and returns what that shows, as one line."""
        with signals.deferred():  # as `ChatLoop.run` does
            self.code = self._loop.handle(line)
        return self.shown()

    def shown(self) -> str:
        """What was shown since the last call: replies first, then notes and errors."""
        text = self._stdout.getvalue() + self._capsys.readouterr().err
        self._stdout.seek(0)
        self._stdout.truncate()
        return " ".join(text.split())

    @property
    def draft(self) -> str:
        """What the next prompt begins with."""
        return self.chat.draft

    @property
    def path(self) -> Path:
        """The conversation's file."""
        assert self.saving.id is not None
        return transcript.path_of(self.saving.id)


NewDesk = Callable[..., Desk]
