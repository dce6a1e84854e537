"""A limit on the address space that is too low for torch's imports."""

import resource

import pytest
import torch

from d3cli.base import hardware
from d3cli.base.errors import D3Error
from d3cli.base.hardware import check_address_space


def limit(megabytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resource.RLIM_INFINITY if megabytes == float("inf") else int(megabytes * 1e6)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (found, found))


@pytest.mark.parametrize(
    ("megabytes", "has_cuda", "needs"),
    [
        (1199, False, "1,200 MB"),
        (1200, False, None),
        (3499, True, "3,500 MB with the smallest model, since this torch was built with CUDA"),
        (3500, True, None),
        (float("inf"), True, None),
    ],
)
def test_too_little_address_space_is_refused(
    megabytes: float, has_cuda: bool, needs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(megabytes, monkeypatch)
    monkeypatch.setattr(hardware, "_torch_has_cuda", lambda: has_cuda)
    if needs is None:
        check_address_space()
        return
    with pytest.raises(D3Error, match=needs):
        check_address_space()


def test_a_build_with_cuda_is_told_by_its_files() -> None:
    assert hardware._torch_has_cuda() == (torch.version.cuda is not None)
