"""Which layers of a model lie on which of several devices: pure arithmetic, no torch.

A layer runs on the device where it lies, with its part of the KV cache. A layer that no device has
room for lies in a store, main memory or the disk, and its weights are moved to the main device for
each pass that runs it. Knows nothing of files or of how weights are moved.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from d3cli.base.amounts import readable_size
from d3cli.base.errors import NotEnoughMemoryError, Setting


@dataclass(frozen=True, slots=True)
class Room:
    """A place for weights.

    Attributes:
        name: such as "cuda:0", "cpu" or "disk".
        free: bytes; None has no limit, such as a disk that holds the model's files already.
    """

    name: str
    free: int | None

    def holds(self, nbytes: int) -> bool:
        return self.free is None or nbytes <= self.free


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a model needs, by layer.

    Attributes:
        outside: weights outside the layers: embeddings, norms, the LM head.
        layers: weights of each layer.
        kv_per_layer: keys and values of one layer, for all positions.
        workspace: the activations of the largest pass, on every device that runs a layer.
    """

    outside: int
    layers: tuple[int, ...]
    kv_per_layer: int
    workspace: int

    @property
    def total(self) -> int:
        """Bytes on one device that holds everything."""
        layers = sum(self.layers) + len(self.layers) * self.kv_per_layer
        return self.outside + layers + self.workspace


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each layer lies and runs.

    Attributes:
        main: the device of all that is outside the layers. Stored layers run there as well.
        homes: for each layer, the device or the store of its weights.
        stores: the names in `homes` on which nothing runs.
    """

    needs: Needs
    main: str
    homes: tuple[str, ...]
    stores: frozenset[str]

    @property
    def places(self) -> tuple[str, ...]:
        """The main device, then the others in the order of their layers."""
        return tuple(dict.fromkeys((self.main, *self.homes)))

    @property
    def runs_on(self) -> tuple[str, ...]:
        """For each layer, the device that computes it and holds its keys and values."""
        return tuple(self.main if home in self.stores else home for home in self.homes)

    def layers_in(self, place: str) -> tuple[int, ...]:
        return tuple(layer for layer, home in enumerate(self.homes) if home == place)

    def bytes_in(self, place: str) -> int:
        """Bytes that a place needs: weights, KV cache, workspace, a layer that is moved there."""
        layers = self.needs.layers
        held = sum(layers[layer] for layer in self.layers_in(place))
        if place in self.stores:
            return held
        held += self.needs.workspace + self.runs_on.count(place) * self.needs.kv_per_layer
        if place != self.main:
            return held
        moved = (layers[layer] for store in self.stores for layer in self.layers_in(store))
        return held + self.needs.outside + max(moved, default=0)

    def moved(self, dropped: Collection[int] = ()) -> int:
        """Bytes that one pass moves out of stores. A dropped layer is not moved."""
        return sum(
            self.needs.layers[layer]
            for store in self.stores
            for layer in self.layers_in(store)
            if layer not in dropped
        )

    def summary(self) -> list[str]:
        """A line for each place: what lies there, and the bytes that it needs."""
        return [
            f"{place}: {self._content(place)} ({readable_size(self.bytes_in(place))})"
            for place in self.places
        ]

    def _content(self, place: str) -> str:
        layers = self.layers_in(place)
        parts = ["embeddings, LM head"] if place == self.main else []
        if len(layers) == 1:
            parts.append(f"layer {layers[0]}")
        elif layers:  # neighbours: `plan_placement` fills one place after the other
            parts.append(f"layers {layers[0]} to {layers[-1]}")
        return ", ".join(parts) + (self._way(place) if place in self.stores else "")

    def _way(self, store: str) -> str:
        """How weights get out of a store. A CPU maps a model's file: nothing is moved."""
        if self.main == "cpu" and store == "disk":
            return ", mapped from the model's file and read again for each pass"
        return f", moved to {self.main} for each pass"


def plan_placement(needs: Needs, devices: Sequence[Room], stores: Sequence[Room] = ()) -> Placement:
    """Places a model: on one device that holds everything, else on several, else partly in stores.

    As few layers as possible lie in stores, and these are the last ones.

    Args:
        devices: where layers can run, at least one. The first that suffices is the main one.
        stores: where further weights can lie, the fastest first.

    Raises:
        NotEnoughMemoryError: they do not suffice.
    """
    for device in devices:
        if device.holds(needs.total):
            return Placement(needs, device.name, (device.name,) * len(needs.layers), frozenset())
    for stored in range(len(needs.layers) + 1):
        in_stores = _fill_stores(needs.layers[len(needs.layers) - stored :], stores)
        if in_stores is None:
            break  # more layers fit even less
        for main in devices:
            others = [device for device in devices if device is not main]
            on_devices = _fill_devices(needs, main, others, stored)
            if on_devices is not None:
                homes = (*on_devices, *in_stores)
                return Placement(needs, main.name, homes, frozenset(in_stores))
    free = ", ".join(
        f"{readable_size(room.free)} on {room.name}"
        for room in (*devices, *stores)
        if room.free is not None
    )
    raise NotEnoughMemoryError(
        f"the model needs about {readable_size(needs.total)}, and its layers cannot be spread over "
        f"what d3 may use: {free}",
        ("use a smaller model or weights in fewer bits; ", Setting("max_memory"),
         ", if given, is a limit as well"),
    )  # fmt: skip


def _fill_devices(
    needs: Needs, main: Room, others: Sequence[Room], stored: int
) -> list[str] | None:
    """The device of each layer but the last `stored`; None if these devices cannot hold them."""
    kept = len(needs.layers) - stored
    largest = max(needs.layers[kept:], default=0)
    used = needs.outside + needs.workspace + stored * needs.kv_per_layer + largest
    if not main.holds(used):
        return None
    homes: list[str] = []
    for device in (main, *others):
        while len(homes) < kept:
            used += needs.layers[len(homes)] + needs.kv_per_layer
            if not device.holds(used):
                break
            homes.append(device.name)
        used = needs.workspace
    return homes if len(homes) == kept else None


def _fill_stores(layers: Sequence[int], stores: Sequence[Room]) -> list[str] | None:
    """The store of each layer, one store after the other; None if they cannot hold them."""
    homes: list[str] = []
    for store in stores:
        used = 0
        while len(homes) < len(layers):
            used += layers[len(homes)]
            if not store.holds(used):
                break
            homes.append(store.name)
    return homes if len(homes) == len(layers) else None
