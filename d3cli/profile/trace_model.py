"""The model and the machine of a profiled run, as a trace records them. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from d3cli.base.errors import ScheduleError
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import LayerBytes, WeightBytes, parse_unit
from d3cli.profile.trace_fields import Bytes, Count, LargeCount, require


class _Computed:
    """Holds what follows from a model's fields, so that it is no field itself.

    Attributes:
        _weight_bytes: see `ModelTrace.weight_bytes`, which each reply asks for.
    """

    __slots__ = ("_weight_bytes",)
    _weight_bytes: WeightBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTrace(_Computed):
    """The model as it was loaded.

    Attributes:
        fingerprint: SHA-256 over its config and a sample of each tensor; None if it was not loaded
            from files.
        revision: the hub's commit.
        layer_bytes: bytes of weights of each layer's attention, MLP and rest.
        fixed_bytes: bytes read at every depth: the LM head and the last norm.
        kernels: what multiplies by the weights in a decode step, by their shape; None in older
            traces.
        low_bytes: bytes of the low planes of each layer's attention and MLP, which `layer_bytes`
            includes; None if the weights are not nested.
        layer_weights: the number of weights in all layers, if they are nested; else 0.
    """

    name: str
    model_type: str
    num_layers: Annotated[int, Meta(ge=1, le=10_000)]
    context_length: Count
    dtype: str
    quantization: str | None
    device: str
    fingerprint: str | None
    revision: str | None
    layer_bytes: tuple[tuple[Bytes, Bytes, Bytes], ...]
    fixed_bytes: Bytes
    kernels: dict[str, str] | None = None
    low_bytes: tuple[tuple[Bytes, Bytes], ...] | None = None
    layer_weights: LargeCount = 0

    def __post_init__(self) -> None:
        low = self.low_bytes or ((0, 0),) * len(self.layer_bytes)
        require(len(low) == len(self.layer_bytes), "low_bytes does not fit layer_bytes")
        layers = (LayerBytes(*a, *b) for a, b in zip(self.layer_bytes, low, strict=True))
        weights = WeightBytes(tuple(layers), self.fixed_bytes, self.layer_weights)
        object.__setattr__(self, "_weight_bytes", weights)
        fits = all(
            one.attn_low <= one.attn and one.mlp_low <= one.mlp for one in self.weight_bytes.layers
        )
        require(fits, "low_bytes has more bytes than layer_bytes")

    @property
    def weight_bytes(self) -> WeightBytes:
        """Bytes of weights that a decode step reads."""
        return self._weight_bytes

    def check_planes(self, order: Sequence[str], named_by: str) -> None:
        """Raises ValueError if a skip order names a low plane that the weights do not have."""
        weights = self.weight_bytes
        for name in order:
            if parse_unit(name).low and not weights.has(name):
                raise ValueError(
                    f"{named_by} names the low plane {name}, which the weights do not have"
                )

    def check_needed_order(self, order: Sequence[str]) -> None:
        """Raises ValueError if it is not a skip order of these layers."""
        weights = self.weight_bytes
        try:
            self.check_planes(order, "needed_order")
            sizes = weights.weights(order)
            DepthSchedule(len(weights.layers), skip_order=tuple(order), weights=sizes)
        except (ScheduleError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"needed_order is not a skip order of the model: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTrace:
    """The machine that the run used."""

    system: str
    processor: str
    physical_cores: Count | None
    logical_cores: Count | None
    threads: Count
    memory_bytes: Bytes
    gpu: str | None
