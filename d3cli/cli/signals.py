"""Ctrl-C, SIGTERM and SIGHUP: at once while loading, in an orderly way while there is text to keep.

Imports nothing heavy: it takes charge before anything else is imported. Raising an exception out
of a signal handler is safe only where Python code of ours runs; inside torch's import and loading
it can abort the process or be swallowed by a callback, so until there is text to keep, a signal
simply ends the process.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SHOW_CURSOR = "\x1b[?25h"  # a spinner may have hidden it
INTERRUPT = int(signal.SIGINT)
IMPATIENT = 5  # signals, after which a process that should have ended does
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one is not on Windows


class Stopped(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt, no handler of errors takes it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


_arrived: list[int] = []  # a signal whose exception some callback may have swallowed
_deferred = False


def exit_at_once() -> None:
    """From now on a signal ends the process, with the exit code that shells expect."""
    _handle(_exit)


def stop_in_order() -> None:
    """From now on a signal raises `Stopped`."""
    _arrived.clear()
    _handle(_raise)


def stop_once() -> None:
    """From now on the first signal raises `Stopped`, and those after it only arrive.

    Many of them end the process all the same: something may hang that nobody foresaw.
    """
    _handle(_raise_first)


def tell(callback: Callable[[int], bool]) -> None:
    """From now on a signal calls this; where that gives False it arrives, and no more.

    What arrived before is forgotten.
    """
    _arrived.clear()
    _handle(lambda number, _frame: None if callback(number) else _arrived.append(number))


@contextmanager
def deferred() -> Iterator[None]:
    """Within, signals only arrive: nothing is cut in two, and `check` raises afterwards."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def arrived() -> tuple[int, ...]:
    """The signals that have arrived, in order, since the last change of what they do."""
    return tuple(_arrived)


def check() -> None:
    """Raises `Stopped` if a signal came and its exception was lost on the way."""
    if _arrived:
        raise Stopped(_arrived[0])


def _handle(handler: "signal._HANDLER") -> None:
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), SHOW_CURSOR.encode())
    except (OSError, ValueError):  # the terminal may be what has gone
        pass
    os._exit(128 + number)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    _arrived.append(number)
    raise Stopped(number)


def _raise_first(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    if len(_arrived) == 1 and not _deferred:
        raise Stopped(number)
    if len(_arrived) >= IMPATIENT:
        _exit(number, frame)
