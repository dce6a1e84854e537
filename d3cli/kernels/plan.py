"""Which kernel multiplies which weight: decided once, before a weight is read.

| weight                      | kernel            | when                                     |
|-----------------------------|-------------------|------------------------------------------|
| linear of a layer           | torch int4, int8  | int4, int8, if the shape fits            |
| linear of a layer           | bitsandbytes NF4  | bnb-4bit; on a CPU, if the shape fits    |
| linear of a layer           | bitsandbytes int8 | bnb-8bit                                 |
| LM head                     | torch int8        | int4, int8, bnb-4bit or on request; on a |
|                             |                   | CPU, if it is a large part of a step     |
| any other linear, LM head   | oneDNN packed     | bfloat16 on a CPU with AVX512-BF16       |
| any other weight            | torch             | float32, GPUs, experts, GPT-2's Conv1D   |

Embeddings are not multiplied: single rows are looked up. Layers of a family outside the allow-list
stay as transformers loads them, and so does its LM head.

Loading, the prediction of memory and ``d3 doctor`` all ask a `KernelPlan`. The choice depends on
the processor, not on a measurement: kernels round differently, so a choice that changed from run to
run would change replies. Knows the shapes of weights, not their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch

from d3cli.depth.families import FAMILIES
from d3cli.files.safetensors import FLOATS, Description, TensorInfo
from d3cli.kernels.bnb_linear import fits_cpu_kernel, quantized_bytes
from d3cli.kernels.device import onednn_takes_bfloat16
from d3cli.kernels.int4_linear import fits_int4, int4_bytes
from d3cli.kernels.int8_linear import MULTIPLE, HeadChoice, int8_bytes
from d3cli.kernels.quantization import OWN_KINDS, Quantization

# The LM head gets 8 bits if it is at least this share of what a full-depth step reads.
LEAST_HEAD = 1 / 16


class Kernel(StrEnum):
    """What computes a product with a weight."""

    TORCH = "torch"
    PACKED = "oneDNN packed"
    TORCH_INT8 = "torch int8"
    TORCH_INT4 = "torch int4"
    BNB_NF4 = "bitsandbytes NF4"
    BNB_INT8 = "bitsandbytes int8"


_KERNELS: Mapping[Quantization, Kernel] = {
    "int8": Kernel.TORCH_INT8,
    "int4": Kernel.TORCH_INT4,
    "bnb-4bit": Kernel.BNB_NF4,
    "bnb-8bit": Kernel.BNB_INT8,
}


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which weights are asked for, and the device.

    Attributes:
        dtype: of weights that are not quantized, and of activations.
        quantization: quantizes the layers' linears while loading.
        quantize_head: "auto" puts the LM head into 8 bits if that pays, "off" does not. None is
            "auto" with layers in int8, int4 or bnb-4bit, else "off".
    """

    dtype: torch.dtype
    device: torch.device
    quantization: Quantization | None = None
    quantize_head: HeadChoice | None = None

    @property
    def in_4_bits_on_cpu(self) -> bool:
        """Whether loading quantizes to 4 bits for bitsandbytes' CPU kernel."""
        return self.quantization == "bnb-4bit" and self.device.type == "cpu"


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """The kernels of one model's weights.

    Attributes:
        form: what was asked for.
        quantized: the kernel of quantized linears, whether the files hold them so or loading
            quantizes them; None if no linear is quantized.
        plain: the kernel of other linears.
        head: the kernel of the LM head.
        stored_quantized: whether the files hold quantized weights.
        transposed: whether linears are stored as ``[in, out]``, as in GPT-2.
    """

    form: Form
    quantized: Kernel | None
    plain: Kernel
    head: Kernel
    stored_quantized: bool = False
    transposed: bool = False

    @property
    def packs(self) -> bool:
        """Whether linears that are not quantized are packed."""
        return self.plain is Kernel.PACKED

    @property
    def head_in_8_bits(self) -> bool:
        return self.head is Kernel.TORCH_INT8

    def of_linear(self, out_features: int, in_features: int) -> Kernel:
        """The kernel of a linear of a layer."""
        if self.quantized is None:
            return self.plain
        fits = True
        if self.quantized is Kernel.TORCH_INT4:
            fits = fits_int4(out_features, in_features)
        elif self.quantized is Kernel.TORCH_INT8:
            fits = in_features % MULTIPLE == 0
        elif self.form.in_4_bits_on_cpu:
            fits = fits_cpu_kernel(out_features, in_features)
        return self.quantized if fits else self.plain

    def quantizes(self, tensor: TensorInfo) -> bool:
        """Whether loading quantizes this tensor."""
        return self._is_read_to_quantize(tensor) and (
            self.of_linear(*self._out_in(tensor)) is self.quantized
        )

    def quantizes_itself(self, tensor: TensorInfo) -> bool:
        """Whether d3 quantizes this tensor after transformers has built the model."""
        return self.form.quantization in OWN_KINDS and self.quantizes(tensor)

    def converts(self, tensor: TensorInfo) -> bool:
        """Whether loading copies this tensor into another form, instead of leaving it mapped."""
        return (
            tensor.copied
            or (tensor.is_float and getattr(torch, FLOATS[tensor.dtype]) != self.form.dtype)
            or tensor.is_expert
            or self._is_read_to_quantize(tensor)
        )

    def held_bytes(self, tensor: TensorInfo) -> int:
        """Bytes of this tensor once it is loaded."""
        if self.form.quantization is not None and self.quantizes(tensor):
            return self._quantized_bytes(tensor)
        return tensor.numel * self.form.dtype.itemsize if tensor.is_float else tensor.nbytes

    def head_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of an LM head of this shape once it is loaded."""
        if self.head_in_8_bits:
            return int8_bytes(out_features, in_features, self.form.dtype)
        return out_features * in_features * self.form.dtype.itemsize

    def _quantized_bytes(self, tensor: TensorInfo) -> int:
        assert self.form.quantization is not None
        if self.quantized is Kernel.TORCH_INT4:
            return int4_bytes(*self._out_in(tensor), self.form.dtype)
        if self.quantized is Kernel.TORCH_INT8:
            return int8_bytes(*self._out_in(tensor), self.form.dtype)
        return quantized_bytes(tensor.numel, self.form.quantization)

    def _out_in(self, tensor: TensorInfo) -> tuple[int, int]:
        """The outputs and inputs of a linear's weight."""
        first, second = tensor.shape
        return (second, first) if self.transposed else (first, second)

    def _is_read_to_quantize(self, tensor: TensorInfo) -> bool:
        is_linear = tensor.layer is not None and len(tensor.shape) == 2
        return self.form.quantization is not None and is_linear


