"""Runs the layers of a pass once more, each without one of its units."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from d3cli.depth.units import parse_unit
from d3cli.model.gate import LayerGate

# Is called with a unit, and its layer's output ``[B, S, H]`` without it and with it.
NoteRerun = Callable[[str, Tensor, Tensor], object]


@contextmanager
def rerunning(gate: LayerGate, units: Sequence[str], note: NoteRerun) -> Iterator[None]:
    """In a pass inside this context, a unit's layer runs once more without the unit.

    It reads what it read with the unit, so only this layer differs. The pass goes on with the
    output of the whole layer.
    """
    by_layer: dict[int, list[str]] = {}
    for unit in units:
        by_layer.setdefault(parse_unit(unit).layer, []).append(unit)

    def rerun(layer: Any, args: Any, kwargs: Any, output: Any, names: list[str]) -> None:
        for name in names:
            with gate.limited({name: 0}):
                without = layer.forward(*args, **kwargs)
            # A dropped layer returns its input, which another device may hold.
            after = _states(output)
            note(name, _states(without).to(after.device), after)

    hooks = [
        gate.layers[layer].register_forward_hook(
            lambda module, args, kwargs, output, names=names: rerun(
                module, args, kwargs, output, names
            ),
            with_kwargs=True,
        )
        for layer, names in by_layer.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _states(output: Any) -> Tensor:
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states
