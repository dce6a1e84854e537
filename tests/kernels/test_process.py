"""Process-wide settings: bounded, undone where promised, and the user's own stay."""

import os
import sys

import pytest
import torch

from d3cli.base.errors import UsageError
from d3cli.kernels import process


@pytest.mark.parametrize("count", [0, -1, process.MOST_THREADS + 1])
def test_a_number_of_threads_out_of_range_is_refused(count: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UsageError, match=f"threads is {count}") as refused:
        process.prepare_process(count)
    assert refused.value.field == "threads"
    assert torch.get_num_threads() == before


def test_the_users_own_limit_of_kernel_caches_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = process.KERNEL_CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    process.prepare_process()
    assert (os.environ[first], os.environ[second]) == ("7", str(process.KERNELS_KEPT))


def test_stderr_is_discarded_within_the_context(capfd: pytest.CaptureFixture[str]) -> None:
    with process.silent_stderr():
        os.write(2, b"lost")
    os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"


def test_the_package_kernels_can_be_imported_again_after_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = object()
    monkeypatch.setitem(sys.modules, "kernels", own)
    process.import_bitsandbytes()
    assert sys.modules["kernels"] is own
