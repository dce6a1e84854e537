"""Models from GGUF files: their config, their weights, and what transformers' reader gets wrong."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from d3cli.base.errors import ModelError, spelled
from d3cli.base.launch import Launch
from d3cli.decode.sampling import SamplingParams
from d3cli.files.gguf import GgufModel
from d3cli.files.gguf_metadata import Metadata
from d3cli.files.names import find_model
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.joint_linear import LinearPart
from d3cli.model.checkpoint import open_checkpoint
from d3cli.model.gguf_config import gguf_generation_settings
from d3cli.model.load import load_model
from d3cli.model.load_plan import check_model
from d3cli.model.model import LoadedModel
from tests.gguf_models import EOS, EOT, FAMILIES, GgufFile, tokenizer_keys, write_gguf

# Families that transformers' own reader loads right, with values that it would not lose. Phi-3 is
# not among them: the reader keeps a padding token that small models do not have.
AS_TRANSFORMERS = (
    *("llama", "llama-tied", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "stablelm"),
    *("starcoder2", "gpt2"),
)
TWO_RANKS = Launch(rank=0, ranks=2, rank_here=0, ranks_here=2)
QUICK = ("llama", "llama3-rope", "mixtral", "qwen3moe-small-experts", "gemma3-scaled", "gpt2")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_K", "Q4_K", "Q6_K")


def marked(names: Any, quick: Any) -> list[Any]:
    """Parameters; those that are not quick are slow."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


def load(path: Path, **options: Any) -> LoadedModel:
    options.setdefault("dtype", "float32")
    return load_model(str(path), device="cpu", **options)


def ids(length: int = 24) -> torch.Tensor:
    """Tokens of a text longer than the sliding windows."""
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(model: LoadedModel) -> torch.Tensor:
    return model.logits(model.hidden_states(ids()))


def assert_same_weights(model: LoadedModel, expected: Any) -> None:
    found = model.causal_lm.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", marked(FAMILIES, QUICK))
