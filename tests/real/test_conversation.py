"""Three turns with a real model: the KV cache is reused and repaired, and no turn shows it."""

from d3cli.decode.loop import prefill
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule, schedule_of
from d3cli.model.model import LoadedModel
from tests.real.conftest import long_replies

pytestmark = long_replies

TURNS = (
    "My dog is called Rex, and he is afraid of thunder.",
    "What is my dog called?",
    "Write two sentences about him for a friend who will look after him.",
)
NEW_TOKENS = 48
# Keys and values of thirty layers in float32, read in one pass or in several.
TOLERANCE = 1e-3


def decaying(model: LoadedModel) -> DepthSchedule:
    order = ("12.attn", "20.mlp", "25", "4.attn", "10")
    return schedule_of(model.weight_bytes, order, alpha=0.995, start=4)


def answer(engine: Engine, messages: list[dict[str, str]], schedule: DepthSchedule) -> Reply:
    reply = engine.stream(messages, schedule=schedule, max_tokens=NEW_TOKENS)
    list(reply)
    return reply


def test_three_turns_equal_a_fresh_engine_each(real: LoadedModel) -> None:
    schedule, engine = decaying(real), Engine(real)
    messages: list[dict[str, str]] = []
    before = 0
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        reply = answer(engine, messages, schedule)
        fresh = answer(Engine(real), messages, schedule)
        assert reply.text == fresh.text
        assert [t.token_id for t in reply.tokens] == [t.token_id for t in fresh.tokens]
        assert reply.reused >= before  # prompt and warm-up of the turn before
        before = len(reply.prompt_ids)
        messages.append({"role": "assistant", "content": reply.text})
    assert min(token.depth for token in reply.tokens) < real.num_layers - 2


def test_a_repair_leaves_the_cache_of_the_full_model(real: LoadedModel) -> None:
    engine = Engine(real)
    reply = answer(engine, [{"role": "user", "content": TURNS[0]}], decaying(real))
    engine.repair()
    held = engine.cache.position
    read = [*reply.prompt_ids, *(token.token_id for token in reply.tokens)][:held]
    assert held > len(reply.prompt_ids) + 20
    fresh = real.new_cache()
    for _ in prefill(real, fresh, read):
        pass
    for layer, (ours, theirs) in enumerate(zip(engine.cache.layers, fresh.layers, strict=True)):
        for name in ("keys", "values"):
            difference = getattr(ours, name)[:, :, :held] - getattr(theirs, name)[:, :, :held]
            assert difference.abs().max() < TOLERANCE, (layer, name)


def test_full_depth_stays_itself_beside_decay(real: LoadedModel) -> None:
    """A turn at full depth after a decayed one equals a fresh engine's."""
    engine, full = Engine(real), DepthSchedule.full(real.num_layers)
    messages = [{"role": "user", "content": TURNS[0]}]
    first = answer(engine, messages, decaying(real))
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": TURNS[1]},
    ]
    assert answer(engine, messages, full).text == answer(Engine(real), messages, full).text
