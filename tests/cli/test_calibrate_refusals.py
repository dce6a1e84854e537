"""What ``d3 calibrate`` refuses."""

import json
from pathlib import Path

import pytest

from d3cli.base.errors import NotEnoughMemoryError
from d3cli.base.settings import state_dir
from d3cli.calibrate.forms import load_forms
from d3cli.cli.calibrate.loading import fit_to_score
from d3cli.cli.output import Output
from d3cli.depth.calibration_file import file_of
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from tests.conftest import D3, Result, check


def bad(d3: D3, *arguments: str | Path) -> Result:
    return d3("calibrate", *arguments)


def test_bad_input_is_one_line_and_a_hint(d3: D3, tmp_path: Path) -> None:
    empty, tiny, short = (tmp_path / name for name in ("empty.txt", "tiny.jsonl", "short.jsonl"))
    empty.write_text("")
    tiny.write_text('{"prompt": "Why?", "response": "Because it is so."}\n')
    short.write_text('{"prompt": "Why?", "response": "a"}\n' * 50)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n')
    check(bad(d3, "--data", empty), 2, "is empty")
    check(bad(d3, "--data", "/dev/zero"), 2, "not a regular file")
    check(bad(d3, "--reply-tokens", "9999"), 2, "the model's context holds 1,024")
    check(bad(d3, "--data", tiny), 2, "1 documents with")
    check(bad(d3, "--data", short), 2, "0 documents with")
    rows = tmp_path / "rows.txt"  # an array under another suffix is no prose
    rows.write_text(json.dumps([{"instruction": "Why?", "output": f"So, {n}."} for n in range(5)]))
    check(bad(d3, "--data", rows), 2, "5 documents with")
    rows.write_text("prompt,response\n" + "Why?,So.\n" * 50)
    check(bad(d3, "--data", rows), 2, "holds CSV")
    check(bad(d3, "--data", broken), 2, "line 2")
    check(bad(d3, "--data", tmp_path / "none.txt"), 2, "there is no text")
    check(bad(d3, "--data", "~nobody-here/none.txt"), 2, "cannot be read")
    check(bad(d3, "--target-drop", "1"), 2, "would be 100%")
    check(bad(d3, "--target-drop", "0%"), 2, "--target-drop is")
    check(bad(d3, "--max-time", "10"), 2, "--max-time is")
    check(bad(d3, "--confidence", "1"), 2, "--confidence is 1")
    check(bad(d3, "--documents", "5"), 2, "5 is not at least 32")
    check(bad(d3, "--show", "--remove"), 2, "exclude each other")
    check(bad(d3, "--show", "-o", "csv"), 2, "cannot be shown as csv")
    check(bad(d3, "--json", "-o", "csv"), 2, "exclude each other")
    check(bad(d3, "--remove", ""), 2, "")  # not what is stored for the default model
    check(bad(d3, "--show", "no-such-model"), 2, "no model or directory")
    check(bad(d3, "--remove", "no-such-model"), 2, "no model or directory")
    check(bad(d3, "no-such-model"), 2, "no model or directory")
    check(bad(d3, "--units", "neuron"), 2, "neuron")


def test_a_search_that_would_take_far_too_long_is_refused(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_pace", lambda *_: 1.0)
    result = bad(d3, "--max-time", "10m")
    check(result, 2, "this calibration takes about")
    assert "hint: raise --max-time to" in result.err


def test_a_state_directory_that_cannot_be_written_is_refused_before_the_search(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir().mkdir(parents=True, exist_ok=True)
    (state_dir() / "calibrations").write_text("a file in its place")
    monkeypatch.delattr("d3cli.calibrate.calibrator.Calibrator.__iter__")
    check(bad(d3), 1, "cannot be written")


@pytest.mark.parametrize("text", ["{", '{"schema": 99}'])
def test_a_damaged_or_newer_file_is_reported_and_left_alone(d3: D3, text: str) -> None:
    path = file_of("demo")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    result = bad(d3)
    check(result, 1, "is damaged" if text == "{" else "newer d3")
    assert "d3 calibrate remove demo" in result.err
    assert path.read_text() == text
    shown = d3("calibrate", "--show")
    assert shown.code == 0
    assert path.name in shown.err
    check(d3("calibrate", "--show", "demo"), 1, path.name)
    assert d3("calibrate", "--remove", "demo").code == 0
    assert not path.exists()


def test_a_search_that_does_not_fit_into_memory_is_refused(
    d3: D3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("d3cli.calibrate.evaluator.available_memory", lambda device: 200_000_000)
    monkeypatch.delattr("d3cli.calibrate.calibrator.Calibrator.__iter__")
    check(bad(d3, "--dtype", "float32"), 1, "needs about 321 MB more, and 200 MB are free")
    monkeypatch.setattr("d3cli.cli.calibrate.run._search", lambda *_: pytest.fail("it was tried"))
    with pytest.raises(pytest.fail.Exception):
        d3("calibrate", "--force")


def test_text_that_is_too_long_to_score_is_tried_with_nested_weights_too() -> None:
    asked = []

    def load(quantization: str | None) -> LoadedModel:
        asked.append(quantization)
        return load_model(dtype="bfloat16", device="cpu", quantization=quantization)

    endless = Document([1], [1] * 10_000_000)  # its attention mask alone would take 400 TB
    with pytest.raises(NotEnoughMemoryError, match="a search with the built-in model needs about"):
        fit_to_score(Output(), load_forms(load), [endless])
    assert asked == [None, "nested"]
