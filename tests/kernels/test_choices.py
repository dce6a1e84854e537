"""The file of kernel choices: measured once, kept, measured again when it does not fit."""

import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from d3cli.base.errors import UsageError
from d3cli.kernels import choices as module
from d3cli.kernels.choice_file import MOST_MACHINES, Machine, Wanted, choices_file
from d3cli.kernels.choices import BUSY, DAMAGED, NO_MEMORY, TYPICAL, KernelChoices, choices_here
from d3cli.kernels.measure import Measured
from d3cli.kernels.measure_small import MeasuredHead
from d3cli.kernels.products import PACKED, Product, Products
from tests.conftest import D3
from tests.kernels.conftest import measured, meters

MV, SHAPE = Products(one=Product.MV), (2048, 4096)


def half(*shape: int) -> Wanted:
    """Weights of a shape in bfloat16."""
    return "bfloat16", shape[0], shape[1]


@pytest.fixture(autouse=True)
def _measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3_KERNELS", "auto")


class Meter:
    """Measures without a clock, and counts."""

    def __init__(self, products: Products = MV, *, steady: bool = True) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._found = measured(products, steady=steady)

    def __call__(self, out_features: int, in_features: int) -> Measured:
        self.shapes.append((out_features, in_features))
        return self._found


def choices(meter: Callable[[int, int], Measured], *, busy: bool = False) -> KernelChoices:
    return KernelChoices(meters(meter), lambda: busy)


def of(found: KernelChoices) -> Products:
    """The products of a shape, measured if need be."""
    found.prepare([half(*SHAPE)])
    return found.current(*SHAPE)


def said(found: KernelChoices, words: str) -> bool:
    return any(words in str(note) for note in found.notes)


def test_what_was_measured_is_kept() -> None:
    first, second = Meter(), Meter(Products())
    found = choices(first)
    assert of(found) == MV
    assert said(found, "were measured")
    again = choices(second)
    assert of(again) == again.expected(*SHAPE) == MV
    assert (first.shapes, second.shapes) == ([SHAPE], [])
    assert again.notes == []
    assert stat.S_IMODE(choices_file().stat().st_mode) == 0o600


def test_shapes_are_measured_once_and_together() -> None:
    meter = Meter()
    found = choices(meter)
    found.prepare([half(*SHAPE), half(64, 512), half(*SHAPE)])
    assert meter.shapes == [SHAPE, (64, 512)]
    assert len(found.notes) == 1
    found.prepare([half(*SHAPE)], again=True)
    assert meter.shapes == [SHAPE, (64, 512), SHAPE]
    assert sorted(choice.wanted[1:] for choice in found.here.choices) == [(64, 512), SHAPE]


def test_packed_products_do_not_count_where_weights_cannot_be_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of(choices(Meter(PACKED)))  # as after a change of the file by hand
    monkeypatch.setattr("d3cli.kernels.choices.can_pack", lambda *_: False)
    meter = Meter(Products())
    assert of(choices(meter)) == Products()
    assert meter.shapes == [SHAPE]


def test_nothing_is_measured_to_predict() -> None:
    meter = Meter()
    choices(meter).expected(*SHAPE)
    assert meter.shapes == []
    assert not choices_file().exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"processor": "another"},
        {"features": ()},
        {"cores": 7},
        {"threads": 9},
        {"torch": "0.1"},
        {"capability": "another"},
        {"onednn": "another"},
    ],
    ids=str,
)
def test_another_machine_chooses_for_itself(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of(choices(Meter()))
    other = replace(Machine.here(), **changed)
    with monkeypatch.context() as patch:
        patch.setattr(Machine, "here", lambda: other)
        meter = Meter(Products())
        assert of(choices(meter)) == Products()
        assert meter.shapes == [SHAPE]
    assert of(choices(Meter(Products()))) == MV


def test_the_machine_is_told_by_its_threads_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Machine.here()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert Machine.here() == replace(before, onednn="AVX2", threads=77)


def test_machines_that_are_long_gone_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.here()
    for number in range(MOST_MACHINES + 3):
        monkeypatch.setattr(Machine, "here", lambda number=number: replace(machine, cores=number))
        of(choices(Meter()))
    kept = json.loads(choices_file().read_text())["machines"]
    assert [each["machine"]["cores"] for each in kept] == list(range(3, MOST_MACHINES + 3))


class TestAFileThatCannotBeUsed:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x00\xff",
            b"{",
            b"[]",
            b'{"schema": 1, "machines": []}',
            b'{"schema": 4, "machines": []}',
            b'{"schema": 3, "machines": [{"machine": {}}]}',
            b'{"schema": 3, "machines": "none"}',
            b" " * (2 << 20),
        ],
        ids=["empty", "binary", "cut", "a list", "older", "newer", "lacking", "words", "large"],
    )
    def test_it_is_measured_again_and_replaced(self, content: bytes) -> None:
        choices_file().write_bytes(content)
        found = choices(Meter())
        assert of(found) == MV
        assert found.notes.count(DAMAGED) == 1
        later = choices(Meter(Products()))
        assert of(later) == MV
        assert later.notes == []

    @pytest.mark.parametrize("wrong", ["oneDNN packed", "a kernel of the future"])
    def test_products_that_make_no_sense(self, wrong: str) -> None:
        of(choices(Meter()))
        kept = choices_file().read_text()
        choices_file().write_text(kept.replace('"torch mv"', f'"{wrong}"'))
        found = choices(Meter())
        assert of(found) == MV
        assert DAMAGED in found.notes

    def test_a_directory_in_its_place(self) -> None:
        choices_file().mkdir()
        found = choices(Meter())
        assert of(found) == MV
        assert said(found, "cannot be kept")


