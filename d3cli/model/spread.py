"""Puts a model's layers where a placement says, with hooks that move states and weights.

The hooks are accelerate's: they wrap a module's `forward`. `LayerGate` comes later and wraps it
once more, so the gate decides first, and a dropped layer or sublayer moves nothing. A layer's
inputs go to the device where it runs. Weights in a store have a hook on each module that holds
them, so those of one linear are moved at a time. Knows nothing of files or of free memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from torch import Tensor, nn

from d3cli.depth.families import Family
from d3cli.model.placement import Placement

# Returns the values of a weight, again at each call.
Source = Callable[[], Tensor]
# Finds the source of a weight of the model.
Reader = Callable[[Tensor], Source]

CACHE = "past_key_values"  # keys and values stay on the devices of their layers


class MovedWeights(ModelHook):
    """Moves a module's own weights to a device before the module runs, and forgets them after it.

    accelerate's `AlignDevicesHook` does the same, but it also empties the cache of a GPU's memory
    after each weight. If the module fails, its weights stay until it runs again.

    Args:
        device: where the module runs.
        sources: the values of its weights, by their names in the module.
    """

    def __init__(self, device: torch.device, sources: Mapping[str, Source]) -> None:
        self._device, self._sources = device, sources
        self._absent: dict[str, nn.Parameter] = {}

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Takes the weights out of memory: what is left has a shape and a dtype only."""
        self._absent = {
            name: _parameter(module.get_parameter(name).to("meta")) for name in self._sources
        }
        module._parameters.update(self._absent)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for name, source in self._sources.items():
            values = source().to(self._device, self._absent[name].dtype)
            module._parameters[name] = _parameter(values)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        module._parameters.update(self._absent)
        return output


def spread(
    causal_lm: Any,
    family: Family,
    placement: Placement,
    read: Reader,
    on_placed: Callable[[int], None] = lambda _: None,
) -> None:
    """Puts each layer of a causal language model where it belongs, for good. It has no gate yet.

    Args:
        family: where the parts of its decoder are.
        placement: the places, whose names are torch's names of devices where layers run.
        read: finds the sources of the layers' weights.
        on_placed: is called with the size of each weight that is read and stays on a device.
    """
    decoder = causal_lm.base_model.get_submodule(family.decoder)
    layers = decoder.get_submodule(family.stack)
    main, inside = torch.device(placement.main), set(layers.modules())
    outside = [module for module in causal_lm.modules() if module not in inside]
    _hold(outside, main, lambda weight: lambda: weight)
    for layer, home, runs_on in zip(layers, placement.homes, placement.runs_on, strict=True):
        device = torch.device(runs_on)
        if home in placement.stores:
            _store(layer.modules(), device, read)
        else:
            _hold(layer.modules(), device, read, on_placed)
        add_hook_to_module(layer, AlignDevicesHook(device, skip_keys=CACHE))
    for child in (*decoder.children(), causal_lm.get_output_embeddings()):
        if child is not layers:
            add_hook_to_module(child, AlignDevicesHook(main))
    whole = AlignDevicesHook(main, io_same_device=True, skip_keys=CACHE)
    add_hook_to_module(decoder, whole)


def _hold(
    modules: Iterable[nn.Module],
    device: torch.device,
    read: Reader,
    on_placed: Callable[[int], None] = lambda _: None,
) -> None:
    """Reads the modules' own weights to a device, where they stay. Tied ones stay tied."""
    # With the old weight, whose id no other one may get meanwhile.
    placed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in modules:
        _move_buffers(module, device)
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in placed:
                values = read(weight.detach())().to(device, weight.dtype)
                placed[id(weight)] = weight, _parameter(values)
                on_placed(values.nbytes)
            module._parameters[name] = placed[id(weight)][1]


def _store(modules: Iterable[nn.Module], device: torch.device, read: Reader) -> None:
    """Leaves the modules' own weights in a store, from which hooks move them to a device."""
    for module in modules:
        _move_buffers(module, device)
        sources = {
            name: read(weight.detach())
            for name, weight in module._parameters.items()
            if weight is not None
        }
        if sources:
            add_hook_to_module(module, MovedWeights(device, sources))


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
