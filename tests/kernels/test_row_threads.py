"""Rows shared among threads, and the memory that a thread keeps for unpacked weights."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from d3cli.kernels.row_threads import share_rows
from d3cli.kernels.scratch import scratch


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200, 1000])
def test_each_row_is_in_one_part(threads: int, rows: int) -> None:
    parts: list[slice] = []
    share_rows(rows, 64, parts.append)
    parts.sort(key=lambda part: part.start)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert len(parts) <= threads
    assert all((part.stop - part.start) % 64 == 0 for part in parts[:-1])


def test_torch_uses_one_thread_inside_and_as_many_as_before_afterwards(threads: int) -> None:
    inside: list[int] = []
    share_rows(10, 1, lambda _: inside.append(torch.get_num_threads()))
    assert set(inside) == {1}
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:  # in new threads as well
        assert pool.submit(torch.get_num_threads).result() == threads


def test_a_failure_reaches_the_caller(threads: int) -> None:
    def fail(part: slice) -> None:
        raise MemoryError(str(part))

    with pytest.raises(MemoryError):
        share_rows(10, 1, fail)
    assert torch.get_num_threads() == threads


def test_scratch_memory_is_kept_for_each_thread_and_dtype() -> None:
    first = scratch(100, torch.float32)
    assert scratch(50, torch.float32).data_ptr() == first.data_ptr()
    assert scratch(100, torch.uint8).data_ptr() != first.data_ptr()
    assert scratch(1_000_000, torch.float32).shape == (1_000_000,)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(scratch, 100, torch.float32).result()
    assert other.data_ptr() != scratch(100, torch.float32).data_ptr()


def test_scratch_memory_from_inference_mode_can_be_written_to_outside() -> None:
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        fresh = pool.submit(scratch, 10, torch.float32).result()  # that thread had none
    fresh.fill_(1)
    with torch.inference_mode():
        scratch(1_000, torch.float64).fill_(1)
    assert scratch(10, torch.float64).add_(1).eq(2).all()
