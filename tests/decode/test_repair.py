"""What a turn keeps of the KV cache of a reply below full depth."""

import pytest

from d3cli.decode.loop import decode_step, prefill
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.compare_reply import compare_reply
from tests.decode.replies import greedy, ids
from tests.families import LAYERS, planes, random_ids, tiny, whole_layers

PROMPT, REPLY, MORE = random_ids(20, seed=1), 12, random_ids(9, seed=2)
FULL = DepthSchedule.full(LAYERS)


def two_turns(
    model: LoadedModel, schedule: DepthSchedule, repair: str
) -> tuple[list[int], int, list[float], Engine]:
    """The first reply; then how many positions the next turn kept, and its log-probabilities."""
    engine = Engine(model)
    first = ids(greedy(engine, PROMPT, schedule, max_tokens=REPLY))
    second = greedy(engine, [*PROMPT, *first, *MORE], FULL, max_tokens=8, repair=repair)
    ids(second)
    return first, second.reused, log_probs(second), engine


def log_probs(reply: Reply) -> list[float]:
    ids(reply)
    return [token.logprob for token in reply.tokens]


def kept_exactly(model: LoadedModel, schedule: DepthSchedule, reply: list[int]) -> list[float]:
    """Log-probabilities of the second turn, over a cache that was never repaired."""
    cache = model.new_cache()
    for _ in prefill(model, cache, PROMPT):
        pass
    for step, token_id in enumerate(reply[:-1], start=1):
        decode_step(model, cache, token_id, schedule.dropped(step))
    for chunk in prefill(model, cache, [reply[-1], *MORE]):
        logits = model.logits(chunk.hidden[-1])
    found = []
    for _ in range(8):
        found.append(float(logits.log_softmax(-1).max()))
        logits = decode_step(model, cache, int(logits.argmax()), ())
    return found


def test_a_cache_without_low_planes_is_kept_if_it_shall_never_be_repaired() -> None:
    model = tiny("llama", nested=True).gated
    schedule = planes(model)
    reply, reused, ours, _ = two_turns(model, schedule, "never")
    assert reused == len(PROMPT) + REPLY - 1
    assert ours == pytest.approx(kept_exactly(model, schedule, reply), abs=1e-5)


@pytest.mark.parametrize("repair", ["auto", "always"])
def test_otherwise_it_is_repaired(repair: str) -> None:
    model = tiny("llama", nested=True).gated
    schedule = planes(model)
    reply, reused, ours, _ = two_turns(model, schedule, repair)
    fresh = greedy(Engine(model), [*PROMPT, *reply, *MORE], FULL, max_tokens=8)
    assert reused == len(PROMPT) + schedule.start  # the warm-up is exact
    assert ours == pytest.approx(log_probs(fresh), abs=1e-5)
    assert ours != pytest.approx(kept_exactly(model, schedule, reply), abs=1e-3)


def test_missing_keys_and_values_are_always_read_again() -> None:
    model = tiny("llama").gated
    schedule = whole_layers()
    reply, reused, ours, _ = two_turns(model, schedule, "never")
    fresh = greedy(Engine(model), [*PROMPT, *reply, *MORE], FULL, max_tokens=8)
    assert reused == len(PROMPT) + schedule.start
    assert ours == pytest.approx(log_probs(fresh), abs=1e-5)


def late_attention(model: LoadedModel) -> DepthSchedule:
    """Drops five low planes, one a token from token 3 on, then the attention of a layer."""
    order = ("4.mlp.lo", "3.mlp.lo", "5.mlp.lo", "0.mlp.lo", "1.mlp.lo", "2.attn")
    return DepthSchedule(LAYERS, 0.97, 2, 1, 2, order, model.weight_bytes.weights(order))


@pytest.mark.parametrize("cut", [5, REPLY])
def test_what_is_read_after_approximate_keys_and_values_is_no_audit(cut: int) -> None:
    model = tiny("llama", nested=True).gated
    engine = Engine(model)
    first = greedy(engine, PROMPT, late_attention(model), max_tokens=REPLY)
    rest = [*PROMPT, *ids(first)[:cut], *MORE[: cut // REPLY]]
    exact, complete = engine.cache.full_length, engine.cache.complete_length
    second = greedy(engine, rest, FULL, max_tokens=2, repair="never")
    list(second.prefill())
    assert exact < second.reused == min(complete, len(rest) - 1)
    assert first.agreement is None


def test_a_later_repair_audits_the_reply_after_all() -> None:
    model = tiny("llama", nested=True).gated
    found = []
    for repair in ("never", "always"):
        engine = Engine(model)
        first = greedy(engine, PROMPT, late_attention(model), max_tokens=REPLY)
        for _ in engine.read_ahead([*PROMPT, *ids(first)], repair=repair):
            pass
        found.append(engine.repair())
    assert found[0] == found[1]
    assert found[0].compared == REPLY - 3  # token 0 and the warm-up ran at full depth


@pytest.mark.parametrize("repair", ["never", "always"])
def test_more_than_rounding_changes_a_reply_after_approximate_keys_and_values(repair: str) -> None:
    model = tiny("llama", nested=True).gated
    engine, schedule = Engine(model), planes(model)
    first = ids(greedy(engine, PROMPT, schedule, max_tokens=REPLY))
    second = greedy(engine, [*PROMPT, *first, *MORE], schedule, max_tokens=REPLY, repair=repair)
    ids(second)
    found = compare_reply(engine, second)
    assert found.agreement.compared == REPLY - 3  # with full depth, whose keys are exact
    assert (found.rounding is None) == (repair == "never")


def test_a_repair_that_is_asked_for_makes_the_whole_cache_exact() -> None:
    model = tiny("llama", nested=True).gated
    *_, engine = two_turns(model, planes(model), "never")
    assert engine.cache.full_length < engine.cache.position
    engine.repair()
    assert engine.cache.full_length == engine.cache.position


def test_a_prompts_order_then_stays_that_of_the_first_prompt() -> None:
    model = tiny("llama", nested=True).gated
    schedule = model.schedule(0.8, units="plane")
    assert isinstance(schedule, PromptSchedule)
    engine = Engine(model)
    first = greedy(engine, PROMPT, schedule, max_tokens=REPLY)
    rest = [*PROMPT, *ids(first), *MORE]
    second = greedy(engine, rest, schedule, max_tokens=4, repair="never")
    ids(second)
    assert second.reused == len(PROMPT) + REPLY - 1
    assert second.schedule.skip_order == first.schedule.skip_order
    third = greedy(engine, rest, schedule, max_tokens=4)
    fresh = greedy(Engine(model), rest, schedule, max_tokens=4)
    assert ids(third) == ids(fresh)
    assert third.schedule.skip_order == fresh.schedule.skip_order
    assert third.reused < len(rest) - 1
