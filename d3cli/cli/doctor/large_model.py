"""What a 70B model would need on the devices of this machine: arithmetic, as no model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from d3cli.base.errors import NotEnoughMemoryError
from d3cli.cli.doctor.shapes import SHAPES, Shape, forms, kernels_of
from d3cli.kernels.plan import Form
from d3cli.model.kv_cache import DEFAULT_RESERVE, PREFILL_CHUNK
from d3cli.model.memory import activations
from d3cli.model.placement import Needs, Room, plan_placement

LARGE = SHAPES[-1]
HEAD_DIM = 128  # of Llamas with 8B weights and more
DISK = Room("disk", None)  # the model's own files, so nothing is written


@dataclass(frozen=True, slots=True)
class Place:
    """What one device or store would hold.

    Attributes:
        layers: the layers whose weights lie there.
    """

    name: str
    need_bytes: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a model would lie.

    Attributes:
        need_bytes: what it needs on one device.
        places: the main device first; empty if the devices do not suffice.
        moved_bytes: what a token at full depth moves to the main device, or reads from the disk.
        summary: a line for each place, or why the devices do not suffice.
    """

    model: str
    weights: str
    need_bytes: int
    places: tuple[Place, ...]
    moved_bytes: int
    summary: tuple[str, ...]


def large_model(gpus: Sequence[Room], memory: Room) -> list[Fit]:
    """Where a 70B model would lie, in each form of weights but float32.

    Only weights that run as they are stored can stay on the disk or in main memory until a pass
    needs them: quantized ones are made while loading.
    """
    device = torch.device("cuda" if gpus else "cpu")
    stores = [memory, DISK] if gpus else [DISK]
    return [
        _fit(name, needs_of(LARGE, form), gpus or [memory], [] if form.quantization else stores)
        for name, form in forms(device).items()
        if form.dtype != torch.float32
    ]


def needs_of(shape: Shape, form: Form) -> Needs:
    """What a model of a shape needs, for a prompt of one chunk and a reply of the default length.

    Embeddings stay mapped on a CPU, where they need no memory of their own.
    """
    plan, item = kernels_of(shape, form), form.dtype.itemsize
    layers = [0] * shape.layers
    for tensor in shape.description.tensors:
        assert tensor.layer is not None, "a shape describes its layers only"
        layers[tensor.layer] += plan.held_bytes(tensor)
    embeddings = 0 if form.device.type == "cpu" else shape.vocabulary * shape.hidden * item
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_attention_heads=shape.hidden // HEAD_DIM,
        num_key_value_heads=shape.kv_size // HEAD_DIM,
    )
    positions = PREFILL_CHUNK + DEFAULT_RESERVE
    return Needs(
        outside=embeddings + plan.head_bytes(*shape.head),
        layers=tuple(layers),
        kv_per_layer=2 * shape.kv_size * item * positions,
        workspace=activations(config, form.dtype, PREFILL_CHUNK, positions),
    )


def _fit(weights: str, needs: Needs, devices: Sequence[Room], stores: Sequence[Room]) -> Fit:
    try:
        placement = plan_placement(needs, devices, stores)
    except NotEnoughMemoryError as error:
        return Fit(LARGE.name, weights, needs.total, (), 0, (f"does not fit: {error.message}",))
    places = tuple(
        Place(place, placement.bytes_in(place), placement.layers_in(place))
        for place in placement.places
    )
    summary = tuple(placement.summary())
    return Fit(LARGE.name, weights, needs.total, places, placement.moved(), summary)
