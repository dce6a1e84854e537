"""The terminal's own settings."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def line_mode(on: bool) -> Iterator[None]:
    """Within, the terminal shows what is typed and hands it over by the line, or does neither.

    Off, each key waits for the next prompt as it was typed: in line mode a Ctrl-D would reach the
    prompt as nothing. Ctrl-C and Ctrl-Z are signals either way.
    """
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
    both = termios.ECHO | termios.ICANON
    wanted[3] = wanted[3] | both if on else wanted[3] & ~both

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
