"""A slow, obvious D³ without gate, cache or prefixes. All fast code is tested against it.

Each step runs the plain Hugging Face model over the whole sequence. Hooks on its layers, attention
and MLP modules do what the paper says at each position: the output of an inactive sublayer is zero,
the output of an inactive layer is its input, and a mask hides the keys of positions where an
attention is inactive. Where a low plane is dropped, linears multiply by the high plane's weights.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.depth.schedule import DepthSchedule


def depths_by_position(schedule: DepthSchedule, prompt_len: int, length: int) -> list[set[str]]:
    """The units dropped at each position: none in the prompt; token t is predicted at P + t - 1."""
    dropped = []
    for position in range(length):
        t = position - prompt_len + 1
        dropped.append(set(schedule.dropped(t)) if t >= 1 else set())
    return dropped


def skipped_by_unified(num_layers: int, kept: int) -> set[str]:
    """Unified Layer Skipping runs the layer nearest to each of `kept` points from end to end."""
    points = [Fraction(i * (num_layers - 1), kept - 1) for i in range(kept)]
    # Of two layers that are equally near, the upper one.
    runs = {min(range(num_layers), key=lambda n: (abs(n - point), -n)) for point in points}
    return {str(n) for n in range(num_layers) if n not in runs}


def skipped_by_early_exit(num_layers: int, kept: int) -> set[str]:
    """Early exit runs the first `kept` layers."""
    return {str(n) for n in range(num_layers) if not n < kept}


def skipped_by_skipdecode(
    num_layers: int, highest: int, lowest: int, new_tokens: int, t: int
) -> set[str]:
    """SkipDecode runs layer 0 and the top layers, fewer of them with every token.

    Token 1 runs `highest` layers, token ``new_tokens - 1`` runs `lowest`, and those between them
    lie on a straight line, rounded down to whole layers.
    """
    line = highest + Fraction(t - 1, new_tokens - 2) * (lowest - highest)
    top = math.floor(line) - 1
    return {str(n) for n in range(1, num_layers - top)}


class Reference:
    """Reference D³ logits for one plain Hugging Face model (eager attention).

    Args:
        model: a causal LM loaded with ``attn_implementation="eager"``; never gated.
        layers: its decoder layers; `attn` and `mlp` name the sublayers.
        high: the weights ``[out, in]`` of linears without their low planes.
    """

    def __init__(
        self,
        model: Any,
        layers: Any,
        attn: str,
        mlp: str | None,
        high: Mapping[nn.Module, Tensor] | None = None,
    ) -> None:
        self.high = high or {}
        self.model = model
        self.layers = layers
        self.attn = attn
        self.mlp = mlp

    def logits(self, token_ids: Sequence[int], prompt_len: int, schedule: DepthSchedule) -> Tensor:
        """Logits at every position, ``[S, V]``, of a sequence read under a schedule."""
        return self.logits_without(
            token_ids, depths_by_position(schedule, prompt_len, len(token_ids))
        )

    def logits_without(self, token_ids: Sequence[int], dropped: list[set[str]]) -> Tensor:
        """The same where the units that each position drops are given, ``[S]``."""
        with self._hooks(dropped), torch.no_grad():
            output = self.model(torch.tensor([list(token_ids)]), use_cache=False)
        return output.logits[0].float()

    def generate(
        self, prompt_ids: Sequence[int], schedule: DepthSchedule, new_tokens: int
    ) -> tuple[list[int], Tensor]:
        """Greedy tokens and the logits that chose them, ``[N, V]``. Each step recomputes all."""
        token_ids, rows = list(prompt_ids), []
        for _ in range(new_tokens):
            rows.append(self.logits(token_ids, len(prompt_ids), schedule)[-1])
            token_ids.append(int(rows[-1].argmax()))
        return token_ids[len(prompt_ids) :], torch.stack(rows)

    @contextmanager
    def _hooks(self, dropped: list[set[str]]):
        handles = []
        for index, layer in enumerate(self.layers):
            attn = getattr(layer, self.attn)
            attends = _active(dropped, {f"{index}", f"{index}.attn"})
            hook = _hide_inactive_keys(attends)
            handles.append(attn.register_forward_pre_hook(hook, with_kwargs=True))
            handles.append(attn.register_forward_hook(_zero_inactive(attends)))
            if self.mlp is not None:
                computes = _active(dropped, {f"{index}", f"{index}.mlp"})
                mlp = getattr(layer, self.mlp)
                handles.append(mlp.register_forward_hook(_zero_inactive(computes)))
            for part, name in (("attn", self.attn), ("mlp", self.mlp)):
                whole = _active(dropped, {f"{index}.{part}.lo"})
                for linear in [] if name is None else getattr(layer, name).modules():
                    if linear in self.high:
                        alone = _multiply_by_high(self.high[linear], whole)
                        handles.append(linear.register_forward_hook(alone))
            runs = _active(dropped, {f"{index}"})
            handles.append(layer.register_forward_hook(_keep_input(runs)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _active(dropped: list[set[str]], names: set[str]) -> Tensor:
    """The positions where none of the names is dropped, ``[S]``."""
    return torch.tensor([not (names & here) for here in dropped])


def _zero_inactive(active: Tensor):
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        keep = active[None, :, None]  # [1, S, 1]
        if isinstance(output, tuple):
            return (output[0] * keep, *output[1:])
        return output * keep

    return hook


def _multiply_by_high(high: Tensor, whole: Tensor):
    def hook(linear: Any, args: Any, output: Tensor) -> Tensor:
        alone = nn.functional.linear(args[0], high, linear.bias)
        return torch.where(whole[None, :, None], output, alone)

    return hook


def _keep_input(active: Tensor):
    def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where(active[None, :, None], output, args[0])

    return hook


def _hide_inactive_keys(active: Tensor):
    def hook(_module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs["attention_mask"]  # eager: [1, 1, S, S], 0 or the lowest float
        hidden = torch.finfo(mask.dtype).min
        # Each position sees itself, so that inactive rows, zeroed later, stay finite.
        visible = active[None, :] | torch.eye(len(active), dtype=torch.bool)
        kwargs["attention_mask"] = mask.masked_fill(~visible, hidden)
        return args, kwargs

    return hook
