"""The progress of loading, in bytes of weights that are converted.

All other parts of loading are quick. Knows nothing of how weights are converted.
"""

from collections.abc import Callable
from threading import Lock

OnProgress = Callable[[float], None]


class ByteProgress:
    """Counts bytes and reports the share that is done.

    Args:
        total: about how many bytes there are; the share stops at 1.
        listener: is called with the share, 0 to 1, by one thread at a time; None for nobody.
    """

    def __init__(self, total: int, listener: OnProgress | None) -> None:
        self._total, self._listener = total, listener
        self._done = 0
        self._lock = Lock()  # threads read weights at the same time; the share never falls

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._listener is not None:
                self._listener(min(1.0, self._done / max(self._total, 1)))
