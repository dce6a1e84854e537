"""A linear in 8 bits on a CPU: a row of int8 and one scale for each output.

Each row is rounded to 255 evenly spaced values, as LLM.int8() rounds weights (arXiv 2208.07339).
Activations are not rounded. torch's own kernel multiplies, or oneDNN's, in whose order the weights
are then packed (`digits`). The layers' linears and the LM head can have this form. Every decode
step reads the whole head, at any depth, so the head matters most where the layers are small: it is
a fifth of Llama 3.2 1B in bfloat16, and half of it with layers in 4 bits. ``scripts/bench_head.py``
measures cost and benefit. Knows nothing of layers or depth.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from d3cli.kernels.device import product_dtype
from d3cli.kernels.digits import PackedCodes
from d3cli.kernels.row_threads import share_rows
from d3cli.kernels.scratch import WEIGHTS, scratch, usual_rows

HeadChoice = Literal["auto", "off"]

# The length of a row must be a multiple of this: torch's kernel reads past the end of other rows.
MULTIPLE = 32
# Rows that are read at once.
CHUNK = 1024
# Float32 weights that are rounded at once: few enough for the processor's cache.
AT_ONCE = 1 << 16
# The most rows for which the kernel is faster than unpacking the weights, unless it was measured.
FEW = 16
# For so many rows or fewer, the weights are the first factor of the product. oneDNN reorders the
# second one, which takes longer than such a product; more rows take long to transpose.
NARROW = 128

_Read = Callable[[Tensor], Any]


def as_it_is(weight: Tensor) -> Tensor:
    """The `read` for a weight that holds its values."""
    return weight


class EightBitLinear(nn.Module):
    """A linear with int8 weights.

    Args:
        weight: ``[out, in]``. Its values are read through `read`.
        bias: ``[out]``.
        read: returns a weight by rows: ``[first:last]`` reads these rows into memory that is freed
            with them.
        dtype: of the activations; None is the weight's.

    Attributes:
        weight: ``[out, in]``, int8; after `pack` an opaque tensor in oneDNN's order.
        scales: ``[out]``, in the dtype of the activations.
        kernel_rows: the most rows that the kernel multiplies; for more, weights are unpacked.

    Raises:
        ValueError: the length of a row is not a multiple of 32.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None,
        read: _Read = as_it_is,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or weight.dtype
        self.out_features, self.in_features = weight.shape
        if self.in_features % MULTIPLE:
            raise ValueError(f"the kernel would read past the end of rows of {self.in_features}")
        rounded = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(self.out_features, dtype=dtype)

        def fill(part: slice) -> None:
            for start in range(part.start, part.stop, CHUNK):
                some = slice(start, min(start + CHUNK, part.stop))
                # Reading again frees the pages of the last chunk.
                _round_rows(read(weight)[some], rounded[some], scales[some])

        share_rows(self.out_features, CHUNK if self.out_features > CHUNK else 1, fill)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = bias
        self.kernel_rows = usual_rows(dtype, FEW)
        self._packed: PackedCodes | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the weights are in oneDNN's order, which all rows are then multiplied by."""
        return self._packed is not None

    @torch.inference_mode()
    def pack(self) -> None:
        """Brings the weights into oneDNN's order, for good: a decode step reads them faster."""
        if not self.is_packed:
            self._packed = PackedCodes.of(self.weight.detach(), self.scales.detach())
            self.weight = nn.Parameter(self._packed.codes, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        rows = hidden.reshape(hidden.numel() // self.in_features, self.in_features)
        if self._packed is not None:
            output = self._packed.multiply(rows, self.bias)
        elif len(rows) <= self.kernel_rows:
            output = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scales)
            if self.bias is not None:
                output = output + self.bias
        else:
            output = self._multiply_unpacked(rows)
        return output.reshape(*hidden.shape[:-1], self.out_features)

    def _multiply_unpacked(self, rows: Tensor) -> Tensor:
        """``[M, in]`` to ``[M, out]``."""
        output = rows.new_empty(len(rows), self.out_features)
        step = max(1, WEIGHTS // self.in_features)
        dtype = product_dtype(rows.dtype)
        rows = rows.to(dtype)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            codes = self.weight[part]
            unpacked = scratch(codes.numel(), dtype).view(codes.shape).copy_(codes)
            is_narrow = len(rows) <= NARROW
            product = (unpacked @ rows.T).T if is_narrow else linear(rows, unpacked)
            if self.bias is None:
                output[:, part] = product * self.scales[part]
            else:  # in one operation, which rounds once
                output[:, part] = torch.addcmul(self.bias[part], product, self.scales[part])
        return output

    def dequantized(self) -> Tensor:
        """The weights that the rows stand for, ``[out, in]`` float32."""
        codes = self.weight if self._packed is None else self._packed.unpacked()
        return codes.float() * self.scales.float()[:, None]


def _round_rows(weight: Tensor, rounded: Tensor, scales: Tensor) -> None:
    """Writes the int8 rows ``[n, in]`` and the scales ``[n]`` of a weight ``[n, in]``."""
    step = max(1, AT_ONCE // weight.shape[1])
    smallest = torch.finfo(scales.dtype).tiny
    buffer = torch.empty(min(step, len(weight)), weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, min(start + step, len(weight)))
        rows = buffer[: part.stop - start].copy_(weight[part])
        largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
        # Rounded first, so that the scale's own rounding adds no error.
        scales[part] = (largest / 127).clamp_(min=smallest)
        rows /= scales[part].float()[:, None]
        rounded[part] = rows.round_().clamp_(-127, 127)


@torch.inference_mode()
def quantize_head(causal_lm: Any, read: _Read) -> None:
    """Puts a causal language model's LM head into 8 bits; `read` as for `EightBitLinear`."""
    head = causal_lm.get_output_embeddings()
    causal_lm.set_output_embeddings(EightBitLinear(head.weight.detach(), head.bias, read))


def int8_bytes(out_features: int, in_features: int, dtype: torch.dtype) -> int:
    """Bytes of an `EightBitLinear` without bias: a byte for each weight, a scale for each row."""
    return out_features * (in_features + dtype.itemsize)
