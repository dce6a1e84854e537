"""A drafter asks the source that promises the most, and learns from what becomes of its drafts."""

import random
from collections.abc import Sequence

import pytest

from d3cli.decode.draft.drafter import FIRST_STEPS, MOST_LOSS, PASSES_BETWEEN, Drafter
from d3cli.decode.draft.source import Draft, DraftSource, Offer, ReplyContext, Verification
from d3cli.decode.loop import SourceName
from d3cli.model.decoder_pass import MOST_TOKENS
from tests.decode.draft.test_lookup import context

REPLY = context([1, 2, 3])
ANYTHING = Offer()
MANY = 100  # tokens that a draft may have


class Offering:
    """Offers what a test says."""

    def __init__(
        self, name: SourceName, cost: float, offer: Offer | None = ANYTHING, tokens: int = 99
    ) -> None:
        self.name, self.cost, self.offered, self._tokens = name, cost, offer, tokens

    def begin(self, reply: ReplyContext) -> None: ...

    def offer(self, reply: ReplyContext) -> Offer | None:
        return self.offered

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        kind = 0 if self.offered is None else self.offered.kind
        return Draft([7] * min(length, self._tokens), self.name, kind)


def run(drafter: Drafter, passes: int, accept: float = 1.0, ends: bool = False) -> list[Draft]:
    """Drafts and learns; passes take 1 s and 0.01 s for each row more, drafts their own cost."""
    drafts = []
    for _ in range(passes):
        draft = drafter.draft(REPLY, MANY)
        drafts.append(draft)
        drafted = len(draft.token_ids)
        accepted = int(drafted * accept)
        cost = {each.name: each.cost for each in drafter._sources}
        drafter.learn(
            REPLY,
            Verification(
                step=1,
                tokens=accepted + (not ends),
                source=draft.source,
                kind=draft.kind,
                draft_ids=tuple(draft.token_ids),
                accepted=accepted,
                draft_s=max(1, drafted) * cost[draft.source] if draft.source else 0.0,
                verify_s=1 + 0.01 * drafted,
            ),
        )
    return drafts


def named(drafts: Sequence[Draft]) -> list[SourceName | None]:
    return [draft.source for draft in drafts]


def drafter_of(*sources: DraftSource) -> Drafter:
    drafter = Drafter(sources)
    drafter.begin(REPLY)
    return drafter


def test_plain_steps_come_first_and_now_and_then() -> None:
    drafts = named(run(drafter_of(Offering("lookup", 0.0)), 100))
    between = ["lookup"] * PASSES_BETWEEN
    assert drafts == ([None] * FIRST_STEPS + between + [None] + between + [None, *between])[:100]


def test_the_cheapest_of_equally_good_sources_drafts() -> None:
    drafter = drafter_of(Offering("depth", 0.5), Offering("model", 0.1))
    assert set(named(run(drafter, 20))) == {None, "model"}


def test_drafts_that_read_half_of_a_step_are_tried_and_left_if_they_fail() -> None:
    right, wrong = drafter_of(Offering("depth", 0.55)), drafter_of(Offering("depth", 0.55))
    assert named(run(right, 30)).count("depth") == 30 - FIRST_STEPS
    assert named(run(wrong, 30, accept=0.0)).count("depth") == 1


def test_a_source_that_is_always_wrong_is_left_for_plain_steps_and_tried_again() -> None:
    drafter = drafter_of(Offering("model", 0.2))
    first, later = named(run(drafter, 60, accept=0)), named(run(drafter, 2000, accept=0))
    assert "model" in first
    assert 0 < later.count("model") < 40  # 2% of the passes


def test_a_source_that_fails_is_left_too() -> None:
    drafter = drafter_of(Offering("model", 0.2, tokens=0))
    assert 0 < named(run(drafter, 2000)).count("model") < 50


def test_a_draft_is_no_longer_than_its_source_allows_nor_than_a_pass() -> None:
    for most, longest in ((3, 3), (None, MOST_TOKENS - 1)):
        drafts = run(drafter_of(Offering("lookup", 0.0, Offer(most=most))), 60)
        assert max(len(draft.token_ids) for draft in drafts) == longest


def test_a_draft_is_no_longer_than_what_is_left_of_the_reply() -> None:
    drafter = drafter_of(Offering("lookup", 0.0))
    run(drafter, 30)
    assert len(drafter.draft(REPLY, 2).token_ids) == 2
    assert drafter.draft(REPLY, 0) == Draft()


