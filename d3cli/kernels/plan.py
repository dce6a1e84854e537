"""Which kernel multiplies which weight: decided once, before a weight is read.

| weight                      | kernel            | when                                     |
|-----------------------------|-------------------|------------------------------------------|
| linear of a layer           | torch int4, int8  | int4, int8, if the shape fits            |
| linear of a layer           | torch int4, twice | nested, if the shape fits                |
| linear of a layer           | bitsandbytes NF4  | bnb-4bit; on a CPU, if the shape fits    |
| linear of a layer           | bitsandbytes int8 | bnb-8bit                                 |
| LM head                     | torch int8        | int4, int8, nested, bnb-4bit or on       |
|                             |                   | request; on a CPU, if it is a large part |
|                             |                   | of a step, and measured to be faster     |
| each of those in int8       | oneDNN int8,      | packed after loading, if that was        |
|                             | by digits         | measured to be faster (`digits`)         |
| any other linear, LM head   | torch, torch mv,  | bfloat16 on a CPU: whichever was         |
|                             | oneDNN packed     | measured to be the fastest (`choices`)   |
| any other weight            | torch             | float32, GPUs, experts, GPT-2's Conv1D,  |
|                             |                   | and all weights split over ranks         |

Embeddings are not multiplied: single rows are looked up. Layers of a family outside the allow-list
stay as transformers loads them, and so does its LM head.

Loading, the prediction of memory and ``d3 doctor`` all ask a `KernelPlan`. Kernels round
differently, so a choice that changed from run to run would change replies: each is measured once
and kept. Knows the shapes of weights, not their values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch

from d3cli.depth.families import FAMILIES
from d3cli.files.safetensors import FLOATS, Description, TensorInfo
from d3cli.kernels.bnb_linear import fits_cpu_kernel, quantized_bytes
from d3cli.kernels.choices import choices_here
from d3cli.kernels.int4_linear import fits_int4, int4_bytes
from d3cli.kernels.int8_linear import MULTIPLE, HeadChoice, int8_bytes
from d3cli.kernels.joint_shapes import joint_shapes
from d3cli.kernels.nested_linear import fits_nested, nested_bytes
from d3cli.kernels.products import Products
from d3cli.kernels.quantization import OWN_KINDS, Quantization

# The LM head gets 8 bits if it is at least this share of what a full-depth step reads.
LEAST_HEAD = 1 / 16
# Plain weights are copied to be joined if they are at most so many: calls weigh more there than the
# memory of a copy.
FEW_TO_COPY = 1 << 22
# Of fewer weights, such as a router's, a product costs less than calling it: torch's own will do.
TINY = 1 << 14


class Kernel(StrEnum):
    """What computes a product with a weight."""

    TORCH = "torch"
    TORCH_MV = "torch mv"
    PACKED = "oneDNN packed"
    PACKED_FOUR = "oneDNN packed, four rows"
    WITHOUT_ONEDNN = "torch without oneDNN"
    TORCH_INT8 = "torch int8"
    ONEDNN_INT8 = "oneDNN int8, by digits"
    TORCH_INT4 = "torch int4"
    TORCH_NESTED = "torch int4, two planes"
    BNB_NF4 = "bitsandbytes NF4"
    BNB_INT8 = "bitsandbytes int8"


PACKED_KERNELS = (Kernel.PACKED, Kernel.PACKED_FOUR)
# The products of a bfloat16 weight by its outputs and inputs.
ProductsOf = Callable[[int, int], Products]
# Whether an LM head of a shape is faster in 8 bits than in bfloat16.
HeadIn8Bits = Callable[[int, int], bool]

_KERNELS: Mapping[Quantization, Kernel] = {
    "int8": Kernel.TORCH_INT8,
    "int4": Kernel.TORCH_INT4,
    "nested": Kernel.TORCH_NESTED,
    "bnb-4bit": Kernel.BNB_NF4,
    "bnb-8bit": Kernel.BNB_INT8,
}


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which weights are asked for, and the device.

    Attributes:
        dtype: of weights that are not quantized, and of activations.
        quantization: quantizes the layers' linears while loading.
        quantize_head: "auto" puts the LM head into 8 bits if that is faster, "off" does not. None
            is "auto" with layers in int8, int4, nested or bnb-4bit, else "off".
        ranks: processes over which each weight is split.
        ranks_here: how many of them are on this machine.
    """

    dtype: torch.dtype
    device: torch.device
    quantization: Quantization | None = None
    quantize_head: HeadChoice | None = None
    ranks: int = 1
    ranks_here: int = 1

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
        head: the kernel of the LM head, for one token.
        head_may_have_8_bits: whether that is up to the measured speed.
        float_products: the products of a bfloat16 weight by its shape; None if all are torch's.
        stored_quantized: whether the files hold quantized weights.
        transposed: whether linears are stored as ``[in, out]``, as in GPT-2.
        joints: the shapes of the products that weights are part of, by the weights' names.
    """

    form: Form
    quantized: Kernel | None
    head: Kernel
    float_products: ProductsOf | None = field(default=None, compare=False)
    stored_quantized: bool = False
    transposed: bool = False
    joints: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)
    head_may_have_8_bits: bool = False

    def product_shape(self, tensor: TensorInfo) -> tuple[int, int]:
        """The outputs and inputs of the product that a weight ``[out, in]`` is part of."""
        return self.joints.get(tensor.name, (tensor.shape[0], tensor.shape[1]))

    def products_of(self, out_features: int, in_features: int) -> Products:
        """The products of a linear that is not quantized."""
        if self.float_products is None or out_features * in_features < TINY:
            return Products()
        return self.float_products(out_features, in_features)

    def by_torch(self, device: torch.device) -> "KernelPlan":
        """As this plan, but with torch's own products alone: for weights on several devices."""
        return replace(
            self,
            form=replace(self.form, device=device, quantize_head="off"),
            head=Kernel.TORCH,
            float_products=None,
            joints={},
            head_may_have_8_bits=False,
        )

    @property
    def rounds_for_inputs(self) -> bool:
        """Whether linears are rounded for the inputs that they get in a text."""
        return self.quantized in (Kernel.TORCH_INT4, Kernel.TORCH_NESTED)

    @property
    def packs_head(self) -> bool:
        """Whether the LM head is packed."""
        return self.head in PACKED_KERNELS

    def joins(self, out_features: int, in_features: int) -> bool:
        """Whether linears become one product of this shape, which copies their weights."""
        is_small = out_features * in_features <= FEW_TO_COPY
        return is_small or self.products_of(out_features, in_features).packed

    def copies(self, tensor: TensorInfo) -> bool:
        """Whether loading packs or joins this tensor, if it is the weight of a linear."""
        if len(tensor.shape) != 2 or tensor.layer is None or self.transposed:
            return False
        if self.float_products is None or self.quantizes(tensor):
            return False
        if tensor.name in self.joints:
            return self.joins(*self.joints[tensor.name])
        return self.products_of(*tensor.shape).packed

    @property
    def head_in_8_bits(self) -> bool:
        return self.head is Kernel.TORCH_INT8

    def of_linear(self, out_features: int, in_features: int) -> Kernel:
        """The kernel of a linear of a layer, for one token."""
        plain = Kernel(self.products_of(out_features, in_features).one)
        if self.quantized is None:
            return plain
        fits = True
        if self.quantized is Kernel.TORCH_INT4:
            fits = fits_int4(out_features, in_features)
        elif self.quantized is Kernel.TORCH_NESTED:
            fits = fits_nested(out_features, in_features)
        elif self.quantized is Kernel.TORCH_INT8:
            fits = in_features % MULTIPLE == 0
        elif self.form.in_4_bits_on_cpu:
            fits = fits_cpu_kernel(out_features, in_features)
        return self.quantized if fits else plain

    def quantizes(self, tensor: TensorInfo) -> bool:
        """Whether loading quantizes this tensor."""
        return self._is_read_to_quantize(tensor) and (
            self.of_linear(*self.out_in(tensor)) is self.quantized
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
            return int4_bytes(*self.out_in(tensor), self.form.dtype)
        if self.quantized is Kernel.TORCH_NESTED:
            return nested_bytes(*self.out_in(tensor), self.form.dtype)
        if self.quantized is Kernel.TORCH_INT8:
            return int8_bytes(*self.out_in(tensor), self.form.dtype)
        return quantized_bytes(tensor.numel, self.form.quantization)

    def out_in(self, tensor: TensorInfo) -> tuple[int, int]:
        """The outputs and inputs of a linear's weight."""
        first, second = tensor.shape
        return (second, first) if self.transposed else (first, second)

    def _is_read_to_quantize(self, tensor: TensorInfo) -> bool:
        is_linear = tensor.layer is not None and len(tensor.shape) == 2
        return self.form.quantization is not None and is_linear


def plan_kernels(
    model: Description,
    head: tuple[int, int],
    form: Form,
    products_of: ProductsOf | None = None,
    head_in_8_bits: HeadIn8Bits | None = None,
) -> KernelPlan:
    """Chooses the kernels for a model; see the table above.

    Args:
        head: the shape of the LM head, ``(vocabulary, inputs)``.
        products_of: the products of bfloat16 weights on a CPU; by default
            `KernelChoices.expected`.
        head_in_8_bits: whether a bfloat16 LM head on a CPU is faster in 8 bits; by default
            `KernelChoices.expected_head_in_8_bits`.
    """
    stored = model.config.get("quantization_config")
    kind = form.quantization or _stored_kind(stored)
    quantized = None if kind is None else _KERNELS[kind]
    is_listed = model.config.get("model_type") in FAMILIES  # other code may access its weights
    is_measured = is_listed and form.dtype == torch.bfloat16 and form.device.type == "cpu"
    is_measured = is_measured and form.ranks == 1  # transformers multiplies split weights
    products_of = (products_of or choices_here().expected) if is_measured else None
    plan = KernelPlan(
        form,
        quantized,
        Kernel.TORCH,
        products_of,
        stored_quantized="quantization_config" in model.config,
        transposed=model.config.get("model_type") == "gpt2",
        joints={} if products_of is None else joint_shapes(model),
    )
    plan = replace(plan, head=Kernel(plan.products_of(*head).one))
    is_small = kind == "bnb-4bit" or kind in OWN_KINDS
    choice = form.quantize_head or ("auto" if is_small else "off")
    if not (is_listed and choice == "auto" and _head_fits_8_bits(plan, model, head)):
        return plan
    if not is_measured:
        return replace(plan, head=Kernel.TORCH_INT8)
    head_in_8_bits = head_in_8_bits or choices_here().expected_head_in_8_bits
    plan = replace(plan, head_may_have_8_bits=True)
    return replace(plan, head=Kernel.TORCH_INT8) if head_in_8_bits(*head) else plan


def _stored_kind(stored: Any) -> Quantization | None:
    """How the files say that their weights are quantized."""
    if not isinstance(stored, Mapping):
        return None
    if stored.get("load_in_4bit"):
        return "bnb-4bit"
    return "bnb-8bit" if stored.get("load_in_8bit") else None


def _head_fits_8_bits(plan: KernelPlan, model: Description, head: tuple[int, int]) -> bool:
    """Whether torch's int8 kernel takes the LM head, and the head is large enough to gain."""
    # In float16 the kernel's scales would be too coarse for small rows.
    if plan.form.device.type != "cpu" or plan.form.dtype == torch.float16 or head[1] % MULTIPLE:
        return False
    in_layers = sum(plan.held_bytes(t) for t in model.tensors if t.layer is not None)
    in_head = plan.head_bytes(*head)
    return in_head >= LEAST_HEAD * (in_head + in_layers)
