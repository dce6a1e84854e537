"""The loop of a chat: reads a line, then answers it or runs its command; signals; the way out."""

import time

from d3cli.base.errors import D3Error
from d3cli.cli import signals
from d3cli.cli.chat.commands import run_command
from d3cli.cli.chat.keyboard import GONE, HUNG_UP, Keyboard
from d3cli.cli.chat.model_switch import NoModelLeftError
from d3cli.cli.chat.session import Chat
from d3cli.cli.signals import Stopped
from d3cli.cli.terminal import line_mode, typing_ahead


class ChatLoop:
    """Runs one chat at one prompt."""

    def __init__(self, chat: Chat, keyboard: Keyboard) -> None:
        self._chat, self._keyboard = chat, keyboard

    def run(self, text: str = "") -> int:
        """Runs until the user leaves, and returns the exit code.

        Args:
            text: what was typed before this; empty if nothing.
        """
        try:
            # The prompt sets a mode of its own, and returns to this one. A Ctrl-C that comes too
            # late for a reply is for the next prompt.
            with line_mode(False, after_stops=False), signals.deferred():
                code = self._answer(text) if text else None
                while code is None:
                    code = self._turn()
                return code
        except OSError as error:  # everything is saved, and nobody can be told
            if error.errno not in GONE:
                raise
            return HUNG_UP
        finally:
            self._chat.replies.abandon_reading()
            self._chat.saving.close()

    def _turn(self) -> int | None:
        self._chat.read_ahead()
        draft, self._chat.draft = self._chat.draft, ""
        text = self._keyboard.read(draft)
        return text if isinstance(text, int) else self._answer(text)

    def _answer(self, text: str) -> int | None:
        code = self.handle(text)
        return self._keyboard.leave_after(*signals.take()) if code is None else code

    def handle(self, text: str) -> int | None:
        """Answers a message or runs a command; returns an exit code if that ends the chat.

        Errors are shown. Signals must be deferred; only the answer itself can be interrupted.

        Raises:
            NoModelLeftError: the chat cannot go on.
            OSError: the terminal is gone.
        """
        code = None
        try:
            with line_mode(False), typing_ahead():
                code = self._take(text, time.perf_counter())
        except Stopped:
            pass
        except NoModelLeftError:
            raise
        except OSError as error:
            if error.errno in GONE:
                raise
            self._chat.output.failure(error)
        except (D3Error, MemoryError) as error:
            self._chat.output.failure(error)
        self._chat.take_back_unanswered()
        return code

    def _take(self, text: str, began: float) -> int | None:
        is_command = text.startswith("/") and not text.startswith("//")
        signals.stop_once()
        self._chat.replies.stop_reading()
        if signals.arrived():  # none may lose what the user has typed
            self._chat.draft = text
            return None
        if not text.strip():
            return None
        if not is_command:
            self._chat.say(text[1:] if text.startswith("//") else text)
        with signals.interruptible():
            if is_command:
                return run_command(self._chat, text)
            self._chat.respond(self._chat.options, began)
        return None
