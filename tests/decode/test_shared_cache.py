"""One cache, one writer at a time; a cache is freed with its engine."""

import gc
import threading
import weakref

import pytest

from d3cli.base.errors import UsageError
from d3cli.decode.session import Engine
from d3cli.model.model import LoadedModel
from tests.decode.replies import STORY, greedy, ids
from tests.families import random_ids, tiny, whole_layers


def test_a_newer_reply_ends_the_one_before(builtin: LoadedModel) -> None:
    engine = Engine(builtin)
    old = engine.stream(STORY)
    next(iter(old))
    list(engine.stream(STORY, max_tokens=2))
    with pytest.raises(UsageError, match="newer"):
        list(old)


def test_a_newer_reply_ends_a_prefill_too() -> None:
    model = tiny("llama").gated
    engine = Engine(model)
    old = greedy(engine, random_ids(100), whole_layers(), max_tokens=3)
    reading = old.prefill()
    next(reading)
    new = greedy(engine, random_ids(60, seed=2), whole_layers(), max_tokens=3)
    expected = ids(greedy(Engine(model), random_ids(60, seed=2), whole_layers(), max_tokens=3))
    assert ids(new) == expected
    with pytest.raises(UsageError, match="newer"):
        next(reading)


def test_a_repair_ends_a_reply_in_progress(builtin: LoadedModel) -> None:
    engine = Engine(builtin)
    reply = engine.stream(STORY, max_tokens=20)
    for chunk in reply:
        if chunk.token.step == 5:
            break
    engine.repair()
    with pytest.raises(UsageError, match="a newer reply or a repair"):
        next(iter(reply))


@pytest.mark.parametrize("ends", ["by itself", "with its reader"])
def test_a_kv_cache_is_freed_with_its_engine(builtin: LoadedModel, ends: str) -> None:
    """Without the garbage collector, which may run late and let memory grow."""
    gc.disable()
    try:
        engine = Engine(builtin)
        cache = weakref.ref(engine.cache)
        reply = engine.stream(STORY, max_tokens=5)
        for _ in reply:
            if ends == "with its reader":
                iter(reply).close()
                break
        del engine
        assert reply.tokens
        assert cache() is None
    finally:
        gc.enable()


def test_a_cleared_engine_holds_nothing_and_ends_its_reply(builtin: LoadedModel) -> None:
    engine = Engine(builtin)
    expected = ids(engine.stream(STORY, max_tokens=9))
    reply = engine.stream(STORY, max_tokens=9)
    next(iter(reply))
    engine.clear()
    assert (engine.cache.position, engine.cache.nbytes) == (0, 0)
    with pytest.raises(UsageError, match="this reply is over"):
        next(iter(reply))
    assert ids(engine.stream(STORY, max_tokens=9)) == expected


class TestThreads:
    """A second thread is refused before it changes anything."""

    @pytest.mark.parametrize("step", [1, 5])
    def test_a_thread_that_interrupts_a_step_is_refused(self, step: int) -> None:
        model = tiny("llama").gated
        prompts = random_ids(20), random_ids(20, seed=1)
        alone = [ids(greedy(Engine(model), p, whole_layers(), max_tokens=9)) for p in prompts]
        engine, armed, said = Engine(model), [], []

        def other() -> None:
            try:
                ids(greedy(engine, prompts[1], whole_layers(), max_tokens=9))
            except UsageError as error:
                said.append(error.message)

        def come_in(*_: object) -> None:
            if armed:
                armed.clear()
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()

        hook = model.gate.layers[0].register_forward_pre_hook(come_in)
        try:
            reply = greedy(engine, prompts[0], whole_layers(), max_tokens=9)
            for number, _ in enumerate(reply):
                if number == step:
                    armed.append(1)
        finally:
            hook.remove()
        assert said == ["this model is in use by another thread"]
        assert [token.token_id for token in reply.tokens] == alone[0]
        for number in (1, 0):
            again = greedy(engine, prompts[number], whole_layers(), max_tokens=9)
            assert ids(again) == alone[number]

    def test_two_threads_at_random_moments_never_mix_replies(self) -> None:
        model = tiny("llama").gated
        prompts = random_ids(20), random_ids(20, seed=1)
        alone = [ids(greedy(Engine(model), p, whole_layers(), max_tokens=9)) for p in prompts]
        engine, wrong = Engine(model), []

        def talk(number: int) -> None:
            for _ in range(30):
                try:
                    said = ids(greedy(engine, prompts[number], whole_layers(), max_tokens=9))
                except UsageError:
                    continue
                except BaseException as error:
                    wrong.append(repr(error))
                    raise
                if said != alone[number]:
                    wrong.append(said)

        threads = [threading.Thread(target=talk, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        for number in (0, 1):
            again = greedy(engine, prompts[number], whole_layers(), max_tokens=9)
            assert ids(again) == alone[number]
