"""A checkpoint's generation settings do what they do in `generate`, or a note names them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from d3cli.base.errors import GenerationError, ModelError
from d3cli.decode.rules import GenerationRules, ignored_settings
from d3cli.decode.sampler import Sampler
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from tests.conftest import D3, check
from tests.copies import stranger
from tests.families import random_ids, tiny, whole_layers

NEW_TOKENS = 24
SAMPLED = {"do_sample": True, "top_k": 0, "temperature": 1.3}


def with_settings(settings: dict[str, Any], eos: int | None = None) -> LoadedModel:
    model = tiny("llama").gated
    ids = frozenset() if eos is None else frozenset([eos])
    return replace(model, text=replace(model.text, eos_token_ids=ids, generation_settings=settings))


def reply_ids(settings: dict[str, Any], prompt: list[int], eos: int | None, seed: int) -> list[int]:
    model = with_settings(settings, eos)
    reply = Engine(model).stream_ids(
        prompt,
        schedule=model.schedule("off"),
        sampling=SamplingParams.resolve({"seed": seed}, settings),
        max_tokens=NEW_TOKENS,
    )
    return [chunk.token_id for chunk in reply]


def generated(settings: dict[str, Any], prompt: list[int], eos: int | None, seed: int) -> list[int]:
    torch.manual_seed(seed)
    config = GenerationConfig(**settings, eos_token_id=eos, pad_token_id=0)
    out = tiny("llama").plain.generate(
        torch.tensor([prompt]), generation_config=config, max_new_tokens=NEW_TOKENS
    )
    return out[0, len(prompt) :].tolist()


# The token that the plain greedy reply to this prompt writes fourth, and what it writes.
PROMPT, LONG_PROMPT = random_ids(12), random_ids(100)
PLAIN = reply_ids({}, PROMPT, None, 0)
EOS = PLAIN[3]

RULES: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 1.4},
    {"bad_words_ids": [[PLAIN[0]], PLAIN[4:6]]},
    {"bad_words_ids": [[EOS], [PLAIN[1]]]},
    {"suppress_tokens": PLAIN[:2]},
    {"suppress_tokens": []},
    {"begin_suppress_tokens": [PLAIN[0]]},
    {"min_new_tokens": 9},
    {"min_length": len(PROMPT) + 7},
    {"min_length": 500, "min_new_tokens": 5},
    {"sequence_bias": [[[PLAIN[0]], -8.0], [[5], 3.0], [PLAIN[1:3], -9.0]]},
    {"forced_eos_token_id": 7},
    {"forced_eos_token_id": [7, 9]},
    {"exponential_decay_length_penalty": [0, 8.0]},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "renormalize_logits": True},
    SAMPLED | {"typical_p": 0.6},
    SAMPLED | {"epsilon_cutoff": 0.02},
    SAMPLED | {"eta_cutoff": 0.05},
    SAMPLED | {"top_h": 0.5},
    SAMPLED | {"renormalize_logits": True, "no_repeat_ngram_size": 1},
    SAMPLED | {"top_p": 0.8, "min_p": 0.02, "typical_p": 0.9, "min_new_tokens": 6},
    SAMPLED | {"temperature": 2, "suppress_tokens": [3, 4], "repetition_penalty": 1.1},
    {"typical_p": 0.2, "epsilon_cutoff": 0.3},  # without sampling, warpers do nothing
]


@pytest.mark.parametrize("settings", RULES, ids=str)
@pytest.mark.parametrize("ends", [False, True])
def test_a_rule_does_what_it_does_in_generate(settings: dict[str, Any], ends: bool) -> None:
    if not ends and "exponential_decay_length_penalty" in settings:
        pytest.skip("generate needs an end for it")
    eos = EOS if ends else None
    settings = json.loads(json.dumps(settings))
    given = settings | ({"temperature": 2.0} if settings.get("temperature") == 2 else {})
    assert reply_ids(settings, PROMPT, eos, 5) == generated(given, PROMPT, eos, 5)


def test_the_rules_of_the_first_token() -> None:
    for settings in (
        {"forced_bos_token_id": 17},
        {"forced_bos_token_id": 17, "begin_suppress_tokens": [17, PLAIN[0]]},
        {"begin_suppress_tokens": [PLAIN[0]]},
    ):
        for prompt in ([5], [5, 6]):
            assert reply_ids(settings, prompt, None, 0) == generated(settings, prompt, None, 0)


def test_each_rule_changes_something_here() -> None:
    """Otherwise the comparisons above would show nothing."""
    for settings in RULES[:16]:
        if settings == {"suppress_tokens": []}:
            continue
        assert any(
            reply_ids(settings, prompt, eos, 0) != reply_ids({}, prompt, eos, 0)
            for prompt in (PROMPT, LONG_PROMPT)
            for eos in (None, EOS)
        ), settings


def test_rules_about_the_prompt_look_at_all_of_it() -> None:
    for settings in (
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_repetition_penalty": 0.5},
        {"no_repeat_ngram_size": 1},
    ):
        expected = generated(settings, LONG_PROMPT, None, 0)
        assert reply_ids(settings, LONG_PROMPT, None, 0) == expected


def test_below_full_depth_rules_hold_and_agreement_is_by_raw_argmax() -> None:
    settings = {"no_repeat_ngram_size": 1}
    model = with_settings(settings)
    engine = Engine(model)
    sampling = SamplingParams.resolve({}, settings)
    reply = engine.stream_ids(PROMPT, schedule=whole_layers(), sampling=sampling, max_tokens=40)
    tokens = [chunk.token for chunk in reply]
    ids = [token.token_id for token in tokens]
    assert len({*PROMPT, *ids}) == len({*PROMPT}) + len(ids)
    assert any(token.top_id != token.token_id for token in tokens)
    sampler, context = reply.new_sampler(), list(PROMPT)
    assert sampler.choose(torch.zeros(131), context) not in context


def test_stop_strings_of_the_checkpoint_end_a_reply() -> None:
    for text in (f"w{PLAIN[5]}", [f"w{PLAIN[5]}", "never"]):
        settings = {"stop_strings": text}
        reply = Engine(with_settings(settings)).stream_ids(
            PROMPT,
            schedule=whole_layers(alpha=1.0),
            sampling=SamplingParams.resolve({}, settings),
            max_tokens=NEW_TOKENS,
        )
        list(reply)
        assert reply.finish_reason == "stop"
        assert f"w{PLAIN[5]}" not in reply.text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"bad_words_ids": [5]}, "bad_words_ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"stop_strings": ["x", ""]}, "stop_strings"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"encoder_repetition_penalty": 0}, "encoder_repetition_penalty"),
        ({"encoder_repetition_penalty": float("nan")}, "encoder_repetition_penalty"),
        ({"sequence_bias": [[[5], float("-inf")]]}, "sequence_bias"),
        ({"exponential_decay_length_penalty": [5]}, "exponential_decay_length_penalty"),
        ({"do_sample": True, "top_h": 2.0}, "top_h"),
    ],
    ids=str,
)
def test_an_impossible_rule_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"generation_config.json cannot be used.*{named}"):
        SamplingParams.resolve({}, settings)
    with pytest.raises(ModelError, match=r"checkpoint's config.json cannot be used"):
        SamplingParams.resolve({}, settings | {"model_type": "llama"})


@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[131]]},
        {"forced_eos_token_id": 500},
        {"sequence_bias": [[[5, 131], 1.0]]},
    ],
    ids=str,
)
def test_a_token_that_the_model_does_not_have_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"names token .* but the model has 131"):
        reply_ids(settings, PROMPT, None, 0)


@pytest.mark.parametrize("sampled", [False, True])
def test_rules_that_leave_no_token_are_named(sampled: bool) -> None:
    settings = {"suppress_tokens": list(range(131)), "do_sample": sampled}
    with pytest.raises(GenerationError, match="leave no token to choose: suppress_tokens"):
        reply_ids(settings, PROMPT, None, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, None),
        ({"num_beams": 1, "guidance_scale": 1.0, "length_penalty": 2.0}, None),
        ({"max_length": 256, "max_new_tokens": 4096}, None),
        ({"cache_implementation": "static", "token_healing": False}, None),
        ({"num_beams": 4, "early_stopping": True}, "num_beams"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"penalty_alpha": 0.6, "dola_layers": "high"}, "penalty_alpha, dola_layers"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"max_new_tokens": 20}, "max_new_tokens"),
        ({"max_time": 2.0, "remove_invalid_values": True}, "max_time, remove_invalid_values"),
        ({"num_beams": "four"}, None),
    ],
    ids=str,
)
def test_one_note_names_what_is_ignored(settings: dict[str, Any], named: str | None) -> None:
    note = ignored_settings(settings, 256)
    if named is None:
        assert note is None
    else:
        assert note is not None
        assert f"ignored in the checkpoint's generation_config.json: {named};" in str(note[0])


def test_without_rules_greedy_needs_no_ids() -> None:
    sampler = Sampler(SamplingParams())
    sampler.choose(torch.zeros(9), [1, 2])
    assert not sampler._needs_ids
    assert len(sampler._processors or ()) == 0
    assert SamplingParams.resolve({}, {}).rules == GenerationRules()


def test_the_command_line_applies_rules_and_names_what_it_ignores(d3: D3, tmp_path: Path) -> None:
    model = stranger(tmp_path / "m")
    settings = {"no_repeat_ngram_size": 1, "num_beams": 3, "max_new_tokens": 5, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(settings))
    result = d3("generate", model, "Hello.", "--json", "--alpha", "off", "--max-tokens", "30")
    ids = [token["token_id"] for token in json.loads(result.out)["tokens"]]
    assert len(ids) == len(set(ids))
    assert "generation_config.json: num_beams, max_new_tokens; " in result.err
    assert "--max-tokens limits its length" in result.err
    (model / "generation_config.json").write_text('{"no_repeat_ngram_size": [1]}')
    check(d3("generate", model, "Hi.", "--alpha", "off"), 1, "no_repeat_ngram_size")


def test_old_checkpoints_have_the_settings_in_config_json(tmp_path: Path) -> None:
    model = stranger(tmp_path / "m")
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"no_repeat_ngram_size": 2}))
    loaded = load_model(str(model), full_depth_only=True)
    rules = SamplingParams.resolve({}, loaded.text.generation_settings).rules
    assert rules.changed() == {"no_repeat_ngram_size": 2}
