"""Drafters that always draft, however little of it is accepted."""

from collections.abc import Sequence

from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.source import Draft, DraftSource, Offer, ReplyContext
from d3cli.decode.loop import SourceName
from tests.families import VOCAB, random_ids


class Always(Drafter):
    """Drafts as many tokens as these lengths say, in turn, wherever its source can."""

    def __init__(self, source: DraftSource, lengths: Sequence[int] = (3, 1, 7, 15)) -> None:
        super().__init__([source])
        self._source, self._lengths, self._drafts = source, lengths, 0

    def draft(self, reply: ReplyContext, most: int) -> Draft:
        offer = self._source.offer(reply)
        self._drafts += 1
        length = min(most, self._lengths[self._drafts % len(self._lengths)])
        if offer is not None and offer.most is not None:
            length = min(length, offer.most)
        return Draft() if offer is None or length < 1 else self._source.draft(reply, length)


class Listed:
    """Drafts what a list says, with some tokens wrong; for the tests' own use of names."""

    name: SourceName = "lookup"
    cost = 0.0

    def __init__(self, prompt: int, reply: Sequence[int], wrong_every: int | None = None) -> None:
        self._prompt, self._reply, self._wrong = prompt, reply, wrong_every

    def begin(self, reply: ReplyContext) -> None: ...

    def offer(self, reply: ReplyContext) -> Offer | None:
        return Offer()

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        step = len(reply.token_ids) - self._prompt
        drafted = list(self._reply[step : step + length])
        drafted += random_ids(length - len(drafted), seed=step)
        if self._wrong is not None:
            drafted = [
                (token + 1) % VOCAB if (step + at) % self._wrong == 0 else token
                for at, token in enumerate(drafted)
            ]
        return Draft(drafted, self.name)
