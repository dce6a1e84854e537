"""Ctrl-C, SIGTERM and SIGHUP: immediate while a model loads, orderly while there is text to keep.

Imports nothing heavy, because it acts before anything else is imported. A signal handler can safely
raise an exception only while Python code of ours runs. Inside torch's import and loading it could
abort the process, or a callback could swallow it. So a signal simply ends the process until there
is text to keep.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from d3cli.cli.terminal import restore_terminal

INTERRUPT = int(signal.SIGINT)
IMPATIENT = 5  # signals that end even a process that hangs
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last one


class Stopped(BaseException):
    """A signal asked the process to end. Like KeyboardInterrupt, it is not an Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


# Is called before a signal ends the process at once, and returns the exit code.
before_exit: Callable[[int], int] | None = None

_arrived: list[int] = []  # kept, because a callback may swallow a signal's exception
_deferred = False


def exit_at_once() -> None:
    """Makes a signal end the process, with the exit code that shells expect."""
    _handle(_exit)


def stop_in_order() -> None:
    """Makes a signal raise `Stopped`. Forgets the signals that have arrived."""
    _arrived.clear()
    _handle(_raise)


def stop_once() -> None:
    """Makes the first signal raise `Stopped`; later ones are only recorded.

    The fifth ends the process, in case something hangs.
    """
    _handle(_raise_first)


def tell(callback: Callable[[int], bool]) -> None:
    """Makes a signal call `callback`; if that returns False, the signal is only recorded.

    Signals that have arrived and were not taken call it too.
    """

    def handle(number: int, _frame: FrameType | None = None) -> None:
        if not callback(number):
            _arrived.append(number)

    _handle(handle)
    for number in take():
        handle(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Only records signals in its body, which they do not interrupt. `check` raises afterwards."""
    with _deferring(True):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets signals interrupt its body, within one of `deferred`. Raises if one has arrived."""
    with _deferring(False):
        check()
        yield


@contextmanager
def _deferring(on: bool) -> Iterator[None]:
    global _deferred
    before, _deferred = _deferred, on
    try:
        yield
    finally:
        _deferred = before


def arrived() -> tuple[int, ...]:
    """The recorded signals, in order of arrival."""
    return tuple(_arrived)


def take() -> tuple[int, ...]:
    """The recorded signals, in order of arrival, which are then no longer recorded."""
    numbers = tuple(_arrived)
    del _arrived[: len(numbers)]  # not one that arrives now
    return numbers


def check() -> None:
    """Raises `Stopped` if a signal arrived whose exception was lost or put off."""
    if _arrived:
        raise Stopped(_arrived[0])


def _handle(handler: "signal._HANDLER") -> None:
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    with suppress(OSError, ValueError):  # the terminal may be gone
        restore_terminal()
    code = 128 + number
    os._exit(code if before_exit is None else before_exit(code))


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    _arrived.append(number)
    raise Stopped(number)


def _raise_first(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    if len(_arrived) == 1 and not _deferred:
        raise Stopped(number)
    if len(_arrived) >= IMPATIENT:
        _exit(number, frame)