def test_a_file_holds_the_model_that_it_was_converted_from(name: str, tmp_path: Path) -> None:
    """Its weights bit for bit, and whatever else changes the logits, such as scaled positions."""
    file = write_gguf(tmp_path / "model.gguf", name, "Q4_0")
    model = load(file.path)
    assert_same_weights(model, file.model)
    with torch.inference_mode():
        torch.testing.assert_close(logits(model), file.model(ids()).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", marked(AS_TRANSFORMERS, ("llama",)))
def test_tokens_are_those_of_transformers_own_load(name: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", name, "Q8_0")
    model = load(file.path)
    own = _by_transformers(file)
    assert_same_weights(model, own)
    with torch.inference_mode():
        torch.testing.assert_close(logits(model), own(ids()).logits, atol=1e-5, rtol=0)
        own.generation_config.eos_token_id = None  # the reader invents one
        expected = own.generate(ids(), max_new_tokens=12, do_sample=False)[0, ids().shape[1] :]
    assert _greedy(model, 12) == expected.tolist()


def _by_transformers(file: GgufFile) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        file.path.parent,
        gguf_file=file.path.name,
        dtype=torch.float32,
        attn_implementation="eager" if file.architecture == "gemma2" else "sdpa",
    )


@torch.inference_mode()
def _greedy(model: LoadedModel, tokens: int) -> list[int]:
    cache, step, found = model.new_cache(), ids(), []
    for _ in range(tokens):
        hidden = model.hidden_states(step, cache)
        cache.commit(step.shape[1], full_depth=True)
        found.append(int(model.logits(hidden[:, -1]).argmax()))
        step = torch.tensor([[found[-1]]])
    return found


@pytest.mark.parametrize("kind", marked(TYPES, ("F16", "Q4_1", "Q6_K")))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_type_is_unpacked_as_by_transformers(dtype: str, kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", kind)
    model = load(file.path, dtype=dtype)
    expected = file.model.to(getattr(torch, dtype))
    if dtype == "bfloat16":  # linears may be packed, so the results are compared
        with torch.inference_mode():
            found, wanted = logits(model), expected(ids()).logits.float()
        assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
        assert torch.equal(
            model.causal_lm.model.embed_tokens.weight, expected.model.embed_tokens.weight
        )
    else:
        assert_same_weights(model, expected)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_packed_weights_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """Packing is where placeholders stand for weights, so it must equal a plain load."""
    file = write_gguf(tmp_path / "model.gguf", name, "Q4_1")
    directory = tmp_path / "safetensors"
    file.model.to(torch.bfloat16).save_pretrained(directory)
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model = load(file.path, dtype="bfloat16")
    assert not any(parameter.isnan().any() for parameter in _dense(model))
    with torch.inference_mode():
        expected = plain(ids()).logits.float()
    assert (logits(model) - expected).abs().max() < 0.05 * expected.abs().max()


def _dense(model: LoadedModel) -> list[torch.Tensor]:
    return [p.detach() for p in model.causal_lm.parameters() if not p.is_mkldnn]


def test_weights_in_the_dtype_asked_for_stay_in_the_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "qwen3", "F32")
    model = load(file.path)
    assert_same_weights(model, file.model)
    size = file.path.stat().st_size
    mapped = [p for p in model.causal_lm.parameters() if p.untyped_storage().nbytes() == size]
    assert len(mapped) == 1 + 4 * 7  # embeddings and linears; norms are copied


@pytest.mark.parametrize("kind", ["Q4_1", "F32"])
def test_a_part_of_a_weight_holds_no_more_than_itself(kind: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", kind)
    checkpoint = open_checkpoint(find_model(str(file.path)))
    plan = check_model(checkpoint.description, dtype="float32", device="cpu", ranks=TWO_RANKS)
    weights = checkpoint.weights(plan.kernels, lambda _: None).state
    name = "model.layers.1.mlp.up_proj.weight"
    whole = file.model.get_parameter(name).detach()
    half = slice(0, len(whole) // 2)
    for part in ((half, slice(None)), (slice(None), half)):
        found = weights[name][part]
        assert torch.equal(found, whole[part]) and found.is_contiguous()
        is_mapped = found.untyped_storage().nbytes() == file.path.stat().st_size
        assert is_mapped or found.untyped_storage().nbytes() == found.nbytes


def test_a_split_model_loads_as_a_whole(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m-00001-of-00003.gguf", "llama", "Q8_0", parts=3)
    assert len(list(tmp_path.glob("m-*.gguf"))) == 3
    assert_same_weights(load(tmp_path / "m-00002-of-00003.gguf"), file.model)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["bnb-4bit", "bnb-8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantizing_starts_from_the_unpacked_weights(
    quantization: Any, dtype: str, tmp_path: Path
) -> None:
    """The same as quantizing the safetensors of the unpacked weights."""
    pytest.importorskip("bitsandbytes")
    file = write_gguf(tmp_path / "model.gguf", "qwen2", "Q4_K")
    directory = tmp_path / "safetensors"
    file.model.to(getattr(torch, dtype)).save_pretrained(directory)
    options = {"dtype": dtype, "quantization": quantization}
    model = load(file.path, **options)
    from d3cli.kernels.bnb_linear import quantization_config

    plain = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        quantization_config=quantization_config(quantization, getattr(torch, dtype)),
    )
    with torch.inference_mode():
        expected = plain(ids()).logits.float()
    assert (logits(model) - expected).abs().max() < 0.05 * expected.abs().max()
    layer = sum(parameter.nbytes for parameter in file.model.model.layers[0].parameters())
    assert model.weight_bytes.layers[0].total < layer


@pytest.mark.parametrize(
    ("name", "stored", "quantization"),
    [
        ("llama", "Q4_0", "int8"),
        ("llama", "Q8_0", "int4"),
        ("gpt2", "Q8_0", "int4"),
        ("llama", "Q4_1", "nested"),
        ("gpt2", "Q8_0", "nested"),
    ],
)
def test_d3_quantizes_the_unpacked_weights(
    name: str, stored: str, quantization: Any, tmp_path: Path
) -> None:
    """Each linear is that of the unpacked weight; the note names the bits."""
    file = write_gguf(tmp_path / "model.gguf", name, stored)
    model = load(file.path, quantization=quantization)
    for path, found, plain in quantized(model, file):
        if quantization == "int8":
            again = EightBitLinear(plain, None, dtype=torch.float32)
            assert torch.equal(found, again.dequantized()), path
        else:  # for the inputs that it gets: test_quantized_linears.py
            most = {"int4": 0.2, "nested": 0.02}[quantization]
            assert (found - plain).norm() < most * plain.norm(), path
    form = {"int4": "4 bits", "int8": "8 bits", "nested": "two planes of 4 bits"}[quantization]
    (note,) = (n for n in map(spelled, model.notes) if f"quantized again, to {form}" in n)
    assert ("keeps their 4 bits" in note) is (stored == "Q4_1")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("llama", "Q4_0"),
        ("gpt2", "Q4_1"),
        pytest.param("llama", "Q4_1", marks=pytest.mark.slow),
        pytest.param("qwen2", "Q4_K", marks=pytest.mark.slow),
        pytest.param("phi3", "Q4_0", marks=pytest.mark.slow),
    ],
)
def test_int4_keeps_the_4_bits_of_the_file(name: str, stored: str, tmp_path: Path) -> None:
    """Also where rows have another order in the file; the note says so."""
    file = write_gguf(tmp_path / "model.gguf", name, stored)
    model = load(file.path, quantization="int4", quantize_head="off")
    for path, found, plain in quantized(model, file):
        off = (found - plain).abs().max()
        assert off <= 1e-6 * plain.abs().max(), path
    with torch.inference_mode():
        torch.testing.assert_close(logits(model), file.model(ids()).logits, atol=1e-4, rtol=0)
    assert f"its {stored} weights keep their 4 bits" in map(spelled, model.notes)


@pytest.mark.parametrize(("name", "is_named"), [("llama", True), ("mixtral", False)])
def test_a_note_names_int4_where_it_would_keep_the_bits(
    name: str, *, is_named: bool, tmp_path: Path
) -> None:
    notes = map(spelled, load(write_gguf(tmp_path / "model.gguf", name, "Q4_0").path).notes)
    (note,) = (note for note in notes if "Q4_0 weights are unpacked to float32" in note)
    assert ("keeps their 4 bits" in note) is is_named


def quantized(model: LoadedModel, file: GgufFile) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """The paths of quantized linears, their weights, and those of the file, unpacked."""
    found = []
    for path, plain in getattr(file.model.get_decoder(), model.gate.family.stack).named_modules():
        if not isinstance(plain, (torch.nn.Linear, Conv1D)):
            continue
        weight = plain.weight if isinstance(plain, torch.nn.Linear) else plain.weight.T
        ours: Any = model.gate.layers.get_submodule(path)
        if isinstance(ours, LinearPart):
            joint: Any = ours.joint
            rows = joint.product.dequantized().split_with_sizes(joint.sizes)[ours.number]
        else:
            rows = ours.dequantized()
        found.append((path, rows, weight.detach().float()))
    assert len(found) >= 4 * model.num_layers
    return found


def test_the_end_of_a_reply_comes_from_the_metadata(tmp_path: Path) -> None:
    """Not from the defaults of a config class, which are those of Llama 2."""
    model = load(write_gguf(tmp_path / "model.gguf").path)
    assert model.text.eos_token_ids == {EOS, EOT}
    assert model.causal_lm.config.bos_token_id is None


def test_sampling_settings_come_from_the_metadata(tmp_path: Path) -> None:
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    model = load(write_gguf(tmp_path / "model.gguf", metadata=keys).path)
    settings = model.text.generation_settings
    assert settings["temperature"] == 0.5 and settings["top_k"] == 7 and settings["do_sample"]


def test_a_top_k_of_minus_one_keeps_all_tokens() -> None:
    keys: dict[str, Any] = {"general.sampling.temp": 0.5, "general.sampling.top_k": -1}
    settings = gguf_generation_settings(GgufModel((), Metadata(Path(), keys), {}))
    assert SamplingParams.resolve({}, settings).top_k == 0


def test_a_calibration_is_stored_for_the_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    key = load(file.path).origin.key
    assert key is not None and key.model == str(file.path.resolve()) and key.fingerprint


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, "no place for: blk.0.attn_sinks"),
        ({"blk.9.attn_norm.weight": np.ones(256, np.float32)}, "asks for 4 layers"),
        ({"rope_freqs.weight": np.full(32, 3.7, np.float32)}, None),
        ({"rope_freqs.weight": np.linspace(9, 1, 32).astype(np.float32)}, "no config describes"),
    ],
    ids=["a tensor too many", "a layer too many", "one factor", "a strange table"],
)
def test_tensors_that_would_be_ignored_are_refused(
    extra: Any, message: str | None, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "model.gguf", extra=extra)
    if message is None:
        load(file.path)
        return
    with pytest.raises(ModelError, match=message):
        load(file.path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embedding_length", 300, "the rows of token_embd.weight have 256"),
        ("embedding_length", None, "lacks the key llama.embedding_length"),
        ("attention.head_count", 0, "head"),
        ("block_count", 5, "asks for 5 layers"),
        ("attention.head_count", "many", "many|head"),
        ("rope.scaling.type", "spiral", "spiral"),
        ("rope.freq_base", 0.0, "rope_theta 0.0, outside"),
        ("rope.freq_base", float("nan"), "freq_base.*must be a number"),
        ("rope.freq_base", -5.0, "rope_theta -5.0, outside"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "rms_epsilon.*must be a number"),
        ("attention.layer_norm_rms_epsilon", 1e30, "rms_norm_eps 1.*outside"),
        ("rope.scaling.factor", float("inf"), "factor.*must be a number"),
        ("rope.scaling.factor", 1e-30, "factor 1.*outside"),
    ],
)
def test_metadata_that_cannot_be_right_is_one_clear_error(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    keys = {f"llama.{key}": value}
    if key.startswith("rope.scaling."):
        keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0} | keys
    file = write_gguf(tmp_path / "model.gguf", metadata=keys)
    with pytest.raises(ModelError, match=message):
        load(file.path)