@pytest.mark.parametrize("how", ["a file where its directory would be", "no permission"])
def test_a_home_that_cannot_be_written(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice holds for this process, and is measured again in the next one."""
    if how == "no permission":
        monkeypatch.setattr("d3cli.kernels.choice_file.replace_file", refuse)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("D3_HOME", str(tmp_path / "file" / "home"))
    for _ in range(2):
        meter = Meter()
        found = choices(meter)
        assert of(found) == of(found) == MV
        assert meter.shapes == [SHAPE]
        assert said(found, "cannot be kept")
        assert said(found, "each start measures them again")


def refuse(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_busy_machine_keeps_torchs_own_for_now() -> None:
    meter = Meter()
    found = choices(meter, busy=True)
    assert of(found) == of(found) == Products()
    assert found.notes == [BUSY]
    assert meter.shapes == []
    assert of(choices(meter)) == MV


def test_too_little_memory_keeps_torchs_own_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    monkeypatch.setattr(module, "free_memory", lambda: module.LEAST_MEMORY - 1)
    found = choices(meter)
    assert of(found) == of(found) == Products()
    assert found.notes == [NO_MEMORY]
    assert meter.shapes == []
    monkeypatch.setattr(module, "free_memory", lambda: module.LEAST_MEMORY)
    assert of(found) == MV


def test_a_busy_machine_takes_what_was_measured_with_more_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While other programs run, d3 uses fewer threads, with which it may never have measured."""
    of(choices(Meter()))
    fewer = replace(Machine.here(), threads=Machine.here().threads + 1)
    monkeypatch.setattr(Machine, "here", lambda: fewer)
    found = choices(Meter(), busy=True)
    assert of(found) == MV
    assert found.notes == []
    assert of(choices(Meter(Products()))) == Products()


def test_a_machine_that_becomes_busy_keeps_torchs_own_for_now() -> None:
    meter = Meter(steady=False)
    found = choices(meter)
    found.prepare([half(*SHAPE)])
    assert found.notes == [BUSY]
    assert meter.shapes == [SHAPE] * module.TRIES
    assert found.here.choices == ()


def test_a_machine_that_becomes_busy_is_not_kept_waiting() -> None:
    """What was measured before counts; the rest is for the next start."""
    shapes: list[tuple[int, int]] = []

    def measure(*shape: int) -> Measured:
        shapes.append((shape[0], shape[1]))
        return measured(MV, steady=len(shapes) == 1)

    found = choices(measure)
    found.prepare([half(*SHAPE), half(64, 512), half(64, 1024)])
    assert shapes == [SHAPE, *[(64, 512)] * module.TRIES]
    assert said(found, "for one shape of weights were measured")
    assert BUSY in found.notes
    assert [choice.wanted[1:] for choice in choices(measure).here.choices] == [SHAPE]


def test_a_slow_machine_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_S", -1.0)
    meter = Meter()
    choices(meter).prepare([half(*SHAPE)])
    assert meter.shapes == []


def test_the_switch_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    of(choices(Meter()))
    monkeypatch.setenv("D3_KERNELS", "torch")
    meter = Meter()
    found = choices(meter)
    found.prepare([half(8, 8)], again=True)
    assert of(found) == found.expected(*SHAPE) == Products()
    assert not found.bfloat16_is_fast()
    assert meter.shapes == []


def test_a_switch_with_another_value(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3_KERNELS", "fast")
    with pytest.raises(UsageError, match='D3_KERNELS is "fast"'):
        choices_here()
    result = d3("generate", "Hello.", "--dtype", "bfloat16")
    assert result.code == 2
    assert "it must be auto or torch" in result.err


def test_bfloat16_is_compared_with_float32_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Products, int, int]] = []

    def compare(*words: Any) -> bool:
        compared.append(words)
        return True

    monkeypatch.setattr(module, "bfloat16_is_fast", compare)
    assert choices(Meter()).bfloat16_is_fast()
    assert choices(Meter()).bfloat16_is_fast()
    assert compared == [(MV, *TYPICAL)]
    assert choices(Meter()).expected(*TYPICAL) == MV


