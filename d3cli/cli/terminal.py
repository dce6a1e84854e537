"""Modes of the terminal: whether it shows what is typed, and which screen is visible."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

DUMB = ("", "dumb", "unknown")
# What runs inside of Emacs as a plain stream of text, whatever TERM says.
EMACS_STREAMS = ("comint", "eshell", "compile")
SHOW_CURSOR = "\x1b[?25h"  # a spinner may have hidden it
# The terminal marks what is pasted, so that its line ends are told from Enter.
MARK_PASTES, MARK_NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"
# The mode to leave behind: that before the outermost `line_mode`; None outside of one.
_found: list[Any] | None = None


def settle_terminal() -> None:
    """Names a terminal without escape sequences as such in TERM, for all libraries.

    A terminal whose type is not known counts as one, and so do the shells inside of Emacs.
    """
    if os.name == "nt":  # consoles there set no TERM
        return
    emacs = os.environ.get("INSIDE_EMACS", "")
    if os.environ.get("TERM", "").lower() in DUMB or any(name in emacs for name in EMACS_STREAMS):
        os.environ["TERM"] = "dumb"


def is_dumb() -> bool:
    """Whether the terminal understands no escape sequences, after `settle_terminal`."""
    return os.environ.get("TERM") == "dumb"


class Mode:
    """A context in which the terminal has the mode that it had when this was made."""

    def __init__(self) -> None:
        self._wanted = self._get()

    def __enter__(self) -> None:
        self._before = self._get()
        self._set(self._wanted)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    @staticmethod
    def _get() -> list[Any] | None:
        try:
            import termios
        except ImportError:  # Windows
            return None
        try:
            return termios.tcgetattr(sys.stdin.fileno())
        except (OSError, termios.error):  # no terminal
            return None

    @staticmethod
    def _set(mode: list[Any] | None) -> None:
        if mode is None:
            return
        import termios

        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, mode)


@contextmanager
def line_mode(on: bool, *, after_stops: bool = True) -> Iterator[None]:
    """Turns echo and line mode on or off for its body.

    When they are off, each key waits for the next prompt as it was typed. In line mode the prompt
    would not see a Ctrl-D. Ctrl-C and Ctrl-Z are signals in both modes.

    Args:
        after_stops: set the mode again when the process continues after a stop, because a shell
            changes it. Not for a body with a prompt that sets its own mode.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    stdin = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(stdin)
    except termios.error:
        yield
        return
    wanted = before[:]
    both = termios.ECHO | termios.ICANON
    wanted[3] = wanted[3] | both if on else wanted[3] & ~both

    def change(*_: object) -> None:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(stdin, termios.TCSANOW, wanted)

    global _found
    previous, found = signal.getsignal(signal.SIGCONT), _found
    if after_stops:
        signal.signal(signal.SIGCONT, change)
    _found = before if found is None else found
    change()
    try:
        yield
    finally:
        _found = found
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, before)


@contextmanager
def typing_ahead() -> Iterator[None]:
    """Keeps what is typed in its body for the next prompt, and does not show it.

    A terminal without escape sequences keeps and shows whole lines, as it always does.
    """
    if is_dumb():
        yield
        return
    with line_mode(False):
        _write(MARK_PASTES)
        try:
            yield
        finally:
            _write(MARK_NO_PASTES)


def restore_terminal() -> None:
    """Leaves the terminal as it was found, for a signal that ends the process."""
    if _screen() is not None and not is_dumb():
        _write(SHOW_CURSOR + (MARK_NO_PASTES if _found is not None else ""))
    Mode._set(_found)


ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[H\x1b[?25l", "\x1b[?1049l\x1b[?25h"


@contextmanager
def screen_left_when_suspended() -> Iterator[list[float]]:
    """Makes Ctrl-Z in its body restore the main screen and the cursor until `fg`.

    Yields a list that receives the seconds of each such stop.
    """
    stops: list[float] = []
    if not hasattr(signal, "SIGTSTP"):  # Windows
        yield stops
        return

    def suspend(*_: object) -> None:
        _write(LEAVE_SCREEN)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        began = time.perf_counter()
        os.kill(os.getpid(), signal.SIGTSTP)  # returns when the process continues
        stops.append(time.perf_counter() - began)
        signal.signal(signal.SIGTSTP, suspend)
        _write(ENTER_SCREEN)

    previous = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGTSTP, previous)


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        screen = _screen()
        os.write(sys.stderr.fileno() if screen is None else screen, text.encode())


def _screen() -> int | None:
    """The descriptor of stdout or stderr that is a terminal; None if neither is.

    Stdout comes first, since loading a model silences stderr for moments.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, missing, or a test's
            if os.isatty(stream.fileno()):
                return stream.fileno()
    return None
