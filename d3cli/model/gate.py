"""Finds a model's decoder layers and puts a gate before each layer and sublayer.

The Hugging Face model stays as it is: each decoder layer keeps its place in the stack, and a gate
before its `forward` decides whether it runs on all positions, on the first ones, or not at all.
Replacing the stack by a shorter list would be simpler, but several families index
``config.layer_types`` by position in the stack. Knows nothing of schedules: the caller says on how
many positions each unit runs.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from d3cli.base.errors import ModelError, UsageError
from d3cli.depth.families import Family
from d3cli.depth.units import LOW, Part
from d3cli.kernels.nested_linear import NestedLinear, nested_linears


class LayerGate:
    """Decides, for each unit of a decoder stack, on which positions it runs.

    Args:
        model: a causal language model in eval mode. The gate stays on its layers for good.
        family: where the parts of the decoder are.

    Attributes:
        limits: for each unit named, the number of leading positions that it runs on; 0 drops it.
            Other units run on all positions. A dropped layer returns its input, a dropped sublayer
            adds zero to the residual stream, and without a low plane the high one multiplies alone.
        states: for each layer named, hidden states ``[B, S, H]`` that it returns without running,
            since an earlier pass over the same tokens has computed them.
        low_planes: the linears of each low plane, by its unit; empty if the weights are not nested.

    Raises:
        ModelError: the model already has a gate.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.family = family
        self._pass = threading.RLock()
        self.limits: Mapping[str, int] = MappingProxyType({})
        self.states: Mapping[str, Tensor] = MappingProxyType({})
        self.low_planes: dict[str, list[NestedLinear]] = {}
        self.layers: nn.ModuleList
        self.decoder: nn.Module = model.base_model.get_submodule(family.decoder)
        if not family.can_skip:
            self.layers = _longest_stack(self.decoder)
            return
        self.layers = self.decoder.get_submodule(family.stack)
        if any(hasattr(layer.forward, "d3_unit") for layer in self.layers):
            raise ModelError(
                "this model already has a gate", "use the LoadedModel that it is part of"
            )
        for index, layer in enumerate(self.layers):
            self._install(str(index), layer, _skip_layer)
            if family.mlp is None:
                continue
            for part, name, pad in (
                (Part.ATTN, family.attn, _skip_attention),
                (Part.MLP, family.mlp, _skip_mlp),
            ):
                sublayer = layer.get_submodule(name)
                self._install(f"{index}.{part}", sublayer, pad)
                if nested := nested_linears(sublayer):
                    self.low_planes[f"{index}.{part}.{LOW}"] = nested

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Keeps other threads from beginning a pass, which would run with this pass's limits.

        Raises:
            UsageError: another thread is in a pass.
        """
        if not self._pass.acquire(blocking=False):
            raise UsageError(
                "this model is in use by another thread",
                "only one thread at a time may use a model: guard it with a lock",
            )
        try:
            yield
        finally:
            self._pass.release()

    @contextmanager
    def limited(
        self,
        limits: Mapping[str, int],
        states: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Iterator[None]:
        """Inside this context, these limits and states hold; see the attributes.

        Afterwards those from before hold again, even if a pass was interrupted.
        """
        before = self.limits, self.states
        touched = [unit for unit in self.low_planes if unit in limits or unit in before[0]]
        try:
            self._set(limits, states, touched)
            yield
        finally:
            self._set(*before, touched)

    def _set(
        self, limits: Mapping[str, int], states: Mapping[str, Tensor], touched: list[str]
    ) -> None:
        self.limits, self.states = limits, states
        for unit in touched:
            for linear in self.low_planes[unit]:
                linear.low_rows = limits.get(unit)

    def _install(self, unit: str, module: nn.Module, pad: "_Pad") -> None:
        module.forward = _gated(module.forward, self, unit, pad)


def _longest_stack(decoder: nn.Module) -> nn.ModuleList:
    """The decoder layers of a family outside the allow-list: its longest list of modules."""
    stacks = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=nn.ModuleList())


# Builds a module's full output from its input and its output for the prefix (None: nothing ran).
_Pad = Callable[[Tensor, Any], Any]


def _skip_layer(hidden: Tensor, output: Tensor | None) -> Tensor:
    if output is None:
        return hidden
    # A layer on another device than the one before it returns its output there.
    return torch.cat([output, hidden[:, output.shape[1] :].to(output.device)], dim=1)


def _skip_mlp(hidden: Tensor, output: Tensor | None) -> Tensor:
    if output is None:
        return torch.zeros_like(hidden)
    return nn.functional.pad(output, (0, 0, 0, hidden.shape[1] - output.shape[1]))


def _skip_attention(
    hidden: Tensor, output: tuple[Tensor, Any] | None
) -> tuple[Tensor, Tensor | None]:
    return _skip_mlp(hidden, None if output is None else output[0]), None


def _gated(
    forward: Callable[..., Any], gate: LayerGate, unit: str, pad: _Pad
) -> Callable[..., Any]:
    """Puts the gate before `forward`; `pad` fills the positions beyond the limit."""
    signature = inspect.signature(forward)

    def gated_forward(*args: Any, **kwargs: Any) -> Any:
        if unit in gate.states:
            return gate.states[unit]
        limit = gate.limits.get(unit)
        if limit is None:
            return forward(*args, **kwargs)
        # By signature, since GPT-2 passes its mask and cache by position.
        arguments = signature.bind(*args, **kwargs).arguments
        extra = arguments.pop("kwargs", {})
        first = next(iter(arguments))
        hidden: Tensor = arguments[first]  # [B, S, H]
        if limit == 0:
            return pad(hidden, None)
        if limit >= hidden.shape[1]:
            return forward(*args, **kwargs)
        # Contiguous, since GPT-2 takes views of its input.
        prefix = {first: hidden[:, :limit].contiguous()} | {
            name: _first_positions(name, value, limit, hidden.shape[1])
            for name, value in (arguments | extra).items()
            if name != first
        }
        return pad(hidden, forward(**prefix))

    gated_forward.d3_unit = unit  # type: ignore[attr-defined]
    return gated_forward


def _first_positions(name: str, value: Any, limit: int, length: int) -> Any:
    """The part of a layer's argument for the first `limit` of `length` positions."""
    if name == "position_ids" and value is not None:  # [B, S]
        return value[:, :limit]
    if name == "position_embeddings" and value is not None:  # (cos, sin), each [B, S, D]
        return tuple(part[:, :limit] for part in value)
    if name == "attention_mask" and value is not None:  # [B, 1, S, KV]
        return value[:, :, :limit, : value.shape[-1] - (length - limit)]
    return value
