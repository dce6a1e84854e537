"""What the user types at the prompt, and the keys that leave a chat. Knows nothing of models."""

import errno
import time

from d3cli.cli.chat.line_editor import ChatPrompt
from d3cli.cli.chat.plain_prompt import PlainPrompt
from d3cli.cli.output import Output
from d3cli.cli.signals import INTERRUPT, Stopped

# A second Ctrl-C within this many seconds leaves the chat, even at the prompt.
AT_ONCE = 1.0
HUNG_UP, INTERRUPTED = 129, 130
# What the system reports when the terminal is gone.
GONE = (errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ENOTTY)


class Keyboard:
    """Reads one prompt after another."""

    def __init__(self, prompt: ChatPrompt | PlainPrompt, output: Output) -> None:
        self._prompt, self._output = prompt, output
        self._interrupted = -AT_ONCE  # when the last Ctrl-C was handled, by `time.monotonic`

    def read(self, draft: str = "") -> str | int:
        """Returns what the user typed, or an exit code.

        Args:
            draft: the text that the prompt begins with.
        """
        while True:
            try:
                return self._prompt.read(draft)
            except EOFError:
                return 0
            except Stopped as stopped:
                return stopped.exit_code
            except KeyboardInterrupt:
                if time.monotonic() - self._interrupted < AT_ONCE:
                    return INTERRUPTED
                self._output.note("Ctrl-D or /bye leaves")
                draft = ""
            except OSError as error:
                if error.errno not in GONE:
                    raise
                return HUNG_UP

    def leave_after(self, *numbers: int) -> int | None:
        """The exit code that these signals ask for, once what they stopped is in order."""
        if numbers:
            self._interrupted = time.monotonic()
            self._prompt.forget_typed_ahead()
        hard = [number for number in numbers if number != INTERRUPT]
        if hard:
            return 128 + hard[0]
        return INTERRUPTED if len(numbers) > 1 else None
