"""The loop of a chat: reads a line, then answers it or runs its command; signals; the way out."""

import errno
import time

from d3cli.base.errors import D3Error
from d3cli.cli import signals
from d3cli.cli.chat.commands import run_command
from d3cli.cli.chat.line_editor import ChatPrompt
from d3cli.cli.chat.model_switch import NoModelLeftError
from d3cli.cli.chat.plain_prompt import PlainPrompt
from d3cli.cli.chat.session import Chat
from d3cli.cli.signals import Stopped
from d3cli.cli.terminal import line_mode, typing_ahead

# A second Ctrl-C within this many seconds leaves the chat, even at the prompt.
AT_ONCE = 1.0
HUNG_UP, INTERRUPTED = 129, 130
# What the system reports when the terminal is gone.
GONE = (errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ENOTTY)


class ChatLoop:
    """Runs one chat at one prompt."""

    def __init__(self, chat: Chat, prompt: ChatPrompt | PlainPrompt) -> None:
        self._chat, self._prompt = chat, prompt
        self._interrupted = -AT_ONCE  # when the last Ctrl-C was handled, by `time.monotonic`

    def run(self) -> int:
        """Runs until the user leaves, and returns the exit code."""
        try:
            # The prompt sets a mode of its own, and returns to this one.
            with line_mode(False, after_stops=False):
                return self._loop()
        except OSError as error:  # everything is saved, and nobody can be told
            if error.errno not in GONE:
                raise
            return HUNG_UP
        finally:
            self._chat.replies.abandon_reading()
            self._chat.saving.close()

    def _loop(self) -> int:
        while True:
            self._chat.read_ahead()
            text = self._read()
            code = text if isinstance(text, int) else self.handle(text)
            if code is None:
                code = self._leave_after(*signals.take())
            if code is not None:
                return code

    def handle(self, text: str) -> int | None:
        """Answers a message or runs a command; returns an exit code if that ends the chat.

        Errors are shown.

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
        with signals.deferred():
            self._chat.take_back_unanswered()
        return code

    def _read(self) -> str | int:
        """Returns what the user typed, or an exit code."""
        while True:
            draft, self._chat.draft = self._chat.draft, ""
            try:
                return self._prompt.read(draft)
            except EOFError:
                return 0
            except Stopped as stopped:
                return stopped.exit_code
            except KeyboardInterrupt:
                if time.monotonic() - self._interrupted < AT_ONCE:
                    return INTERRUPTED
                self._chat.output.note("Ctrl-D or /bye leaves")

    def _take(self, text: str, began: float) -> int | None:
        is_command = text.startswith("/") and not text.startswith("//")
        with signals.deferred():  # no signal may lose what the user has typed
            signals.stop_once()
            self._chat.replies.stop_reading()
            if signals.arrived():
                self._chat.draft = text
                return None
            if not text.strip():
                return None
            if not is_command:
                self._chat.say(text[1:] if text.startswith("//") else text)
        signals.check()
        if is_command:
            return run_command(self._chat, text)
        self._chat.respond(self._chat.options, began)
        return None

    def _leave_after(self, *numbers: int) -> int | None:
        """The exit code that these signals ask for, once what they stopped is in order."""
        if numbers:
            self._interrupted = time.monotonic()
            self._prompt.forget_typed_ahead()
        hard = [number for number in numbers if number != signals.INTERRUPT]
        if hard:
            return 128 + hard[0]
        return INTERRUPTED if len(numbers) > 1 else None
