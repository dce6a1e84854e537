"""Model arguments: types and names are checked, and the model is loaded as `d3 generate` does."""

from typing import Any

import pytest

from d3cli.base.errors import D3Error, UsageError
from d3cli.depth import calibration_store
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.evals.likelihoods import log_likelihoods
from d3cli.evals.model_args import EvalSettings, load_evaluated
from d3cli.files.safetensors import describe_directory
from d3cli.scoring.documents import Document
from tests.conftest import BUILTIN_PATH
from tests.copies import key_of
from tests.model.test_placed_load import too_little_for
from tests.records import FOUND


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no model is named"),
        ({"pretrained": ""}, "no model is named"),
        ({"pretrained": "demo", "alhpa": 0.9}, 'no model argument "alhpa"'),
        ({"pretrained": "demo", "alpha": "low"}, "alpha is 'low'"),
        ({"pretrained": "demo", "start": "20%"}, "start is '20%'"),
        ({"pretrained": "demo", "start": -1}, "start is -1"),
        ({"pretrained": "demo", "core_first": 1.5}, "core_first is 1.5"),
        ({"pretrained": "demo", "units": "heads"}, "units is 'heads'"),
        ({"pretrained": "demo", "dtype": "float8"}, "dtype is 'float8'"),
        ({"pretrained": "demo", "quantization": "int3"}, "quantization is 'int3'"),
        ({"pretrained": "demo", "think": "maybe"}, "think is 'maybe'"),
        ({"pretrained": "demo", "batch_size": "many"}, "batch_size is 'many'"),
        ({"pretrained": "demo", "batch_size": "0"}, "batch_size is '0': expected `int` >= 1"),
        ({"pretrained": "demo", "offline": "yes"}, "offline is 'yes'"),
        ({"pretrained": "demo", "max_memory": 0}, 'max_memory has the part "0"'),
        ({"pretrained": "demo", "max_memory": "cpu=1GB;cpu=2GB"}, 'has the part "cpu=2GB"'),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        EvalSettings.read(given)
    assert message in caught.value.message


def test_a_typing_error_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        EvalSettings.read({"pretrained": "demo", "alhpa": 0.9})
    assert caught.value.hint == "did you mean alpha?"


def test_digits_are_a_revision_or_a_model_too() -> None:
    settings = EvalSettings.read({"pretrained": 7, "revision": 2024, "alpha": 1, "start": None})
    assert (settings.pretrained, settings.revision, settings.alpha) == ("7", "2024", 1.0)
    assert settings.start is None


@pytest.mark.parametrize("given", ["4", 4])
def test_the_harness_leaves_its_batch_size_a_text(given: Any) -> None:
    assert EvalSettings.read({"pretrained": "demo", "batch_size": given}).batch_size == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"start": 100_000}, "beyond the model's context"),
        ({"device": "tpu"}, "tpu"),
        ({"pretrained": "no-such-model"}, "no-such-model"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(D3Error, match=message):
        load_evaluated(EvalSettings.read({"pretrained": "demo", "offline": True, **given}))


@pytest.mark.parametrize("between", [";", ","])  # the harness splits arguments at commas
def test_layers_beyond_max_memory_lie_in_the_next_place(between: str) -> None:
    given: dict[str, Any] = {"pretrained": "demo", "dtype": "float32", "threads": 1}
    whole = load_evaluated(EvalSettings.read(given | {"alpha": "off", "device": "cpu"}))
    assert whole.model.placement is None
    description = describe_directory("demo", BUILTIN_PATH)
    limit = too_little_for(description)["cpu"]
    limits = f"cpu={limit}B{between}disk=10GB"
    found = load_evaluated(EvalSettings.read(given | {"alpha": "off", "max_memory": limits}))
    assert found.model.placement is not None
    assert found.model.placement.layers_in("disk")
    assert any("placed on disk" in str(note) for note in found.notes)
    document = Document([5, 17, 200, 31, 7, 90], [44, 12, 101])
    one, other = (
        next(log_likelihoods(each.model, [document], each.schedule, 1))[0].log_prob
        for each in (whole, found)
    )
    assert other == pytest.approx(one, abs=1e-3)


def test_auto_takes_the_stored_schedule() -> None:
    given = {"pretrained": "demo", "dtype": "float32", "device": "cpu", "threads": 1}
    shipped = load_evaluated(EvalSettings.read(given))
    assert shipped.source is Source.SHIPPED
    assert shipped.schedule == shipped.model.origin.schedule
    changed = load_evaluated(EvalSettings.read(given | {"alpha": 0.9, "start": 5}))
    assert (changed.schedule.alpha, changed.schedule.start) == (0.9, 5)
    off = load_evaluated(EvalSettings.read(given | {"alpha": "off"}))
    assert off.source is Source.OFF and not off.schedule.units


def test_the_calibrated_form_is_loaded() -> None:
    """What `d3 calibrate` chose counts here as it does for `d3 generate`."""
    path = str(BUILTIN_PATH)
    calibration_store.save(key_of(BUILTIN_PATH, "bfloat16", "int8"), FOUND, chosen=True)
    found = load_evaluated(EvalSettings.read({"pretrained": path, "device": "cpu", "threads": 1}))
    assert found.model.origin.quantization == "int8"
    assert found.source is Source.CALIBRATION
    given = {"pretrained": path, "quantization": "none", "dtype": "float32", "device": "cpu"}
    assert load_evaluated(EvalSettings.read(given)).model.origin.quantization is None


def test_without_a_calibration_the_prompt_decides_the_order() -> None:
    given = {"pretrained": str(BUILTIN_PATH), "alpha": 0.9, "quantization": "none"}
    found = load_evaluated(EvalSettings.read(given | {"device": "cpu", "threads": 1}))
    assert isinstance(found.schedule, PromptSchedule) and found.source is Source.PROMPT
    assert any("ordered by the prompt" in str(note) for note in found.notes)
