"""Drafts by looking up: what followed the last few tokens, where they stood before.

The idea is that of Aggressive Decoding (Ge et al., arXiv 2205.10350) and of prompt lookup decoding
(Saxena, 2023): replies that edit, summarise or quote repeat much of what stands above them. An
index of all 1-, 2- and 3-grams grows with the text, so a draft takes microseconds in a context of
any length.
"""

from collections.abc import Sequence
from typing import NamedTuple

from d3cli.decode.agreement import common_prefix
from d3cli.decode.draft.source import Draft, Offer, ReplyContext
from d3cli.decode.loop import SourceName

# The longest n-gram. Longer ones are rarer, and follow the same text.
LONGEST = 3


class Match(NamedTuple):
    """Where the last tokens stood before: the position after them, and how many they are."""

    end: int
    size: int


class GramIndex:
    """A text, and where each of its n-grams ended last. Adding or removing a token takes O(1)."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the position after its last one
        # For each token, where the n-grams that it ends had ended before, the longest first.
        self._before: list[list[int | None]] = []

    def follow(self, token_ids: Sequence[int], kept: int) -> None:
        """Becomes the index of `token_ids`, of which the first `kept` are its own."""
        while len(self.token_ids) > kept:
            for gram, end in zip(self._last_grams(), self._before.pop(), strict=True):
                if end is None:
                    del self._ends[gram]
                else:
                    self._ends[gram] = end
            self.token_ids.pop()
        for token_id in token_ids[kept:]:
            self.token_ids.append(token_id)
            grams = self._last_grams()
            self._before.append([self._ends.get(gram) for gram in grams])
            self._ends.update(dict.fromkeys(grams, len(self.token_ids)))

    def match(self) -> Match | None:
        """The longest n-gram at the end that stood before, and there the latest."""
        ends = self._before[-1] if self._before else []
        for size, end in zip(range(len(ends), 0, -1), ends, strict=True):
            if end is not None:
                return Match(end, size)
        return None

    def after(self, end: int, length: int) -> list[int]:
        """`length` tokens from position `end` on. Where the text is over, it repeats itself."""
        period = len(self.token_ids) - end
        return [self.token_ids[end + at % period] for at in range(length)]

    def _last_grams(self) -> list[tuple[int, ...]]:
        """The n-grams that end here, the longest first."""
        longest = min(LONGEST, len(self.token_ids))
        return [tuple(self.token_ids[-size:]) for size in range(longest, 0, -1)]


class LookupSource:
    """Drafts what followed the longest, then the latest, match of the last tokens."""

    name: SourceName = "lookup"
    cost = 0.0

    def __init__(self) -> None:
        self._index = GramIndex()

    def begin(self, reply: ReplyContext) -> None:
        """Keeps what is indexed of the conversation."""
        self._follow(reply, common_prefix(self._index.token_ids, reply.token_ids))

    def offer(self, reply: ReplyContext) -> Offer | None:
        """The kind of an offer is the length of its match."""
        self._follow(reply, len(self._index.token_ids))
        match = self._index.match()
        if match is None:
            return None
        return Offer(match.size, next_id=self._index.after(match.end, 1)[0])

    def draft(self, reply: ReplyContext, length: int) -> Draft:  # noqa: ARG002 - `offer` took it
        match = self._index.match()
        assert match is not None, "nothing was offered"
        return Draft(self._index.after(match.end, length), self.name, match.size)

    def _follow(self, reply: ReplyContext, kept: int) -> None:
        # An interruption leaves an empty index instead of half a change.
        index, self._index = self._index, GramIndex()
        index.follow(reply.token_ids, kept)
        self._index = index
