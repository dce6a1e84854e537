"""Rounds weights to 4 bits in groups: the 16 values of each group are fitted to its weights.

A group is a run of weights along the inputs. Its values are ``(code - 8) * scale + zero``. They
first span the group's range; then rounding each weight to the nearest value and fitting scale and
zero to the codes by least squares take turns, as in k-means (Lloyd 1982). Neither step adds to the
squared error. The errors of inputs that are large matter more, so inputs can have an importance:
the mean of their squares, as in llama.cpp's importance matrix. Then the fit is weighted; each code
still is that of the nearest value. ``scripts/measure_quantization.py`` compares this with other
ways. Pure functions, which know nothing of kernels or models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 4  # of least squares; more gain little
# Codes that vary less, by their shares, determine no scale: their sums have rounding errors.
NO_VARIANCE = 1e-4
CENTER = 8  # the code whose value is the zero
# Float32 weights that are fitted at once: few enough for the processor's cache.
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix in 4 bits.

    Attributes:
        codes: ``[out, in]`` uint8, 0 to 15.
        scales, zeros: ``[out, in / group]``.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def dequantized(self) -> Tensor:
        """The weights that the codes stand for, ``[out, in]`` float32."""
        out_features, in_features = self.codes.shape
        codes = self.codes.view(out_features, self.scales.shape[1], -1).float() - CENTER
        values = codes * self.scales.float()[..., None] + self.zeros.float()[..., None]
        return values.view(out_features, in_features)


@torch.no_grad()
def round_to_groups(
    weight: Tensor,
    group: int,
    dtype: torch.dtype,
    rounds: int = ROUNDS,
    importance: Tensor | None = None,
) -> Groups:
    """Rounds a matrix to 4 bits.

    A group that holds a weight that is not finite gets the zero NaN, so that the damage shows.

    Args:
        weight: ``[out, in]``, any float dtype; `group` divides ``in``.
        group: how many weights share a scale and a zero.
        dtype: of the scales and zeros; the codes are chosen for their rounded values.
        rounds: of least squares; 0 rounds to values that span the range.
        importance: how much the squared errors of each input count, ``[in]``; None: all alike.
    """
    out_features, in_features = weight.shape
    per_row = in_features // group
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = (torch.empty(out_features, per_row, dtype=dtype) for _ in range(2))
    shares = None if importance is None else _shares(importance.view(per_row, group))
    rows = max(1, CHUNK // in_features)
    # The same memory for each chunk: new memory would cost more time than the arithmetic.
    buffers = torch.empty(3, min(rows, out_features), in_features)
    for start in range(0, out_features, rows):
        part = slice(start, min(start + rows, out_features))
        some = buffers[:, : part.stop - start]
        some[0].copy_(weight[part])
        groups, found, product = some.view(3, -1, per_row, group).unbind()
        scale, zero = _fit(groups, found, product, shares, dtype=dtype, rounds=rounds)
        codes[part] = found.view(-1, in_features)
        scales[part] = scale.view(-1, per_row)
        zeros[part] = zero.view(-1, per_row)
    return Groups(codes, scales, zeros)


def _shares(importance: Tensor) -> Tensor:
    """The importance of each input as a share of its group's, ``[in / group, group]``."""
    total = importance.sum(dim=1, keepdim=True)
    equal = torch.full_like(importance, 1 / importance.shape[1])
    return torch.where((total > 0) & total.isfinite(), importance / total, equal)


def _fit(
    groups: Tensor,
    codes: Tensor,
    product: Tensor,
    shares: Tensor | None,
    *,
    dtype: torch.dtype,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """Scales and zeros ``[n, in / group, 1]``.

    The groups' means are subtracted first, which keeps the sums of least squares exact.

    Args:
        groups: ``[n, in / group, group]``, which is overwritten.
        codes: of the same shape; the codes are written to it, as floats.
        product: of the same shape, to be written to.
        shares: the weight of each input in a mean over its group; None: all alike.
    """
    size = groups.shape[-1]
    equal, ones = torch.full((size, 1), 1 / size), torch.ones(size, 1)

    def mean_of(values: Tensor) -> Tensor:
        if shares is None:
            return values @ equal
        return torch.mul(values, shares, out=product) @ ones

    mean = mean_of(groups)
    groups -= mean
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    smallest = torch.finfo(dtype).tiny
    # Divided before they are subtracted, since the range of huge weights has no float.
    scale = (high / 15 - low / 15).clamp_(min=smallest)
    zero = low + CENTER * scale
    for _ in range(rounds):
        _encode(groups, scale, zero, codes)
        average = mean_of(codes)
        variance = mean_of(torch.mul(codes, codes, out=product)) - average * average
        slope = mean_of(torch.mul(codes, groups, out=product)) / variance
        scale = torch.where(variance > NO_VARIANCE, slope.abs(), scale).clamp_(min=smallest)
        zero = -scale * average
    scale = scale.to(dtype).float()
    if rounds:
        _encode(groups, scale, zero, codes)
        zero = -scale * mean_of(codes)
    zero = (mean + zero).to(dtype)
    _encode(groups, scale, zero.float() - mean, codes)
    codes += CENTER
    broken = ~torch.isfinite(scale + zero.float())
    if broken.any():
        zero = zero.masked_fill(broken, torch.nan)
        scale = scale.masked_fill(broken, smallest)
        codes.masked_fill_(broken, CENTER)
    return scale.to(dtype), zero


def _encode(groups: Tensor, scale: Tensor, zero: Tensor, codes: Tensor) -> None:
    """Writes the code of each weight's nearest value, less `CENTER`, to `codes`."""
    torch.sub(groups, zero, out=codes)
    codes.mul_(scale.reciprocal()).round_().clamp_(-CENTER, 15 - CENTER)
