"""Rounds weights to 4 bits in groups: the 16 values of each group are fitted to its weights.

A group is a run of weights along the inputs. Its values are ``(code - 8) * scale + zero``. They
first span the group's range; then rounding each weight to the nearest value and fitting scale and
zero to the codes by least squares take turns, as in k-means (Lloyd 1982). Neither step adds to the
squared error. ``scripts/measure_quantization.py`` compares this with other ways. Pure functions,
which know nothing of kernels or models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 4  # of least squares; more gain little
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
def round_to_groups(weight: Tensor, group: int, dtype: torch.dtype, rounds: int = ROUNDS) -> Groups:
    """Rounds a matrix to 4 bits.

    A group that holds a weight that is not finite gets the zero NaN, so that the damage shows.

    Args:
        weight: ``[out, in]``, any float dtype; `group` divides ``in``.
        group: how many weights share a scale and a zero.
        dtype: of the scales and zeros; the codes are chosen for their rounded values.
        rounds: of least squares; 0 rounds to values that span the range.
    """
    out_features, in_features = weight.shape
    per_row = in_features // group
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = (torch.empty(out_features, per_row, dtype=dtype) for _ in range(2))
    rows = max(1, CHUNK // in_features)
    # The same memory for each chunk: new memory would cost more time than the arithmetic.
    buffers = torch.empty(3, min(rows, out_features), in_features)
    for start in range(0, out_features, rows):
        part = slice(start, min(start + rows, out_features))
        some = buffers[:, : part.stop - start]
        some[0].copy_(weight[part])
        found, scale, zero = _fit(*some.view(3, -1, group).unbind(), dtype=dtype, rounds=rounds)
        codes[part] = found.view(-1, in_features)
        scales[part] = scale.view(-1, per_row)
        zeros[part] = zero.view(-1, per_row)
    return Groups(codes, scales, zeros)


def _fit(
    groups: Tensor, codes: Tensor, product: Tensor, *, dtype: torch.dtype, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[n, group]`` as floats, scales and zeros ``[n]``.

    The groups' means are subtracted first, which keeps the sums of least squares exact.

    Args:
        groups: ``[n, group]``, which is overwritten.
        codes, product: of the same shape, to be written to; the codes are returned in `codes`.
    """
    size = groups.shape[1]
    share = torch.full((size, 1), 1 / size)
    mean = groups @ share
    groups -= mean
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    smallest = torch.finfo(dtype).tiny
    # Divided before they are subtracted, since the range of huge weights has no float.
    scale = (high / 15 - low / 15).clamp_(min=smallest)
    zero = low + CENTER * scale
    for _ in range(rounds):
        _encode(groups, scale, zero, codes)
        average = codes @ share
        variance = torch.mul(codes, codes, out=product) @ share - average * average
        slope = (torch.mul(codes, groups, out=product) @ share) / variance
        scale = torch.where(variance > 0, slope.abs(), scale).clamp_(min=smallest)
        zero = -scale * average
    scale = scale.to(dtype).float()
    if rounds:
        _encode(groups, scale, zero, codes)
        zero = -scale * (codes @ share)
    zero = (mean + zero).to(dtype)
    _encode(groups, scale, zero.float() - mean, codes)
    codes += CENTER
    broken = ~torch.isfinite(scale + zero.float())
    if broken.any():
        zero = zero.masked_fill(broken, torch.nan)
        scale = scale.masked_fill(broken, smallest)
        codes.masked_fill_(broken, CENTER)
    return codes, scale.to(dtype), zero


def _encode(groups: Tensor, scale: Tensor, zero: Tensor, codes: Tensor) -> None:
    """Writes the code of each weight's nearest value, less `CENTER`, to `codes`."""
    torch.sub(groups, zero, out=codes)
    codes.mul_(scale.reciprocal()).round_().clamp_(-CENTER, 15 - CENTER)
