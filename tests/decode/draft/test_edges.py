"""Where a lossless reply begins and ends, and models that differ in more than their weights."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from d3cli.base.errors import GenerationError, ModelError
from d3cli.decode.draft.by_depth import DepthSource
from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.draft.source import Draft, DraftSource, Drawing, ReplyContext
from d3cli.decode.reply import Reply
from d3cli.decode.rules import GenerationRules
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from tests.decode.draft.fixed import Always, Listed
from tests.decode.replies import greedy, ids
from tests.families import (
    CONFIGS,
    LAYERS,
    VOCAB,
    random_ids,
    random_model,
    sublayers,
    tiny,
    whole_layers,
    word_tokenizer,
)

FULL = DepthSchedule.full(LAYERS)
PROMPT = [*random_ids(9), *random_ids(9), 5, 6, 5]
SOURCES = ("lookup", "depth", "model", "listed")


def changed(**options: Any) -> LoadedModel:
    """The small model with another config, as far as possible with the same weights."""
    model = random_model(LlamaConfig(**(CONFIGS["llama"].to_dict() | options)), "sdpa")
    plain = tiny("llama").plain.state_dict()
    for name, weight in model.state_dict().items():
        rows = min(len(weight), len(plain[name]))
        weight[:rows] = plain[name][:rows]
    return wrap_model(model, word_tokenizer())


def source_of(name: str, model: LoadedModel, expected: Sequence[int]) -> DraftSource:
    if name == "lookup":
        return LookupSource()
    if name == "depth":
        return DepthSource(model)
    if name == "model":
        return ModelSource(model, tiny("llama").gated)
    return Listed(len(PROMPT), expected)


def plain_reply(model: LoadedModel, prompt: list[int], **options: Any) -> Reply:
    reply = greedy(Engine(model), prompt, FULL, **options)
    ids(reply)
    return reply


def lossless_reply(
    model: LoadedModel, prompt: list[int], source: DraftSource, **options: Any
) -> Reply:
    """Fifteen tokens are drafted wherever there is room for them."""
    drafter = Always(source, lengths=(15,))
    reply = greedy(Engine(model), prompt, whole_layers(), drafter=drafter, **options)
    ids(reply)
    return reply


def same(ours: Reply, theirs: Reply) -> bool:
    return (
        [(token.step, token.token_id) for token in ours.tokens]
        == [(token.step, token.token_id) for token in theirs.tokens]
        and ours.finish_reason == theirs.finish_reason
        and ours.text == theirs.text
    )


@pytest.mark.parametrize("name", SOURCES)
class TestEnds:
    @pytest.mark.parametrize("max_tokens", [1, 2, 3, 17])
    def test_a_reply_has_as_many_tokens_as_asked_for(self, name: str, max_tokens: int) -> None:
        model = tiny("llama").gated
        plain = plain_reply(model, PROMPT, max_tokens=max_tokens)
        source = source_of(name, model, [token.token_id for token in plain.tokens])
        reply = lossless_reply(model, PROMPT, source, max_tokens=max_tokens)
        assert same(reply, plain)
        assert len(reply.tokens) == max_tokens
        assert all(
            done.step + len(done.draft_ids) < max_tokens for done in reply.verifications
        )  # nothing is drafted that the reply has no room for

    def test_a_token_that_ends_the_reply_ends_it_in_the_middle_of_a_draft(self, name: str) -> None:
        model = tiny("llama").gated
        expected = [token.token_id for token in plain_reply(model, PROMPT, max_tokens=30).tokens]
        for at in (0, 1, 5, 6, 20):
            ends = [expected[at]]
            plain = plain_reply(model, PROMPT, max_tokens=30, ends=ends)
            source = source_of(name, model, expected)
            reply = lossless_reply(model, PROMPT, source, max_tokens=30, ends=ends)
            assert same(reply, plain)
            assert reply.finish_reason == "stop"
            assert sum(done.tokens for done in reply.verifications) == len(reply.tokens) - 1

    def test_a_stop_string_ends_it_in_the_middle_of_a_draft(self, name: str) -> None:
        model = tiny("llama").gated
        whole = plain_reply(model, PROMPT, max_tokens=30)
        expected = [token.token_id for token in whole.tokens]
        stop = f"w{expected[7]} w{expected[8]}"
        assert stop in whole.text
        plain = plain_reply(model, PROMPT, max_tokens=30, stop=stop)
        source = source_of(name, model, expected)
        engine = Engine(model)
        drafter = Always(source, lengths=(15,))
        reply = greedy(engine, PROMPT, FULL, drafter=drafter, max_tokens=30, stop=stop)
        ids(reply)
        assert same(reply, plain)
        assert reply.finish_reason == "stop"
        then = [*PROMPT, *(token.token_id for token in reply.tokens), 9, 8]
        again = greedy(engine, then, FULL, drafter=drafter, max_tokens=5)
        ids(again)
        assert same(again, plain_reply(model, then, max_tokens=5))

    def test_a_reply_fills_the_context_and_no_more(self, name: str) -> None:
        model = changed(max_position_embeddings=40)
        plain = plain_reply(model, PROMPT)
        source = source_of(name, model, [token.token_id for token in plain.tokens])
        reply = lossless_reply(model, PROMPT, source)
        assert same(reply, plain)
        assert reply.finish_reason == "context"
        assert len(PROMPT) + len(reply.tokens) == 40


class TestModels:
    @pytest.mark.parametrize(("rows", "draft_rows"), [(VOCAB, VOCAB + 13), (VOCAB + 13, VOCAB)])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_either_model_may_have_more_rows_than_its_tokenizer_has_tokens(
        self, rows: int, draft_rows: int, temperature: float
    ) -> None:
        model, draft_model = changed(vocab_size=rows), changed(vocab_size=draft_rows)
        reply = Engine(model).stream_ids(
            PROMPT,
            schedule=FULL,
            sampling=SamplingParams(temperature=temperature, seed=3),
            max_tokens=24,
            drafter=Always(ModelSource(model, draft_model)),
        )
        assert len(ids(reply)) == 24
        assert reply.stats.lossless is not None
        assert reply.stats.lossless.accepted > 0
        if not temperature:
            assert same(reply, plain_reply(model, PROMPT, max_tokens=24))

    def test_a_token_that_the_small_model_has_no_row_for_only_ends_its_drafts(self) -> None:
        model, draft_model = changed(vocab_size=VOCAB + 13), tiny("llama").gated
        prompt = [*PROMPT, VOCAB + 5, *PROMPT]
        reply = lossless_reply(model, prompt, ModelSource(model, draft_model), max_tokens=12)
        assert same(reply, plain_reply(model, prompt, max_tokens=12))
        assert {done.draft_ids for done in reply.verifications} == {()}

    def test_a_small_model_with_a_shorter_context_drafts_as_long_as_it_can(self) -> None:
        model, draft_model = tiny("llama").gated, changed(max_position_embeddings=32)
        for prompt in (PROMPT, PROMPT * 2):
            reply = lossless_reply(model, prompt, ModelSource(model, draft_model), max_tokens=40)
            assert same(reply, plain_reply(model, prompt, max_tokens=40))
            ends = [
                len(prompt) + done.step + len(done.draft_ids)
                for done in reply.verifications
                if done.draft_ids
            ]
            assert max(ends, default=32) == 32

    def test_a_small_model_whose_logits_are_not_finite_drafts_nothing(self) -> None:
        model, broken = tiny("llama").gated, changed()
        broken.causal_lm.lm_head.weight.data.fill_(torch.nan)
        for temperature in (0.0, 1.0):
            reply = Engine(model).stream_ids(
                PROMPT,
                schedule=FULL,
                sampling=SamplingParams(temperature=temperature, seed=3),
                max_tokens=12,
                drafter=Always(ModelSource(model, broken)),
            )
            plain = Engine(model).stream_ids(
                PROMPT, schedule=FULL, sampling=reply.sampling, max_tokens=12
            )
            assert ids(reply) == ids(plain)
            assert {done.draft_ids for done in reply.verifications} == {()}

    def test_rules_that_leave_a_draft_no_token_only_end_the_draft(self) -> None:
        rules = GenerationRules(
            suppress_tokens=tuple(id_ for id_ in range(VOCAB) if id_ not in (9, 20)),
            bad_words_ids=((9, 9), (9, 20)),
        )
        sampler = Sampler(SamplingParams(rules=rules), prompt_ids=PROMPT)
        drawing = Drawing(ReplyContext(PROMPT, KVCache([]), sampler, FULL))
        logits = torch.zeros(VOCAB)
        assert drawing.add(logits)  # 9; full depth may choose 20, and go on
        assert not drawing.add(logits)
        assert drawing.draft("depth", 7) == Draft([9], "depth", probabilities=[], bytes_read=7)

    def test_where_no_token_is_left_the_reply_has_all_before_it(self) -> None:
        model, left = tiny("llama").gated, sorted(set(range(VOCAB)) - {2, *PROMPT})[:9]
        suppressed = tuple(id_ for id_ in range(VOCAB) if id_ not in left)
        rules = GenerationRules(suppress_tokens=suppressed, no_repeat_ngram_size=1)
        replies: list[Reply] = []
        for is_lossless in (False, True):
            written = [token.token_id for reply in replies for token in reply.tokens]
            drafter = Always(Listed(len(PROMPT), written)) if is_lossless else None
            reply = Engine(model).stream_ids(
                PROMPT,
                schedule=FULL,
                sampling=SamplingParams(rules=rules),
                max_tokens=20,
                drafter=drafter,
            )
            with pytest.raises(GenerationError, match="leave no token"):
                list(reply)
            replies.append(reply)
        plain, own = ([token.token_id for token in reply.tokens] for reply in replies)
        assert own == plain
        assert sorted(own) == left
        assert any(token.drafted_by for token in replies[1].tokens[-2:])

    def test_models_with_other_tokenizers_are_refused(self) -> None:
        model, other = tiny("llama").gated, changed()
        other.tokenizer.add_tokens(["new", "newer"])
        for one, draft_model in ((model, other), (other, model)):
            with pytest.raises(ModelError, match=r"differ in 2 of 133 tokens"):
                Drafter.for_model(one, "model", draft_model=draft_model)

    def test_a_small_model_serves_one_conversation_after_another(self) -> None:
        model = tiny("llama").gated
        source = ModelSource(model, changed())
        for prompt in (PROMPT, PROMPT[:5], [*PROMPT[:12], 7, 7], PROMPT):
            reply = lossless_reply(model, prompt, source, max_tokens=20)
            assert same(reply, plain_reply(model, prompt, max_tokens=20))
            assert reply.stats.lossless is not None
            assert reply.stats.lossless.accepted == reply.stats.lossless.drafted > 0


@pytest.mark.parametrize("repair", ["auto", "never"])
def test_a_lossless_reply_after_a_decayed_one_continues_nothing_approximate(repair: str) -> None:
    """Also where the rest of a conversation keeps what was read below full depth."""
    model, engine = tiny("llama").gated, Engine(tiny("llama").gated)
    decayed = greedy(engine, PROMPT, sublayers(model), max_tokens=20)
    prompt = [*PROMPT, *ids(decayed), 8, 9]
    drafter = Always(LookupSource())
    reply = greedy(engine, prompt, FULL, max_tokens=12, drafter=drafter, repair=repair)
    ids(reply)
    assert same(reply, plain_reply(model, prompt, max_tokens=12))
    assert engine.cache.full_length == engine.cache.position
