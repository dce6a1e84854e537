"""The terminal's own settings."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def line_mode(on: bool, *, after_stops: bool = True) -> Iterator[None]:
    """Within, the terminal shows what is typed and hands it over by the line, or does neither.

    Off, each key waits for the next prompt as it was typed: in line mode a Ctrl-D would reach the
    prompt as nothing. Ctrl-C and Ctrl-Z are signals either way.

    Args:
        after_stops: set it again whenever the process was stopped, since a shell changes it; not
            where a prompt has a mode of its own within.
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
        with suppress(termios.error):  # the terminal may be what has gone
            termios.tcsetattr(stdin, termios.TCSANOW, wanted)

    previous = signal.getsignal(signal.SIGCONT)
    if after_stops:
        signal.signal(signal.SIGCONT, change)
    change()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, before)


ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[H\x1b[?25l", "\x1b[?1049l\x1b[?25h"


@contextmanager
def screen_left_when_suspended() -> Iterator[list[float]]:
    """Within, Ctrl-Z gives the terminal's first screen and the cursor back until `fg`.

    Gives a list to which the seconds of each such stop are added.
    """
    stops: list[float] = []
    if not hasattr(signal, "SIGTSTP"):  # Windows
        yield stops
        return

    def suspend(*_: object) -> None:
        _write(LEAVE_SCREEN)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        began = time.perf_counter()
        os.kill(os.getpid(), signal.SIGTSTP)  # comes back when it is continued
        stops.append(time.perf_counter() - began)
        signal.signal(signal.SIGTSTP, suspend)
        _write(ENTER_SCREEN)

    previous = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGTSTP, previous)


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal may be what has gone
        os.write(sys.stderr.fileno(), text.encode())