def test_kinds_of_one_source_are_told_apart() -> None:
    source = Offering("lookup", 0.2, Offer(kind=1))
    drafter = drafter_of(source)
    run(drafter, 60, accept=0)
    assert drafter.draft(REPLY, MANY) == Draft()
    source.offered = Offer(kind=3)
    assert drafter.draft(REPLY, MANY).token_ids


def test_tokens_after_the_end_of_a_reply_were_not_refused() -> None:
    ended, whole = (drafter_of(Offering("lookup", 0.0)) for _ in range(2))
    run(ended, 30, accept=0.5, ends=True)
    run(whole, 30)
    for drafter in (ended, whole):
        assert len(drafter.draft(REPLY, MANY).token_ids) == MOST_TOKENS - 1


def test_the_time_of_a_plain_step_is_known_after_the_first() -> None:
    drafter = drafter_of(Offering("lookup", 0.0))
    assert drafter.step_s is None
    run(drafter, 1)
    assert drafter.step_s == 1.0


class Watched(Offering):
    """Tells what it would draft next; it is right at a given rate, by itself and in drafts."""

    def __init__(self, rate: float) -> None:
        super().__init__("lookup", 0.0)
        self.rate, self.chance = rate, random.Random(0)

    def offer(self, reply: ReplyContext) -> Offer:
        is_right = self.chance.random() < self.rate
        self.offered = Offer(next_id=RIGHT if is_right else WRONG)
        return self.offered

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        assert self.offered is not None and self.offered.next_id is not None
        later = [RIGHT if self.chance.random() < self.rate else WRONG for _ in range(length - 1)]
        return Draft([self.offered.next_id, *later], "lookup")


RIGHT, WRONG = 1, 2


def write(
    source: Watched, row_cost: float, tokens: int, slow_first: float = 1.0
) -> tuple[list[int], float]:
    """Writes a reply: the length of each draft, and the time of all passes in plain steps.

    Args:
        slow_first: another program makes the first draft's verification take so many times as long.
    """
    reply = context([RIGHT])
    token_ids = reply.token_ids
    assert isinstance(token_ids, list)
    drafter, lengths, seconds = Drafter([source]), [], 0.0
    drafter.begin(reply)
    while len(token_ids) < tokens:
        draft = drafter.draft(reply, MANY)
        drafted = list(draft.token_ids)
        accepted = next((at for at, one in enumerate(drafted) if one != RIGHT), len(drafted))
        token_ids += [RIGHT] * (accepted + 1)
        cost = 1 + row_cost * len(drafted)
        if drafted and not any(lengths):
            cost *= slow_first
        seconds += cost
        lengths.append(len(drafted))
        done = Verification(
            1, accepted + 1, draft.source, draft.kind, tuple(drafted), accepted, 0.0, cost
        )
        drafter.learn(reply, done)
    return lengths, seconds / (len(token_ids) - 1)


def test_what_was_watched_to_be_right_drafts_at_once_and_what_was_wrong_hardly() -> None:
    right, wrong = Watched(1.0), Watched(0.0)
    lengths, share = write(right, 0.2, 200)
    assert lengths[:FIRST_STEPS] == [0] * FIRST_STEPS
    assert all(lengths[FIRST_STEPS + 1 : FIRST_STEPS + PASSES_BETWEEN])
    assert share < 0.4
    assert sum(write(wrong, 0.2, 200)[0]) < 20


@pytest.mark.parametrize("row_cost", [0.02, 0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("tokens", [15, 30, 200])
def test_no_reply_takes_much_longer_than_plain_steps(
    rate: float, row_cost: float, tokens: int
) -> None:
    _, share = write(Watched(rate), row_cost, tokens)
    # The first draft may find that a row costs more than it was prepared for.
    surprise = max(0.0, row_cost - 0.25)
    assert share <= 1 + MOST_LOSS + (0.2 + surprise) / tokens


def test_a_draft_that_was_not_proven_waits_until_the_reply_can_afford_it() -> None:
    source = Watched(0.5)
    source.chance = random.Random(3)
    lengths, _ = write(source, 0.2, 60)
    first = next(at for at, length in enumerate(lengths) if length)
    assert first > FIRST_STEPS


def test_one_slow_verification_does_not_end_the_drafts_of_a_reply() -> None:
    lengths, share = write(Watched(1.0), 0.1, 200, slow_first=10.0)
    assert max(lengths) == MOST_TOKENS - 1
    assert share < 0.6
