"""How a GGUF file says that rotary positions are scaled, as transformers' config says it.

transformers' reader ignores all of it, so long texts, and with Llama 3.1 also short ones, would be
computed wrongly.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from d3cli.base.errors import ModelError
from d3cli.files.gguf import GgufModel
from d3cli.files.json_files import OTHER_FORMAT
from d3cli.kernels.ggml_blocks import values_of

_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (_FREQUENCIES, _LONG, _SHORT)

# Llama 3.1 and 3.2 differ in the factor only.
_LLAMA_3 = (1.0, 4.0, 8192)
_CLOSE = 1e-5  # relative: the file holds the factors in float32


def rope_scaling(name: str, model: GgufModel, config: dict[str, Any]) -> dict[str, Any] | None:
    """The config's ``rope_scaling``; None without scaling.

    Raises:
        ModelError: the file scales in a way that transformers does not know.
    """

    def key(suffix: str) -> Any:
        return model.metadata.get(f"{model.architecture}.rope.{suffix}")

    original = key("scaling.original_context_length")
    if _FREQUENCIES in model.tensors:
        return _llama_3(name, model, config)
    if _LONG in model.tensors and _SHORT in model.tensors:
        return {
            "rope_type": "longrope",
            "short_factor": values_of(model.tensors[_SHORT]).tolist(),
            "long_factor": values_of(model.tensors[_LONG]).tolist(),
            "original_max_position_embeddings": original or config["max_position_embeddings"],
        }
    kind, factor = key("scaling.type"), key("scaling.factor") or key("scale_linear")
    if kind in (None, "none") and not key("scale_linear"):
        return None
    if not isinstance(factor, int | float) or factor in (0, 1):
        return None  # llama.cpp does not scale without a factor
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor}
        if (times := key("scaling.attn_factor")) is not None and times != 1:
            # llama.cpp multiplies the factor of YaRN by it, and transformers takes the product.
            scaling["attention_factor"] = times * (0.1 * math.log(factor) + 1)
        for suffix, wanted in (
            ("scaling.original_context_length", "original_max_position_embeddings"),
            ("scaling.yarn_beta_fast", "beta_fast"),
            ("scaling.yarn_beta_slow", "beta_slow"),
        ):
            if key(suffix) is not None:
                scaling[wanted] = key(suffix)
        return scaling
    raise ModelError(
        f"{name} scales its rotary positions by {kind!r:.40}, which d3 does not know",
        OTHER_FORMAT,
    )


def _llama_3(name: str, model: GgufModel, config: dict[str, Any]) -> dict[str, Any]:
    """The scaling of Llama 3.1 whose table is that of the file.

    The file holds one divisor for each pair of dimensions. Long waves are divided by the factor,
    short ones by 1, and the ones between by a mixture, which tells where the mixture begins and
    ends.

    Raises:
        ModelError: no scaling of this kind has that table.
    """
    divisors = values_of(model.tensors[_FREQUENCIES]).astype(np.float64).ravel()
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = config.get("rope_theta", 10000.0)
    factor = float(divisors.max(initial=1.0))
    if len(divisors) == head_dim // 2 and np.isfinite(divisors).all() and divisors.min() >= 1:
        if np.allclose(divisors, factor, rtol=_CLOSE, atol=0):  # all frequencies alike
            return {"rope_type": "linear", "factor": factor}
        waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        for low, high, original in (_LLAMA_3, *_fitted(divisors, waves, factor)):
            table = _llama_3_divisors(waves, factor, low, high, original)
            if np.allclose(table, divisors, rtol=_CLOSE, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise ModelError(
        f"{name} scales its rotary positions by a table ({_FREQUENCIES}) that no config describes",
        OTHER_FORMAT,
    )


def _llama_3_divisors(waves: Any, factor: float, low: float, high: float, original: float) -> Any:
    """By what each frequency is divided, as in `_compute_llama3_parameters` of transformers."""
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _fitted(divisors: Any, waves: Any, factor: float) -> Sequence[tuple[float, float, float]]:
    """The bounds of the mixture, from two of its points; none if it has fewer."""
    between = np.flatnonzero((divisors > 1 + _CLOSE) & (divisors < factor * (1 - _CLOSE)))
    if len(between) < 2:
        return ()
    first, last = between[0], between[-1]
    # smooth = slope / wave - offset; the original length is free, so low is set to 1.
    smooth = [(1 / divisors[i] - 1 / factor) / (1 - 1 / factor) for i in (first, last)]
    slope = (smooth[0] - smooth[1]) / (1 / waves[first] - 1 / waves[last])
    offset = slope / waves[first] - smooth[0]
    if offset <= 0:
        return ()
    span = 1 / offset
    return [(1.0, 1.0 + span, float(round(slope * span)))]
