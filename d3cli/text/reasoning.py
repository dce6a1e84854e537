"""Where a reasoning model's thinking ends and its answer begins. Text alone.

Models write it at the beginning of a reply, between tags; some chat templates write the opening
tag themselves, into the prompt.
"""

from collections.abc import Sequence

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
)


def opening_tag(text: str) -> str:
    """The tag that a rendered prompt ends with, so that the reply begins inside; else empty."""
    return next((start for start, _ in TAGS if text.rstrip().endswith(start)), "")


def split_reasoning(text: str) -> tuple[str, str]:
    """A reply's reasoning and its answer, without tags; reasoning that never ends is all of it."""
    splitter = ReasoningSplitter()
    parts = [*splitter.push(text), *splitter.flush()]
    thought = "".join(part for part, thinking in parts if thinking).strip()
    answer = "".join(part for part, thinking in parts if not thinking)
    for start, end in TAGS:
        if thought.startswith(start):
            thought = thought.removeprefix(start).removesuffix(end).strip()
            return thought, answer.lstrip("\n")
    return "", answer


def count_thinking(pieces: Sequence[str], inside: str = "") -> int:
    """How many of a reply's pieces are reasoning, the one that closes it included.

    Args:
        inside: the tag that the prompt opened.
    """
    splitter = ReasoningSplitter(inside)
    for number, piece in enumerate(pieces, start=1):
        parts = splitter.push(piece)
        if splitter.is_answering:
            return number if any(thinking for _, thinking in parts) else 0
    return len(pieces) if splitter.is_thinking else 0


class ReasoningSplitter:
    """Tells reasoning from answer while a reply arrives, wherever chunk boundaries fall.

    Args:
        inside: the reply begins within reasoning that this tag opened.
    """

    def __init__(self, inside: str = "") -> None:
        self._end = dict(TAGS).get(inside, "")
        self._held = ""
        self._at_start = not inside

    @property
    def is_thinking(self) -> bool:
        """Whether the reply is known to be within its reasoning."""
        return bool(self._end)

    @property
    def is_answering(self) -> bool:
        """Whether the reply is known to be past its reasoning, or to have none."""
        return not self._end and not self._at_start

    def push(self, text: str) -> list[tuple[str, bool]]:
        """The text that is decided now, in parts; True for reasoning, whose tags are part of it."""
        self._held += text
        if self._at_start and not self._decide_start():
            return []
        if not self._end:
            return self._take(len(self._held), thinking=False)
        end = self._held.find(self._end)
        if end < 0:  # half of the closing tag may have come
            open_ends = (n for n in range(len(self._end) - 1, 0, -1))
            keep = next((n for n in open_ends if self._held.endswith(self._end[:n])), 0)
            return self._take(len(self._held) - keep, thinking=True)
        parts = self._take(end + len(self._end), thinking=True)
        self._end = ""
        return parts + self._take(len(self._held), thinking=False)

    def flush(self) -> list[tuple[str, bool]]:
        """What was held back, now that nothing follows."""
        return self._take(len(self._held), thinking=bool(self._end))

    def _decide_start(self) -> bool:
        """Whether it is known by now if the reply begins with a tag."""
        begun = self._held.lstrip()
        for start, end in TAGS:
            if begun.startswith(start):
                self._end, self._at_start = end, False
                return True
        self._at_start = any(start.startswith(begun) for start, _ in TAGS)
        return not self._at_start

    def _take(self, length: int, *, thinking: bool) -> list[tuple[str, bool]]:
        taken, self._held = self._held[:length], self._held[length:]
        return [(taken, thinking)] if taken else []
