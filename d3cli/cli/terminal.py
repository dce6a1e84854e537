"""The terminal's own settings."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Within, what is typed does not show; it is there when the prompt is."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    import signal

    stdin = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(stdin)
    except termios.error:
        yield
        return
    quiet = before[:]
    quiet[3] &= ~termios.ECHO

    def hide(*_: object) -> None:
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, quiet)

    previous = signal.signal(signal.SIGCONT, hide)  # a shell changes it while this is stopped
    hide()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):  # the terminal may be what has gone
            termios.tcsetattr(stdin, termios.TCSANOW, before)
