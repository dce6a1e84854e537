"""The terminal's own settings."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def echo(shown: bool) -> Iterator[None]:
    """Within, what is typed shows, or does not; it waits for the next prompt either way."""
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
    wanted = before[:]
    wanted[3] = wanted[3] | termios.ECHO if shown else wanted[3] & ~termios.ECHO

    def change(*_: object) -> None:
        with suppress(termios.error):  # the terminal may be what has gone
            termios.tcsetattr(stdin, termios.TCSANOW, wanted)

    previous = signal.signal(signal.SIGCONT, change)  # a shell changes it while this is stopped
    change()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):
            termios.tcsetattr(stdin, termios.TCSANOW, before)
