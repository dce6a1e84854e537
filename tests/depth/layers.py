"""Weights of imaginary models, and schedules of the paper's shape."""

import math
from collections.abc import Collection

from hypothesis import strategies as st

from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes


def equal_layers(num_layers: int, attn: int = 25, mlp: int = 75) -> WeightBytes:
    return WeightBytes((LayerBytes(attn, mlp),) * num_layers, 10)


def shallow_first(num_layers: int, alpha: float, start: int = 0) -> DepthSchedule:
    """Whole layers in the model's order; each end keeps a quarter of them."""
    core = math.ceil(num_layers / 4)
    order = tuple(map(str, range(core, num_layers - core)))
    return DepthSchedule(num_layers, alpha, start, core, core, order)


def read_plane_by_plane(weights: WeightBytes, dropped: Collection[str]) -> int:
    """Bytes that a step reads without these units: a slow sum over every plane of every part."""
    read = weights.fixed
    for index, layer in enumerate(weights.layers):
        if f"{index}" in dropped:
            continue
        read += layer.other
        for part, whole, low in (
            ("attn", layer.attn, layer.attn_low),
            ("mlp", layer.mlp, layer.mlp_low),
        ):
            if f"{index}.{part}" not in dropped:
                read += whole - low
                if f"{index}.{part}.lo" not in dropped:
                    read += low
    return read


@st.composite
def any_weights(draw: st.DrawFn, num_layers: int) -> WeightBytes:
    """Layers of nested weights; some sublayers have no low plane."""

    def layer() -> LayerBytes:
        attn_low, mlp_low = draw(st.integers(0, 60)), draw(st.integers(0, 60))
        attn, mlp = attn_low + draw(st.integers(1, 60)), mlp_low + draw(st.integers(1, 60))
        return LayerBytes(attn, mlp, draw(st.integers(0, 9)), attn_low, mlp_low)

    return WeightBytes(tuple(layer() for _ in range(num_layers)), draw(st.integers(0, 500)))


@st.composite
def any_order(
    draw: st.DrawFn, weights: WeightBytes, core_first: int, core_last: int
) -> tuple[str, ...]:
    """A skip order that mixes layers, sublayers and low planes as far as they may be mixed."""
    names = []
    for index, layer in enumerate(weights.layers):
        planes = [("attn", layer.attn_low), ("mlp", layer.mlp_low)]
        names += [f"{index}.{part}.lo" for part, size in planes if size]
        if core_first <= index < len(weights.layers) - core_last:
            names += [f"{index}", f"{index}.attn", f"{index}.mlp"]
    order: list[str] = []
    for name in draw(st.permutations(names))[: draw(st.integers(0, len(names)))]:
        layer, *part = name.split(".")
        bars = {layer, f"{layer}.attn", f"{layer}.mlp"} if not part else {layer, name}
        if part[1:]:
            bars.add(f"{layer}.{part[0]}")
        if not bars.intersection(order):
            order.append(name)
    return tuple(order)
