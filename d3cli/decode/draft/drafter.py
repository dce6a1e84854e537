"""Chooses what drafts the next tokens, and how many: whatever promises the most for its time.

One drafter serves a conversation and learns from each of its replies. Knows nothing of text,
options or files.
"""

from collections.abc import Sequence
from typing import Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.length import HIGH_ROW_COST, PRIOR, Acceptance, Costs, best_length
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import Draft, DraftSource, Offer, ReplyContext, Verification
from d3cli.decode.loop import SourceName
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.model.model import LoadedModel

SourceChoice = Literal["auto", "lookup", "depth", "model"]

# Plain steps at the beginning, and passes after which there is another one: they tell what a step
# takes, so that the gain is a measured one.
FIRST_STEPS, PASSES_BETWEEN = 2, 40
# The acceptance that is expected of a source before its first draft. With less hope, drafts that
# read half of what a step reads would never be tried.
HOPES: dict[SourceName, float] = {"lookup": PRIOR, "depth": 0.8, "model": 0.8}
# A source that can be watched, but has not been right often enough, may draft if a failure leaves
# the reply at most so much slower than plain steps.
MOST_LOSS = 0.01


class Drafter:
    """Drafts for the lossless replies of one conversation.

    Args:
        sources: what may draft. The source that promises the most at a token drafts there; of equal
            ones, the first.
    """

    def __init__(self, sources: Sequence[DraftSource]) -> None:
        self._sources = sources
        self._acceptance, self._costs = Acceptance(), Costs()
        self._plain_steps = self._since_plain = 0
        self._offers: dict[SourceName, Offer] = {}  # at the token that is drafted for
        # Of this reply: its tokens, the first included, and the steps that drafts have lost.
        self._tokens, self._lost = 1, 0.0

    @classmethod
    def for_model(
        cls,
        model: LoadedModel,
        source: SourceChoice = "auto",
        *,
        draft_model: LoadedModel | ModelSource | None = None,
    ) -> "Drafter":
        """A drafter for the replies of a model.

        Args:
            draft_model: a smaller model with the same tokenizer, for the source "model"; or that
                source, where several drafters share its KV cache.

        Raises:
            ModelError: the tokenizers of the models differ.
            UsageError: the source "model" has no model.
        """
        sources: list[DraftSource] = []
        if source in ("auto", "lookup"):
            sources.append(LookupSource())
        if draft_model is not None and source in ("auto", "model"):
            if not isinstance(draft_model, ModelSource):
                draft_model = ModelSource(model, draft_model)
            sources.append(draft_model)
        if source in ("auto", "depth"):
            sources.append(DepthSource(model))
        if not sources:
            raise UsageError(
                "drafts by a model need one",
                ("name a smaller model with the same tokenizer: ", Setting("draft_model")),
            )
        return cls(sources)

    @property
    def sources(self) -> tuple[SourceName, ...]:
        """What may draft."""
        return tuple(source.name for source in self._sources)

    def begin(self, reply: ReplyContext) -> None:
        """Starts with a new reply."""
        self._tokens, self._lost = 1, 0.0
        for source in self._sources:
            source.begin(reply)

    def draft(self, reply: ReplyContext, most: int) -> Draft:
        """The draft that promises the most; an empty one where a plain step is better, or due.

        Args:
            reply: the one that `begin` was called for.
            most: the most tokens to draft.
        """
        offers = {source.name: source.offer(reply) for source in self._sources}
        self._offers = {name: offer for name, offer in offers.items() if offer is not None}
        if self._plain_steps < FIRST_STEPS or self._since_plain >= PASSES_BETWEEN:
            return Draft()
        best: DraftSource | None = None
        best_gain, wanted = 1.0, 0
        for source in self._sources:
            if source.name in self._offers:
                length, gain = self._length(source, self._offers[source.name], most)
                if length and gain > best_gain:
                    best_gain, best, wanted = gain, source, length
        return Draft() if best is None else best.draft(reply, wanted)

    def _length(self, source: DraftSource, offer: Offer, most: int) -> tuple[int, float]:
        """How many tokens a source should draft, and the expected gain; see `best_length`."""
        most = min(most, MOST_TOKENS - 1, most if offer.most is None else offer.most)
        kind, cost = (source.name, offer.kind), self._costs.draft(source.name, source.cost)
        hoped, verify = self._acceptance.share(kind, HOPES[source.name]), self._costs.verify()
        length, gain = best_length(hoped, cost, verify, most)
        if not length or offer.next_id is None:
            return length, gain
        share = self._acceptance.proven(kind)
        proven, _ = best_length(share, cost, self._costs.verify_at_most(), length)
        if proven:  # what longer passes cost is found out step by step
            length = min(length, 4 * self._costs.longest - 1)
            return best_length(hoped, cost, verify, length)
        may_lose = MOST_LOSS * self._tokens - self._lost
        high = self._costs.verify(HIGH_ROW_COST)
        while length and high[length] + length * cost - 1 > may_lose:
            length -= 1
        return best_length(hoped, cost, verify, length)

    def learn(self, reply: ReplyContext, done: Verification) -> None:
        """What a verification, whose tokens the reply has now, tells of acceptance and costs."""
        self._acceptance.fade(done.tokens)
        self._costs.learn_pass(1 + len(done.draft_ids), done.verify_s)
        self._tokens += done.tokens
        for name, offer in self._offers.items():
            if name != done.source and offer.next_id is not None and done.tokens:
                is_right = reply.token_ids[-done.tokens] == offer.next_id
                self._acceptance.watch((name, offer.kind), is_right=is_right)
        if done.source is None:
            self._plain_steps += 1
            self._since_plain = 0
        else:
            self._since_plain += 1
            self._learn_draft(done.source, done)

    def _learn_draft(self, name: SourceName, done: Verification) -> None:
        drafted = len(done.draft_ids)
        # A token that ends the reply leaves those after it untried. A draft that failed counts as
        # one token that was not accepted.
        tried = max(1, min(drafted, done.tokens))
        self._acceptance.learn((name, done.kind), tried, done.accepted)
        prior = next(each.cost for each in self._sources if each.name == name)
        self._costs.learn_draft(name, prior, max(1, drafted), done.draft_s)
        cost = max(1, drafted) * self._costs.draft(name, prior) + self._costs.verify()[drafted]
        self._lost += cost - done.tokens

    @property
    def step_s(self) -> float | None:
        """Seconds that a plain step took lately; None before the first."""
        return self._costs.step
