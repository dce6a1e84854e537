"""bitsandbytes weights: the same engine, less memory, and a clear error for what cannot work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from d3cli.base.errors import ModelError, spelled
from d3cli.decode.session import Engine
from d3cli.kernels.bnb_linear import quantization_config
from d3cli.kernels.process import import_bitsandbytes
from d3cli.kernels.quantization import check_quantization
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import score
from tests.conftest import BUILTIN_PATH, D3, check
from tests.families import tiny, word_tokenizer
from tests.kernels.one_story import GREEDY, PROMPT, prompt_ids, tokens, tokens_of_transformers
from tests.reference import Reference


@pytest.fixture(scope="module", params=["bnb-4bit", "bnb-8bit"])
def quantized(request: pytest.FixtureRequest) -> tuple[str, LoadedModel]:
    model = load_model(
        dtype="float32", device="cpu", quantization=request.param, quantize_head="off"
    )
    return request.param, model


def plain(kind: str, attention: str = "sdpa") -> AutoModelForCausalLM:
    """The built-in model as transformers and bitsandbytes load it, without d3."""
    import_bitsandbytes()
    settings = quantization_config(kind, torch.float32)
    return AutoModelForCausalLM.from_pretrained(
        BUILTIN_PATH,
        dtype=torch.float32,
        quantization_config=settings,
        attn_implementation=attention,
    ).eval()


def test_full_depth_is_what_transformers_generates(quantized: tuple[str, LoadedModel]) -> None:
    kind, model = quantized
    assert tokens(model, model.schedule("off")) == tokens_of_transformers(plain(kind), model)


def test_decay_equals_the_slow_reference(quantized: tuple[str, LoadedModel]) -> None:
    kind, model = quantized
    schedule = model.schedule(0.8, start=0)
    prompt = prompt_ids(model)
    eager = plain(kind, "eager")
    reference = Reference(eager, eager.model.layers, "self_attn", "mlp")
    found = tokens(model, schedule)
    logits = reference.logits([*prompt, *found[:-1]], len(prompt), schedule)[len(prompt) - 1 :]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(found)[:, None])[:, 0]
    # Both kernels round by the shape of the batch (bf16 products, 8-bit activations), so near-ties
    # may fall either way. Compare log-probabilities, also with those of full depth.
    document = Document(prompt, found)
    (ours,), (full,) = (score(model, [document], s) for s in (schedule, model.schedule("off")))
    error = (ours.log_probs - expected).abs().mean()
    assert error < 0.02
    assert error < 0.2 * (full.log_probs - expected).abs().mean()


def test_the_layers_shrink_and_the_head_does_not(quantized: tuple[str, LoadedModel]) -> None:
    kind, model = quantized
    half = load_model(dtype="bfloat16", device="cpu").weight_bytes
    share = model.weight_bytes.layers[0].total / half.layers[0].total
    assert 0.25 < share < 0.28 if kind == "bnb-4bit" else 0.5 <= share < 0.52
    assert model.causal_lm.lm_head.weight.dtype == torch.float32


def test_4_bit_is_nf4_with_double_quantization() -> None:
    weight = load_model(quantization="bnb-4bit").causal_lm.model.layers[3].mlp.up_proj.weight
    assert weight.quant_state.quant_type == "nf4"
    state = weight.quant_state  # the CPU kernel stores the scales in another form
    assert getattr(state, "original_nested", state.nested)


def test_the_first_reply_does_not_wait_for_packing() -> None:
    model = load_model(quantization="bnb-4bit", device="cpu")
    states = [
        (module, module.weight.quant_state)
        for module in model.causal_lm.modules()
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None
    ]
    assert len(states) == 7 * 16
    for module, state in states:  # packed where the processor has the kernel
        packed = getattr(state, "packing_format_for_cpu", False)
        assert packed == bool(module.support_avx512bf16_for_cpu)


def test_the_command_quantizes_and_warns_of_8_bit_on_a_cpu(d3: D3) -> None:
    options = (PROMPT, "--max-tokens", "5", "--device", "cpu", "--quantization")
    four = d3("generate", *options, "bnb-4bit")
    assert four.code == 0, four.err
    assert "8-bit" not in four.err
    eight = d3("generate", *options, "bnb-8bit")
    assert eight.code == 0, eight.err
    assert "slower than bfloat16" in eight.err
    check(d3("generate", *options, "gguf-q4"), 2, "--quantization")


def test_shapes_that_the_cpu_kernel_rejects_are_not_quantized_and_are_named(tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(BUILTIN_PATH)
    config.intermediate_size = 400  # a multiple of 16 only
    path = tmp_path / "m"
    shutil.copytree(BUILTIN_PATH, path)
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    model = load_model(str(path), device="cpu", dtype="bfloat16", quantization="bnb-4bit")
    mlp = model.causal_lm.model.layers[0].mlp
    assert mlp.down_proj.weight.dtype == mlp.up_proj.joint.product.weight.dtype == torch.bfloat16
    assert model.causal_lm.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    (note,) = [text for text in map(spelled, model.notes) if "not quantized" in text]
    assert "48 linears" in note
    assert "model.layers.0.mlp.gate_proj" in note
    assert len(tokens(model, model.schedule("off"))) > 1


def test_the_linears_of_gpt2_are_not_quantized_either(tmp_path: Path) -> None:
    tiny("gpt2").plain.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu", dtype="bfloat16", quantization="bnb-4bit")
    assert any("attn.c_attn" in spelled(note) for note in model.notes)
    reply = Engine(model).stream_ids(
        [5, 6, 7], schedule=model.schedule("off"), sampling=GREEDY, max_tokens=3
    )
    assert len(list(reply)) == 3


def test_a_checkpoint_that_is_stored_quantized_loads(tmp_path: Path) -> None:
    first = load_model(dtype="float32", quantization="bnb-4bit")
    expected = tokens(first, first.schedule("off"))
    path = tmp_path / "m"
    shutil.copytree(BUILTIN_PATH, path)
    plain("bnb-4bit").save_pretrained(path)
    again = load_model(str(path), dtype="float32")
    assert again.causal_lm.lm_head.weight.dtype == torch.int8
    assert tokens(again, again.schedule("off")) == expected
    with pytest.raises(ModelError, match="already quantized"):
        load_model(str(path), quantization="bnb-4bit")


def in_8_bits(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    shutil.copytree(BUILTIN_PATH, path)
    plain("bnb-8bit").save_pretrained(path)
    return path


def test_a_checkpoint_that_is_stored_in_8_bits_is_slow_on_a_cpu(tmp_path: Path) -> None:
    path = in_8_bits(tmp_path)
    *_, note = load_model(str(path), device="cpu").notes
    assert "slower than bfloat16" in note


@pytest.mark.parametrize("says", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_plain_weights_that_claim_to_be_quantized_are_refused(
    tmp_path: Path, says: dict[str, bool]
) -> None:
    path = tmp_path / "m"
    shutil.copytree(BUILTIN_PATH, path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"} | says
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="says that its weights are quantized, but they are not"):
        load_model(str(path), device="cpu")


def test_scales_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = in_8_bits(tmp_path)
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith(".SCB"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"wrong shape for {name}"):
        load_model(str(path), device="cpu")


@pytest.mark.parametrize(
    ("config", "wanted", "reason"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, None, "quantized by gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "bnb-4bit", "quantized by fp8"),
        ({"quantization_config": 3}, None, "an unknown method"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf5"}},
            None,
            "quantized to 'nf5'",
        ),
        ({"num_experts_per_tok": 2}, "bnb-4bit", "mixture of experts"),
    ],
)
def test_what_cannot_be_quantized_is_refused(config: dict, wanted: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_quantization("m", config, wanted)
    check_quantization("m", {"num_experts_per_tok": 2}, None)


def test_bitsandbytes_is_imported_only_when_asked_for_and_fetches_nothing(tmp_path: Path) -> None:
    """With the package `kernels` installed, bitsandbytes would fetch code."""
    sentinel = tmp_path / "sentinel"
    (tmp_path / "kernels.py").write_text(
        "from pathlib import Path\n\n"
        f"def get_kernel(*_, **__):\n    Path({str(sentinel)!r}).touch()\n"
    )
    code = """
import sys
def no_socket(event, args):
    if event.startswith("socket.connect") or event == "socket.getaddrinfo":
        raise SystemExit(f"opened a socket: {event} {args}")
sys.addaudithook(no_socket)
from d3cli import load_model
load_model()
assert "bitsandbytes" not in sys.modules
for quantization in ("bnb-4bit", "bnb-8bit"):
    load_model(quantization=quantization)
assert "bitsandbytes" in sys.modules
import kernels
"""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not sentinel.exists()
    assert "kernels" not in done.stderr
