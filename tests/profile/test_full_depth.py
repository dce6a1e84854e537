"""The comparison with full depth equals a slow, obvious computation."""

from dataclasses import replace

import pytest
import torch

from d3cli.base.errors import UsageError
from d3cli.decode.loop import decode_step
from d3cli.depth.schedule import DepthSchedule
from d3cli.profile.profiler import nested_family
from d3cli.profile.record import clock_trace
from d3cli.scoring.documents import Document
from d3cli.scoring.needed_depth import constant_depth_choices, needed_depths, saturation_layers
from d3cli.scoring.one_pass import Scorer
from d3cli.scoring.step_times import PartTimes, StepTimes, fill_cache, spread_steps
from tests.families import tiny
from tests.traces import builtin, first_document, whole_trace


class TestFullDepth:
    def test_values_equal_those_of_a_plain_forward(self) -> None:
        trace = whole_trace()
        document = first_document()
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
        full = builtin().logits(builtin().hidden_states(ids)[0, len(document.prompt_ids) - 1 :])
        full = full.log_softmax(dim=-1)
        ours = builtin().logits(Scorer(builtin(), [document]).states(trace.depth_schedule))
        kl = (full.exp() * (full - ours.log_softmax(dim=-1))).sum(dim=-1)
        for step, token in enumerate(trace.replies[0].tokens):
            assert token.full_token_id == int(full[step].argmax())
            assert token.full_logprob == pytest.approx(float(full[step, token.token_id]), abs=1e-5)
            assert token.kl == pytest.approx(float(kl[step]), abs=1e-5)
            assert token.full_text == builtin().tokenizer.decode([token.full_token_id])
        assert any(token.kl > 1e-3 for token in trace.replies[0].tokens)

    def test_needed_depth_equals_decoding_at_each_constant_depth(self) -> None:
        model, trace = builtin(), whole_trace()
        document, order = first_document(), trace.needed_order
        assert order is not None
        choices = []
        for count in range(len(order) + 1):  # token by token, without one-pass scoring
            cache, tops = fill_cache(model, Document(document.prompt_ids, [0])), []
            for token_id in document.response_ids[:-1]:
                logits = decode_step(model, cache, token_id, order[:count])
                tops.append(int(logits.argmax()))
            choices.append(tops)
        for step in range(1, len(document.response_ids)):
            column = [tops[step - 1] for tops in choices]
            needed = min(
                16 - count
                for count in range(len(order) + 1)
                if all(top == column[0] for top in column[: count + 1])
            )
            assert trace.replies[0].tokens[step].needed_depth == needed
        found = {token.needed_depth for token in trace.replies[0].tokens[1:]}
        assert len(found) > 1

    def test_needed_depth_counts_from_full_depth_down(self) -> None:
        model = builtin()
        columns = [[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 2, 1]]  # the second agrees again, too late
        choices = [torch.tensor(column) for column in columns]
        assert needed_depths(model, ("7", "9"), choices) == [14.0, 16.0, 15.0, 14.0]

    def test_the_lens_equals_that_of_every_hidden_state(self) -> None:
        model, document = builtin(), first_document()
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids[:-1]]])
        with torch.inference_mode():
            output = model.causal_lm(ids, output_hidden_states=True)
            states = list(output.hidden_states[1:])
            norm, head = model.causal_lm.model.norm, model.causal_lm.lm_head
            tops = [head(norm(state)).argmax(dim=-1)[0] for state in states[:-1]]
            tops.append(output.logits.argmax(dim=-1)[0])
        first = len(document.prompt_ids)
        *_, (count, found) = saturation_layers(model, document)
        assert count == 16
        assert len(found) == len(document.response_ids) - 1
        for at, layers in enumerate(found):
            column = [int(top[first + at]) for top in tops]
            expected = min(n for n in range(1, 17) if len(set(column[n - 1 :])) == 1)
            assert layers == expected
        assert len(set(found)) > 3

    def test_the_lens_in_small_groups_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        document = first_document()
        *_, (_, whole) = saturation_layers(builtin(), document)
        monkeypatch.setattr("d3cli.scoring.needed_depth.LENS_BYTES", 1)
        steps = [(count, list(found)) for count, found in saturation_layers(builtin(), document)]
        assert [count for count, _ in steps] == list(range(1, 17))
        assert steps[-1][1] == whole

    @pytest.mark.parametrize("name", ["gemma2", "opt", "gpt2", "mixtral"])
    def test_other_families_have_needed_depths_and_parts(self, name: str) -> None:
        model = tiny(name).gated
        order = model.schedule(0.5).units
        document = Document([3, 4, 5], [6, 7, 8, 9, 10])
        choices = list(constant_depth_choices(model, Scorer(model, [document]), order))
        assert len(choices) == len(order) + 1
        assert len(needed_depths(model, order, choices)) == 5
        *_, (count, settled) = saturation_layers(model, document)
        assert (count, len(settled)) == (model.num_layers, 4)
        parts = PartTimes(model, fill_cache(model, document), document, 4)
        assert list(parts)[-1] == 1.0
        assert bool(parts.mlp) == (model.gate.family.mlp is not None)
        assert len(parts.layers[0]) == model.num_layers

    def test_full_depth_searches_all_units_that_may_be_dropped(self) -> None:
        model = tiny("llama").gated
        every = model.schedule(0.5)
        assert nested_family(model, model.schedule()) == every
        explicit = DepthSchedule(model.num_layers, 0.9, 0, 2, 2, ("3", "2"))
        assert nested_family(model, explicit) == explicit
        by_prompt = model.schedule(0.9)
        assert nested_family(model, by_prompt) == by_prompt
        nothing = model.schedule(0.9, core_first=model.num_layers, core_last=0)
        assert nested_family(model, nothing) == every

    def test_needed_depth_is_refused_if_nothing_can_be_dropped(self) -> None:
        model = tiny("llama").gated
        one = DepthSchedule.full(1)
        object.__setattr__(one, "num_layers", model.num_layers)
        from d3cli.depth.families import UNLISTED

        gate = model.gate
        family, gate.family = gate.family, replace(UNLISTED)
        try:
            with pytest.raises(UsageError, match="no needed depth can be found"):
                nested_family(model, model.schedule("off"))
        finally:
            gate.family = family


