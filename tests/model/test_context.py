"""How many tokens a model holds, and that all of them are computed exactly."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from d3cli.base.errors import ModelError, Setting, UsageError
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.files.safetensors import describe_directory
from d3cli.model.context import choose_context
from d3cli.model.load import load_model
from d3cli.model.memory import predict_memory
from d3cli.model.model import LoadedModel
from d3cli.model.wrap import wrap_model
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.conftest import D3, check
from tests.copies import stranger
from tests.families import CONFIGS, random_ids, random_model, whole_layers, word_tokenizer

YARN = {"rope_type": "yarn", "factor": 4.0}
OLD_YARN = {"type": "yarn", "factor": 4.0}
LINEAR = {"type": "linear", "factor": 4}
DYNAMIC = {"type": "dynamic", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 128,
}


def config(model_type: str = "llama", positions: int = 128, **fields: Any) -> Any:
    fields |= {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields |= {"head_dim": 8, "num_hidden_layers": 8}
    return AutoConfig.for_model(model_type, max_position_embeddings=positions, **fields)


@pytest.mark.parametrize(
    ("scaling", "positions", "expected"),
    [
        (None, 128, 128),
        ({"rope_type": "default"}, 128, 128),
        (YARN, 128, 512),
        (OLD_YARN, 128, 512),
        (YARN | {"original_max_position_embeddings": 128}, 128, 512),
        (YARN | {"original_max_position_embeddings": 128}, 512, 512),
        (YARN | {"original_max_position_embeddings": 128}, 160, 512),  # Qwen3's way
        (YARN | {"original_max_position_embeddings": 128}, 2048, 2048),
        (LINEAR, 128, 512),
        (LINEAR | {"original_max_position_embeddings": 128}, 512, 512),
        (LINEAR | {"factor": 0.5}, 128, 128),
        (LINEAR | {"factor": 2.5}, 101, 252),
        (LINEAR | {"factor": 1e300}, 128, 2**31 - 1),
        (LLAMA3, 128, 512),
        (LLAMA3, 512, 512),
        (LLAMA3, 300, 300),  # Llama 3.2 states less than the factor allows
        (DYNAMIC, 128, 128),
        (LONG, 512, 128),
    ],
    ids=str,
)
def test_scaling_added_later_makes_the_context_longer(
    scaling: dict[str, Any] | None, positions: int, expected: int
) -> None:
    chosen = choose_context("m", config(positions=positions, rope_scaling=scaling))
    assert chosen.length == expected
    assert not chosen.fixed
    kind = (scaling or {}).get("type", (scaling or {}).get("rope_type"))
    changed = expected > positions or kind in ("dynamic", "longrope")
    assert (chosen.note is not None) == changed


@pytest.mark.parametrize(
    ("scaling", "positions", "tokenizer_length", "expected"),
    [
        (LINEAR, 512, 512, 512),  # DeepSeek Coder: both state the long context
        (LINEAR, 128, 512, 512),  # Vicuna 16k: the tokenizer alone states it
        (LINEAR, 128, 400, 400),
        (LINEAR, 128, 128, 128),
        (LINEAR, 128, 64, 512),  # less than the config says: a mistake
        (LINEAR, 128, int(1e30), 512),  # the tokenizer states none
        (LINEAR, 128, None, 512),
        (LINEAR | {"original_max_position_embeddings": 128}, 512, 512, 512),
        (YARN, 128, 128, 512),
        (None, 128, 64, 128),
    ],
)
def test_the_tokenizer_tells_which_length_linear_scaling_leads_to(
    scaling: dict[str, Any] | None, positions: int, tokenizer_length: int | None, expected: int
) -> None:
    described = config(positions=positions, rope_scaling=scaling)
    chosen = choose_context("m", described, None, tokenizer_length)
    assert chosen.length == expected
    if scaling == LINEAR and expected < 4 * positions:
        assert chosen.note is not None
        assert Setting("context", str(4 * positions)) in chosen.note
        longest = choose_context("m", described, 4 * positions, tokenizer_length)
        assert (longest.length, longest.fixed, longest.note) == (4 * positions, False, None)


def test_layers_of_two_kinds_and_other_positions() -> None:
    gemma = config("gemma3_text", 128, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert choose_context("m", gemma).length == 128  # its config states the long context
    learned = AutoConfig.for_model("gpt2", n_positions=128)
    learned.rope_parameters = dict(YARN, rope_theta=1e4)  # which GPT-2 ignores
    assert choose_context("m", learned).length == 128


@pytest.mark.parametrize(
    ("scaling", "longest"), [(None, 128), (YARN, 512), (LINEAR, 512), (DYNAMIC, 512), (LONG, 600)]
)
def test_a_context_is_at_most_what_the_config_describes(
    scaling: dict[str, Any] | None, longest: int
) -> None:
    described = config(positions=600 if scaling is LONG else 128, rope_scaling=scaling)
    for wanted in (2, 100, longest):
        assert choose_context("m", described, wanted).length == wanted
    with pytest.raises(UsageError, match=rf"context is {longest + 1}.* {longest} tokens at most"):
        choose_context("m", described, longest + 1)
    with pytest.raises(UsageError, match="context is 1"):
        choose_context("m", described, 1)


def test_a_context_of_one_token_is_refused() -> None:
    with pytest.raises(ModelError, match="too few for a prompt and a reply"):
        choose_context("m", config(positions=1))


def scaled_model(scaling: dict[str, Any], context: int | None, positions: int = 64) -> LoadedModel:
    fields = CONFIGS["llama"].to_dict()
    for name in ("rope_parameters", "max_position_embeddings"):
        del fields[name]
    made = AutoConfig.for_model(
        **fields, max_position_embeddings=positions, rope_scaling=dict(scaling)
    )
    return wrap_model(random_model(made, "sdpa"), word_tokenizer(), context=context)


SHORT_LONG = LONG | {"original_max_position_embeddings": 64, "factor": 4.0}
SCALED = pytest.mark.parametrize(
    ("scaling", "context"),
    [(YARN, None), (LINEAR, None), (LLAMA3 | {"original_max_position_embeddings": 64}, None),
     (DYNAMIC, 256), (SHORT_LONG, 256), (DYNAMIC, 200)],
    ids=["yarn", "linear", "llama3", "dynamic", "longrope", "dynamic-200"],
)  # fmt: skip


@SCALED
def test_beyond_the_old_limit_one_pass_equals_token_by_token(
    scaling: dict[str, Any], context: int | None
) -> None:
    model = scaled_model(scaling, context)
    prompt = random_ids(40)
    reply = Engine(model).stream_ids(
        prompt, schedule=whole_layers(), sampling=SamplingParams(), max_tokens=150
    )
    tokens = [chunk.token for chunk in reply]
    assert len(prompt) + len(tokens) == 190
    (scores,) = score(model, [Document(prompt, [t.token_id for t in tokens])], whole_layers())
    ours = torch.tensor([token.logprob for token in tokens], dtype=torch.float64)
    assert (ours - scores.log_probs).abs().max() < 1e-5


@SCALED
def test_beyond_the_old_limit_chunks_equal_one_pass(
    scaling: dict[str, Any], context: int | None
) -> None:
    model = scaled_model(scaling, context)
    ids = torch.tensor([random_ids(200)])
    whole = model.hidden_states(ids)
    cache, parts = model.new_cache(), []
    for part in ids.split(17, dim=1):
        parts.append(model.hidden_states(part, cache))
        cache.commit(part.shape[1], full_depth=True)
    assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "context"), [(YARN, None), (LINEAR, None), (DYNAMIC, 200), (SHORT_LONG, 256)]
)
def test_the_longest_text_is_computed_as_by_transformers(
    scaling: dict[str, Any], context: int | None
) -> None:
    model = scaled_model(scaling, context)
    ids = torch.tensor([random_ids(context or 256)])
    plain = random_model(model.causal_lm.config, "sdpa")
    with torch.inference_mode():
        expected = plain(ids, use_cache=False).logits
    assert torch.allclose(model.logits(model.hidden_states(ids)), expected, atol=1e-4)


@pytest.mark.parametrize("scaling", [DYNAMIC, SHORT_LONG])
def test_the_original_context_keeps_the_original_table(scaling: dict[str, Any]) -> None:
    model = scaled_model(scaling, None)
    assert model.context_length == 64
    ids = torch.tensor([random_ids(64)])
    plain = random_model(model.causal_lm.config, "sdpa")
    with torch.inference_mode():
        assert torch.equal(model.logits(model.hidden_states(ids)), plain(ids).logits)


@pytest.fixture
def yarn(tmp_path: Path) -> Path:
    """The built-in model with a context of 128 tokens, and YaRN that was added later."""
    model = stranger(tmp_path / "yarn")
    content = json.loads((model / "config.json").read_text())
    content |= {"max_position_embeddings": 128}
    content["rope_parameters"] = YARN | {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
    }
    (model / "config.json").write_text(json.dumps(content))
    return model


def test_a_prompt_beyond_the_original_context_is_answered(d3: D3, yarn: Path) -> None:
    prompt = " ".join(["fox"] * 202)
    result = d3("generate", yarn, "--raw", prompt, "--max-tokens", "3", "--alpha", "off")
    assert result.code == 0, result.err
    assert "context is 512 tokens, by YaRN scaling with the factor 4" in result.err
    result = d3("generate", yarn, "--raw", prompt, "--context", "128", "--alpha", "off")
    check(result, 2, "the model's context holds 128")


def test_the_option_has_a_variable_a_key_and_a_clear_error(
    d3: D3, yarn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", yarn, "Hi.", "--alpha", "off")
    check(d3(*arguments, "--context", "513"), 2, "--context is 513")
    monkeypatch.setenv("D3_CONTEXT", "3")
    check(d3(*arguments), 2, "the model's context holds 3")
    check(d3(*arguments, "--context", "9999"), 2, "yarn holds 512 tokens at most")
    monkeypatch.delenv("D3_CONTEXT")
    home = Path(os.environ["D3_HOME"])
    (home / "config.toml").write_text("context = 4\n")
    check(d3(*arguments), 2, "the model's context holds 4")


def test_memory_is_predicted_for_the_context(yarn: Path) -> None:
    description = describe_directory("yarn", yarn)

    def positions(**options: Any) -> int:
        return predict_memory(
            description, dtype=torch.float32, prompt_tokens=9999, reply_tokens=0, **options
        ).positions

    assert (positions(), positions(context=300)) == (512, 300)
    assert load_model(str(yarn), context=300, full_depth_only=True).context_length == 300