def test_a_chat_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    keys = tokenizer_keys() | {"tokenizer.chat_template": 5}
    with pytest.raises(ModelError, match="chat template is not text"):
        load(write_gguf(tmp_path / "model.gguf", tokenizer=keys).path)


def test_a_missing_tensor_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", without=("blk.1.ffn_up.weight",))
    with pytest.raises(ModelError, match=r"lacks tensors for model\.layers\.1\.mlp\.up_proj"):
        load(file.path)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    keys = tokenizer_keys()
    keys["tokenizer.ggml.tokens"] += ["one more"]
    file = write_gguf(tmp_path / "model.gguf", tokenizer=keys)
    with pytest.raises(ModelError, match="289 tokens, but embeddings for 288"):
        load(file.path)


def test_a_sliding_window_of_zero_is_none(tmp_path: Path) -> None:
    """As llama.cpp writes it for Phi-4."""
    keys = {"phi3.attention.sliding_window": 0}
    model = load(write_gguf(tmp_path / "model.gguf", "phi3", metadata=keys).path)
    assert model.causal_lm.config.sliding_window is None


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind="Q4_0")
    files = find_model(str(file.path))
    with file.path.open("r+b") as opened:
        opened.truncate(file.path.stat().st_size // 2)
    with pytest.raises(ModelError, match="ends inside"):
        load_model(files, dtype="float32", device="cpu")


def test_nothing_is_fetched_or_imported_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own loader asks the package `kernels` for compiled code."""
    from transformers.integrations.gguf import kernels

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("it looks for compiled code")

    monkeypatch.setitem(__import__("sys").modules, "kernels", None)
    monkeypatch.setattr(kernels, "get_gguf_kernel", forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    logits(load(write_gguf(tmp_path / "model.gguf", kind="Q4_K").path, dtype="bfloat16"))


def test_memory_is_predicted_for_the_unpacked_weights(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "qwen3", "Q4_0")
    tensors = open_checkpoint(find_model(str(file.path))).description.tensors
    assert sum(t.numel for t in tensors) == sum(p.numel() for p in file.model.parameters())
    assert {t.dtype for t in tensors} == {"F32", "Q4_0"}


def test_every_readable_type_of_gguf_can_be_unpacked() -> None:
    from d3cli.files.gguf_types import READABLE
    from d3cli.kernels.ggml_blocks import unpack

    for kind in READABLE.values():
        packed = np.zeros((2, kind.block_bytes * 2), dtype=np.uint8)
        values = unpack(packed, kind)
        assert values.shape == (2, kind.block_values * 2), kind.name
        again = gguf.dequantize(packed, gguf.GGMLQuantizationType(kind.number))
        assert np.array_equal(values.float().numpy(), again, equal_nan=True)
