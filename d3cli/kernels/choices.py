"""Which products multiply weights on this machine: measured once, then kept.

Where the choice cannot be kept, or the machine is busy or short of memory, a note says so.
`choice_file` has the form of the file. ``D3_KERNELS=torch`` uses torch's own products and measures
nothing.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from d3cli.base.errors import D3Error, UsageError, Words
from d3cli.base.file_lock import file_lock
from d3cli.base.free_memory import free_memory
from d3cli.kernels.choice_file import (
    Machine,
    OnMachine,
    Wanted,
    choices_file,
    read_machines,
    write_machine,
)
from d3cli.kernels.measure import bfloat16_is_fast, measure
from d3cli.kernels.measure_packing import measure_packing
from d3cli.kernels.measure_small import Kind, measure_head, measure_rows
from d3cli.kernels.meters import Meters
from d3cli.kernels.products import PACKED, Products, can_pack
from d3cli.kernels.threads import machine_is_busy

SWITCH = "D3_KERNELS"
# How long to wait for another process that measures.
LOCK_SECONDS = 20.0
# The weights by which bfloat16 is compared with float32.
TYPICAL = (2048, 2048)
TYPICAL_WEIGHTS: Wanted = ("bfloat16", *TYPICAL)
# A shape is measured again if other programs disturbed it: so many times in all. After so many
# seconds, the other shapes are left for the next start.
TRIES, LIMIT_S = 2, 5.0
# Bytes that must be free. Measuring took 320 MB at its peak, on a processor that packs nothing.
LEAST_MEMORY = 512 << 20
CPU = torch.device("cpu")
BUSY = "this machine is too busy to measure kernels: torch's own are used until it is quiet"
NO_MEMORY = "too little memory is free to measure kernels: torch's own are used until there is more"
DAMAGED = "the file of kernel choices is damaged or foreign, and will be replaced"


def choices_here() -> "KernelChoices":
    """The choices on this machine, the same object for one state directory and number of threads.

    Raises:
        UsageError: ``D3_KERNELS`` is neither "auto" nor "torch".
    """
    return _choices(Machine.here(), choices_file(), _switch())


@cache
def _choices(*_: object) -> "KernelChoices":
    return KernelChoices(
        Meters(measure, measure_rows, measure_packing, measure_head), machine_is_busy
    )


def _switch() -> str:
    switch = os.environ.get(SWITCH) or "auto"
    if switch not in ("auto", "torch"):
        raise UsageError(f'{SWITCH} is "{switch}"', "it must be auto or torch")
    return switch


class KernelChoices:
    """The choices on this machine, with torch's current number of threads.

    Args:
        meters: find what is the fastest.
        is_busy: whether other programs would disturb that.

    Attributes:
        here: what is known about this machine.
        notes: what a user should know: that something was measured, or could not be kept.

    Raises:
        UsageError: ``D3_KERNELS`` is neither "auto" nor "torch".
    """

    def __init__(self, meters: Meters, is_busy: Callable[[], bool]) -> None:
        self.notes: list[Words] = []
        self._meters, self._is_busy = meters, is_busy
        self._measures = _switch() == "auto"
        self._may_keep = True
        self._usual: list[OnMachine] = []  # this machine with other numbers of threads
        self.here = OnMachine(Machine.here())
        if self._measures:
            self._read()

    def current(self, out_features: int, in_features: int) -> Products:
        """The products of bfloat16 weights of a shape: torch's own until they were measured.

        On a busy machine, where d3 uses fewer threads than usual, those measured with the usual
        ones count.
        """
        found = self._find_any(("bfloat16", out_features, in_features))
        products: Products = Products() if found is None else found.products
        return products

    def expected(self, out_features: int, in_features: int) -> Products:
        """The products to count on: packed ones, if possible, until they were measured.

        They need the most memory.
        """
        found = self.here.find(("bfloat16", out_features, in_features))
        may_pack = self._measures and can_pack(torch.bfloat16, CPU)
        unknown = PACKED if may_pack else Products()
        products: Products = unknown if found is None else found.products
        return products

    def kernel_rows(self, kind: Kind, out_features: int, in_features: int) -> int | None:
        """The most rows that torch's kernel for fewer bits multiplies; None: not measured."""
        found = self._find_any((kind, out_features, in_features))
        return None if found is None else found.kernel_rows

    def is_packed(self, out_features: int, in_features: int) -> bool:
        """Whether int8 weights are packed for oneDNN: not until it was measured."""
        found = self._find_any(("packing", out_features, in_features))
        return found is not None and found.packed

    def head_in_8_bits(self, out_features: int, in_features: int) -> bool:
        """Whether an LM head is faster in 8 bits than in bfloat16: yes until it was measured."""
        found = self._find_any(("head", out_features, in_features))
        return found is None or found.in_8_bits

    def expected_head_in_8_bits(self, out_features: int, in_features: int) -> bool:
        """Whether to count on that: not until it was measured, since bfloat16 needs more memory."""
        found = self.here.find(("head", out_features, in_features))
        return not self._measures if found is None else found.in_8_bits

    def bfloat16_is_fast(self) -> bool:
        """Whether bfloat16 is no slower than float32, measured if need be."""
        if self.here.bfloat16_is_fast is None:
            self.prepare([TYPICAL_WEIGHTS], with_float32=True)
        known = (each.bfloat16_is_fast for each in (self.here, *self._usual))
        return next((fast for fast in known if fast is not None), False)

    def take_notes(self) -> list[Words]:
        """The notes since they were taken last."""
        taken, self.notes = self.notes, []
        return taken

    def prepare(
        self, weights: Iterable[Wanted], *, with_float32: bool = False, again: bool = False
    ) -> int:
        """Measures what is missing, and keeps it. Another process that measures is waited for.

        Args:
            weights: what a model has. An LM head comes after the same shape in bfloat16 and after
                its packing.
            with_float32: compares bfloat16 with float32 too.
            again: measures also what was measured before.

        Returns:
            How many of `weights` were measured.
        """
        wanted = list(dict.fromkeys(weights))
        if not self._measures or not self._may_measure(self._missing(wanted, again), with_float32):
            return 0
        with self._lock():
            if self._may_keep:
                self._read()
            begun = time.perf_counter()
            missing = self._missing(wanted, again)
            count = self._measure_all(missing, math.inf if again else LIMIT_S)
            if with_float32 and (again or self.here.bfloat16_is_fast is None):
                self._compare_with_float32()
            seconds = time.perf_counter() - begun
            if count:
                what = "one shape" if count == 1 else f"{count} shapes"
                self.notes.append(
                    f"the kernels for {what} of weights were measured, which took {seconds:.1f} s; "
                    "d3 doctor shows them"
                )
            if count < len(missing):
                self.notes.append(BUSY)
            if self._may_keep:
                self._write()
        return count

    def _measure_all(self, missing: list[Wanted], limit_s: float) -> int:
        """Measures until one does not succeed; returns how many did."""
        end = time.perf_counter() + limit_s
        for count, wanted in enumerate(missing):
            if time.perf_counter() > end or not self._measure_one(wanted, end):
                return count
        return len(missing)

    def _compare_with_float32(self) -> None:
        if self.here.find(TYPICAL_WEIGHTS) is not None:
            fast = bfloat16_is_fast(self.current(*TYPICAL), *TYPICAL)
            if fast is not None:
                self.here = replace(self.here, bfloat16_is_fast=fast)

    def _missing(self, weights: list[Wanted], again: bool) -> list[Wanted]:
        return [wanted for wanted in weights if again or self.here.find(wanted) is None]

    def _may_measure(self, missing: list[Wanted], with_float32: bool) -> bool:
        """Whether there is something to measure, on a quiet machine with enough memory."""
        if not missing and not (with_float32 and self.here.bfloat16_is_fast is None):
            return False
        is_short = free_memory() < LEAST_MEMORY
        if not is_short and not self._is_busy():
            return True
        note = NO_MEMORY if is_short else BUSY
        lacking = any(self._find_any(wanted) is None for wanted in missing)
        if lacking and note not in self.notes:
            self.notes.append(note)
        return False

    def _measure_one(self, wanted: Wanted, end: float) -> bool:
        """Measures a shape, not again after `end`; returns whether the result counts."""
        for number in range(TRIES):
            if number and time.perf_counter() > end:
                break
            _, *shape = wanted
            record = self._meters.record(wanted, self.current(*shape).one, self.is_packed(*shape))
            if record is not None:
                self.here = self.here.including(record)
                return True
        return False

    def _find_any(self, wanted: Wanted) -> Any:
        """What was measured here, else with another number of threads, the largest first."""
        found = (each.find(wanted) for each in (self.here, *self._usual))
        return next((record for record in found if record is not None), None)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Holds the lock of the file; without it, nothing is kept."""
        path = choices_file()
        with ExitStack() as held:
            if self._may_keep:
                try:
                    held.enter_context(
                        file_lock(path.with_name(f".{path.name}.lock"), LOCK_SECONDS)
                    )
                except OSError as error:
                    self._cannot_keep(error)
            yield

    def _read(self) -> None:
        """Takes what the file has for this machine."""
        machine = self.here.machine
        try:
            found = read_machines()
        except (D3Error, ValueError):
            if DAMAGED not in self.notes:
                self.notes.append(DAMAGED)
            found = []
        alike = [
            kept for kept in found if replace(kept.machine, threads=machine.threads) == machine
        ]
        if not can_pack(torch.bfloat16, CPU):  # only a changed file has packed products here
            alike = [
                replace(kept, choices=tuple(c for c in kept.choices if not c.products.packed))
                for kept in alike
            ]
        self.here = next((kept for kept in alike if kept.machine == machine), OnMachine(machine))
        self._usual = sorted(alike, key=lambda kept: -kept.machine.threads)

    def _write(self) -> None:
        try:
            write_machine(self.here)
        except OSError as error:
            self._cannot_keep(error)

    def _cannot_keep(self, error: OSError) -> None:
        self._may_keep = False
        is_held = isinstance(error, TimeoutError)
        reason = "another process holds its lock" if is_held else error.strerror or str(error)
        self.notes.append(
            f"the kernels chosen cannot be kept in {choices_file()}: {reason}; each start measures "
            "them again"
        )
