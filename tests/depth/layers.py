"""Weights of imaginary models, and schedules of the paper's shape."""

import math

from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes


def equal_layers(num_layers: int, attn: int = 25, mlp: int = 75) -> WeightBytes:
    return WeightBytes((LayerBytes(attn, mlp),) * num_layers, 10)


def shallow_first(num_layers: int, alpha: float, start: int = 0) -> DepthSchedule:
    """Whole layers in the model's order; each end keeps a quarter of them."""
    core = math.ceil(num_layers / 4)
    order = tuple(map(str, range(core, num_layers - core)))
    return DepthSchedule(num_layers, alpha, start, core, core, order)
