"""What all tests share: homes of their own, command lines, the built-in model.

Each process uses one thread. Tiny tensors gain nothing from more, and a busy machine loses much.
"""

import gc
import io
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests compute on the CPU, also where there is a GPU: a forked process could not use it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
# What this process and its children leave behind, torchrun's logs for example.
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="d3-tests-")
# No test sees its user's models. huggingface_hub reads this once, when it is imported.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="hub-", dir=os.environ["TMPDIR"])
# No test measures kernels, except those that set this to "auto".
os.environ["D3_KERNELS"] = "torch"
# For module-wide fixtures that load a model, which run before `_own_home`.
os.environ["D3_HOME"] = tempfile.mkdtemp(prefix="home-", dir=os.environ["TMPDIR"])

import pytest
import torch
from hypothesis import HealthCheck, settings

from d3cli.base.settings import BUILTIN
from d3cli.cli import signals
from d3cli.cli.app import run
from d3cli.files.names import find_model
from tests.forks import Forks
from tests.warm import Warm

OWN = os.environ["TMPDIR"]

torch.set_num_threads(1)
# By default Hypothesis fails an example that takes 200 ms, and input that is slow to generate.
# In CI the same examples run each time; everywhere else new ones are tried.
settings.register_profile(
    "no clock",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    database=None,
)
settings.load_profile("no clock")


def pytest_collection_finish() -> None:
    """What is imported stays: no garbage collection need look through it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(OWN, ignore_errors=True)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _own_home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test an empty home, so that none reads its user's settings.

    pytest's own directories have numbers, and it reads the names of all before it makes another.
    """
    home = tempfile.mkdtemp(dir=homes)
    for name in [name for name in os.environ if name.startswith("D3_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("D3_KERNELS", "torch")
    monkeypatch.setenv("D3_HOME", home)


@pytest.fixture(autouse=True)
def _no_signal_of_another_test() -> None:
    """Forgets signals that an earlier test sent to this process: they would stop a reply."""
    signals._arrived.clear()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs command lines in children of a process that has imported everything."""
    with Forks() as started:
        yield started


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts command lines on pseudo-terminals in the same way."""
    with Warm() as started:
        yield started


BUILTIN_PATH = find_model(BUILTIN).path


class Result(NamedTuple):
    """The exit code and output of a command line."""

    code: int
    out: str
    err: str


D3 = Callable[..., Result]


@pytest.fixture
def d3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> D3:
    """Runs command lines in this process. stdin is a terminal unless `stdin` is given."""

    def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        if stdin is not None:
            monkeypatch.setattr("d3cli.cli.stdin.is_fed", lambda: True)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    previous = {number: signal.getsignal(number) for number in (1, 2, 15)}  # HUP, INT, TERM
    monkeypatch.setattr("d3cli.cli.stdin.is_fed", lambda: False)
    yield call
    for number, handler in previous.items():
        signal.signal(number, handler)
    os.environ.pop("D3_DEBUG", None)


def check(result: Result, code: int, message: str) -> None:
    """Asserts one clear error, nothing on stdout and no traceback."""
    assert message in result.err, result
    assert result.code == code
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.out == ""
    assert "Traceback" not in result.err


@contextmanager
def hub_repository(hub_id: str, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """The built-in model as a repository in the hub's cache. Yields its snapshot directory."""
    repository = Path(os.environ["HF_HUB_CACHE"]) / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in BUILTIN_PATH.iterdir():
        if file.is_file() and file.name not in without:
            (snapshot / file.name).write_bytes(file.read_bytes())
    try:
        yield snapshot
    finally:
        shutil.rmtree(repository)
