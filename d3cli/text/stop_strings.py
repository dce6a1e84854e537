"""Ends a reply at a stop string. Knows nothing of a tokenizer."""

import re
from collections.abc import Iterable, Sequence

from d3cli.base.errors import UsageError

# What a backslash means in a stop string as typed. Before any other character it is a backslash.
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
# A mark stands for a special token. No text contains these characters: UTF-8 excludes them.
FIRST_MARK, MARKS = 0xD800, re.compile("[\ud800-\udfff]")


def unescaped(text: str) -> str:
    """A stop string as typed, with its escape sequences replaced by what they mean."""
    return re.sub(r"\\([nrt\\])", lambda found: ESCAPES[found[1]], text)


def escaped(text: str) -> str:
    """A text as it has to be typed for `unescaped`."""
    for letter, meaning in reversed(ESCAPES.items()):
        text = text.replace(meaning, f"\\{letter}")
    return text


def marked(stops: Sequence[str], tokens: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The marks of the tokens that the stop strings contain, and the strings with and without them.

    A token may also arrive as plain text, so the strings as they are still count.
    """
    used = [token for token in tokens if any(token in stop for stop in stops)]
    used.sort(key=len, reverse=True)  # a token takes priority over the tokens that it contains
    if not used:
        return {}, tuple(stops)
    marks = {token: chr(FIRST_MARK + number) for number, token in enumerate(used)}
    pattern = re.compile("|".join(map(re.escape, used)))
    with_marks = (pattern.sub(lambda found: marks[found[0]], stop) for stop in stops)
    return marks, tuple(dict.fromkeys([*stops, *with_marks]))


def without_marks(text: str) -> str:
    """A text as it is shown."""
    return MARKS.sub("", text)


class StopStrings:
    """Cuts a stream of text before the first complete stop string, across chunk boundaries.

    If several end at the same place, the longest counts. Text that may be the beginning of a stop
    string is held back until that is known. Text and stop strings may contain marks, which are
    never shown.

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
            return without_marks(shown), True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return without_marks(shown), False

    def flush(self) -> str:
        """The text that was held back, at the end of the stream."""
        shown, self._held = self._held, ""
        return without_marks(shown)

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that is a beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
