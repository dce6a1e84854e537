"""Progress that several threads report."""

import sys
from collections.abc import Iterator
from threading import Thread

import pytest

from d3cli.base.progress import ByteProgress


@pytest.fixture(autouse=True)
def _threads_often_change() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_the_share_never_falls_and_no_byte_is_lost() -> None:
    shares: list[float] = []
    progress = ByteProgress(4 * 20_000, shares.append)

    def read() -> None:
        for _ in range(20_000):
            progress.add(1)

    threads = [Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(set(shares)) == 4 * 20_000
