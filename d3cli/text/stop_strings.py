"""Ends a reply at a stop string. Knows nothing of tokens."""

from collections.abc import Sequence

from d3cli.base.errors import UsageError


class StopStrings:
    """Cuts a stream of text before the first complete stop string, across chunk boundaries.

    If several end at the same place, the longest counts. Text that may be the beginning of a stop
    string is held back until that is known.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise UsageError(
                "a stop string is empty",
                "use a stop string of at least one character",
                field="stop",
            )
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string was found."""
        self._held += text
        starts = [(self._held.find(stop), len(stop)) for stop in self._stops]
        found = [(start + length, start) for start, length in starts if start >= 0]
        if found:
            shown, self._held = self._held[: min(found)[1]], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """The text that was held back, at the end of the stream."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that is a beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
