"""Hostile draft models: one clear error, or the reply that the model writes without them."""

from pathlib import Path

import pytest

from tests.copies import change_a_tensor
from tests.files.test_hostile_models import good_model, slow
from tests.forks import Ended, Forks
from tests.hostile import HARMLESS_DRAFTS, REFUSED_DRAFTS, Change
from tests.hostile.checks import EVENTS, check_inside, check_one_clear_line, make_outside
from tests.hostile.one_process import Request, run_in_one

WORDS = ("generate", "demo", "Hi.", "--max-tokens", "8", "--device", "cpu", "--dtype", "float32")
# Each writes a reply; one of them is quick to show that drafts change nothing.
QUICK_HARMLESS = {"weights_without_numbers"}


def nothing(*_: Path) -> None:
    """The good draft model."""


def run_all(forks: Forks, folder: Path, changes: dict[str, Change]) -> dict[str, Ended]:
    """How replies with these draft models ended. Fails if one left its directory."""
    requests, outsides = {}, {}
    for number, (name, change) in enumerate(changes.items()):
        place = folder / str(number)
        place.mkdir()
        outsides[name], model = make_outside(place), good_model(place)
        change_a_tensor(model, lambda tensor: tensor + 0.01)  # else it would be the model itself
        change(model, outsides[name])
        words = (*WORDS, "--draft-model", str(model))
        requests[name] = Request(words, str(place), str(place / "home"))
    ended = run_in_one(forks, folder, requests, EVENTS)
    for name, each in ended.items():
        check_inside(each, outsides[name])
    return ended


@pytest.fixture(scope="module")
def control(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """With a good draft model."""
    return run_all(forks, tmp_path_factory.mktemp("control"), {"good": nothing})["good"]


@pytest.fixture(scope="module")
def plain(forks: Forks) -> str:
    """The reply without drafts."""
    return forks.run(*WORDS, "--alpha", "off").out


def test_a_good_draft_model_drafts(control: Ended, plain: str) -> None:
    assert control.code == 0, control.err
    assert control.out == plain and plain.strip()
    assert "drafted" in control.err


def test_each_hostile_draft_model_is_one_clear_error(
    forks: Forks, tmp_path: Path, control: Ended
) -> None:
    failed = {}
    for name, ended in run_all(forks, tmp_path, REFUSED_DRAFTS).items():
        try:
            check_one_clear_line(ended, control)
        except AssertionError as problem:
            failed[name] = str(problem)
    assert not failed


@pytest.mark.parametrize("name", slow(HARMLESS_DRAFTS, HARMLESS_DRAFTS.keys() - QUICK_HARMLESS))
def test_a_draft_model_that_only_looks_hostile_changes_no_reply(
    name: str, forks: Forks, tmp_path: Path, control: Ended, plain: str
) -> None:
    ended = run_all(forks, tmp_path, {name: HARMLESS_DRAFTS[name]})[name]
    assert ended.code == 0, ended.err
    assert ended.out == plain
    assert ended.most_resident < 2 * control.most_resident
