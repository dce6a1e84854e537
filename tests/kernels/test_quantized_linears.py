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

from d3cli.kernels.joint_linear import LinearPart
from d3cli.kernels.nested_linear import NestedLinear
from d3cli.kernels.plan import Form, Kernel, KernelPlan
from d3cli.kernels.quantized_linears import quantize_linears
from d3cli.model.load import load_model
from d3cli.model.typical_text import TOKENS, typical_ids
from tests.conftest import BUILTIN_PATH
from tests.families import random_ids, some_families, tiny
from tests.gguf_models import write_gguf

NESTED = KernelPlan(
    Form(torch.float32, torch.device("cpu"), "nested"), Kernel.TORCH_NESTED, Kernel.TORCH
)


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
def check_importance(quantized: Any, plain: Any, ids: Sequence[int]) -> int:
    """Compares each nested linear with one that is rounded for its inputs; returns how many."""
    parts: dict[str, Any] = {
        name: module
        for name, module in quantized.named_modules()
        if isinstance(module, (LinearPart, NestedLinear)) and not name.endswith("product")
    }
    with inputs_of(parts) as inputs:
        quantized(torch.tensor([list(ids)]), use_cache=False)
    errors = torch.zeros(2)
    for name, part in parts.items():
        linear = plain.get_submodule(name)
        weight = (linear.weight.T if isinstance(linear, Conv1D) else linear.weight).detach()
        importance = inputs[name].float().square().mean(0)
        expected, even = (
            NestedLinear.rounded(weight, None, torch.float32, each) for each in (importance, None)
        )
        for low in (False, True):
            found = weight_of(part, low=low)
            near = (found - expected.dequantized(low)).abs() <= 1e-5 * weight.abs().max()
            # Sums in another order may tip a code.
            assert near.float().mean() > 0.99, name
        for number, high in enumerate((weight_of(part, low=False), even.dequantized(False))):
            size = (weight.square() * importance).sum()
            errors[number] += ((high - weight).square() * importance).sum() / size
    assert errors[0] < errors[1]
    return len(parts)


def weight_of(part: Any, *, low: bool) -> Tensor:
    if not isinstance(part, LinearPart):
        return part.dequantized(low)
    product: Any = part.joint.product
    return product.dequantized(low).split(part.joint.sizes)[part.number]


@some_families
def test_each_linear_is_rounded_for_the_inputs_that_it_gets(name: str) -> None:
    plain = tiny(name).plain
    found = deepcopy(plain)
    ids = random_ids(48)
    unfit = quantize_linears(found, NESTED, lambda weight: weight, lambda _: None, ids)
    for path in unfit:  # their inputs are not a multiple of 32
        assert torch.equal(found.get_submodule(path).weight, plain.get_submodule(path).weight)
    assert check_importance(found, plain, ids) >= 2 * plain.config.num_hidden_layers


def test_so_are_those_of_a_directory() -> None:
    model = load_model(device="cpu", dtype="float32", quantization="nested")
    plain = AutoModelForCausalLM.from_pretrained(BUILTIN_PATH, dtype=torch.float32)
    ids = typical_ids(model.text.tokenizer, plain.config)
    assert len(ids) == TOKENS
    assert check_importance(model.causal_lm, plain, ids) == 7 * model.num_layers


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_so_are_those_of_a_gguf_file(name: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", name, "Q8_0")
    model = load_model(str(file.path), device="cpu", dtype="float32", quantization="nested")
    ids = typical_ids(model.text.tokenizer, file.model.config)
    assert check_importance(model.causal_lm, file.model, ids) >= 4 * model.num_layers
