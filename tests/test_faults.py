"""A seeded handful of what `scripts/faults.py` does by the hundred."""

import random
import sys
from pathlib import Path

import pytest

from tests.forks import Forks

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from faults import FAULTS, ImpossibleError, broken_files, problems

pytestmark = pytest.mark.slow

HANDFUL = dict.fromkeys(FAULTS, 1) | {"signals": 2, "kills": 2}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, count in HANDFUL.items() for n in range(count)]
)
def test_nothing_is_lost_and_nothing_is_shown(kind: str, number: int, forks: Forks) -> None:
    fault, _ = FAULTS[kind]
    try:
        assert list(fault(forks, random.Random(f"{kind} {number}"))) == []
    except ImpossibleError as reason:
        pytest.skip(str(reason))


def test_what_is_wrong_is_seen(forks: Forks, tmp_path: Path) -> None:
    """The checks themselves: a wrong exit code, an inside shown, a broken file."""
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


def test_a_signal_comes_when_it_should(forks: Forks) -> None:
    ended = forks.run("generate", "Tell me a story.", "--max-tokens", "400", signal=15, after=0.3)
    assert ended.code == 143, ended.err
