"""How far loading is, in bytes of weights that are brought into another form.

Everything else that loading does takes a moment. Knows nothing of what the forms are.
"""

from collections.abc import Callable

OnProgress = Callable[[float], None]


class ByteProgress:
    """Adds up what is done, and tells the share; nothing where nobody listens.

    Args:
        total: bytes that there are to do, more or less: the share stops at 1.
        listener: is given the share, 0 to 1; from several threads, maybe.
    """

    def __init__(self, total: int, listener: OnProgress | None) -> None:
        self._total, self._listener = total, listener
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._listener is not None:
            self._listener(min(1.0, self._done / max(self._total, 1)))
