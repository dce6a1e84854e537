"""Quantizing a model while it reads a text: each linear is rounded for the inputs that it gets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from d3cli.depth.families import find_family
from d3cli.kernels.int4_linear import GROUP, FourBitLinear
from d3cli.kernels.int4_rounding import round_to_groups
from d3cli.kernels.joint_linear import LinearPart
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.plan import Form, Kernel, KernelPlan
from d3cli.kernels.quantized_linears import quantize_linears
from d3cli.model.load import load_model
from d3cli.model.typical_text import TOKENS, typical_ids
from tests.conftest import BUILTIN_PATH
from tests.families import CONFIGS, random_ids, random_model, shortened, some_families, tiny
from tests.gguf_models import write_gguf

KINDS = {"int4": FourBitLinear, "nested": NestedLinear}
PLANS = {
    "int4": KernelPlan(
        Form(torch.float32, torch.device("cpu"), "int4"), Kernel.TORCH_INT4, Kernel.TORCH
    ),
    "nested": KernelPlan(
        Form(torch.float32, torch.device("cpu"), "nested"), Kernel.TORCH_NESTED, Kernel.TORCH
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def inputs_of(modules: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """What the modules read in the block, ``[S, in]``."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args: found.update({name: args[0].flatten(0, -2)})

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    yield found
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def check_importance(kind: str, quantized: Any, plain: Any, ids: Sequence[int]) -> int:
    """Compares each linear with one that is rounded for its inputs; returns how many."""
    parts: dict[str, Any] = {
        name: module
        for name, module in quantized.named_modules()
        if isinstance(module, (LinearPart, KINDS[kind]))
        and not name.endswith(("product", "high", "low"))
    }
    linears = {name: plain.get_submodule(name) for name in parts}
    with inputs_of(linears) as inputs:
        plain(torch.tensor([list(ids)]), use_cache=False)
    errors = torch.zeros(2)
    for name, part in parts.items():
        linear = linears[name]
        weight = (linear.weight.T if isinstance(linear, Conv1D) else linear.weight).detach()
        importance = inputs[name].float().square().mean(0)
        expected, even = (
            KINDS[kind].rounded(weight, None, torch.float32, importance=each)
            for each in (importance, None)
        )
        for found, right in zip(weights_of(part), weights_of(expected), strict=True):
            near = (found - right).abs() <= 1e-5 * weight.abs().max()
            # Sums in another order tip up to 2% of the codes, since ties are frequent. Of weights
            # that were rounded without importance, 1% are near.
            assert near.float().mean() > 0.95, name
        for number, held in enumerate((weights_of(part)[0], weights_of(even)[0])):
            size = (weight.square() * importance).sum()
            errors[number] += ((held - weight).square() * importance).sum() / size
    assert errors[0] < errors[1]
    return len(parts)


def weights_of(part: Any) -> list[Tensor]:
    """The weights that a linear, or a part of a joint one, stands for, by each of its planes."""
    if isinstance(part, LinearPart):
        joint: Any = part.joint
        return [held.split(joint.sizes)[part.number] for held in weights_of(joint.product)]
    if isinstance(part, NestedLinear):
        return [part.dequantized(low) for low in (False, True)]
    return [part.dequantized()]


@each_kind
@some_families
def test_each_linear_is_rounded_for_the_inputs_that_it_gets(name: str, kind: str) -> None:
    config = shortened(CONFIGS[name], 4)  # the fourth is where one family mixes its layers
    plain = random_model(config, find_family(config.model_type).attention)
    found = deepcopy(plain)
    ids = random_ids(48)
    unfit = quantize_linears(found, PLANS[kind], lambda weight: weight, lambda _: None, ids)
    for path in unfit:  # their inputs are not a multiple of 32
        assert torch.equal(found.get_submodule(path).weight, plain.get_submodule(path).weight)
    assert check_importance(kind, found, plain, ids) >= 2 * plain.config.num_hidden_layers


@each_kind
def test_so_are_those_of_a_directory(kind: Any) -> None:
    model = load_model(device="cpu", dtype="float32", quantization=kind)
    plain = AutoModelForCausalLM.from_pretrained(BUILTIN_PATH, dtype=torch.float32)
    ids = typical_ids(model.text.tokenizer, plain.config)
    assert len(ids) == TOKENS
    assert check_importance(kind, model.causal_lm, plain, ids) == 7 * model.num_layers


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_so_are_those_of_a_gguf_file(name: str, kind: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", name, "Q8_0")
    model = load_model(str(file.path), device="cpu", dtype="float32", quantization=kind)
    ids = typical_ids(model.text.tokenizer, file.model.config)
    assert check_importance(kind, model.causal_lm, file.model, ids) >= 4 * model.num_layers


@pytest.mark.parametrize("stored", ["all", "some"])
def test_weights_that_are_stored_in_4_bits_keep_them_and_wait_for_no_text(stored: str) -> None:
    found = deepcopy(tiny("llama").plain)
    kept = [
        module.weight.data_ptr()
        for name, module in found.named_modules()
        if name.endswith("q_proj" if stored == "some" else "_proj")
    ]

    def groups(weight: Tensor) -> Any:
        if weight.data_ptr() not in kept:
            return None
        # Other codes than rounding finds: those of half the weights.
        return lambda part: round_to_groups(weight[part] / 2, GROUP, torch.float32)

    read = []
    found.base_model.register_forward_pre_hook(lambda *args: read.append(args))
    quantize_linears(found, PLANS["int4"], lambda weight: weight, groups, random_ids(16))
    assert len(read) == (stored == "some")
    linear = found.model.layers[1].self_attn.q_proj
    expected = tiny("llama").plain.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(2 * linear.dequantized(), expected, rtol=0, atol=0.04)
