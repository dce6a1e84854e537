"""Process-wide settings: bounded, undone where promised, and the user's own stay."""

import os
import platform
import subprocess
import sys
from textwrap import dedent

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize(("users_own", "made"), [(None, 0), ("4", 3)])
def test_threads_share_the_main_arena_of_malloc(users_own: str | None, made: int) -> None:
    script = """
        import ctypes, sys, tempfile, threading
        from d3cli.kernels.process import prepare_process

        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p

        def arenas() -> int:
            with tempfile.NamedTemporaryFile() as file:
                stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
                libc.malloc_info(0, stream)
                libc.fflush(stream)
                return open(file.name).read().count("<heap nr=")

        def allocate() -> None:
            libc.malloc(1)
            together.wait()

        prepare_process()
        before, together = arenas(), threading.Barrier(4)
        threads = [threading.Thread(target=allocate) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(arenas() - before)
    """
    environment = {name: os.environ[name] for name in os.environ if name != "MALLOC_ARENA_MAX"}
    if users_own:
        environment["MALLOC_ARENA_MAX"] = users_own
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(made)], done.stderr


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
