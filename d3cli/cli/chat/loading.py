"""Loads what a chat needs on a thread, while the user types."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from d3cli.cli.progress import Progress

T = TypeVar("T")


class Loading(Generic[T]):
    """Something that a thread makes.

    Args:
        make: returns it; called on the thread, once.
        failed: called on the thread if that raised.
    """

    def __init__(self, make: Callable[[], T], failed: Callable[[], None]) -> None:
        self._make, self._failed = make, failed
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wait(self) -> None:
        """Waits until the thread ends."""
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether `result` would raise."""
        return self._error is not None

    def result(self) -> T:
        """Waits for the thread and returns what it has made, or raises what that raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._made[0]

    def _run(self) -> None:
        try:
            self._made.append(self._make())
        except BaseException as error:  # also a panic in Rust, which is no Exception
            self._error = error
            self._failed()


class PassedOn(Progress):
    """Progress on a thread. A spinner shows it while the user waits for the thread."""

    _show: Callable[[float], None] | None = None

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[float], None]]:  # noqa: ARG002
        """Shows nothing. Yields a function that passes on the share that is done."""

        def pass_on(share: float) -> None:
            if self._show is not None:
                self._show(share)

        yield pass_on

    @contextmanager
    def shown(self, text: str) -> Iterator[None]:
        """Shows the spinner."""
        with super().waiting(text) as self._show:
            yield
