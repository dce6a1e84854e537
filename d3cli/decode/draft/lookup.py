"""Drafts by looking up: what followed the last few tokens, where they stood before.

The idea is that of Aggressive Decoding (Ge et al., arXiv 2205.10350) and of prompt lookup decoding
(Saxena, 2023): replies that edit, summarise or quote repeat much of what stands above them. An
index of all 1-, 2- and 3-grams grows with the text, so a draft takes microseconds in a context of
any length.
"""

from collections import defaultdict
from collections.abc import Sequence

from d3cli.decode.agreement import common_prefix
from d3cli.decode.draft.source import Draft, Offer, ReplyContext
from d3cli.decode.loop import SourceName

# The longest n-gram. Longer ones are rarer, and follow the same text.
LONGEST = 3


class LookupSource:
    """Drafts what followed the longest, then the latest, match of the last tokens."""

    name: SourceName = "lookup"
    cost = 0.0

    def __init__(self) -> None:
        self._tokens: Sequence[int] = ()
        self._indexed: list[int] = []
        # n-gram -> the positions after it, in order
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._match: int | None = None
        self._kind = 0

    def begin(self, reply: ReplyContext) -> None:
        """Keeps what is indexed of the conversation."""
        self._tokens = reply.token_ids
        kept = common_prefix(self._indexed, self._tokens)
        while len(self._indexed) > kept:
            for gram in self._last_grams():
                self._ends[gram].pop()
                if not self._ends[gram]:
                    del self._ends[gram]
            self._indexed.pop()

    def offer(self) -> Offer | None:
        """The kind of an offer is the length of its match."""
        for token_id in self._tokens[len(self._indexed) :]:
            self._indexed.append(token_id)
            for gram in self._last_grams():
                self._ends[gram].append(len(self._indexed))
        for gram in self._last_grams():
            ends = self._ends[gram]
            if len(ends) > 1:  # the last one is here
                self._match, self._kind = ends[-2], len(gram)
                return Offer(self._kind)
        return None

    def draft(self, length: int) -> Draft:
        """Where the match overlaps the end, the text repeats itself, and so does the draft."""
        assert self._match is not None, "there is no match"
        found: list[int] = []
        for at in range(self._match, self._match + length):
            beyond = at - len(self._indexed)
            found.append(self._indexed[at] if beyond < 0 else found[beyond])
        return Draft(found, self.name, self._kind)

    def _last_grams(self) -> list[tuple[int, ...]]:
        """The n-grams that end here, the longest first."""
        longest = min(LONGEST, len(self._indexed))
        return [tuple(self._indexed[-size:]) for size in range(longest, 0, -1)]
