"""``d3 calibrate`` from the command line."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from d3cli.__main__ import main
from d3cli.base.errors import NotEnoughMemoryError, StoreError
from d3cli.calibrate import calibrator as calibrator_module
from d3cli.calibrate.alternatives import alternatives
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.costs import StepCosts, costs_by_bytes
from d3cli.calibrate.draft_clock import DraftClock
from d3cli.calibrate.forms import load_forms
from d3cli.calibrate.record import make_record
from d3cli.calibrate.search import Search
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.texts import encode_samples, read_samples
from d3cli.cli.calibrate.machine_report import as_json
from d3cli.cli.calibrate.report import report_rows
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_store import save
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from tests.conftest import D3
from tests.forks import Forks
from tests.planted import write_planted

# The least text, one kind of unit, no greedy search.
QUICK = (
    *("--documents", "32", "--units", "layer", "--order", "influence", "--target-drop", "5%"),
    *("--dtype", "float32"),  # auto depends on the processor
)
SHORT = ("--reply-tokens", "48")  # for the built-in model, whose documents are longer


@pytest.fixture(autouse=True)
def _time_follows_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the times of small models are noise."""

    monkeypatch.setattr("d3cli.calibrate.calibrator.measure_costs", by_bytes)


def by_bytes(model: LoadedModel, _: Document) -> StepCosts:
    return costs_by_bytes(model.weight_bytes, 255)


def calibrate_by_bytes(home: str, *arguments: str) -> None:
    """``d3 calibrate`` in a process of its own, in which time follows the bytes too."""
    os.environ["D3_HOME"] = home  # importing this module set another one
    calibrator_module.measure_costs = by_bytes
    sys.argv = ["d3", "calibrate", *arguments]
    main()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a directory, from which any layer may be dropped."""
    return write_planted(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short dialogues."""
    path = tmp_path_factory.mktemp("text") / "short.jsonl"
    response = "It ran through the wood to the river, and there it saw the moon."
    rows = [{"prompt": f"And fox {n}?", "response": f"Fox {n}: {response * 2}"} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks, planted: Path, text: Path
) -> tuple[dict, Path]:
    """One calibration of the planted model as JSON, and the home in which it is stored."""
    home = tmp_path_factory.mktemp("calibrated")
    task = home / "task.jsonl"
    rows = [{"prompt": "Why?", "pattern": ""}, {"prompt": "How?", "answers": ["By no means."]}]
    task.write_text("\n".join(map(json.dumps, rows)))
    replies = ("--replies", "--reply-tokens", "16")
    arguments = (*QUICK, "--data", str(text), "--task", str(task), *replies, "--json")
    run = forks.call(
        "tests.cli.test_calibrate.calibrate_by_bytes", str(home), str(planted), *arguments
    )
    assert run.code == 0, run.err
    return json.loads(run.out), home


def test_the_json_has_what_it_promises(report: tuple[dict, Path]) -> None:
    found, home = report
    assert found.keys() == {
        *("schema", "schedule", "stored", "target_drop", "confidence", "unseen", "frontier"),
        *("tested", "decay", "no_verdict", "replies", "orders", "influence", "settings"),
        *("why_not", "nearest", "alternatives", "short_prompts", "cut", "seconds"),
        *("quantization", "against", "why_not_as_stored", "forms", "rivals", "task", "policies"),
    }
    assert found["target_drop"] == 0.05
    assert found["policies"] is None
    unseen = found["unseen"]
    assert unseen.keys() == {
        *("documents", "tokens", "drop", "drop_interval", "kl", "same_top", "mean_rank"),
        *("full_perplexity", "least_depth", "layer_ratio", "byte_ratio", "byte_ratio_net"),
        *("by_position", "speed"),
    }
    assert unseen["documents"] == 16
    assert unseen["drop_interval"][1] <= 0.05
    assert sum(part["tokens"] for part in unseen["by_position"]) == unseen["tokens"]
    assert len(found["frontier"]) > 5
    assert set(found["schedule"]["skip_order"]) <= set(found["orders"]["layer"])
    assert Path(found["stored"]).parent == home / "calibrations"


