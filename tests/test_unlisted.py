"""Decoders that no test proves: full depth only, and then as transformers runs them."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPTJConfig,
    PretrainedConfig,
)

from d3cli.engine import Engine
from d3cli.errors import ModelError, ScheduleError
from d3cli.model import load_model
from d3cli.sampling import SamplingParams
from d3cli.schedule import DepthSchedule
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


def test_only_with_alpha_off(directory: Path, d3: D3) -> None:
    refused = d3("generate", str(directory), "w3 w4", "--device", "cpu")
    check(refused, 1, "skipping their layers has not been proven exact")
    assert "--alpha off runs it at full depth" in refused.err
    whole = ("generate", str(directory), "w3 w4", "--device", "cpu", "--max-tokens", "3")
    accepted = d3(*whole, "--alpha", "off")
    assert accepted.code == 0, accepted.err
    assert "no test proves d3 on models of the type" in accepted.err


def test_the_library_drops_nothing_of_it(directory: Path) -> None:
    with pytest.raises(ModelError, match="not been proven"):
        load_model(str(directory))
    model = load_model(str(directory), full_depth_only=True)
    dropping = DepthSchedule(3, 0.5, 0, 1, 1, ("1",))
    with pytest.raises(ScheduleError, match="full depth only"):
        model.check_schedule(dropping)


def test_what_cannot_skip_is_refused_at_full_depth_too(tmp_path: Path, d3: D3) -> None:
    config = BloomConfig(**_IDS, hidden_size=32, n_head=4, n_layer=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"bloom"', '"mamba"')
    (tmp_path / "config.json").write_text(text)
    check(d3("generate", str(tmp_path), "w3", "--alpha", "off"), 1, "cannot skip layers")
