"""Decoders outside the allow-list run at full depth only, as in transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPTJConfig,
    OpenAIGPTConfig,
    PLBartConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    TrOCRConfig,
)

from d3cli.base.errors import ModelError, ScheduleError
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from tests.conftest import D3, check
from tests.families import VOCAB, random_ids, word_tokenizer

_IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
UNLISTED: dict[str, PretrainedConfig] = {
    "gemma": GemmaConfig(
        **_IDS,
        **_SHAPE,
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    ),
    "gptj": GPTJConfig(**_IDS, n_embd=32, n_head=4, n_layer=3, n_positions=256, rotary_dim=4),
    "falcon": FalconConfig(**_IDS, **_SHAPE, max_position_embeddings=256),
    "falcon-alibi": FalconConfig(**_IDS, **_SHAPE, alibi=True, max_position_embeddings=256),
}


@pytest.fixture(params=UNLISTED)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(UNLISTED[request.param]).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_full_depth_is_what_transformers_generates(directory: Path) -> None:
    prompt = random_ids(20)
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected = plain.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    model = load_model(str(directory), dtype="float32", device="cpu", full_depth_only=True)
    reply = Engine(model).stream_ids(
        prompt,
        schedule=DepthSchedule.full(model.num_layers),
        sampling=SamplingParams(),
        max_tokens=24,
    )
    assert [chunk.token_id for chunk in reply] == expected[0, 20:].tolist()
    assert {token.depth for token in reply.tokens} == {3.0}


def test_its_layers_are_not_timed_by_part(directory: Path, d3: D3) -> None:
    words = ("w3 w4", "--device", "cpu", "--max-tokens", "3", "--alpha", "off", "--layers")
    check(d3("profile", str(directory), *words), 2, "cannot be timed")


def test_only_with_alpha_off(directory: Path, d3: D3) -> None:
    refused = d3("generate", str(directory), "w3 w4", "--device", "cpu")
    check(refused, 1, "skipping their layers has not been proven exact")
    assert "--alpha off runs it at full depth" in refused.err
    whole = ("generate", str(directory), "w3 w4", "--device", "cpu", "--max-tokens", "3")
    accepted = d3(*whole, "--alpha", "off")
    assert accepted.code == 0, accepted.err
    assert "d3 is not tested on models of the type" in accepted.err


def test_the_library_drops_no_layer_of_it(directory: Path) -> None:
    with pytest.raises(ModelError, match="not been proven"):
        load_model(str(directory))
    model = load_model(str(directory), full_depth_only=True)
    dropping = DepthSchedule(3, 0.5, 0, 1, 1, ("1",))
    with pytest.raises(ScheduleError, match="full depth only"):
        model.check_schedule(dropping)


def saved(config: PretrainedConfig, path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    data = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(data))
    return path


BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
BART |= {"decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # Its base model is a wrapper, and its head does not call the wrapper's forward.
        (TrOCRConfig(**_IDS, d_model=32, decoder_layers=2, decoder_ffn_dim=64), "cannot run"),
        # It has no cache at all.
        (OpenAIGPTConfig(**_IDS, n_embd=32, n_head=4, n_layer=2, n_positions=256), "cannot run"),
        # An encoder: every token attends to later ones.
        (BertConfig(**_IDS, **_SHAPE, intermediate_size=64), "cannot run"),
        (BloomConfig(**_IDS, hidden_size=32, n_head=4, n_layer=2), "the length of its context"),
        (PLBartConfig(**_IDS, **BART, is_encoder_decoder=True), "encoder-decoder"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_d3_would_run_wrongly_is_refused(
    config: PretrainedConfig, reason: str, tmp_path: Path, d3: D3
) -> None:
    changes = {"is_encoder_decoder": True} if reason == "encoder-decoder" else {}
    path = saved(config, tmp_path, **changes)
    options = ("--alpha", "off", "--device", "cpu", "--dtype", "float32")
    result = d3("generate", str(path), "w3 w4", *options)
    check(result, 1, reason)
    assert result.err.count("hint: ") == 1


def test_a_sliding_window_of_0_means_no_window(tmp_path: Path, d3: D3) -> None:
    config = Qwen2MoeConfig(
        **_IDS,
        **_SHAPE,
        intermediate_size=64,
        num_key_value_heads=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
    )
    path = saved(config, tmp_path)
    assert json.loads((path / "config.json").read_text())["sliding_window"] == 0
    result = d3("generate", str(path), "w3", "--alpha", "off", "--max-tokens", "2")
    assert result.code == 0, result.err


def test_a_type_that_transformers_does_not_know(tmp_path: Path, d3: D3) -> None:
    path = saved(UNLISTED["gemma"], tmp_path, model_type="nonsense")
    for alpha in ("off", "auto"):
        result = d3("generate", str(path), "w3", "--alpha", alpha)
        check(result, 1, 'is of the type "nonsense", which transformers does not know')
        assert "runs it at full depth" not in result.err


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_unknown_form_are_refused(tmp_path: Path, d3: D3, dtype: object) -> None:
    path = saved(UNLISTED["gemma"], tmp_path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    check(d3("generate", str(path), "w3", "--alpha", "off"), 1, f"stores {name} as")


def test_a_duplicate_tensor_is_refused(tmp_path: Path, d3: D3) -> None:
    path = saved(UNLISTED["gemma"], tmp_path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in names:
        save_file(tensors, path / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict(zip(tensors, names * len(tensors), strict=False))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    check(d3("generate", str(path), "w3", "--alpha", "off"), 1, "twice")


def test_what_cannot_skip_is_refused_at_full_depth_too(tmp_path: Path, d3: D3) -> None:
    config = BloomConfig(**_IDS, hidden_size=32, n_head=4, n_layer=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"bloom"', '"mamba"')
    (tmp_path / "config.json").write_text(text)
    check(d3("generate", str(tmp_path), "w3", "--alpha", "off"), 1, "cannot skip layers")