def plan_kernels(model: Description, head: tuple[int, int], form: Form) -> KernelPlan:
    """Chooses the kernels for a model; see the table above.

    Args:
        head: the shape of the LM head, ``(vocabulary, inputs)``.
    """
    stored = model.config.get("quantization_config")
    kind = form.quantization or _stored_kind(stored)
    quantized = None if kind is None else _KERNELS[kind]
    is_listed = model.config.get("model_type") in FAMILIES  # other code may access its weights
    plain = Kernel.PACKED if is_listed and can_pack(form.dtype, form.device) else Kernel.TORCH
    plan = KernelPlan(
        form,
        quantized,
        plain,
        plain,
        stored_quantized="quantization_config" in model.config,
        transposed=model.config.get("model_type") == "gpt2",
    )
    is_small = kind == "bnb-4bit" or kind in OWN_KINDS
    choice = form.quantize_head or ("auto" if is_small else "off")
    if is_listed and choice == "auto" and _head_fits_8_bits(plan, model, head):
        return replace(plan, head=Kernel.TORCH_INT8)
    return plan


def _stored_kind(stored: Any) -> Quantization | None:
    """How the files say that their weights are quantized."""
    if not isinstance(stored, Mapping):
        return None
    if stored.get("load_in_4bit"):
        return "bnb-4bit"
    return "bnb-8bit" if stored.get("load_in_8bit") else None


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN's packed kernel is the faster one for this dtype on this device."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        and onednn_takes_bfloat16()
    )


def _head_fits_8_bits(plan: KernelPlan, model: Description, head: tuple[int, int]) -> bool:
    """Whether torch's int8 kernel takes the LM head, and the head is large enough to gain."""
    # In float16 the kernel's scales would be too coarse for small rows.
    if plan.form.device.type != "cpu" or plan.form.dtype == torch.float16 or head[1] % MULTIPLE:
        return False
    in_layers = sum(plan.held_bytes(t) for t in model.tensors if t.layer is not None)
    in_head = plan.head_bytes(*head)
    return in_head >= LEAST_HEAD * (in_head + in_layers)