def test_a_task_is_answered_at_full_depth_and_at_the_chosen_schedule(
    report: tuple[dict, Path],
) -> None:
    """Any answer matches an empty pattern, and none is the other question's."""
    task = report[0]["task"]
    assert (task["questions"], task["seen"], task["too_long"]) == (2, 0, 0)
    for who in ("full", "schedule"):
        found = task["result"][who]
        assert (found["right"], found["questions"]) == (1, 2)
        assert found["low"] < 0.5 < found["high"]
    assert task["result"]["p_value"] == 1.0


def test_generate_uses_what_was_stored(
    report: tuple[dict, Path], planted: Path, d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, home = report
    monkeypatch.setenv("D3_HOME", str(home))
    result = d3("generate", planted, "Hello", "--json", "--max-tokens", "3", "--dtype", "float32")
    assert result.code == 0
    assert json.loads(result.out)["schedule"] == found["schedule"]
    assert found["schedule"]["source"] == "calibration"
    assert "depth: calibrated" in result.err
    other = d3("generate", planted, "Hello", "--json", "--max-tokens", "3", "--dtype", "bfloat16")
    assert json.loads(other.out)["schedule"]["source"] != "calibration"
    assert "it was made in float32" in other.err


def test_each_prompts_own_order_is_stored_shown_and_used(
    d3: D3, planted: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENTRANTS", "SECOND_ROUND", "FINALISTS"):  # a short race
        monkeypatch.setattr(f"d3cli.calibrate.race.{name}", 3)
    rows = [json.loads(line) for line in text.read_text().splitlines()]
    path = tmp_path / "long.jsonl"
    long = "Tell me about the fox in the wood by the river, who saw the moon, the sun and number"
    path.write_text(
        "\n".join(json.dumps(row | {"prompt": f"{long} {n}."}) for n, row in enumerate(rows))
    )
    made = d3("calibrate", planted, *QUICK, "--order", "prompt", "--data", path, "--json")
    assert made.code == 0, made
    schedule = json.loads(made.out)["schedule"]
    assert (schedule["order"], schedule["source"]) == ("prompt", "calibration")
    assert schedule["units"] == ["1", "2", "3", "4"] and "skip_order" not in schedule
    assert json.loads(made.out)["short_prompts"] == 0
    assert "each prompt's own, of 4 layers" in d3("calibrate", "show", planted).out
    options = ("--max-tokens", "9", "--dtype", "float32", "--json")
    orders = set()
    for prompt in (f"{long} 5.", "What do you know? " * 9):
        ran = d3("generate", planted, prompt, *options)
        found = json.loads(ran.out)["schedule"]
        assert (found["order"], found["source"]) == ("prompt", "calibration")
        assert "in each prompt's own order" in ran.err
        orders.add(tuple(found["skip_order"]))
        profiled = json.loads(d3("profile", planted, prompt, *options, "--compare").out)
        assert profiled["schedule"] == schedule | {"policy": "d3"}
        assert profiled["replies"][0]["skip_order"] == found["skip_order"]
    assert all(len(order) == schedule["max_dropped"] for order in orders)
    explicit = d3("generate", planted, f"{long} 5.", *options, "--alpha", "0.9")
    found = json.loads(explicit.out)["schedule"]
    assert (found["order"], found["source"], found["alpha"]) == ("prompt", "flags", 0.9)


@pytest.mark.parametrize(
    ("show", "remove"), [(("show",), ("remove",)), (("--show",), ("--remove",))]
)
def test_show_and_remove(
    report: tuple[dict, Path], planted: Path, d3: D3, show: tuple[str], remove: tuple[str]
) -> None:
    found, _ = report
    stored = file_of(str(planted))
    stored.parent.mkdir(parents=True)
    stored.write_bytes(Path(found["stored"]).read_bytes())  # a copy, since it is removed here
    for arguments in (show, (*show, planted)):
        shown = d3("calibrate", *arguments)
        assert shown.code == 0
        assert " ".join(found["schedule"]["skip_order"]) in shown.out
        as_json = json.loads(d3("calibrate", *arguments, "--json").out)["calibrations"]
        assert [entry["schedule"]["alpha"] for entry in as_json] == [found["schedule"]["alpha"]]
    removed = d3("calibrate", *remove, planted)
    assert (removed.code, stored.exists()) == (0, False)
    assert "removed" in removed.err
    again = d3("calibrate", *remove, planted)
    assert (again.code, "nothing was stored" in again.err) == (0, True)
    nothing = d3("calibrate", *show)
    assert (nothing.code, nothing.out) == (0, "")
    assert "nothing is stored" in nothing.err


@pytest.mark.slow
def test_the_built_in_model_is_calibrated_and_then_runs_so(d3: D3) -> None:
    made = d3("calibrate", *QUICK, *SHORT, "--json")
    assert made.code == 0, made
    found = json.loads(made.out)
    assert len(found["frontier"]) > 5
    result = d3("generate", "Hello", "--json", "--max-tokens", "3", "--dtype", "float32")
    assert json.loads(result.out)["schedule"] == found["schedule"]
    other = d3("generate", "Hello", "--json", "--max-tokens", "3", "--dtype", "bfloat16")
    assert json.loads(other.out)["schedule"]["source"] == "shipped"
    assert "it was made in float32" in other.err
    assert f"{found['unseen']['byte_ratio']:.2f}×" in d3("models").out


def test_no_worthwhile_schedule_exits_3_and_stores_nothing(d3: D3) -> None:
    # With seed 0, the model does better without a layer on so few documents: nothing is nearest.
    form = ("--dtype", "float32", "--quantization", "none")
    options = (*form, *SHORT, "--target-drop", "0.0001%", "--seed", "1", "--json")
    result = d3("calibrate", *QUICK, *options)
    assert result.code == 3
    found = json.loads(result.out)
    assert found["schedule"] is None and found["stored"] is None and found["unseen"] is None
    assert "nothing was stored" in result.err
    assert not file_of("demo").exists()
    nearest = found["nearest"]
    assert nearest["byte_ratio_net"] >= 1 / 0.98 and nearest["drop"] > 0.000001
    command = f"d3 calibrate demo {' '.join(form)} --target-drop"
    command += f" {nearest['accepting_target']:.0%}"
    assert command in result.err


def test_a_report_without_a_schedule_says_what_else_can_be_done(d3: D3) -> None:
    result = d3("calibrate", *QUICK, "--target-drop", "0.0001%")
    rows = dict(line.split("\t", 1) for line in result.out.splitlines() if "\t" in line)
    assert "net of repair (whole layers: alpha" in rows["smallest drop"]
    assert "d3 calibrate demo --dtype float32" in rows["to allow it"]
    assert ("without decay" in rows) == bool(alternatives(load_model(dtype="float32")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose linears fit the kernels for 8 and 4 bits."""
    return write_planted(tmp_path_factory.mktemp("wide") / "model", width=128)


def test_the_form_that_is_chosen_is_the_one_that_runs(d3: D3, wide: Path, text: Path) -> None:
    bfloat16 = ("--dtype", "bfloat16")  # auto depends on the processor
    made = d3("calibrate", wide, *QUICK[:-2], *bfloat16, "--data", text, "--json")
    assert made.code == 0, made
    found = json.loads(made.out)
    forms = {form["quantization"]: form for form in found["forms"]}
    assert forms.keys() == {None, "int8", "nested", "int4"}
    assert forms[None]["drop"] == 0 and forms[None]["byte_ratio"] == 1
    assert forms["int4"]["byte_ratio"] > forms["int8"]["byte_ratio"] > 1.5
    chosen = found["quantization"]
    assert chosen is not None  # bytes decide here, and the target is wide
    assert found["unseen"]["drop_interval"][1] <= 0.05
    assert found["rivals"]["without decay"]["speed"] <= found["unseen"]["speed"]
    short = ("--max-tokens", "3", "--json", *bfloat16)
    ran = d3("generate", wide, "Hello", *short)
    assert f"model: {wide}, in {chosen} as calibrated" in ran.err
    assert json.loads(ran.out)["schedule"] == found["schedule"]
    plain = d3("generate", wide, "Hello", *short, "--quantization", "none")
    assert "as calibrated" not in plain.err
    assert (
        f"it was made in bfloat16 with {chosen} weights, and the model now runs in bfloat16"
        in plain.err
    )
    shown = d3("calibrate", "show", wide)
    assert f"bfloat16 with {chosen} weights" in shown.out and "best without decay" in shown.out


def test_low_planes_asked_for_are_not_searched_where_another_form_is_faster(
    wide: Path, text: Path
) -> None:
    def load(quantization: str | None) -> LoadedModel:
        return load_model(wide, dtype="bfloat16", device="cpu", quantization=quantization)

    def costs(model: LoadedModel, document: Document) -> StepCosts:
        found = by_bytes(model, document)
        slower = 4 if model.weight_bytes.is_nested else 1
        return replace(found, seconds=slower * found.seconds)

    forms = load_forms(load)
    documents = encode_samples(forms.model, read_samples(text))
    settings = CalibrationSettings(0.5, units="plane", order="influence", reply_tokens=64)
    calibrator = Calibrator(forms, documents, settings, costs=costs)
    for _ in calibrator:
        pass
    outcome = calibrator.outcome
    assert outcome.chosen.candidate.quantization == "int4"
    assert not any(form.searched for form in outcome.forms)
    assert outcome.no_verdict == "schedules were not searched in the form that was chosen"


def test_with_a_form_asked_for_no_other_is_tried(d3: D3, wide: Path, text: Path) -> None:
    made = d3("calibrate", wide, *QUICK[:-2], "--data", text, "--quantization", "int8", "--json")
    found = json.loads(made.out)
    assert found["forms"] == [] and found["against"] == "bfloat16 int8"
    assert found["quantization"] == "int8" and found["why_not_as_stored"] is None
    assert "now uses it with --quantization int8" in made.err
    ran = d3("generate", wide, "Hello", "--max-tokens", "3", "--json", "--quantization", "int8")
    assert json.loads(ran.out)["schedule"] == found["schedule"]


def test_where_nested_weights_replace_those_as_stored_the_report_says_so(
    d3: D3, wide: Path, text: Path
) -> None:
    def too_large(quantization: str | None) -> LoadedModel:
        if quantization is None:
            raise NotEnoughMemoryError("it needs 9 GB, but only 8 GB are free here")
        return load_model(wide, dtype="bfloat16", device="cpu", quantization=quantization)

    forms = load_forms(too_large)
    model = forms.model
    assert forms.reference == model.origin.key.quantization == "nested"
    documents = encode_samples(model, read_samples(text))
    settings = CalibrationSettings(0.2, units="plane", order="influence", reply_tokens=64)
    calibrator = Calibrator(forms, documents, settings, costs=by_bytes)
    del model  # the forms take turns
    for _ in calibrator:
        pass
    outcome = calibrator.outcome
    found = as_json(outcome, settings, None)
    assert found["against"] == "bfloat16 nested"
    assert found["why_not_as_stored"] == "it needs 9 GB, but only 8 GB are free here"
    tried = {form["quantization"]: form for form in found["forms"]}
    assert tried.keys() == {"nested", "int8", "int4"}
    assert tried["nested"]["drop"] == 0 and tried["nested"]["byte_ratio"] == 1
    assert {one["quantization"] for one in found["frontier"]} <= tried.keys()
    rows = list(report_rows(outcome, settings, ""))
    assert ("compared with", "full depth in bfloat16 with nested weights") in rows
    assert any("what nesting costs is outside the target" in text for _, text in rows)
    key = forms.key(found["quantization"])
    save(key, make_record(outcome, settings, "mine", documents), chosen=True)
    assert "outside: as stored, it needs 9 GB" in d3("calibrate", "show", wide).out
    ran = d3("generate", wide, "Hello", "--max-tokens", "3", "--json")
    assert f"in {found['quantization']} as calibrated" in ran.err
    assert json.loads(ran.out)["schedule"] == found["schedule"]


def test_your_own_plain_text_is_used(d3: D3, planted: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"Once {n} foxes lived near the river bank. " for n in range(800)))
    result = d3("calibrate", planted, *QUICK, *SHORT, "--data", path)
    assert result.code == 0, result
    assert "on unseen text" in result.out
    stored = json.loads(file_of(str(planted)).read_text())
    assert stored["entries"][0]["settings"]["data"] == str(path)


def test_self_replies_are_scored_and_csv_lists_what_was_tried(
    d3: D3, planted: Path, text: Path
) -> None:
    own = ("--self-replies", "--reply-tokens", "34")
    result = d3("calibrate", planted, *QUICK, "--data", text, *own, "-o", "csv")
    assert result.code == 0, result
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert len(rows) > 5
    assert sum(row["chosen"] == "1" for row in rows) == 1
    assert all(0.5 < float(row["byte_ratio_net"]) < 3 for row in rows)
    assert "text: 32 documents, 1,088 response tokens" in result.err  # the model never ends one
    stored = json.loads(file_of(str(planted)).read_text())
    assert stored["entries"][0]["settings"]["data"] == str(text)  # its prompts


def test_replies_are_judged_against_full_depths_own(report: tuple[dict, Path]) -> None:
    judged = report[0]["replies"]
    assert judged["full depth"]["rise"] is None
    assert judged["full depth"]["perplexity"] > 1
    assert judged["chosen"]["rise"]["drop"] == pytest.approx(
        judged["chosen"]["perplexity"] / judged["full depth"]["perplexity"] - 1
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_search_stores_nothing_and_says_so(
    d3: D3, planted: Path, text: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    search = Search.__iter__

    def interrupted(self: Search) -> Iterator[object]:
        progress = search(self)
        yield next(progress)
        os.kill(os.getpid(), number)
        yield from progress

    monkeypatch.setattr(Search, "__iter__", interrupted)
    result = d3("calibrate", planted, *QUICK, "--data", text)
    assert (result.code, result.out) == (128 + number, "")
    assert "interrupted: nothing was stored" in result.err
    assert "Traceback" not in result.err
    assert not file_of(str(planted)).exists()


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "d3cli", "calibrate", *QUICK, *SHORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "D3_HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    while "this takes up to" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted: nothing was stored" in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.json"))


def test_a_result_that_cannot_be_stored_is_still_shown(
    d3: D3, planted: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise StoreError("no space left", "free some")

    monkeypatch.setattr("d3cli.cli.calibrate.run.save", full_disk)
    result = d3("calibrate", planted, *QUICK, "--data", text)
    assert result.code == 1
    assert "on unseen text" in result.out
    assert "error: no space left" in result.err


@pytest.fixture
def _passes_follow_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d3cli.calibrate.draft_clock.measure_costs", by_bytes)
    monkeypatch.setattr(DraftClock, "verifications", lambda _: [1.05] * 15)
    monkeypatch.setattr(DraftClock, "drafted", lambda _, dropped: 0.4)


# As little text as there may be, in replies of a few tokens.
QUICK_DRAFTS = ("--for", "lossless", "--documents", "32", "--reply-tokens", "6")


@pytest.mark.usefixtures("_passes_follow_the_bytes")
def test_what_drafts_best_is_stored_shown_and_used(d3: D3) -> None:
    run = d3("calibrate", "demo", *QUICK_DRAFTS, "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    assert found.keys() == {
        *("schema", "for", "schedule", "stored", "confidence", "unseen", "tried", "verification"),
        *("step_seconds", "settings", "seconds"),
    }
    assert found["unseen"]["gain"] >= found["unseen"]["gain_low"] > 1
    assert "--lossless now drafts by it" in run.err
    [shown] = json.loads(d3("calibrate", "show", "demo", "--json").out)["calibrations"]
    assert (shown["for"], shown["problem"]) == ("lossless", None)
    assert shown["schedule"]["skip_order"] == found["schedule"]["skip_order"]
    run = d3("generate", "demo", "--lossless", "depth", "--max-tokens", "4", "Hello", "--json")
    reply = json.loads(run.out)
    assert reply["schedule"]["source"] == "off"
    assert reply["lossless"]["schedule"]["source"] == "calibration"
    assert reply["lossless"]["schedule"]["skip_order"] == found["schedule"]["skip_order"]


@pytest.mark.usefixtures("_passes_follow_the_bytes")
def test_where_no_draft_pays_that_is_stored_and_the_exit_code_is_3(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DraftClock, "verifications", lambda _: [9.0] * 15)
    run = d3("calibrate", "demo", *QUICK_DRAFTS, "-o", "csv")
    assert run.code == 3
    assert "no draft of this model at less depth certainly pays" in run.err
    rows = list(csv.DictReader(io.StringIO(run.out)))
    assert sum(int(row["chosen"]) for row in rows) == 1
    assert {row["length"] for row in rows} == {"0"}
    reply = json.loads(d3("generate", "demo", "--lossless", "--json", "Hello").out)
    assert reply["lossless"]["schedule"] is None
    assert "do not pay" in d3("calibrate", "show", "demo").out


def test_drafts_have_no_target(d3: D3) -> None:
    run = d3("calibrate", "demo", "--for", "lossless", "--target-drop", "2%")
    assert run.code == 2
    assert "--target-drop has no effect on --for lossless" in run.err
