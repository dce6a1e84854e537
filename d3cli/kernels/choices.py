"""Which products multiply bfloat16 weights on this machine: measured once, then kept in a file.

``kernels.json`` in the state directory holds the choices of each machine that uses it: the
processor, its cores, the threads, torch and its settings. A file that is damaged or foreign is
replaced, since nothing in it is the user's own. Where it cannot be written, or the machine is busy,
the choice is not kept, and a note says so.

``D3_KERNELS=torch`` uses torch's own products and measures nothing.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import psutil
import torch
from msgspec import Meta

from d3cli.base.atomic_files import make_directory, replace_file
from d3cli.base.bounded_files import MIB, FileKind
from d3cli.base.errors import D3Error, UsageError, Words
from d3cli.base.hardware import processor_name
from d3cli.base.json_rows import decode_json
from d3cli.base.settings import state_dir
from d3cli.kernels.measure import Measured, bfloat16_is_fast, measure
from d3cli.kernels.products import PACKED, Product, Products, can_pack
from d3cli.kernels.threads import machine_is_busy

SCHEMA = 1
SWITCH = "D3_KERNELS"
# The machines kept: a home directory may serve several, and torch changes.
MOST_MACHINES = 32
# How long to wait for another process that measures.
LOCK_SECONDS = 20.0
# The weights by which bfloat16 is compared with float32.
TYPICAL = (2048, 2048)

# Measuring a shape on a machine that becomes busy is tried so many times.
TRIES = 2
CPU = torch.device("cpu")
BUSY = "this machine is too busy to measure kernels: torch's own are used until it is quiet"
DAMAGED = "the file of kernel choices could not be read, so they are measured again"

_FILE = FileKind(what="file of kernel choices", largest=MIB)

Natural = Annotated[int, Meta(ge=1)]
Measure = Callable[[int, int], Measured]


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
    gigabytes_per_s: float
    torch_gigabytes_per_s: float
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Products(self.one, self.few, self.some, self.many)  # raises ValueError

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

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
            gigabytes_per_s=round(found.speed / 1e9, 3),
            torch_gigabytes_per_s=round(found.torch_speed / 1e9, 3),
            failed={product.value: why for product, why in found.failed.items()},
        )


@dataclass(frozen=True, slots=True)
class OnMachine:
    """The choices on one machine.

    Attributes:
        bfloat16_is_fast: whether bfloat16 is no slower than float32; None if never measured.
    """

    machine: Machine
    choices: tuple[Choice, ...] = ()
    bfloat16_is_fast: bool | None = None


@dataclass(frozen=True, slots=True)
class _File:
    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)]
    machines: list[OnMachine]


def choices_file() -> Path:
    """``kernels.json`` in the state directory."""
    return state_dir() / "kernels.json"


def choices_here() -> "KernelChoices":
    """The choices on this machine, the same object for one state directory and number of threads.

    Raises:
        UsageError: ``D3_KERNELS`` is neither "auto" nor "torch".
    """
    return _choices(Machine.here(), choices_file(), _switch())


@cache
def _choices(*_: object) -> "KernelChoices":
    return KernelChoices(measure, machine_is_busy)


def _switch() -> str:
    switch = os.environ.get(SWITCH) or "auto"
    if switch not in ("auto", "torch"):
        raise UsageError(f'{SWITCH} is "{switch}"', "it must be auto or torch")
    return switch


class KernelChoices:
    """The choices on this machine, with torch's current number of threads.

    Args:
        measure: finds the products of a shape.
        is_busy: whether other programs would disturb that.

    Attributes:
        here: what is known about this machine.
        notes: what a user should know: that something was measured, or could not be kept.

    Raises:
        UsageError: ``D3_KERNELS`` is neither "auto" nor "torch".
    """

    def __init__(self, measure: Measure, is_busy: Callable[[], bool]) -> None:
        self.notes: list[Words] = []
        self._measure, self._is_busy = measure, is_busy
        self._measures = _switch() == "auto"
        self._may_keep = True
        self.here = self._read(Machine.here()) if self._measures else OnMachine(Machine.here())

    def current(self, out_features: int, in_features: int) -> Products:
        """The products of bfloat16 weights of a shape: torch's own until they were measured."""
        return self._find((out_features, in_features)) or Products()

    def expected(self, out_features: int, in_features: int) -> Products:
        """The products to count on: packed ones, if possible, until they were measured.

        They need the most memory.
        """
        found = self._find((out_features, in_features))
        may_pack = self._measures and can_pack(torch.bfloat16, CPU)
        return found or (PACKED if may_pack else Products())

    def bfloat16_is_fast(self) -> bool:
        """Whether bfloat16 is no slower than float32, measured if need be."""
        if self.here.bfloat16_is_fast is None:
            self.prepare([TYPICAL], with_float32=True)
        return bool(self.here.bfloat16_is_fast)

    def take_notes(self) -> list[Words]:
        """The notes since they were taken last."""
        taken, self.notes = self.notes, []
        return taken

    def prepare(
        self,
        shapes: Iterable[tuple[int, int]],
        *,
        with_float32: bool = False,
        again: bool = False,
    ) -> None:
        """Measures what is missing, and keeps it. Another process that measures is waited for.

        Args:
            shapes: of bfloat16 weights, ``(out, in)``.
            with_float32: compares bfloat16 with float32 too.
            again: measures also what was measured before.
        """
        wanted = list(dict.fromkeys(shapes))
        if not self._measures or not self._may_measure(self._missing(wanted, again), with_float32):
            return
        with self._lock():
            if self._may_keep and not again:
                self.here = self._read(self.here.machine)
            missing = self._missing(wanted, again)
            begun = time.perf_counter()
            measured = [shape for shape in missing if self._measure_one(shape)]
            if (
                with_float32
                and self._find(TYPICAL)
                and (again or self.here.bfloat16_is_fast is None)
            ):
                fast = bfloat16_is_fast(self.current(*TYPICAL), *TYPICAL)
                self.here = replace(self.here, bfloat16_is_fast=fast)
            seconds = time.perf_counter() - begun
            if measured:
                self.notes.append(
                    f"the kernels for {len(measured)} shapes of weights were measured, which took "
                    f"{seconds:.1f} s; d3 doctor shows them"
                )
            if len(measured) < len(missing):
                self.notes.append(BUSY)
            if self._may_keep:
                self._write()

    def _missing(self, shapes: list[tuple[int, int]], again: bool) -> list[tuple[int, int]]:
        return [shape for shape in shapes if again or self._find(shape) is None]

    def _may_measure(self, missing: list[tuple[int, int]], with_float32: bool) -> bool:
        """Whether there is something to measure, on a quiet machine."""
        if not missing and not (with_float32 and self.here.bfloat16_is_fast is None):
            return False
        if self._is_busy():
            if BUSY not in self.notes:
                self.notes.append(BUSY)
            return False
        return True

    def _measure_one(self, shape: tuple[int, int]) -> bool:
        """Measures a shape; returns whether the result counts."""
        for _ in range(TRIES):
            found = self._measure(*shape)
            if found.steady:
                others = [choice for choice in self.here.choices if choice.shape != shape]
                choices = (*others, Choice.of(shape, found))
                self.here = replace(self.here, choices=choices)
                return True
        return False

    def _find(self, shape: tuple[int, int]) -> Products | None:
        return next((c.products for c in self.here.choices if c.shape == shape), None)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Holds the lock of the file; without it, nothing is kept."""
        from filelock import FileLock, Timeout

        path = choices_file()
        held = None
        if self._may_keep:
            try:
                make_directory(path.parent)
                held = FileLock(path.parent / f".{path.name}.lock", LOCK_SECONDS, mode=0o600)
                held.acquire()
            except (OSError, NotImplementedError, Timeout) as error:
                held = None
                self._cannot_keep(error)
        try:
            yield
        finally:
            if held is not None:
                held.release()

    def _read(self, machine: Machine) -> OnMachine:
        """What the file has for a machine."""
        found = (kept for kept in self._read_all() if kept.machine == machine)
        return next(found, OnMachine(machine))

    def _read_all(self) -> list[OnMachine]:
        try:
            data = _FILE.find(choices_file())
            return [] if data is None else decode_json(data, _File).machines
        except (D3Error, ValueError):
            if DAMAGED not in self.notes:
                self.notes.append(DAMAGED)
            return []

    def _write(self) -> None:
        others = [kept for kept in self._read_all() if kept.machine != self.here.machine]
        file = _File(SCHEMA, [*others, self.here][-MOST_MACHINES:])
        try:
            replace_file(choices_file(), json.dumps(asdict(file), indent=1) + "\n")
        except OSError as error:
            self._cannot_keep(error)

    def _cannot_keep(self, error: BaseException) -> None:
        self._may_keep = False
        reason = getattr(error, "strerror", None) or "another process holds its lock"
        self.notes.append(
            f"the kernels chosen cannot be kept in {choices_file()}: {reason}; each start measures "
            "them again"
        )
