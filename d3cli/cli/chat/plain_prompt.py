"""The prompt of a terminal that understands no escape sequences: the terminal edits the line.

Emacs shells, CI jobs and serial lines are such terminals.
"""

import sys
from collections.abc import Callable

from d3cli.base.inert import inert
from d3cli.cli import signals
from d3cli.cli.chat.line_editor import block_is_open, whole
from d3cli.cli.terminal import Mode

Print = Callable[[str], None]


class PlainPrompt:
    """Reads the user's messages and commands, line by line.

    A text that the prompt should begin with is shown above it; an empty line stands for it.

    Args:
        print_text: writes to standard output and ends the line.
    """

    def __init__(self, print_text: Print) -> None:
        self._print, self._above = print_text, ""
        self._mode = Mode()  # the one that the user or Emacs has chosen
        self._reading = False

    def read(self, default: str = "") -> str:
        """Returns what the user types next; raises what `ChatPrompt.read` raises."""
        if self._above:
            self._print(self._above)
        if default:
            self._print(f"{default}\n(an empty line takes this text)")
        self._above = ""
        try:
            with self._mode:
                self._reading = True
                signals.tell(self._leave)
                text = whole(self._lines())
        except BaseException:
            signals.stop_once()
            self._print("")
            raise
        finally:
            self._reading = False
        return text if text.strip() else default

    def show_above(self, text: str) -> None:
        """Shows a line above the next prompt."""
        self._above = text

    def write_above(self, write: Callable[[], None]) -> None:
        """Calls what writes to the terminal."""
        write()

    def forget_typed_ahead(self) -> None:
        """Does nothing: with Ctrl-C the terminal forgets what was typed before."""

    def _lines(self) -> str:
        text = self._line(">>> ")
        while block_is_open(text):
            text += self._line("... ")
        return text.removesuffix("\n")

    def _line(self, prompt: str) -> str:
        sys.stdout.write(inert(prompt))
        sys.stdout.flush()
        line = sys.stdin.buffer.readline().decode("utf-8", "replace")
        self._reading = self._reading and bool(line)
        if not line:
            raise EOFError
        return line

    def _leave(self, number: int) -> bool:
        if not self._reading:
            return False
        self._reading = False  # a second signal waits for the first to be handled
        raise (KeyboardInterrupt() if number == signals.INTERRUPT else signals.Stopped(number))
