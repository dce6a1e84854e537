"""Documents whose prompts decide the order: scores are those of decoding."""

import pytest
import torch

from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.compare import compare
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, score
from d3cli.scoring.prompt_orders import MeasuredPrompt
from tests.families import random_ids, tiny

CASES = [("llama", "layer"), ("llama", "sublayer"), ("starcoder2", "sublayer"), ("gpt2", "layer")]


def fresh(name: str) -> LoadedModel:
    """A model that has read nothing, since what it has read orders the units of short prompts."""
    return tiny.__wrapped__(name).gated


def by_prompt(model: LoadedModel, kind: UnitKind = "layer") -> PromptSchedule:
    schedule = model.schedule(0.9, start=3, core_first=1, core_last=1, units=kind)
    assert isinstance(schedule, PromptSchedule)
    return schedule


def write(model: LoadedModel, prompt: list[int], schedule: PromptSchedule) -> Reply:
    reply = Engine(model).stream_ids(
        prompt, schedule=schedule, sampling=SamplingParams(temperature=0), max_tokens=20, ends=()
    )
    for _ in reply:
        pass
    return reply


def document_of(reply: Reply) -> Document:
    return Document(reply.prompt_ids, [token.token_id for token in reply.tokens])


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def written(request: pytest.FixtureRequest) -> tuple[LoadedModel, PromptSchedule, list[Reply]]:
    """Replies to two long prompts and to one that is too short to decide an order."""
    name, kind = request.param
    model = fresh(name)
    schedule = by_prompt(model, kind)
    short = write(model, random_ids(MIN_POSITIONS - 1), schedule)
    prompts = [random_ids(length, seed=length) for length in (MIN_POSITIONS, 40)]
    replies = [short, *(write(model, prompt, schedule) for prompt in prompts)]
    assert len({reply.schedule.skip_order for reply in replies}) == 3  # else the tests show little
    return model, schedule, replies


def test_one_pass_scores_are_those_of_decoding(
    written: tuple[LoadedModel, PromptSchedule, list[Reply]],
) -> None:
    model, schedule, replies = written
    scores = score(model, [document_of(reply) for reply in replies], schedule)
    for reply, found in zip(replies, scores, strict=True):
        decoded = torch.tensor([token.logprob for token in reply.tokens], dtype=torch.float64)
        torch.testing.assert_close(found.log_probs, decoded, atol=1e-5, rtol=0)
        fixed = score(model, [document_of(reply)], reply.schedule)[0]
        torch.testing.assert_close(found.log_probs, fixed.log_probs, atol=1e-5, rtol=0)


def test_the_order_is_the_one_that_decoding_ran(
    written: tuple[LoadedModel, PromptSchedule, list[Reply]],
) -> None:
    model, schedule, replies = written
    for reply in replies:
        assert Scorer(model, [document_of(reply)], schedule.kind).ordered(schedule) == (
            reply.schedule
        )
        assert MeasuredPrompt(model, reply.prompt_ids).ordered(schedule) == reply.schedule


def test_a_prompt_order_is_compared_beside_fixed_ones(
    written: tuple[LoadedModel, PromptSchedule, list[Reply]],
) -> None:
    model, schedule, replies = written
    full, documents = DepthSchedule.full(model.num_layers), [document_of(r) for r in replies]
    ours, same = compare(model, documents, [schedule, full])
    [alone] = compare(model, documents, [full])
    for reply, found, theirs, expected in zip(replies, ours, same, alone, strict=True):
        assert found.depths.tolist() == [token.depth for token in reply.tokens]
        assert found.top_ids.tolist() == [token.top_id for token in reply.tokens]
        assert float(theirs.kl.max()) < 1e-5
        torch.testing.assert_close(theirs.log_probs, expected.log_probs, atol=1e-5, rtol=0)


def test_a_prompt_too_short_for_an_order_is_scored_at_full_depth() -> None:
    model = tiny("llama").gated
    document = Document(random_ids(MIN_POSITIONS - 1), random_ids(12, seed=1))
    [found] = score(model, [document], by_prompt(model))
    [full] = score(model, [document], DepthSchedule.full(model.num_layers))
    torch.testing.assert_close(found.log_probs, full.log_probs, atol=1e-5, rtol=0)


def test_scoring_leaves_no_history_for_short_prompts() -> None:
    model = fresh("llama")
    schedule = by_prompt(model)
    score(model, [Document(random_ids(40), random_ids(12, seed=1))], schedule)
    reply = write(model, random_ids(MIN_POSITIONS - 1), schedule)
    assert reply.schedule == schedule.without_order()


def test_other_units_than_those_measured_with_the_prompt_take_another_pass() -> None:
    model = tiny("llama").gated
    document = Document(random_ids(30), random_ids(12, seed=1))
    scorer = Scorer(model, [document], "layer")
    for kind in ("layer", "sublayer"):
        schedule = by_prompt(model, kind)
        expected = score(model, [document], schedule)[0].log_probs
        found = scorer.score(schedule)[0].log_probs
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
