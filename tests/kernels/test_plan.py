"""The kernel plan: which kernel serves which weight, and that a loaded model follows it."""

from typing import Any

import pytest
import torch
from torch import nn

from d3cli.files.safetensors import Description, TensorInfo, describe_directory
from d3cli.kernels import plan
from d3cli.kernels.packed_linear import PackedLinear
from d3cli.kernels.plan import Form, Kernel, KernelPlan, can_pack
from d3cli.model.config import parse_config
from d3cli.model.held_weights import plan_for
from d3cli.model.load import load_model
from tests.conftest import BUILTIN_PATH

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def planned(model: Description, form: Form) -> KernelPlan:
    return plan_for(model, parse_config(model), form)


def described(hidden: int = 2048, heads: int = 32, layers: int = 16, **more: Any) -> Description:
    """A tied Llama."""
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    }
    shapes = {"model.embed_tokens.weight": (128256, hidden)} | {
        f"model.layers.{layer}.mlp.up_proj.weight": (8 * hidden, 4 * hidden)
        for layer in range(layers)
    }
    tensors = tuple(TensorInfo(name, "BF16", shape) for name, shape in shapes.items())
    return Description("m", config | more, tensors)


@pytest.fixture
def with_avx512_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(plan, "onednn_takes_bfloat16", lambda: True)


@pytest.mark.usefixtures("with_avx512_bf16")
@pytest.mark.parametrize(
    ("form", "linear", "head"),
    [
        (Form(BF16, CPU), Kernel.PACKED, Kernel.PACKED),
        (Form(FP32, CPU), Kernel.TORCH, Kernel.TORCH),
        (Form(FP16, CPU), Kernel.TORCH, Kernel.TORCH),
        (Form(BF16, GPU), Kernel.TORCH, Kernel.TORCH),
        (Form(BF16, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "bnb-4bit", "off"), Kernel.BNB_NF4, Kernel.PACKED),
        (Form(FP32, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH_INT8),
        (Form(FP16, CPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH),
        (Form(BF16, GPU, "bnb-4bit"), Kernel.BNB_NF4, Kernel.TORCH),
        (Form(BF16, CPU, "bnb-8bit"), Kernel.BNB_INT8, Kernel.PACKED),
        (Form(BF16, CPU, "int4"), Kernel.TORCH_INT4, Kernel.TORCH_INT8),
        (Form(FP32, CPU, "int4"), Kernel.TORCH_INT4, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "int8"), Kernel.TORCH_INT8, Kernel.TORCH_INT8),
        (Form(BF16, CPU, "int4", "off"), Kernel.TORCH_INT4, Kernel.PACKED),
        (Form(BF16, CPU, None, "auto"), Kernel.PACKED, Kernel.TORCH_INT8),
        (Form(BF16, GPU, None, "auto"), Kernel.TORCH, Kernel.TORCH),
    ],
    ids=str,
)
def test_the_table(form: Form, linear: Kernel, head: Kernel) -> None:
    found = planned(described(), form)
    assert found.of_linear(2048, 2048) is linear
    assert found.head is head


@pytest.mark.usefixtures("with_avx512_bf16")
class TestExceptions:
    def test_a_shape_that_the_4_bit_kernel_for_cpus_does_not_take(self) -> None:
        on_cpu, on_gpu = (planned(described(), Form(BF16, d, "bnb-4bit")) for d in (CPU, GPU))
        assert on_cpu.of_linear(400, 2048) is Kernel.PACKED
        assert on_gpu.of_linear(400, 2048) is Kernel.BNB_NF4

    def test_shapes_that_torchs_kernels_do_not_take(self) -> None:
        four, eight = (planned(described(), Form(BF16, CPU, kind)) for kind in ("int4", "int8"))
        assert four.of_linear(40, 2048) is four.of_linear(64, 2000) is Kernel.PACKED
        assert eight.of_linear(40, 2048) is Kernel.TORCH_INT8
        assert eight.of_linear(64, 2000) is Kernel.PACKED

    def test_gpt2_stores_inputs_first(self) -> None:
        config = {"model_type": "gpt2", "hidden_size": 64, "vocab_size": 131}
        tensor = TensorInfo("transformer.h.0.mlp.c_fc.weight", "F32", (64, 40))
        found = planned(Description("m", config, (tensor,)), Form(BF16, CPU, "int4"))
        assert not found.quantizes(tensor)

    def test_a_family_outside_the_allow_list_stays_as_transformers_loads_it(self) -> None:
        model = described(model_type="gemma")
        found = planned(model, Form(BF16, CPU, None, "auto"))
        assert found.plain is found.head is Kernel.TORCH

    def test_weights_that_are_stored_in_4_bits_get_the_head_of_4_bits(self) -> None:
        stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        found = planned(described(quantization_config=stored), Form(BF16, CPU))
        assert found.quantized is Kernel.BNB_NF4
        assert found.head_in_8_bits
        assert not any(map(found.quantizes, described().tensors))

    def test_a_head_that_is_a_small_part_of_a_step(self) -> None:
        found = planned(described(layers=400), Form(BF16, CPU, None, "auto"))
        assert found.head is Kernel.PACKED

    def test_a_head_whose_rows_the_int8_kernel_would_read_past(self) -> None:
        found = planned(described(hidden=2064, heads=24), Form(BF16, CPU, "bnb-4bit"))
        assert not found.head_in_8_bits

    def test_the_heads_own_inputs_count(self) -> None:
        """OPT projects its states to fewer before the head."""
        config = {"model_type": "opt", "hidden_size": 64, "vocab_size": 131}
        for inputs, fits in ((40, False), (32, True)):
            model = Description(
                "m", config | {"word_embed_proj_dim": inputs}, described().tensors[:1]
            )
            assert planned(model, Form(BF16, CPU, None, "auto")).head_in_8_bits == fits


def test_only_bfloat16_on_a_processor_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(FP32, CPU)
    assert not can_pack(FP16, CPU)
    assert not can_pack(BF16, GPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not can_pack(BF16, CPU)
    model = load_model(dtype="bfloat16", device="cpu").causal_lm
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("form", [Form(BF16, CPU), Form(FP32, CPU)], ids=str)
def test_a_loaded_model_follows_its_plan(form: Form) -> None:
    found = planned(describe_directory("demo", BUILTIN_PATH), form)
    name = str(form.dtype).removeprefix("torch.")
    model = load_model(dtype=name, device="cpu").causal_lm
    kinds = {Kernel.PACKED: PackedLinear, Kernel.TORCH: nn.Linear}
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer) is kinds[found.of_linear(layer.out_features, layer.in_features)]
    assert type(model.lm_head) is kinds[found.head]