def measure_together(ready: Any, home: str, results: Any) -> None:
    """In a child: measures when all are ready."""
    os.environ |= {"D3_HOME": home, "D3_KERNELS": "auto"}
    own = Products(one=Product.MV) if os.getpid() % 2 else Products()
    meter = Meter(own)
    ready.wait(60)
    found = of(choices(meter))
    results.put((found.one.value, len(meter.shapes)))


def test_processes_that_start_together_choose_alike(tmp_path: Path) -> None:
    """The lock makes the others wait for the first one's result."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(4), context.Queue()
    arguments = (ready, str(tmp_path), results)
    children = [context.Process(target=measure_together, args=arguments) for _ in range(4)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert len({product for product, _ in found}) == 1
    assert sum(count for _, count in found) == 1


def test_a_process_that_holds_the_lock_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(module, "LOCK_SECONDS", 0.01)
    path = choices_file()
    with FileLock(path.parent / f".{path.name}.lock"):
        found = choices(Meter())
        assert of(found) == MV
    assert said(found, "another process holds its lock")
    assert not path.exists()


def test_the_same_object_serves_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choices_here() is choices_here()
    before = choices_here()
    monkeypatch.setenv("D3_HOME", str(tmp_path))
    assert choices_here() is not before


class TestWeightsInFewerBits:
    WANTED: Wanted = ("int4", 2048, 4096)
    PACKING: Wanted = ("packing", 2048, 4096)
    HEAD: Wanted = ("head", 2048, 4096)

    def test_rows_and_heads_are_kept_like_products(self) -> None:
        own = meters(Meter(), rows=16, packed=True, head_in_8_bits=False)
        found = KernelChoices(own, lambda: False)
        assert found.kernel_rows(*self.WANTED) is None
        assert found.head_in_8_bits(*SHAPE)
        assert not found.expected_head_in_8_bits(*SHAPE)
        assert not found.is_packed(*SHAPE)
        wanted = [half(*SHAPE), self.WANTED, self.PACKING, self.HEAD]
        assert found.prepare(wanted) == 4
        other = KernelChoices(meters(Meter(Products()), rows=1), lambda: False)
        assert other.prepare(wanted) == 0
        for each in (found, other):
            assert each.kernel_rows(*self.WANTED) == 16
            assert each.kernel_rows("int8", 2048, 4096) is None
            assert each.is_packed(*SHAPE)
            assert not each.head_in_8_bits(*SHAPE)
            assert each.current(*SHAPE) == MV
        assert other.prepare([self.WANTED], again=True) == 1
        assert other.kernel_rows(*self.WANTED) == 1

    def test_an_lm_head_competes_with_what_was_chosen_for_it(self) -> None:
        seen: list[tuple[Any, ...]] = []

        def head(*words: Any) -> MeasuredHead:
            seen.append(words)
            return MeasuredHead(True, 0.5, steady=True)

        own = replace(meters(Meter(), packed=True), head=head)
        KernelChoices(own, lambda: False).prepare([half(*SHAPE), self.PACKING, self.HEAD])
        assert seen == [(*SHAPE, Product.MV, True)]

    def test_a_machine_that_becomes_busy_keeps_the_fixed_numbers(self) -> None:
        found = KernelChoices(meters(Meter(), steady=False), lambda: False)
        assert found.prepare([self.WANTED]) == 0
        assert found.notes == [BUSY]
        assert found.kernel_rows(*self.WANTED) is None

    def test_the_switch_measures_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("D3_KERNELS", "torch")
        found = KernelChoices(meters(Meter(), head_in_8_bits=False), lambda: False)
        assert found.prepare([self.WANTED, self.PACKING, self.HEAD]) == 0
        assert found.kernel_rows(*self.WANTED) is None
        assert not found.is_packed(*SHAPE)
        assert found.head_in_8_bits(*SHAPE)
        assert found.expected_head_in_8_bits(*SHAPE)

    def test_numbers_that_no_measurement_finds(self) -> None:
        KernelChoices(meters(Meter(), rows=16), lambda: False).prepare([self.WANTED])
        kept = choices_file().read_text()
        choices_file().write_text(kept.replace('"kernel_rows": 16', '"kernel_rows": 17'))
        found = KernelChoices(meters(Meter()), lambda: False)
        assert found.kernel_rows(*self.WANTED) is None
        assert DAMAGED in found.notes
