"""A lossless reply may be left at any point; what comes after is as if it had not been."""

import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from d3cli.base.errors import D3Error
from d3cli.decode import lossless, sampler
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.length import Costs
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import Draft, ReplyContext
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model import kv_cache
from tests.decode.draft.fixed import Always
from tests.decode.replies import greedy, ids
from tests.families import LAYERS, random_ids, tiny, whole_layers

FULL = DepthSchedule.full(LAYERS)
PROMPT = [*random_ids(9), *random_ids(9), 5, 6, 5]
NEXT = [8, 5, 6]  # the user's next turn
TOKENS = 12
# Where an interruption may strike here: the code of lossless decoding, and the KV cache.
PLACES = {kv_cache.__file__, lossless.__file__, sampler.__file__}
DRAFTS = str(Path(lossless.__file__).parent / "draft")
POINTS = 12


class Interrupted(BaseException):
    """Like KeyboardInterrupt, but no other code raises it."""


@contextmanager
def interrupting(at: int | None) -> Iterator[Callable[[], int]]:
    """Raises before the line of this number is run; yields how many lines were run."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        name = frame.f_code.co_filename
        if name not in PLACES and not name.startswith(DRAFTS):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        yield lambda: lines
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("known", [0, 1, 3])
def test_costs_whose_learning_was_interrupted_at_any_line_can_be_asked(known: int) -> None:
    untroubled = Costs()
    with interrupting(at=None) as count:
        untroubled.learn_pass(4, 1.0)
    assert count() > 4
    for at in range(1, count() + 1):
        costs = Costs()
        for rows in range(1, known + 1):
            costs.learn_pass(rows, float(rows))
        before = costs.verify(), costs.verify_at_most()
        with interrupting(at), pytest.raises(Interrupted):
            costs.learn_pass(4, 1.0)
        assert (costs.verify(), costs.verify_at_most()) == before


def drafter_of(name: str) -> Drafter:
    """A drafter whose drafts are in part right: the small model is the large one."""
    model = tiny("llama").gated
    if name == "auto":
        return Drafter.for_model(model, draft_model=model)
    return Always(
        {
            "lookup": LookupSource,
            "depth": lambda: DepthSource(model),
            "model": lambda: ModelSource(model, model),
        }[name]()
    )


def reply_of(engine: Engine, prompt: list[int], drafter: Drafter | None, tokens: int) -> list[int]:
    schedule = FULL if drafter is None else whole_layers()
    return ids(greedy(engine, prompt, schedule, max_tokens=tokens, drafter=drafter))


@pytest.mark.parametrize("name", ["lookup", "depth", "model", "auto"])
def test_after_an_interruption_at_any_line_the_next_turns_are_those_of_a_fresh_engine(
    name: str,
) -> None:
    model = tiny("llama").gated

    def begun() -> tuple[Engine, Drafter, Reply]:
        engine, drafter = Engine(model), drafter_of(name)
        schedule = whole_layers()
        return engine, drafter, greedy(engine, PROMPT, schedule, max_tokens=TOKENS, drafter=drafter)

    whole = begun()[2]
    with interrupting(at=None) as count:
        tokens = ids(whole)
    assert tokens == reply_of(Engine(model), PROMPT, None, TOKENS)
    interrupted = 0
    for at in random.Random(name).sample(range(1, count()), POINTS):
        engine, drafter, reply = begun()
        with interrupting(at):
            try:
                ids(reply)
            except Interrupted:
                interrupted += 1
        written = [token.token_id for token in reply.tokens]
        assert written == tokens[: len(written)]
        prompt = [*PROMPT, *written, *NEXT]
        expected = reply_of(Engine(model), prompt, None, TOKENS)
        assert reply_of(engine, prompt, drafter, TOKENS) == expected
        assert reply_of(engine, PROMPT, drafter, TOKENS) == tokens
    assert interrupted > POINTS / 2  # "auto" drafts by the clock, and may run fewer lines


@pytest.mark.parametrize("name", ["depth", "model"])
def test_a_pass_that_is_interrupted_between_its_layers_leaves_no_trace(name: str) -> None:
    model = tiny("llama").gated
    expected = reply_of(Engine(model), PROMPT, None, TOKENS)
    layer = model.gate.layers[-2]  # a core layer
    for calls in range(2, 14, 3):
        left = calls

        def interrupt(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Interrupted

        engine, drafter = Engine(model), drafter_of(name)
        hook = layer.register_forward_hook(interrupt)
        try:
            with pytest.raises(Interrupted):
                reply_of(engine, PROMPT, drafter, TOKENS)
        finally:
            hook.remove()
        assert reply_of(engine, PROMPT, drafter, TOKENS) == expected


class Failing(LookupSource):
    """Fails at its second draft."""

    failure: type[BaseException] = KeyboardInterrupt
    drafts = 0

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        self.drafts += 1
        if self.drafts == 2:
            raise self.failure("enough")
        return super().draft(reply, length)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, D3Error])
def test_what_a_source_raises_ends_the_reply_and_nothing_else(
    failure: type[BaseException],
) -> None:
    engine, source = Engine(tiny("llama").gated), Failing()
    source.failure = failure
    drafter = Always(source)
    expected = reply_of(Engine(tiny("llama").gated), PROMPT, None, TOKENS)
    with pytest.raises(failure):
        reply_of(engine, PROMPT, drafter, TOKENS)
    assert reply_of(engine, PROMPT, drafter, TOKENS) == expected


def test_a_reply_that_is_left_between_two_accepted_tokens_is_continued_from_there() -> None:
    model = tiny("llama").gated
    engine, drafter = Engine(model), drafter_of("model")
    for left_at in range(1, TOKENS):
        reply = greedy(engine, PROMPT, whole_layers(), max_tokens=TOKENS, drafter=drafter)
        for _ in zip(range(left_at), reply, strict=False):
            pass
        written = [token.token_id for token in reply.tokens]
        prompt = [*PROMPT, *written, *NEXT]
        expected = reply_of(Engine(model), prompt, None, 4)
        assert reply_of(engine, prompt, drafter, 4) == expected


def test_a_drafter_keeps_no_kv_cache_of_a_conversation_alive() -> None:
    engine, drafter = Engine(tiny("llama").gated), drafter_of("auto")
    reply_of(engine, PROMPT, drafter, TOKENS)
    cache = weakref.ref(engine.cache)
    engine.clear()
    assert cache() is None
