"""int8 and int4 weights on torch's kernels: the same engine, fewer bytes, clear refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from d3cli.base.errors import ModelError, UsageError, spelled
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.joint_linear import LinearPart
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.quantization import check_hardware, check_quantization
from d3cli.model.load import load_model
from d3cli.model.load_plan import check_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.conftest import BUILTIN_PATH, D3, check
from tests.families import all_or_in_turn, tiny, word_tokenizer
from tests.kernels.one_story import PROMPT, prompt_ids, tokens, tokens_of_transformers
from tests.reference import Reference

KINDS = ["int8", "int4", "nested"]
CLASSES = {"int8": EightBitLinear, "int4": FourBitLinear, "nested": NestedLinear}


@pytest.fixture(scope="module", params=KINDS)
def quantized(request: pytest.FixtureRequest) -> tuple[str, LoadedModel]:
    return request.param, load_model(dtype="float32", device="cpu", quantization=request.param)


def dequantized(model: LoadedModel) -> AutoModelForCausalLM:
    """The same model as plain float32 linears."""
    plain = AutoModelForCausalLM.from_pretrained(
        BUILTIN_PATH, dtype=torch.float32, attn_implementation="eager", tie_word_embeddings=False
    ).eval()
    for name, linear in plain.named_modules():
        module = model.causal_lm.get_submodule(name)
        if isinstance(module, LinearPart):
            weights = module.joint.product.dequantized().split(module.joint.sizes)
            linear.weight = torch.nn.Parameter(weights[module.number])
        elif isinstance(module, tuple(CLASSES.values())):
            linear.weight = torch.nn.Parameter(module.dequantized())
    return plain


def test_full_depth_equals_the_dequantized_model(quantized: tuple[str, LoadedModel]) -> None:
    _, model = quantized
    assert tokens(model, model.schedule("off")) == tokens_of_transformers(dequantized(model), model)


def test_decay_and_scoring_equal_the_slow_reference(quantized: tuple[str, LoadedModel]) -> None:
    _, model = quantized
    schedule = model.schedule(0.8, start=0)
    prompt, found = prompt_ids(model), tokens(model, schedule)
    plain = dequantized(model)
    reference = Reference(plain, plain.model.layers, "self_attn", "mlp")
    logits = reference.logits([*prompt, *found[:-1]], len(prompt), schedule)[len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == found
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(found)[:, None])[:, 0]
    (ours,) = score(model, [Document(prompt, found)], schedule)
    assert torch.allclose(ours.log_probs, expected.double(), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_head_are_replaced_and_take_fewer_bytes(kind: str) -> None:
    model, half = (load_model(dtype="bfloat16", device="cpu", quantization=q) for q in (kind, None))
    layer = model.causal_lm.model.layers[3]
    joints = layer.self_attn.q_proj.joint, layer.mlp.up_proj.joint
    assert {type(part) for part in (*(joint.product for joint in joints), layer.mlp.down_proj)} == {
        CLASSES[kind]
    }
    assert type(model.causal_lm.lm_head) is EightBitLinear
    share = model.weight_bytes.layers[0].total / half.weight_bytes.layers[0].total
    # In int4 a code of 4 bits and its share of two bfloat16 numbers for 32 weights, of 16 bits;
    # in each of two planes the same with 64.
    least = {"int8": 1 / 2, "int4": 5 / 16, "nested": 9 / 16}[kind]
    assert least < share < least + 0.02


@pytest.mark.parametrize(("name", "kind"), all_or_in_turn(lambda _: KINDS))
def test_families_run_with_what_fits(name: str, kind: str, tmp_path: Path) -> None:
    config = tiny(name).plain.config
    tiny(name).plain.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    if getattr(config, "num_experts_per_tok", None) is not None:
        with pytest.raises(ModelError, match="d3 does not quantize experts"):
            load_model(str(tmp_path), device="cpu", dtype="float32", quantization=kind)
        return
    model = load_model(str(tmp_path), device="cpu", dtype="float32", quantization=kind)
    assert all(parameter.isfinite().all() for parameter in model.causal_lm.parameters())
    assert any(isinstance(part, CLASSES[kind]) for part in model.gate.layers.modules())
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        found, expected = model.causal_lm(ids).logits, tiny(name).plain(ids).logits
        one_by_one = model.logits(model.hidden_states(ids)[0])
    assert torch.allclose(found[0], one_by_one, atol=1e-4)
    assert 0 < float((found - expected).std()) < 0.5 * float(expected.std())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_are_rounded_from_the_files_own_dtype(
    stored: torch.dtype, dtype: str, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    shutil.copytree(BUILTIN_PATH, path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    exact = tensors[name].float() * 1.0001  # no longer a bfloat16 number
    save_file(
        {key: (exact if key == name else tensor).to(stored) for key, tensor in tensors.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    # The others are rounded for their inputs, which no test knows to the last bit.
    model = load_model(str(path), device="cpu", dtype=dtype, quantization="int8")
    linear = model.causal_lm.model.layers[2].mlp.up_proj.joint.product
    expected = EightBitLinear(exact.to(stored), None, dtype=getattr(torch, dtype))
    assert torch.equal(linear.weight[-len(exact) :], expected.weight)
    assert torch.equal(linear.scales[-len(exact) :], expected.scales)
    assert linear.scales.dtype == getattr(torch, dtype)


def save_llama(path: Path, hidden_size: int) -> str:
    config = LlamaConfig(
        vocab_size=131,
        hidden_size=hidden_size,
        intermediate_size=120,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return str(path)


def test_linears_whose_shapes_the_kernel_does_not_take_stay(tmp_path: Path) -> None:
    path = save_llama(tmp_path, hidden_size=64)
    model = load_model(path, device="cpu", dtype="bfloat16", quantization="int4")
    layer = model.causal_lm.model.layers[0]
    assert layer.mlp.down_proj.weight.dtype == torch.bfloat16
    assert type(layer.self_attn.o_proj) is FourBitLinear
    note, *_ = sorted(map(spelled, model.notes))
    assert note.startswith("24 linears are not quantized, since the kernel does not take their")
    assert "model.layers.0.mlp.gate_proj" in note
    assert len(tokens(model, model.schedule("off"))) > 1


@pytest.mark.parametrize("kind", ["int4", "bnb-4bit"])
def test_a_quantization_that_would_change_no_linear_is_refused(tmp_path: Path, kind: str) -> None:
    path = save_llama(tmp_path, hidden_size=56)
    with pytest.raises(ModelError, match=f"cannot be quantized to {kind}") as caught:
        load_model(path, device="cpu", dtype="bfloat16", quantization=kind)
    assert caught.value.field == "quantization"
    assert "leave out quantization" in caught.value.hint


def test_loading_reports_all_of_its_progress() -> None:
    for kind in KINDS:
        shares: list[float] = []
        load_model(device="cpu", quantization=kind, on_progress=shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


def test_the_commands_take_it_and_calibrations_tell_it_apart(d3: D3) -> None:
    result = d3(
        "generate", PROMPT, "--max-tokens", "5", "--quantization", "int4", "--device", "cpu"
    )
    assert result.code == 0, result.err
    assert "LM head is in 8 bits" in result.err
    model = load_model(device="cpu", quantization="int4")
    assert model.origin.key is not None
    assert model.origin.key.quantization == "int4"


class TestRefusals:
    def test_gpus(self) -> None:
        for kind, instead in (
            ("int4", "bnb-4bit"),
            ("int8", "bnb-8bit"),
            ("nested", "bnb-8bit"),
        ):
            with pytest.raises(UsageError, match=f"{kind}.* runs on a CPU, not on cuda") as caught:
                check_hardware(kind, torch.bfloat16, torch.device("cuda", 0))
            assert instead in caught.value.hint
        check_hardware("bnb-4bit", torch.bfloat16, torch.device("cuda"))

    def test_float16(self, d3: D3) -> None:
        options = ("--quantization", "int8", "--dtype", "float16", "--device", "cpu")
        result = d3("generate", PROMPT, *options)
        check(result, 2, "--quantization int8 does not run in float16")
        assert "--dtype bfloat16" in result.err

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_quantized_already(self, kind: str) -> None:
        stored = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        with pytest.raises(ModelError, match="already quantized"):
            check_quantization("m", stored, kind)

    def test_types_that_are_not_listed(self, tmp_path: Path) -> None:
        from d3cli.files.safetensors import describe_directory

        shutil.copytree(BUILTIN_PATH, tmp_path / "m")
        config = json.loads((tmp_path / "m/config.json").read_text()) | {"model_type": "gemma"}
        (tmp_path / "m/config.json").write_text(json.dumps(config))
        description = describe_directory("m", tmp_path / "m")
        with pytest.raises(ModelError, match="which d3 cannot quantize itself"):
            check_model(description, quantization="int4", device="cpu", full_depth_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_warned_of(kind: str) -> None:
    for dtype in ("float32", "bfloat16"):
        notes = map(spelled, load_model(device="cpu", quantization=kind, dtype=dtype).notes)
        warned = [note for note in notes if "slow with activations in float32" in note]
        assert ["bfloat16" in note for note in warned] == [True] * (dtype == "float32")


def test_bnb_4bit_names_int4_where_its_kernel_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    for fast in (True, False):
        monkeypatch.setattr("d3cli.model.load.bnb_is_fast", lambda fast=fast: fast)
        notes = load_model(device="cpu", quantization="bnb-4bit").notes
        assert any("lacks AVX512-BF16" in spelled(note) for note in notes) is not fast
