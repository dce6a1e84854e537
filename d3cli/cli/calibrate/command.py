"""``d3 calibrate``: the fastest depth schedule within a quality target, tested and stored."""

from dataclasses import fields

from d3cli.base.errors import UsageError
from d3cli.base.settings import default_model
from d3cli.cli.calibrate.drafts import run_draft_calibration
from d3cli.cli.calibrate.options import (
    CalibrateSettings,
    Format,
    Purpose,
    RemoveSettings,
    ScoreSettings,
    ShowSettings,
)
from d3cli.cli.calibrate.run import run_calibration
from d3cli.cli.calibrate.score import run_score
from d3cli.cli.calibrate.stored import remove_stored, show_stored
from d3cli.cli.command_line import command, command_group
from d3cli.cli.output import Output

calibrate_app = command_group()


@calibrate_app.callback()
@command(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> int:
    """Find the fastest depth schedule within a quality target, and store it.

    One half of the text is searched; the other half tests what was found. From then on `--alpha
    auto`, the default everywhere, uses the stored schedule for this model.

    Examples:
    - `d3 calibrate`

    - `d3 calibrate qwen-3-4b --target-drop 2% --max-time 30m`

    - `d3 calibrate llama-3-8b --quantization bnb-4bit --data notes.txt`

    - `d3 calibrate qwen-3-4b --for lossless`
    """
    output = Output()
    form = _form(settings.form, settings.as_json)
    if settings.show and settings.remove:
        raise UsageError("--show and --remove exclude each other", "use only one of them")
    if settings.show:
        show_stored(output, settings.model, form)
    elif settings.remove:
        for name in settings.typed.keys() - {each.name for each in fields(RemoveSettings)}:
            if name != "remove":
                raise UsageError(
                    f"{settings.typed[name]} has no effect on --remove", "leave it out"
                )
        remove_stored(output, _named(settings.model))
    elif settings.search.compare_policies and form is Format.csv:
        raise UsageError(
            "-o csv has no columns for --compare-policies", "use -o json, or leave one out"
        )
    elif settings.search.purpose is Purpose.lossless:
        run_draft_calibration(output, _named(settings.model), settings, form)
    else:
        run_calibration(output, _named(settings.model), settings, form)
    return 0


@calibrate_app.command("score")
@command(ScoreSettings)
def score(settings: ScoreSettings) -> int:
    """Count right answers at full depth and at a schedule. Searches and stores nothing.

    The schedule is the stored one (`--alpha auto`), or what the depth options say. The difference
    is tested; a few dozen questions show only large ones.

    Examples:
    - `d3 calibrate score qwen-3-4b --task questions.jsonl`

    - `d3 calibrate score qwen-3-4b --task questions.jsonl --alpha 0.99 --start 32`
    """
    run_score(Output(), _named(settings.model), settings, _form(settings.form, settings.as_json))
    return 0


@calibrate_app.command("show")
@command(ShowSettings)
def show(settings: ShowSettings) -> int:
    """Show what is stored for MODEL, or for all models."""
    show_stored(Output(), settings.model, _form(settings.form, settings.as_json))
    return 0


@calibrate_app.command("remove")
@command(RemoveSettings)
def remove(settings: RemoveSettings) -> int:
    """Remove what is stored for MODEL, or for the default model."""
    remove_stored(Output(), _named(settings.model))
    return 0


def _form(form: Format, as_json: bool) -> Format:
    if as_json and form is Format.csv:
        raise UsageError("--json and -o csv exclude each other", "use only one of them")
    return Format.json if as_json else form


def _named(model: str | None) -> str:
    return default_model() if model is None else model
