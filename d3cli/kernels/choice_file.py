"""The file of kernel choices: ``kernels.json`` in the state directory.

It holds the choices of each machine that uses it: the processor, its cores, the threads, torch and
its settings. A file that is damaged or of another version is replaced, since nothing in it is the
user's own. Knows nothing of how products are chosen.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
from msgspec import Meta

from d3cli.base.atomic_files import replace_file
from d3cli.base.bounded_files import MIB, FileKind
from d3cli.base.errors import D3Error
from d3cli.base.hardware import processor_name
from d3cli.base.json_rows import decode_json
from d3cli.base.settings import state_dir
from d3cli.kernels.measure import Measured
from d3cli.kernels.measure_packing import MeasuredPacking
from d3cli.kernels.measure_small import (
    LIMITS,
    UNLIMITED,
    Kind,
    MeasuredHead,
    MeasuredRows,
)
from d3cli.kernels.products import Product, Products

SCHEMA = 3
# The machines kept: a home directory may serve several, and torch changes.
MOST_MACHINES = 32

_FILE = FileKind(what="file of kernel choices", largest=MIB)

Natural = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Speed = Annotated[float, Meta(gt=0)]
# What is chosen for: weights of a kind and a shape ``(out, in)``, the order of such int8 weights,
# or an LM head.
Wanted = tuple[Literal[Kind, "bfloat16", "packing", "head"], int, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a choice depends on, besides the weights.

    Attributes:
        processor: its name and its features, as torch knows them.
        capability: the instructions that torch uses; ``ATEN_CPU_CAPABILITY`` may limit them.
        onednn: the value of ``ONEDNN_MAX_CPU_ISA``, or nothing.
    """

    processor: str
    features: tuple[str, ...]
    cores: int
    threads: int
    torch: str
    capability: str
    onednn: str

    @classmethod
    def here(cls) -> "Machine":
        features = torch.cpu.get_capabilities()
        return cls(
            processor=processor_name(),
            features=tuple(sorted(name for name, on in features.items() if on is True)),
            cores=psutil.cpu_count() or 1,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            capability=torch.backends.cpu.get_cpu_capability(),
            onednn=os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The products of bfloat16 weights ``[out, in]``.

    Attributes:
        one, few, some, many: see `Products`.
        gigabytes_per_s, torch_gigabytes_per_s: of weights read with one row, by the product chosen
            and by torch's own.
        failed: the candidates that do not run here or are not exact, and why.
    """

    out_features: Natural
    in_features: Natural
    one: Product
    few: Product
    some: Product
    many: Product
    gigabytes_per_s: Speed
    torch_gigabytes_per_s: Speed
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Products(self.one, self.few, self.some, self.many)  # raises ValueError

    @property
    def wanted(self) -> Wanted:
        return "bfloat16", self.out_features, self.in_features

    @property
    def products(self) -> Products:
        return Products(self.one, self.few, self.some, self.many)

    @classmethod
    def of(cls, shape: tuple[int, int], found: Measured) -> "Choice":
        products = found.products
        return cls(
            *shape,
            one=products.one,
            few=products.few,
            some=products.some,
            many=products.many,
            gigabytes_per_s=round(found.speed / 1e9, 6),
            torch_gigabytes_per_s=round(found.torch_speed / 1e9, 6),
            failed={product.value: why for product, why in found.failed.items()},
        )


@dataclass(frozen=True, slots=True)
class RowsChoice:
    """How weights ``[out, in]`` in 8 or 4 bits are multiplied.

    Attributes:
        kernel_rows, failed: see `MeasuredRows`.
    """

    kind: Kind
    out_features: Natural
    in_features: Natural
    kernel_rows: Natural
    failed: str = ""

    def __post_init__(self) -> None:
        if self.kernel_rows not in (*LIMITS, UNLIMITED):
            raise ValueError(f"no measurement finds {self.kernel_rows} rows")

    @property
    def wanted(self) -> Wanted:
        return self.kind, self.out_features, self.in_features

    @classmethod
    def of(cls, wanted: tuple[Kind, int, int], found: MeasuredRows) -> "RowsChoice":
        return cls(*wanted, kernel_rows=found.kernel_rows, failed=found.failed)


@dataclass(frozen=True, slots=True)
class PackingChoice:
    """Whether int8 weights ``[out, in]`` are packed for oneDNN.

    Attributes:
        packed, share, failed: see `MeasuredPacking`.
    """

    out_features: Natural
    in_features: Natural
    packed: bool
    share: Speed
    failed: str = ""

    @property
    def wanted(self) -> Wanted:
        return "packing", self.out_features, self.in_features

    @classmethod
    def of(cls, shape: tuple[int, int], found: MeasuredPacking) -> "PackingChoice":
        return cls(*shape, packed=found.is_faster, share=round(found.share, 4), failed=found.failed)


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Whether an LM head ``[out, in]`` is faster in 8 bits than in bfloat16.

    Attributes:
        in_8_bits, share: see `MeasuredHead`.
    """

    out_features: Natural
    in_features: Natural
    in_8_bits: bool
    share: Speed

    @property
    def wanted(self) -> Wanted:
        return "head", self.out_features, self.in_features

    @classmethod
    def of(cls, shape: tuple[int, int], found: MeasuredHead) -> "HeadChoice":
        return cls(*shape, in_8_bits=found.in_8_bits, share=round(found.share, 4))


Record = Choice | RowsChoice | PackingChoice | HeadChoice


@dataclass(frozen=True, slots=True)
class OnMachine:
    """The choices on one machine.

    Attributes:
        choices: for weights in bfloat16.
        rows: for weights in 8 and 4 bits.
        packing: for weights in int8.
        heads: for LM heads.
        bfloat16_is_fast: whether bfloat16 is no slower than float32; None if never measured.
    """

    machine: Machine
    choices: tuple[Choice, ...] = ()
    rows: tuple[RowsChoice, ...] = ()
    packing: tuple[PackingChoice, ...] = ()
    heads: tuple[HeadChoice, ...] = ()
    bfloat16_is_fast: bool | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """All choices."""
        return (*self.choices, *self.rows, *self.packing, *self.heads)

    def find(self, wanted: Wanted) -> Any:
        """What was chosen; None if it was not measured."""
        return next((record for record in self.records if record.wanted == wanted), None)

    def including(self, record: Record) -> "OnMachine":
        """The same with another choice, which replaces an older one."""
        name = _LISTS[type(record)]
        others = [kept for kept in getattr(self, name) if kept.wanted != record.wanted]
        changed: dict[str, Any] = {name: (*others, record)}
        return replace(self, **changed)


_LISTS: dict[type, str] = {
    Choice: "choices",
    RowsChoice: "rows",
    PackingChoice: "packing",
    HeadChoice: "heads",
}


@dataclass(frozen=True, slots=True)
class _File:
    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)]
    machines: list[OnMachine]


def choices_file() -> Path:
    """``kernels.json`` in the state directory."""
    return state_dir() / "kernels.json"


def read_machines() -> list[OnMachine]:
    """The choices of all machines; an empty list if there is no file.

    Raises:
        D3Error, ValueError: the file cannot be read, or is not such a file.
    """
    data = _FILE.find(choices_file())
    return [] if data is None else decode_json(data, _File).machines


def write_machine(own: OnMachine) -> None:
    """Replaces the choices of one machine. Those of others stay, unless they cannot be read.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        others = [kept for kept in read_machines() if kept.machine != own.machine]
    except (D3Error, ValueError):
        others = []
    file = _File(SCHEMA, [*others, own][-MOST_MACHINES:])
    replace_file(choices_file(), json.dumps(asdict(file), indent=1) + "\n")