class TestClock:
    def test_steps_are_spread_over_the_reply(self) -> None:
        assert spread_steps(4, 16) == [1, 2, 3]
        assert spread_steps(1, 16) == []
        steps = spread_steps(1001, 10)
        assert len(set(steps)) == 10
        assert sum(steps) / 10 == pytest.approx(500.5, abs=1)
        assert steps[0] > 1 and steps[-1] < 1000

    def test_both_depths_read_the_same_forced_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, document = builtin(), first_document()
        schedule = model.schedule(0.9)
        seen: list[tuple[int, int, int, int]] = []

        def watch(model_, cache, token_id, dropped):  # type: ignore[no-untyped-def]
            seen.append((cache.position, token_id, len(dropped), cache.full_length))
            return decode_step(model_, cache, token_id, dropped)

        monkeypatch.setattr("d3cli.scoring.step_times.decode_step", watch)
        times = StepTimes(model, fill_cache(model, document), document, schedule, 2, 3)
        assert [round(share, 3) for share in times] == [0.333, 0.667, 1.0]
        assert len(times.ratios) == 4
        ids = [*document.prompt_ids, *document.response_ids]
        expected = []
        for number, step in enumerate(reversed(times.steps)):
            dropped = len(schedule.dropped(step))
            at = len(document.prompt_ids) + step - 1
            warm_up = [] if number else [0, dropped]
            order = [*warm_up, *[0, dropped, dropped, 0] * 2]  # ABBA twice
            expected += [(at, ids[at], n, at) for n in order]
        assert seen == expected

    def test_the_interval_contains_the_ratio(self) -> None:
        model, document = builtin(), first_document()
        times = StepTimes(model, fill_cache(model, document), document, model.schedule(0.9), 3, 2)
        list(times)
        clock = clock_trace(times)
        assert clock.low <= clock.ratio <= clock.high
        assert clock.ratios == tuple(times.ratios)
        assert (clock.steps, clock.rounds) == (2, 3)

    def test_parts_add_up_to_no_more_than_the_step(self) -> None:
        model, document = builtin(), first_document()
        parts = PartTimes(model, fill_cache(model, document), document, 5)
        before = [len(module._forward_hooks) for module in model.causal_lm.modules()]
        list(parts)
        assert len(parts.step) == 5
        for layers, attn, mlp, head, step in zip(
            parts.layers, parts.attn, parts.mlp, parts.head, parts.step, strict=True
        ):
            assert all(a + m < layer for layer, a, m in zip(layers, attn, mlp, strict=True))
            assert sum(layers) + head < step
        assert before == [len(module._forward_hooks) for module in model.causal_lm.modules()]
