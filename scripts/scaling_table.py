"""Prints the table of docs/scaling.md: arithmetic on published sizes and bandwidths.

A token's least time is the bytes that each device reads, divided by its bandwidth, one device after
the other, and the bytes moved out of stores divided by the bandwidth of the way. Nothing is
measured, and torch is not needed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from d3cli.base.amounts import readable_size
from d3cli.base.errors import NotEnoughMemoryError
from d3cli.model.placement import Needs, Placement, Room, plan_placement

GB = 10**9
POSITIONS = 4096
WORKSPACE = GB  # taken as 1 GB per device
DEPTH = 0.6
BITS = {"bfloat16": 16.0, "4-bit": 4.5}


@dataclass(frozen=True)
class Shape:
    """A Llama 3.1: one number of KV heads (8) and one head size (128) for all three sizes."""

    name: str
    hidden: int
    inner: int
    layers: int
    vocabulary: int = 128256
    kv_size: int = 1024

    def needs(self, bits: float) -> Needs:
        """Bytes with the layers' weights in `bits` and all else in bfloat16."""
        weights = 2 * self.hidden**2 + 2 * self.kv_size * self.hidden + 3 * self.hidden * self.inner
        return Needs(
            outside=2 * self.head,
            layers=(int(weights * bits / 8),) * self.layers,
            kv_per_layer=2 * 2 * self.kv_size * POSITIONS,
            workspace=WORKSPACE,
        )

    @property
    def head(self) -> int:
        """Bytes of the LM head, which every token reads. As many again are the embeddings."""
        return 2 * self.vocabulary * self.hidden


@dataclass(frozen=True)
class Machine:
    """Devices of one kind, and the stores beside them.

    Attributes:
        free: bytes of each device that a model may take.
        bandwidth: of a device's memory, in GB/s.
        stores: for each store, its free bytes and the GB/s of the way to the main device.
    """

    name: str
    device: str
    count: int
    free: float
    bandwidth: float
    stores: Mapping[str, tuple[float | None, float]]

    def place(self, needs: Needs, bits: float) -> Placement:
        names = [
            f"{self.device}:{n}" if self.device == "cuda" else "cpu" for n in range(self.count)
        ]
        stores = [
            Room(name, None if free is None else int(free * GB))
            for name, (free, _) in self.stores.items()
        ]
        # Quantized weights are made while loading, and stay where they are.
        stores = stores if bits == BITS["bfloat16"] else []
        return plan_placement(needs, [Room(name, int(self.free * GB)) for name in names], stores)

    def seconds(self, placement: Placement, head: int, dropped: Collection[int] = ()) -> float:
        """The least time of one token."""
        needs = placement.needs
        read = head + sum(
            size + needs.kv_per_layer
            for layer, size in enumerate(needs.layers)
            if layer not in dropped
        )
        moved = sum(
            needs.layers[layer] / (self.stores[store][1] * GB)
            for store in placement.stores
            for layer in placement.layers_in(store)
            if layer not in dropped
        )
        return read / (self.bandwidth * GB) + moved


DISK = {"disk": (None, 7.0)}
DESKTOP = Machine("desktop CPU, 64 GB", "cpu", 1, 58, 90, DISK)
SERVER = Machine("server CPU, 512 GB", "cpu", 1, 490, 307, DISK)
CONSUMER = Machine("RTX 4090, 64 GB", "cuda", 1, 23, 1008, {"cpu": (56, 32.0)} | DISK)
TWO_CONSUMER = Machine("2 × RTX 4090, 128 GB", "cuda", 2, 23, 1008, {"cpu": (116, 32.0)} | DISK)
H100 = Machine("H100, 512 GB", "cuda", 1, 78, 3350, {"cpu": (490, 64.0)} | DISK)
FOUR_H100 = Machine("4 × H100, 1 TB", "cuda", 4, 78, 3350, {"cpu": (980, 64.0)} | DISK)
EIGHT_H100 = Machine("8 × H100, 2 TB", "cuda", 8, 78, 3350, {"cpu": (1960, 64.0)} | DISK)

SHAPES = {
    Shape("8B", 4096, 14336, 32): (DESKTOP, SERVER, CONSUMER, H100),
    Shape("70B", 8192, 28672, 80): (DESKTOP, SERVER, CONSUMER, TWO_CONSUMER, H100, FOUR_H100),
    Shape("405B", 16384, 53248, 126): (SERVER, H100, FOUR_H100, EIGHT_H100),
}
HEADINGS = ("model", "weights", "devices", "needs", "layers", "tok/s, full depth", "depth 0.6")


def evenly(layers: int) -> set[int]:
    """The dropped layers at `DEPTH`, spread evenly over the model."""
    share = 1 - DEPTH
    return {n for n in range(layers) if int((n + 1) * share + 1e-9) > int(n * share + 1e-9)}


def row(shape: Shape, weights: str, machine: Machine) -> tuple[str, ...]:
    needs = shape.needs(BITS[weights])
    facts = shape.name, weights, machine.name, readable_size(needs.total)
    try:
        placement = machine.place(needs, BITS[weights])
    except NotEnoughMemoryError:
        return (*facts, "does not fit", "", "")
    speeds = [speed(machine, placement, shape, d) for d in ((), evenly(shape.layers))]
    return (*facts, where(placement), *speeds)


def where(placement: Placement) -> str:
    """How many layers lie where: "9 on cuda:0, 12 on each of cuda:1 to cuda:7, 33 on cpu"."""
    runs: list[tuple[int, list[str]]] = []
    for place in placement.places:
        count = len(placement.layers_in(place))
        if runs and runs[-1][0] == count and place.startswith("cuda"):
            runs[-1][1].append(place)
        else:
            runs.append((count, [place]))
    return ", ".join(
        f"{count} on {places[0]}"
        if len(places) == 1
        else f"{count} on each of {places[0]} to {places[-1]}"
        for count, places in runs
    )


def speed(machine: Machine, placement: Placement, shape: Shape, dropped: Collection[int]) -> str:
    rate = 1 / machine.seconds(placement, shape.head, dropped)
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def table() -> str:
    """The table in Markdown."""
    rows = [
        row(shape, weights, machine)
        for shape, machines in SHAPES.items()
        for machine in machines
        for weights in BITS
    ]
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(table(), end="")
