"""A few runs of each fault of `scripts/faults.py`, which makes hundreds."""

import random
import sys
from pathlib import Path

import pytest

from tests.forks import Forks

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from fault_runs import ImpossibleError, broken_files, problems
from faults import FAULTS

pytestmark = pytest.mark.slow

COUNTS = dict.fromkeys(FAULTS, 1) | {"signals": 2, "kills": 2}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, count in COUNTS.items() for n in range(count)]
)
def test_a_fault_loses_nothing_and_shows_no_internals(kind: str, number: int, forks: Forks) -> None:
    fault, _ = FAULTS[kind]
    try:
        assert list(fault(forks, random.Random(f"{kind} {number}"))) == []
    except ImpossibleError as reason:
        pytest.skip(str(reason))


def test_problems_are_found(forks: Forks, tmp_path: Path) -> None:
    """Checks the checks: a wrong exit code, internals shown, a broken file."""
    failed = forks.run("generate", "Hi.", "--max-tokens", "none")
    assert failed.code == 2
    assert list(problems(failed))
    assert not list(problems(failed, may_fail=True))
    assert list(problems(forks.call("check", str(tmp_path), "trace", "too many")))
    assert not list(broken_files(tmp_path))
    (tmp_path / "x.json").write_text('{"half')
    assert list(broken_files(tmp_path))
    killed = forks.run("generate", "Hi.", signal=9, after=0.01)
    assert killed.code == -9
    assert list(problems(killed))


def test_a_signal_arrives_in_time(forks: Forks) -> None:
    ended = forks.run("generate", "Tell me a story.", "--max-tokens", "400", signal=15, after=0.3)
    assert ended.code == 143, ended.err
